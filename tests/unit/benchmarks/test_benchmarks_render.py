"""The benchmark of rendering runs, and its workload is what it says."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from support.meshes import REPOSITORY


def figures(*arguments: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.render", "--services", "8", "--replicas", "3", "--output", "json"]
    done = subprocess.run([*command, *arguments], cwd=REPOSITORY, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout))


@pytest.mark.timeout(120)
def test_all_parts_are_measured() -> None:
    found = figures()
    assert {"cold_s", "cold_cpu_s", "one_change_s", "peak_mib", "load_s", "varied_cold_s"} <= found.keys()
    assert {"whole_cold_s", "whole_one_change_s", "whole_publish_s", "whole_rotate_s"} <= found.keys()
    assert found["resources"] == 6 * 8
    assert 0 < found["one_change_resources"] <= 5, "its own listener; its callers' routes, and what hangs on them"
    assert found["whole_sidecars"] == 8 * 3
    assert found["whole_rotate_files"] == 2 * 3 * 3, "an endpoint set and a validation twin in each caller's sidecar"

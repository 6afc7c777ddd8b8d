"""The commands of the carrier's README, in a copy of its repository."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.foreign import FOREIGN, missing_toolchain
from support.mesh import free_port

pytestmark = [pytest.mark.mesh, pytest.mark.timeout(240)]

BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
GATEWAY, CUSTOMS = "127.0.0.1:8470", "127.0.0.1:9471"
SECONDS_MAX = 200


def copied(folder: Path) -> str:
    """The carrier in `folder`/tests/foreign on free ports; the script that its README is."""
    carrier = folder / "tests" / "foreign"
    shutil.copytree(FOREIGN, carrier, ignore=shutil.ignore_patterns("node_modules", "__pycache__", ".*"))
    (folder / ".venv").symlink_to(Path(sys.executable).parent.parent)
    gateway, customs = (f"127.0.0.1:{free_port()}" for _ in range(2))
    manifest = carrier / "mesh.yaml"
    manifest.write_text(manifest.read_text().replace(GATEWAY, gateway).replace(CUSTOMS, customs))
    return "\n".join(BLOCK.findall((carrier / "README.md").read_text())).replace(GATEWAY, gateway)


def test_every_command_works(tmp_path: Path) -> None:
    if missing_toolchain() is not None:
        pytest.skip(str(missing_toolchain()))
    script = copied(tmp_path)
    try:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS_MAX, check=False,
        )  # fmt: skip
    finally:
        down = [sys.executable, "-m", "generator", "down"]
        subprocess.run(down, cwd=tmp_path / "tests" / "foreign", capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "REASON_REFUSED" in done.stdout
    notes = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{") and "second-chance" in line]
    events = [note["event"] for note in notes if note["service"] == "sorting"]
    assert sorted(events) == ["done", "seen", "seen"]
    assert done.stdout.rstrip().endswith("the mesh is down")

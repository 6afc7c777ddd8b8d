"""docs/five-minutes.md: its files and commands, in their order, from the installed wheel, far from the checkout."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import yaml

from benchmarks.walk import PAGE, script, steps
from generator.catalog.methods import services_of
from generator.catalog.protoc import compile_sources, find_sources
from generator.manifest import load_manifest
from support.mesh import free_port
from support.wheel import Installed

pytestmark = [pytest.mark.mesh, pytest.mark.timeout(300)]

SECONDS_MAX = 200
CALLS_MIN = 200
"""In the seconds that the clients call; a hundred a second are answered on a busy machine, too."""
JAVASCRIPT = ("server.js", "npm install")


@pytest.fixture(scope="module")
def folder(alone: Installed) -> Path:
    """Where the page's first commands made the environment."""
    return alone.python.parent.parent.parent


@pytest.fixture(scope="module")
def walked(alone: Installed, folder: Path) -> str:
    """Everything after the installation; what it prints."""
    if shutil.which("grpcurl", path=alone.path) is None:
        pytest.skip("grpcurl is not installed (go install github.com/fullstorydev/grpcurl/cmd/grpcurl@latest)")
    parts = [part for part in steps()[1:] if has_node(alone) or not any(word in " ".join(part) for word in JAVASCRIPT)]
    text = script(parts, gateway=f"127.0.0.1:{free_port()}", tcp=f"127.0.0.1:{free_port()}")
    try:
        done = alone.run("bash", "-eu", "-c", text, folder=folder, seconds=SECONDS_MAX)
    finally:
        alone.run("nipmesh", "down", folder=folder)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "certificate required" in done.stderr, done.stderr
    return done.stdout


def has_node(alone: Installed) -> bool:
    return all(shutil.which(program, path=alone.path) for program in ("node", "npm"))


def test_nobody_fails_when_replicas_and_sidecars_die(walked: str) -> None:
    counts = [(int(answered), int(failed)) for answered, failed in re.findall(r"(\d+) answered, (\d+) failed", walked)]
    assert counts, walked
    assert all(failed == 0 and answered > CALLS_MIN for answered, failed in counts), walked


def test_both_were_killed_and_run_again(walked: str) -> None:
    assert re.search(r"│ routeguide-0 │ ready │ .*│ ready │ .*│ in +│ 2 +│", walked), walked


def test_another_language_takes_its_place_while_a_client_calls(walked: str, alone: Installed) -> None:
    if not has_node(alone):
        pytest.skip("there is no Node.js")
    assert len(re.findall(r"answered, 0 failed", walked)) == 2


def test_it_shows_what_it_says(walked: str) -> None:
    assert walked.count('"name": "Tower Bridge"') == 2
    assert walked.count('"name":') == 4
    assert walked.count("refused\n") == 2
    assert "URI:spiffe://guide.mesh/service/routeguide" in walked
    assert "idempotency_level is NO_SIDE_EFFECTS: it may run twice" in walked
    assert walked.rstrip().endswith("the mesh is down")


def test_the_manifest_shown_is_what_init_wrote(walked: str, folder: Path) -> None:
    shown = re.search(r"^```yaml\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert shown is not None
    written = yaml.safe_load((folder / "mesh.yaml").read_text())
    expected = yaml.safe_load(shown[1])
    expected["gateway"]["listen"] = written["gateway"]["listen"]
    if "listen" in written["services"]["routeguide"]:  # the page went on to JavaScript
        written["services"]["routeguide"] |= {"run": "python server.py"}
        del written["services"]["routeguide"]["listen"]
    assert written == expected
    assert load_manifest(folder / "mesh.yaml").manifest is not None


def test_the_api_is_the_tutorials(tmp_path: Path) -> None:
    """gRPC's route_guide.proto, as its documentation describes it: names, numbers, and kinds of calls."""
    (text,) = (body for name, body in steps() if name.endswith(".proto"))
    (tmp_path / "route_guide.proto").write_text(text)
    services = services_of(compile_sources((tmp_path,), find_sources(tmp_path)))
    kinds = {method.path: method.streaming.value for method in services["routeguide.RouteGuide"]}
    assert sorted(kinds) == [
        f"/routeguide.RouteGuide/{name}" for name in ("GetFeature", "ListFeatures", "RecordRoute", "RouteChat")
    ]
    assert len(set(kinds.values())) == len(kinds), "one of each kind"

"""What each manifest of `in` becomes, down to the last field, in `out`."""

from __future__ import annotations

from pathlib import Path

import pytest

from generator.analysis import check_manifest
from generator.outputs.compose import render_compose
from generator.outputs.compose.emit import emit
from generator.outputs.files import default_placement
from generator.render import render
from generator.resources import WorkloadResources

FOLDER = Path(__file__).parent
CASES = sorted(path.stem for path in (FOLDER / "in").glob("*.yaml"))
KINDS = ("listeners", "clusters", "routes", "endpoints", "secrets")
HINT = "run `pytest tests/golden --update-golden` and read the difference"


def rendered(case: str) -> dict[str, str]:
    """Files of one case: one per workload and kind; replicas differ in addresses only, so the first stands for all."""
    analysis = check_manifest(FOLDER / "in" / f"{case}.yaml")
    assert analysis.mesh is not None, [str(finding) for finding in analysis.findings]
    resources = render(analysis.mesh, default_placement(analysis.mesh, Path("/mesh")))
    firsts = [
        workload for workload in resources.workloads if workload.name == "gateway" or workload.name.endswith("-0")
    ]
    files = {name: text for workload in firsts for name, text in of_workload(workload).items()}
    return {**files, "compose.yaml": render_compose(analysis.mesh)}


def of_workload(workload: WorkloadResources) -> dict[str, str]:
    files = {f"{workload.name}.bootstrap.yaml": emit(workload.bootstrap.body)}
    for kind in KINDS:
        bodies = {resource.name: resource.body for resource in getattr(workload, kind)}
        if bodies:
            files[f"{workload.name}.{kind}.yaml"] = emit(bodies)
    return files


@pytest.mark.parametrize("case", CASES)
def test_rendered_as_before(case: str, update_golden: bool) -> None:
    folder, files = FOLDER / "out" / case, rendered(case)
    if update_golden:
        folder.mkdir(parents=True, exist_ok=True)
        for stale in set(folder.iterdir()) - {folder / name for name in files}:
            stale.unlink()
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
    assert sorted(path.name for path in folder.iterdir()) == sorted(files), HINT
    for name, text in files.items():
        assert (folder / name).read_text(encoding="utf-8") == text, f"{case}/{name}: {HINT}"


def test_no_golden_folder_is_left_over() -> None:
    assert sorted(path.name for path in (FOLDER / "out").iterdir()) == CASES, HINT

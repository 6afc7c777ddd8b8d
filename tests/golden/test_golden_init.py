"""The manifest that `nipmesh init` writes for each folder of `scaffold`, and what `nipmesh check` says of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from generator.analysis import check_manifest
from generator.manifest import Severity
from generator.scaffold import manifest_text, plan_of

FOLDER = Path(__file__).parent / "scaffold"
LAYOUTS = sorted(path.name for path in FOLDER.iterdir() if path.is_dir())
UNSAID = {"plain": ["on"], "workspace": ["audit", "ledger"]}
"""Services of which nothing says how they are started; no other layout has any."""
HINT = "run `pytest tests/golden --update-golden` and read the difference"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_written_as_before(layout: str, update_golden: bool) -> None:
    text = manifest_text(plan_of(FOLDER / layout, layout))
    golden = FOLDER / f"{layout}.yaml"
    if update_golden:
        golden.write_text(text, encoding="utf-8")
    assert golden.read_text(encoding="utf-8") == text, HINT


def test_no_golden_manifest_is_left_over() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.yaml")) == LAYOUTS, HINT


@pytest.mark.parametrize("layout", LAYOUTS)
def test_check_takes_it_or_names_what_is_left_to_say(layout: str, tmp_path: Path) -> None:
    folder = tmp_path / layout
    shutil.copytree(FOLDER / layout, folder)
    manifest = folder / "mesh.yaml"
    manifest.write_text((FOLDER / f"{layout}.yaml").read_text())
    analysis = check_manifest(manifest)
    errors = [finding for finding in analysis.findings if finding.severity is Severity.ERROR]
    unsaid = UNSAID.get(layout, [])
    assert [(finding.code, finding.message) for finding in errors] == [
        ("NM110", f"nobody has said how `{name}` is started") for name in unsaid
    ]
    assert all("run: COMMAND-THAT-STARTS-IT" in finding.source_line for finding in errors)
    others = {finding.code for finding in analysis.findings} - {"NM110"}
    assert others <= {"NM406", "NM313"}, "an open gateway, and programs with a TCP port: what it is said to be"
    manifest.write_text(manifest.read_text().replace("COMMAND-THAT-STARTS-IT", "./it"))
    again = check_manifest(manifest)
    assert again.mesh is not None, [str(finding) for finding in again.findings]

"""Mutated manifests go all the way: a mesh, or findings with a place, and never an exception."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from generator.analysis import check_manifest

ROOT = Path(__file__).resolve().parents[3]
MANIFEST = (ROOT / "mesh.yaml").read_text(encoding="utf-8").replace("[protos]", f"['{ROOT / 'protos'}']")
WORDS = ["nip", "invoice", "payment", "gateway", "operator", "true", "2", "5m", "[::]:1", "*", "A/B", "run"]


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """The manifest with words swapped, lines moved, dropped or doubled: still YAML, mostly."""
    lines = MANIFEST.splitlines()
    for _ in range(draw(st.integers(min_value=1, max_value=5))):
        index = draw(st.integers(min_value=0, max_value=len(lines) - 1))
        kind = draw(st.sampled_from(["drop", "double", "swap", "word", "indent"]))
        if kind == "drop" and len(lines) > 1:
            del lines[index]
        elif kind == "double":
            lines.insert(index, lines[index])
        elif kind == "swap":
            other = draw(st.integers(min_value=0, max_value=len(lines) - 1))
            lines[index], lines[other] = lines[other], lines[index]
        elif kind == "indent":
            lines[index] = "  " + lines[index]
        else:
            old = draw(st.sampled_from(lines[index].replace("[", " ").replace(":", " ").split() or [""]))
            lines[index] = lines[index].replace(old, draw(st.sampled_from(WORDS)), 1)
    return "\n".join(lines) + "\n"


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=100, deadline=None)
@given(mutated())
def test_mutated_manifests_give_a_mesh_or_findings(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mesh.yaml"
        path.write_text(text, encoding="utf-8")
        analysis = check_manifest(path)
    assert analysis.mesh is not None or analysis.findings
    for finding in analysis.findings:
        assert finding.line >= 1
        assert finding.column >= 1
        assert finding.fix
        assert str(finding)

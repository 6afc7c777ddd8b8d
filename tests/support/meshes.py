"""The repository's mesh as the generator sees it, analysed once per test session."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from generator.analysis import check_manifest
from generator.model import Mesh, Placement
from generator.outputs.files import default_placement

REPOSITORY = Path(__file__).resolve().parents[2]
DIRECTORY = Path("/mesh")


@cache
def repository_mesh() -> Mesh:
    analysis = check_manifest(REPOSITORY / "mesh.yaml")
    assert analysis.mesh is not None, [str(finding) for finding in analysis.findings]
    return analysis.mesh


@cache
def repository_placement() -> Placement:
    return default_placement(repository_mesh(), DIRECTORY)

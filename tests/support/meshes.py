"""The repository's mesh as the generator sees it, analysed once per test session; and meshes with other policies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

from generator.analysis import check_manifest
from generator.model import Edge, Mesh, Placement, TrafficPolicy
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


def retuned(mesh: Mesh, change: Callable[[TrafficPolicy], TrafficPolicy]) -> Mesh:
    """The same mesh, whose callers apply a changed policy towards every service."""

    def edge(each: Edge) -> Edge:
        destinations = tuple(replace(one, traffic=change(one.traffic)) for one in each.destinations)
        return replace(each, destinations=destinations)

    services = tuple(
        replace(
            service,
            traffic=change(service.traffic),
            calls=tuple(edge(each) for each in service.calls),
            callers=tuple(edge(each) for each in service.callers),
        )
        for service in mesh.services
    )
    gateway = mesh.gateway
    if gateway is not None:
        gateway = replace(gateway, exposes=tuple(edge(each) for each in gateway.exposes))
    return replace(mesh, services=services, gateway=gateway)

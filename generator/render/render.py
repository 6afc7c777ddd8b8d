"""The one way from a mesh to its resources."""

from __future__ import annotations

from collections.abc import Iterator

from generator.model import Mesh, Placement
from generator.render.gateway import gateway_workload
from generator.render.sidecar import sidecar
from generator.resources import ResourceSet, WorkloadResources, check_references


class PlacementError(Exception):
    """The placement does not fit the mesh."""


def render(mesh: Mesh, placement: Placement) -> ResourceSet:
    """Give every workload of the placement its resources, all checked.

    Raises PlacementError, and ResourceError when a template or a value makes something that Envoy would refuse.
    """
    workloads = sorted(_workloads(mesh, placement), key=lambda workload: workload.name)
    for workload in workloads:
        check_references(workload)
    return ResourceSet(workloads=tuple(workloads))


def _workloads(mesh: Mesh, placement: Placement) -> Iterator[WorkloadResources]:
    known = {service.name for service in mesh.services}
    for replica in placement.replicas:
        if replica.service not in known:
            raise PlacementError(f"{replica.name} is placed, but the mesh has no service {replica.service}")
        yield sidecar(mesh, placement, replica)
    if mesh.gateway is None:
        return
    if placement.gateway is None:
        raise PlacementError("the mesh has a gateway, but it is not placed")
    if mesh.gateway.authentication is not None and placement.jwks is None:
        raise PlacementError("the gateway verifies tokens, but the placement has no key set")
    yield gateway_workload(mesh, placement, mesh.gateway, placement.gateway)

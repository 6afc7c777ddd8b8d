"""All processes of a mesh, in an order in which they may start."""

from __future__ import annotations

from collections.abc import Iterator

from generator.model import Mesh
from generator.outputs.workloads.applications import application
from generator.outputs.workloads.description import Process
from generator.outputs.workloads.helpers import event_server, gateway, has_event_server, introspection, sidecar


def describe(mesh: Mesh) -> tuple[Process, ...]:
    """Describe every process: that of events, each replica's two, and the edge's two."""
    return tuple(_processes(mesh))


def _processes(mesh: Mesh) -> Iterator[Process]:
    if has_event_server(mesh):
        yield event_server()
    for service in mesh.services:
        for index in range(service.replicas):
            yield sidecar(f"{service.name}-{index}", service.name)
            yield application(mesh, service, index)
    if mesh.gateway is not None:
        yield introspection()
        yield gateway(mesh)

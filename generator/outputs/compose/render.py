"""The whole Compose file: two containers for each replica, two for the gateway, servers of events and databases, and the agent for all."""

from __future__ import annotations

from typing import Any

from generator.model import Mesh
from generator.model.events import EVENTS
from generator.outputs.compose import containers
from generator.outputs.compose.containers import Beside
from generator.outputs.compose.emit import emit
from generator.outputs.compose.postgresql import postgresql
from generator.outputs.workloads import describe, has_event_server

COMPOSE_FILE = "compose.yaml"
HEADER = """\
# Rendered from the manifest by `nipmesh render --target compose`; do not edit. docs/containers.md says how it is run.
"""


def render_compose(mesh: Mesh, *, folder: str = ".", manifest: str = "mesh.yaml") -> str:
    """Write the file; the same mesh always gives the same text.

    `folder`: the manifest's, as seen from where the file will be; `manifest`: its name there.
    """
    services: dict[str, Any] = {containers.AGENT: containers.agent(mesh, Beside(folder=folder, manifest=manifest))}
    if has_event_server(mesh):
        services[EVENTS] = containers.events()
    services |= postgresql(mesh)
    for service in mesh.services:
        for index in range(service.replicas):
            services |= containers.replica(mesh, service, index)
    if mesh.gateway is not None:
        services |= containers.edge(mesh, mesh.gateway)
    document: dict[str, Any] = {"name": mesh.name, "services": services, "networks": _networks(services)}
    document["volumes"] = containers.volumes(mesh)
    files = (containers.secret_files(described) for described in describe(mesh))
    secrets = {name: {"file": file} for found in files for name, file in found.items()}
    if secrets:
        document["secrets"] = secrets
    return HEADER + emit(document)


def _networks(services: dict[str, Any]) -> dict[str, Any]:
    """Those that somebody is in; only one of them leads outside."""
    used = {name for container in services.values() for name in container.get("networks", ())}
    closed = (containers.MESH_NETWORK, EVENTS, containers.DATABASE_NETWORK)
    known = {name: {"internal": True} for name in closed} | {containers.OUTSIDE_NETWORK: {}}
    return {name: network for name, network in known.items() if name in used}

"""What `nipmesh status` shows, as one JSON document."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from generator.model.events import EVENTS
from generator.model.mesh import GATEWAY
from generator.outputs.files.versions import published_versions
from generator.outputs.local.environment import target
from generator.outputs.local.supervisor import Supervisor
from generator.outputs.local.versions import Heard, State, hear_all, state_of, worst
from generator.outputs.local.workload import Stage, Workload
from generator.render.names import XDS_FOLDERS
from generator.resources.resource import version_of

READY = "ready"


async def status_document(supervisor: Supervisor) -> dict[str, Any]:
    """Describe the mesh: services with their replicas, the gateway, and the state of the whole.

    Every Envoy is asked what it runs, all at once; one that does not answer in time is shown without.
    """
    heard = await hear_all(supervisor.admins())
    services: dict[str, Any] = {service.name: {"replicas": []} for service in supervisor.mesh.services}
    for replica in supervisor.board.placement().replicas:
        entry = _replica(supervisor, replica.name) | configuration(supervisor, replica.name, heard)
        services[replica.service]["replicas"].append(entry)
    return {
        "mesh": supervisor.mesh.name,
        "state": _mesh_state(supervisor),
        "pid": os.getpid(),
        "manifest": str(supervisor.setup.manifest),
        "gateway": _gateway(supervisor, heard),
        "services": services,
        "events": await _events(supervisor),
    }


def _mesh_state(supervisor: Supervisor) -> str:
    if supervisor.is_stopping:
        return "stopping"
    return READY if supervisor.is_ready else "not ready"


def _replica(supervisor: Supervisor, name: str) -> dict[str, Any]:
    replica = supervisor.board.replica(name)
    workload = supervisor.runners[name].workload
    return _processes(workload) | {
        "name": name,
        "replica": replica.index,
        "in_rotation": replica.in_rotation,
        "listen": target(replica.app),
        "egress": target(replica.egress),
        "inbound": target(replica.inbound),
        "scrape": target(replica.scrape),
        "admin_socket": str(replica.admin.path),
        "certificate_expiry": _expiry(supervisor, name),
    }


def configuration(supervisor: Supervisor, name: str, heard: Mapping[str, Heard]) -> dict[str, Any]:
    """Give the versions of one sidecar: per kind and resource what was published, what runs, and how they compare."""
    published = published_versions(supervisor.setup.paths.envoy, name)
    now = heard.get(name)
    kinds: dict[str, dict[str, Any]] = {kind: {} for kind in XDS_FOLDERS}
    states: list[State] = []
    for (kind, resource), version in published.items():
        entry = {"published": version, "running": None, "state": None}
        if now is not None:
            states.append(state_of((kind, resource), version, now))
            running = now.subscription((kind, resource)).version
            entry |= {"running": running, "state": states[-1].value}
        kinds[kind][resource or kind] = entry
    return {
        "configuration": {
            "version": version_of(sorted(published.items())),
            "state": None if now is None else worst(states).value,
            **kinds,
        }
    }


def _gateway(supervisor: Supervisor, heard: Mapping[str, Heard]) -> dict[str, Any] | None:
    placement, gateway = supervisor.board.gateway, supervisor.mesh.gateway
    if placement is None or gateway is None:
        return None
    workload = supervisor.runners[GATEWAY].workload
    state = READY if workload.is_ready else "not ready"
    return _processes(workload) | {
        "address": target(placement.listen),
        "url": gateway.public_url,
        "state": state,
        "scrape": target(placement.scrape),
        "admin_socket": str(placement.admin.path),
        "introspection": target(placement.introspection),
        "certificate_expiry": _expiry(supervisor, GATEWAY),
        **configuration(supervisor, GATEWAY, heard),
    }


async def _events(supervisor: Supervisor) -> dict[str, Any] | None:
    """The server of events with its stream and consumers; of a cluster that others run, where it is."""
    events, server = supervisor.mesh.events, supervisor.events
    if events is None:
        return None
    if server is None:
        assert events.cluster is not None
        return {"url": events.cluster.url}
    workload = supervisor.runners[EVENTS].workload
    return {
        "url": server.url,
        "state": READY if workload.is_ready and server.is_open else "not ready",
        "stage": workload.stage.value,
        "pid": workload.app.pid if workload.app.is_alive else None,
        "app": workload.app.phase.value,
        "restarts": workload.app.restarts,
        "certificate_expiry": _expiry(supervisor, EVENTS),
        **await server.describe(),
    }


def _processes(workload: Workload) -> dict[str, Any]:
    """Describe the two processes; of the gateway, `app` is the introspection server."""
    app, sidecar = workload.app, workload.sidecar
    return {
        "stage": workload.stage.value,
        "pid": app.pid if app.is_alive else None,
        "app": app.phase.value,
        "restarts": app.restarts,
        "sidecar_pid": sidecar.pid if sidecar.is_alive else None,
        "sidecar": sidecar.phase.value,
        "sidecar_restarts": sidecar.restarts,
        "crash_looping": workload.is_crash_looping and workload.stage is Stage.RUNNING,
    }


def _expiry(supervisor: Supervisor, workload: str) -> str | None:
    expires = supervisor.certificates.expires(workload)
    return None if expires is None else expires.isoformat(timespec="seconds")

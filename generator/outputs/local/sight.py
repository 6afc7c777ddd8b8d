"""Asks the Envoys of a replica's callers whether their own health checks have found it.

Being in an endpoint file is not yet being used: a caller's sidecar sends nothing to a new replica before its first check.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from generator.introspection.admin import AdminError, get_json
from generator.introspection.health import is_healthy
from generator.model import Mesh, ReplicaPlacement

SEEN_TIMEOUT_S = 10.0
"""For the callers' health checks; they take one interval."""
SEEN_POLL_S = 0.1


async def until_seen(mesh: Mesh, admins: Mapping[str, Path], replicas: Iterable[ReplicaPlacement]) -> bool:
    """Wait until every caller (workload name to admin socket) holds the replicas for healthy; false when it does not."""
    missing = list(replicas)
    for _ in range(int(SEEN_TIMEOUT_S / SEEN_POLL_S)):
        views = {workload: await _healthy_ports(admin) for workload, admin in admins.items()}
        missing = [replica for replica in missing if not _is_seen(mesh, views, replica)]
        if not missing:
            return True
        await asyncio.sleep(SEEN_POLL_S)
    return False


def _is_seen(mesh: Mesh, views: Mapping[str, frozenset[int] | None], replica: ReplicaPlacement) -> bool:
    callers = {
        edge.caller
        for edge in mesh.service(replica.service).callers
        if any(destination.service == replica.service for destination in edge.destinations)
    }
    return all(
        ports is None or replica.inbound.port in ports
        for workload, ports in views.items()
        if _caller(mesh, workload) in callers
    )


def _caller(mesh: Mesh, workload: str) -> str:
    """As whom a workload calls; a replica that is leaving may be of a service that the mesh has no longer."""
    name = workload.rpartition("-")[0]
    roles = (service.role for service in mesh.services if service.name == name)
    return next(roles, workload)


async def _healthy_ports(admin: Path) -> frozenset[int] | None:
    """Give the ports of the hosts that an Envoy holds for healthy; None when it does not answer."""
    try:
        document = await get_json(admin, "/clusters?format=json")
    except (OSError, TimeoutError, AdminError):
        return None
    return frozenset(_ports(document))


def _ports(document: Mapping[str, Any]) -> Iterable[int]:
    for cluster in document.get("cluster_statuses", ()):
        for host in cluster.get("host_statuses", ()):
            if is_healthy(host.get("health_status", {})):
                yield int(host.get("address", {}).get("socket_address", {}).get("port_value", 0))

"""grpc.health.v1 as the gateway sees it: a service is SERVING while the gateway has a healthy host for it.

https://github.com/grpc/grpc/blob/master/doc/health-checking.md: the empty name stands for the server as a whole; Check
of an unknown name is NOT_FOUND, Watch of one starts with SERVICE_UNKNOWN.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from generator.introspection.admin import AdminError, get_json

POLL_INTERVAL_S = 0.5
"""How old an answer may be; one poll costs the gateway well under a millisecond."""
OVERALL = ""
Status: TypeAlias = int
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
FAILURES = (
    "failed_active_health_check",
    "failed_outlier_check",
    "pending_active_hc",
    "excluded_via_immediate_hc_fail",
    "active_hc_timeout",
)
"""Members of a host's `health_status`; any of them takes it out of the gateway's choice."""


def healthy_clusters(document: Mapping[str, Any]) -> frozenset[str]:
    """Names of the clusters with at least one healthy host, from `/clusters?format=json`."""
    return frozenset(
        cluster["name"]
        for cluster in document.get("cluster_statuses", ())
        if any(is_healthy(host.get("health_status", {})) for host in cluster.get("host_statuses", ()))
    )


def is_healthy(status: Mapping[str, Any]) -> bool:
    """Tell whether Envoy would send a request to a host with this `health_status`."""
    return status.get("eds_health_status", "HEALTHY") in {"HEALTHY", "UNKNOWN"} and not any(
        status.get(failure, False) for failure in FAILURES
    )


def statuses(clusters: Mapping[str, str], healthy: frozenset[str]) -> dict[str, Status]:
    """Give each service (name to cluster) its status; the whole is SERVING while every service is."""
    found: dict[str, Status] = {
        name: SERVING if cluster in healthy else NOT_SERVING for name, cluster in clusters.items()
    }
    overall = SERVING if all(status == SERVING for status in found.values()) else NOT_SERVING
    return found | {OVERALL: overall}


class GatewayHealth(health_pb2_grpc.HealthServicer):
    """Answers Check and Watch from the last poll of the gateway's admin socket."""

    def __init__(self, clusters: Mapping[str, str], admin: Path) -> None:
        self._clusters = dict(clusters)
        self._admin = admin
        self._statuses = statuses(clusters, frozenset())
        self._changed = asyncio.Condition()

    def expose(self, clusters: Mapping[str, str]) -> None:
        """From the next poll on, answer for these services (name to cluster)."""
        self._clusters = dict(clusters)

    async def poll(self) -> None:
        """Ask the gateway once and wake the watchers when something changed. One that does not answer serves nothing."""
        try:
            healthy = healthy_clusters(await get_json(self._admin, "/clusters?format=json"))
        except (OSError, TimeoutError, AdminError):
            healthy = frozenset()
        fresh = statuses(self._clusters, healthy)
        if fresh != self._statuses:
            self._statuses = fresh
            async with self._changed:
                self._changed.notify_all()

    async def Check(  # the name that gRPC gives it
        self,
        request: health_pb2.HealthCheckRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> health_pb2.HealthCheckResponse:
        """Answer the present status; NOT_FOUND for a service that the gateway does not expose."""
        status = self._statuses.get(request.service)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "the gateway exposes no such service")
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(  # the name that gRPC gives it
        self,
        request: health_pb2.HealthCheckRequest,
        context: grpc.aio.ServicerContext[Any, Any],  # gRPC passes it
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """Send the present status at once and each change after it."""
        sent: Status | None = None
        while True:
            async with self._changed:
                status = self._statuses.get(request.service, SERVICE_UNKNOWN)
                if status == sent:
                    await self._changed.wait()
                    continue
            sent = status
            yield health_pb2.HealthCheckResponse(status=status)

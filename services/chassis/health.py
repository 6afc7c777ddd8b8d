"""The standard health service (grpc.health.v1): per service name and "" for all. Watches end when the replica drains."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.chassis.draining import Draining

_Response = health_pb2.HealthCheckResponse


class Health(health_pb2_grpc.HealthServicer):
    """Every service of the process has one state: SERVING from the start until the drain, NOT_SERVING from then on."""

    def __init__(self, services: Iterable[str], draining: Draining) -> None:
        """`services`: the names that are known besides ""."""
        self._services = frozenset(services) | {""}
        self._draining = draining

    def _status(self, service: str) -> health_pb2.HealthCheckResponse:
        """The state of one service now."""
        if service not in self._services:
            return _Response(status=_Response.SERVICE_UNKNOWN)
        return _Response(status=_Response.NOT_SERVING if self._draining.is_set() else _Response.SERVING)

    async def Check(  # the name of the rpc
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> health_pb2.HealthCheckResponse:
        """The state; NOT_FOUND for a service that is not ours."""
        status = self._status(request.service)
        if status.status == _Response.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return status

    async def Watch(  # the name of the rpc
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """The state now and at the drain; then the stream ends."""
        yield self._status(request.service)
        if request.service in self._services and not self._draining.is_set():
            await self._draining.wait()
            yield self._status(request.service)
        elif request.service not in self._services:
            await self._draining.wait()  # the specification: an unknown service is watched too, it may come

"""The standard health service (grpc.health.v1): per service name and "" for all. Watches end when the replica drains."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.chassis.draining import Draining

CONDITION_LOOK_S: Final = 1.0
"""How often a watched condition is looked at."""

_Response = health_pb2.HealthCheckResponse


class Health(health_pb2_grpc.HealthServicer):
    """Every service of the process has one state: SERVING from the start until the drain, NOT_SERVING from then on.

    Conditions (the event bus) have names and states of their own: they come and go, and the services serve on.
    """

    def __init__(
        self, services: Iterable[str], draining: Draining, conditions: Mapping[str, Callable[[], bool]] | None = None
    ) -> None:
        """`services`: the names that are known besides ""."""
        self._conditions = conditions or {}
        self._services = frozenset(services) | {""} | self._conditions.keys()
        self._draining = draining

    def _status(self, service: str) -> health_pb2.HealthCheckResponse:
        """The state of one service now."""
        if service not in self._services:
            return _Response(status=_Response.SERVICE_UNKNOWN)
        condition = self._conditions.get(service)
        serving = not self._draining.is_set() and (condition is None or condition())
        return _Response(status=_Response.SERVING if serving else _Response.NOT_SERVING)

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
        """The state now and at the drain, a condition's also whenever it changes; then the stream ends."""
        yield (said := self._status(request.service))
        while request.service in self._conditions and not self._draining.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CONDITION_LOOK_S):
                    await self._draining.wait()
            if self._status(request.service) != said and not self._draining.is_set():
                yield (said := self._status(request.service))
        if request.service in self._conditions:
            yield self._status(request.service)
        elif request.service in self._services and not self._draining.is_set():
            await self._draining.wait()
            yield self._status(request.service)
        elif request.service not in self._services:
            await self._draining.wait()  # the specification: an unknown service is watched too, it may come

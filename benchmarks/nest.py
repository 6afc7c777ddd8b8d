"""`python -m benchmarks.nest`: an application on the services' chassis that makes empty calls through its sidecar."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc.aio
from benchmark.v1 import benchmark_pb2, benchmark_pb2_grpc

from services.chassis import Access, Application, ChassisSettings, ServiceDefinition, run

ACCESS = {"/benchmark.v1.NestService/Nest": Access.PUBLIC}


class NestServicer(benchmark_pb2_grpc.NestServiceServicer):
    """The least that a service which calls others can do."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._echo = benchmark_pb2_grpc.EchoServiceStub(channel)

    async def Nest(
        self, request: benchmark_pb2.NestRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> benchmark_pb2.NestResponse:
        """Call Echo as often as asked, one call after the other."""
        for _ in range(request.calls):
            await self._echo.Echo(benchmark_pb2.EchoRequest())
        return benchmark_pb2.NestResponse()


@asynccontextmanager
async def nest(app: Application[ChassisSettings]) -> AsyncIterator[None]:
    """Serve."""
    descriptor = benchmark_pb2.DESCRIPTOR.services_by_name["NestService"]
    app.add(benchmark_pb2_grpc.add_NestServiceServicer_to_server, NestServicer(app.channel), descriptor)
    yield


if __name__ == "__main__":
    run(ServiceDefinition(settings=ChassisSettings, access=ACCESS, lifespan=nest))

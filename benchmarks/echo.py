"""`python -m benchmarks.echo`: an application on the services' chassis that answers what it was sent."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc.aio
from benchmark.v1 import benchmark_pb2, benchmark_pb2_grpc

from services.chassis import Access, Application, ChassisSettings, ServiceDefinition, run

ACCESS = {"/benchmark.v1.EchoService/Echo": Access.PUBLIC}


class EchoServicer(benchmark_pb2_grpc.EchoServiceServicer):
    """The least that a service can do."""

    async def Echo(
        self, request: benchmark_pb2.EchoRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> benchmark_pb2.EchoResponse:
        """Send the request back."""
        return benchmark_pb2.EchoResponse(payload=request.payload)


@asynccontextmanager
async def echo(app: Application[ChassisSettings]) -> AsyncIterator[None]:
    """Serve."""
    descriptor = benchmark_pb2.DESCRIPTOR.services_by_name["EchoService"]
    app.add(benchmark_pb2_grpc.add_EchoServiceServicer_to_server, EchoServicer(), descriptor)
    yield


if __name__ == "__main__":
    run(ServiceDefinition(settings=ChassisSettings, access=ACCESS, lifespan=echo))

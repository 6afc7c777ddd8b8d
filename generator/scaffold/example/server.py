"""Greets people: one replica of a service as a mesh runs it. `nipmesh up` starts it and says where it listens."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

DRAIN_SECONDS = 5.0
sys.path.insert(0, str(Path(__file__).parent / "protos"))
messages, services = grpc.protos_and_services("greeting/v1/greeting.proto")  # type: ignore[no-untyped-call,unused-ignore]


class Greeter(services.GreetingServiceServicer):  # type: ignore[misc,name-defined]  # made from the .proto just now
    """Answers GreetingService."""

    async def Greet(self, request: Any, context: Any) -> Any:
        """Greet whoever is named."""
        name = request.name or "world"
        return messages.GreetResponse(text=f"Hello, {name}!", replica=os.environ.get("NIPMESH_REPLICA", ""))


async def serve() -> None:
    """Listen where the mesh says, say that we are well, and finish what runs when we are told to stop."""
    server = grpc.aio.server()
    services.add_GreetingServiceServicer_to_server(Greeter(), server)
    wellness = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(wellness, server)
    await wellness.set("", health_pb2.HealthCheckResponse.SERVING)
    server.add_insecure_port(os.environ.get("NIPMESH_LISTEN", "127.0.0.1:50051"))
    await server.start()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    await server.stop(DRAIN_SECONDS)


if __name__ == "__main__":
    asyncio.run(serve())

"""`python mortal_app.py LISTEN`: an application in a process of its own, so that a test can kill it without a farewell.

A server that is stopped inside the test's process says CANCELLED to its calls; one that is killed says nothing.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

WORK_S = 0.02


class Echo(grpc.GenericRpcHandler):
    """Every unary method below /echo.v1. answers what it was sent, after a moment."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Find the handler of a method."""
        if not str(handler_call_details.method).startswith("/echo.v1."):
            return None
        return grpc.unary_unary_rpc_method_handler(self.answer)

    async def answer(self, request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        """Work, then echo."""
        await asyncio.sleep(WORK_S)
        return request


async def serve(listen: str) -> None:
    """Serve until killed."""
    server = grpc.aio.server()
    servicer = health.aio.HealthServicer()
    await servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    server.add_generic_rpc_handlers((Echo(),))
    server.add_insecure_port(listen)
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))

"""`python mortal_app.py LISTEN [JOURNAL]`: an application in a process of its own, so that a test can kill it without a farewell.

A server that is stopped inside the test's process says CANCELLED to its calls; one that is killed says nothing. With a journal it writes
down the first message of each call, and answers none of them: whoever reads the journal knows which calls have run when it was killed.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

WORK_S = 0.02
HANG_S = 60.0


class Mortal(grpc.GenericRpcHandler):
    """Every method below /echo.v1. answers what it was sent, after a moment; with a journal none answers."""

    def __init__(self, journal: Path | None) -> None:
        self._journal = None if journal is None else os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Find the handler of a method."""
        if not str(handler_call_details.method).startswith("/echo.v1."):
            return None
        return grpc.stream_stream_rpc_method_handler(self.answer)

    async def answer(
        self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]
    ) -> AsyncIterator[bytes]:
        """Work, then echo; or write down and hang."""
        request = await anext(requests)
        if self._journal is not None:
            os.write(self._journal, request + b"\n")
            await asyncio.sleep(HANG_S)
        await asyncio.sleep(WORK_S)
        yield request


async def serve(listen: str, journal: Path | None) -> None:
    """Serve until killed."""
    server = grpc.aio.server()
    servicer = health.aio.HealthServicer()
    await servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    server.add_generic_rpc_handlers((Mortal(journal),))
    server.add_insecure_port(listen)
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], Path(sys.argv[2]) if len(sys.argv) > 2 else None))

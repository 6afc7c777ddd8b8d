"""A small application for tests of the runner: it honours what the runner tells it, and misbehaves on request.

It serves `echo.v1.EchoService`, `front.v1.FrontService` or `extra.v1.ExtraService` (NIPMESH_SERVICE says which) with
wrapper messages, so that it needs no stubs. ECHO_CRASH makes it die at start, ECHO_CRASH_FROM only replicas from that
number on, ECHO_DELAY_S makes it slow to become ready.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from google.protobuf.wrappers_pb2 import StringValue
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

ME = f"{os.environ['NIPMESH_VERSION']}-{os.environ['NIPMESH_REPLICA']}"
SERVICES = {"echo": "echo.v1.EchoService", "front": "front.v1.FrontService", "extra": "extra.v1.ExtraService"}
NAME = SERVICES.get(os.environ["NIPMESH_SERVICE"], "echo.v1.EchoService")
DRAINING = asyncio.Event()


async def say(request: StringValue, context: grpc.aio.ServicerContext[Any, Any]) -> StringValue:
    """Answer who answers; `sleep N` takes N milliseconds; `peer` tells who calls."""
    word, _, argument = request.value.partition(" ")
    if word == "sleep":
        await asyncio.sleep(int(argument) / 1000)
    if word == "peer":
        return StringValue(value=str(dict(context.invocation_metadata() or ()).get("x-forwarded-client-cert", "")))
    return StringValue(value=f"{ME} {os.getpid()} {request.value}")


async def relay(request: StringValue, context: grpc.aio.ServicerContext[Any, Any]) -> StringValue:
    """Pass the call on to echo through the own sidecar; `once ...` to the method that may not run twice."""
    method = "Once" if request.value.startswith("once ") else "Say"
    call = EGRESS["channel"].unary_unary(
        f"/echo.v1.EchoService/{method}", StringValue.SerializeToString, StringValue.FromString
    )
    try:
        answer = await call(request, timeout=context.time_remaining())
    except grpc.aio.AioRpcError as error:
        if method == "Say":
            raise
        await context.abort(error.code(), error.details() or "")
    return StringValue(value=f"{ME} -> {answer.value}")


async def count(request: StringValue, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[StringValue]:
    """Send a number every 50 ms until told how many, or until the application drains."""
    for number in range(int(request.value or 10_000)):
        if DRAINING.is_set():
            return
        yield StringValue(value=f"{ME} {number}")
        await asyncio.sleep(0.05)


EGRESS: dict[str, grpc.aio.Channel] = {}


def handlers() -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
    coding = {"request_deserializer": StringValue.FromString, "response_serializer": StringValue.SerializeToString}
    if NAME.startswith("front"):
        return {"Relay": grpc.unary_unary_rpc_method_handler(relay, **coding)}
    return {
        "Say": grpc.unary_unary_rpc_method_handler(say, **coding),
        "Once": grpc.unary_unary_rpc_method_handler(say, **coding),
        "Spare": grpc.unary_unary_rpc_method_handler(say, **coding),
        "Later": grpc.unary_unary_rpc_method_handler(say, **coding),
        "Count": grpc.unary_stream_rpc_method_handler(count, **coding),
    }


async def metrics(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    body = f'echo_up{{replica="{ME}"}} 1\n'.encode()
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain; version=0.0.4\r\nconnection: close\r\n")
    writer.write(b"content-length: %d\r\n\r\n" % len(body) + body)
    await writer.drain()
    writer.close()


async def main() -> None:
    print(f"{ME} starts", flush=True)
    first_crashing = int(os.environ.get("ECHO_CRASH_FROM", "0" if "ECHO_CRASH" in os.environ else "1000"))
    if int(os.environ["NIPMESH_REPLICA"]) >= first_crashing:
        print("echo crashes on request", file=sys.stderr, flush=True)
        sys.exit(7)
    await asyncio.sleep(float(os.environ.get("ECHO_DELAY_S", "0")))
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    EGRESS["channel"] = grpc.aio.insecure_channel(
        os.environ["NIPMESH_EGRESS"], options=[("grpc.default_authority", os.environ["NIPMESH_AUTHORITY"])]
    )
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(NAME, handlers()),))
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    server.add_insecure_port(os.environ["NIPMESH_LISTEN"])
    await server.start()
    scraped = Path(os.environ["NIPMESH_METRICS_LISTEN"].removeprefix("unix:"))
    await asyncio.start_unix_server(metrics, scraped)
    for name in ("", NAME):
        await servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
    print(f"{ME} serves", flush=True)
    await stop.wait()
    DRAINING.set()
    await servicer.enter_graceful_shutdown()
    await server.stop(float(os.environ["NIPMESH_DRAIN_GRACE"]))
    await EGRESS["channel"].close()
    print(f"{ME} ends", flush=True)


asyncio.run(main())

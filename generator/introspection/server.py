"""Runs the introspection server until SIGTERM."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
from grpc_health.v1 import health_pb2_grpc

from generator.introspection.health import POLL_INTERVAL_S, GatewayHealth
from generator.introspection.reflection import add_reflection
from generator.introspection.source import Source

GRACE_S = 1.0
"""Watchers of health hold their streams open for ever; what else runs here takes milliseconds."""
REQUEST_BYTES_MAX = 64 * 1024
"""Reflection and health requests are names."""
CONCURRENT_STREAMS_MAX = 100
UNIX_PREFIX = "unix:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the server is started with."""

    listen: str
    """A gRPC listen target, e.g. `unix:/run/x/app.sock`."""
    descriptor_set: Path
    exposure: Path
    admin: Path
    """The gateway Envoy's admin socket."""
    reflection: bool


async def build(settings: Settings) -> tuple[grpc.aio.Server, GatewayHealth, Source]:
    """Make the server and bind it. Raises what Source raises for bad files, RuntimeError for the address."""
    source = Source(descriptor_set=settings.descriptor_set, exposure=settings.exposure)
    health = GatewayHealth(source.current().clusters, settings.admin)
    server = grpc.aio.server(
        options=(
            ("grpc.max_receive_message_length", REQUEST_BYTES_MAX),
            ("grpc.max_concurrent_streams", CONCURRENT_STREAMS_MAX),
            ("grpc.http2.min_ping_interval_without_data_ms", 1000),
            ("grpc.keepalive_permit_without_calls", 1),
        )
    )
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    if settings.reflection:
        add_reflection(server, lambda: source.current().reflection)
    _bind(server, settings.listen)
    return server, health, source


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    server, health, source = await build(settings)
    await server.start()
    polling = asyncio.create_task(poll_for_ever(health, source))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({polling, stopping}, return_when=asyncio.FIRST_COMPLETED)
    await server.stop(GRACE_S)
    if polling.done():
        polling.result()
    polling.cancel()


async def poll_for_ever(health: GatewayHealth, source: Source) -> None:
    """Keep health fresh until cancelled, for whatever is exposed at the time."""
    while True:
        health.expose(source.current().clusters)
        await health.poll()
        await asyncio.sleep(POLL_INTERVAL_S)


def _bind(server: grpc.aio.Server, listen: str) -> None:
    """Bind; a socket that a dead predecessor left is removed first, since grpc would refuse it."""
    if listen.startswith(UNIX_PREFIX):
        Path(listen.removeprefix(UNIX_PREFIX)).unlink(missing_ok=True)
    os.umask(0o077)
    server.add_insecure_port(listen)

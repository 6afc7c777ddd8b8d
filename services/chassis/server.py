"""The life of a service: start, serve, drain, end.

Start: settings, logs, tracing, the service's own lifespan, then the socket. At SIGTERM or SIGINT: NOT_SERVING and the end of the watches at
once, running calls finish within the grace, background tasks end, the lifespan ends, spans are flushed, exit code 0. A second signal
cuts the grace short.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import grpc
import uvloop
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from services.chassis import telemetry
from services.chassis.caller import Access
from services.chassis.client import MESSAGE_BYTES_MAX
from services.chassis.errors import StartError
from services.chassis.health import Health
from services.chassis.interceptor import Border
from services.chassis.logs import configure_logs, get_logger
from services.chassis.metrics import HEAD_BYTES_MAX, CallMetrics, MetricsServer, new_registry
from services.chassis.service import Application, Registration, ServiceDefinition
from services.chassis.settings import ChassisSettings, load_settings
from services.chassis.sockets import ListenError, listen_unix, prepare_socket, protect_socket, remove_socket, unix_path
from services.chassis.tracing import CallTracer
from services.chassis.validation import compile_rules

SettingsT = TypeVar("SettingsT", bound=ChassisSettings)

PING_INTERVAL_MS_MIN: Final = 5_000
"""Keepalive probes this often are tolerated, with and without running calls: the sidecar sends them every 10 s or more."""

SERVER_OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.so_reuseport", 0),  # two processes on one port would share it silently
    ("grpc.http2.min_ping_interval_without_data_ms", PING_INTERVAL_MS_MIN),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", PING_INTERVAL_MS_MIN),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_ping_strikes", 0),  # too_many_pings would cut every call of the sidecar's one connection
)

QUIET_S: Final = 0.1
"""A draining server stops once no call has begun for this long."""
QUIET_LOOK_S: Final = 0.02
"""How often a draining server looks."""
QUIET_WAIT_S_MAX: Final = 3.0
"""Longest wait for that; the sidecar's health checks notice NOT_SERVING within a second or two."""

_log = get_logger("chassis")


class AccessTableError(StartError):
    """The access table and the methods that are served differ; the text names the methods."""


def run(service: ServiceDefinition[Any]) -> None:
    """Run a service until it is told to end, then exit: 0 after a drain, 1 after a fault, 2 for wrong settings."""
    settings = load_settings(service.settings)
    configure_logs(settings)
    provider = telemetry.make_tracer_provider(settings)
    telemetry.install(provider)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            code = runner.run(_main(service, settings, provider))
    except StartError as error:
        sys.stderr.write(f"error: {error}\n")
        code = 2
    raise SystemExit(code)


async def _main(service: ServiceDefinition[Any], settings: ChassisSettings, provider: Any) -> int:
    """Serve until a signal or a fault; return the exit code."""
    stop, hurry = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        (hurry if stop.is_set() else stop).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    try:
        async with serve(service, settings, tracer_provider=provider, hurry=hurry) as app:
            await _first(stop, app.failed)
        return 1 if app.failed.is_set() else 0
    finally:
        await telemetry.shut_down(provider)


async def _first(*events: asyncio.Event) -> None:
    """Wait until one of the events is set."""
    tasks = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def serve(
    service: ServiceDefinition[SettingsT],
    settings: SettingsT,
    *,
    tracer_provider: Any = None,  # an SDK TracerProvider, made from the settings when None
    hurry: asyncio.Event | None = None,
) -> AsyncIterator[Application[SettingsT]]:
    """Serve inside the `async with`; leaving it drains: at most `drain_grace` seconds, cut short by `hurry`."""
    app = Application(
        settings=settings,
        registry=new_registry(),
        tracer_provider=tracer_provider or telemetry.make_tracer_provider(settings),
    )
    try:
        async with service.lifespan(app):
            try:
                async with _listening(app, service.access, hurry or asyncio.Event()):
                    yield app
            finally:
                app.draining.set()
                await app.end_tasks()
    finally:
        await app.close_channel()


@contextlib.asynccontextmanager
async def _listening(app: Application[Any], access: Mapping[str, Access], hurry: asyncio.Event) -> AsyncIterator[None]:
    """Listen for calls and scrapes; drain at the end."""
    server, border = _build_server(app, access)
    path = unix_path(app.settings.listen)
    inode = 0
    try:
        serving = asyncio.Event()
        async with _metrics_listening(app, lambda: serving.is_set() and not app.draining.is_set()):
            inode = _bind(server, app.settings.listen, path)
            await server.start()
            serving.set()
            _log.info("serving", listen=app.settings.listen)
            try:
                yield
            finally:
                app.draining.set()
                _log.info("draining", grace_s=app.settings.drain_grace)
                await _drain(server, border, app.settings.drain_grace, hurry)
                _log.info("stopped")
    finally:
        await server.stop(0)  # also when it never started: else it would complain when it is collected
        if path is not None and inode:
            remove_socket(path, inode)


async def _drain(server: grpc.aio.Server, border: Border, grace_s: float, hurry: asyncio.Event) -> None:
    """Serve on until callers have noticed NOT_SERVING, then stop; both within the grace.

    gRPC answers CANCELLED, which nobody may repeat, to calls that arrive while it stops: so it stops once no call arrives any more.
    """
    until_s = time.monotonic() + grace_s
    quiet_until_s = time.monotonic() + min(QUIET_WAIT_S_MAX, grace_s / 2)
    while border.quiet_s < QUIET_S and time.monotonic() < quiet_until_s and not hurry.is_set():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(QUIET_LOOK_S):
                await hurry.wait()
    await _stop(server, max(0.0, until_s - time.monotonic()), hurry)


async def _stop(server: grpc.aio.Server, grace_s: float, hurry: asyncio.Event) -> None:
    """Refuse new calls, let running ones finish within the grace or until somebody is in a hurry."""
    stopping = asyncio.create_task(server.stop(grace_s))
    hurrying = asyncio.create_task(hurry.wait())
    await asyncio.wait((stopping, hurrying), return_when=asyncio.FIRST_COMPLETED)
    if not stopping.done():
        await server.stop(0)
    hurrying.cancel()
    await asyncio.gather(stopping, hurrying, return_exceptions=True)


def _bind(server: grpc.aio.Server, target: str, path: Path | None) -> int:
    """Bind the gRPC socket; return the inode of a Unix socket, 0 otherwise. Raises ListenError."""
    if path is not None:
        prepare_socket(path)
    try:
        server.add_insecure_port(target)
    except RuntimeError as error:
        raise ListenError(f"cannot listen on {target}: {error}") from error
    return protect_socket(path) if path is not None else 0


@contextlib.asynccontextmanager
async def _metrics_listening(app: Application[Any], is_ready: Callable[[], bool]) -> AsyncIterator[None]:
    """Serve /metrics and /ready when the settings say where."""
    target = app.settings.metrics_listen
    if not target:
        yield
        return
    handler = MetricsServer(app.registry, is_ready).handle
    path = unix_path(target)
    if path is not None:
        listener = listen_unix(path)
        inode = path.lstat().st_ino
        server = await asyncio.start_unix_server(handler, sock=listener, limit=HEAD_BYTES_MAX)
    else:
        host, _, port = target.rpartition(":")
        server = await asyncio.start_server(handler, host, int(port), limit=HEAD_BYTES_MAX)
    async with server:
        yield
    if path is not None:
        remove_socket(path, inode)


def _build_server(app: Application[Any], access: Mapping[str, Access]) -> tuple[grpc.aio.Server, Border]:
    """The gRPC server with interceptors, the service's servicers, health and reflection."""
    check_access_table(access, app.registrations)
    names = [registration.descriptor.full_name for registration in app.registrations]
    table = {**access, **_builtin_access()}
    border = Border(
        identities=app.settings.identities,
        access=table,
        metrics=CallMetrics.register(app.registry),
        draining=app.draining,
        tracer=CallTracer(app.tracer_provider),
    )
    server = grpc.aio.server(options=SERVER_OPTIONS)
    registry: Any = border.registry(
        server
    )  # generated code wants a server, and calls the two methods that this one has
    for registration in app.registrations:
        registration.register(registration.servicer, registry)
        for method in registration.descriptor.methods:
            compile_rules(GetMessageClass(method.input_type))
    health_pb2_grpc.add_HealthServicer_to_server(Health(names, app.draining, app.conditions), registry)
    if app.settings.reflection:
        health_name = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
        reflection.enable_server_reflection((*names, health_name, reflection.SERVICE_NAME), registry)
    return server, border


def check_access_table(access: Mapping[str, Access], registrations: list[Registration]) -> None:
    """Raise AccessTableError unless the table names exactly the methods that are served."""
    methods = {method for registration in registrations for method in registration.methods}
    missing, unknown = sorted(methods - access.keys()), sorted(access.keys() - methods)
    if missing or unknown:
        raise AccessTableError(f"the access table lacks {missing} and names unknown {unknown}")


def _builtin_access() -> dict[str, Access]:
    """Health and reflection are for whoever reaches the socket: the sidecar decides who that is."""
    descriptors = (health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR)
    return {
        f"/{service.full_name}/{method.name}": Access.PUBLIC
        for descriptor in descriptors
        for service in descriptor.services_by_name.values()
        for method in service.methods
    }

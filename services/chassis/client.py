"""Calling other services: one channel to the own sidecar, which finds them by the method's path.

Any program beside a sidecar can use it, with generated stubs::

    async with open_channel() as channel:          # NIPMESH_EGRESS, NIPMESH_AUTHORITY
        reply = await NipServiceStub(channel).GetKey(GetKeyRequest(key_id=...), timeout=2)

Inside a running call the time that the call has left is passed on, and the trace. A call without any deadline gets 10 s. Retries are
the sidecar's work: it knows which methods may run twice.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final

import grpc
from opentelemetry.instrumentation.grpc import aio_client_interceptors, client_interceptor
from opentelemetry.sdk.trace import TracerProvider

from services.chassis.caller import remaining_s
from services.chassis.errors import StartError
from services.chassis.settings import ChassisSettings

CALL_S_DEFAULT: Final = 10.0
"""Deadline of a unary call for which neither the caller nor the running call sets one: no call waits for ever."""
MESSAGE_BYTES_MAX: Final = 4 * 1024 * 1024
"""Largest message in either direction; gRPC's own default, said aloud."""
KEEPALIVE_MS: Final = 30_000
"""How often a silent connection with running calls is probed."""
KEEPALIVE_TIMEOUT_MS: Final = 10_000
"""When an unanswered probe means that the connection is dead."""
RECONNECT_MS_MIN: Final = 50
"""A sidecar that restarts is back within some hundred milliseconds."""
RECONNECT_MS_MAX: Final = 1_000
"""Longest pause between two tries to connect."""

CLIENT_OPTIONS: Final[tuple[tuple[str, int | str], ...]] = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    ("grpc.initial_reconnect_backoff_ms", RECONNECT_MS_MIN),
    ("grpc.min_reconnect_backoff_ms", RECONNECT_MS_MIN),
    ("grpc.max_reconnect_backoff_ms", RECONNECT_MS_MAX),
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
)


class NoEgressError(StartError):
    """Nobody said where the sidecar is: NIPMESH_EGRESS is not set."""


def channel(settings: ChassisSettings, *, tracer_provider: TracerProvider | None = None) -> grpc.aio.Channel:
    """A channel to the sidecar that the settings name. Raises NoEgressError without one."""
    return _open(settings.egress, settings.authority or settings.mesh, tracer_provider)


def open_channel(
    *, target: str | None = None, authority: str | None = None, tracer_provider: TracerProvider | None = None
) -> grpc.aio.Channel:
    """A channel to the sidecar that NIPMESH_EGRESS and NIPMESH_AUTHORITY name, or to `target`. Close it, or use `async with`."""
    return _open(
        target or os.environ.get("NIPMESH_EGRESS", ""),
        authority or os.environ.get("NIPMESH_AUTHORITY", ""),
        tracer_provider,
    )


def open_channel_sync(*, target: str | None = None, authority: str | None = None) -> grpc.Channel:
    """The same for programs without asyncio: a plain channel with tracing. It passes no deadline on: give each call a timeout."""
    where = _required(target or os.environ.get("NIPMESH_EGRESS", ""))
    plain = grpc.insecure_channel(where, options=_options(authority or os.environ.get("NIPMESH_AUTHORITY", "")))
    return grpc.intercept_channel(plain, client_interceptor())  # type: ignore[no-untyped-call]  # it carries no types


def _open(target: str, authority: str, tracer_provider: TracerProvider | None) -> grpc.aio.Channel:
    """An instrumented channel."""
    tracing = aio_client_interceptors(tracer_provider)  # type: ignore[no-untyped-call]  # it carries no types
    interceptors = [*deadline_interceptors(), *tracing]
    return grpc.aio.insecure_channel(_required(target), options=_options(authority), interceptors=interceptors)


def _options(authority: str) -> tuple[tuple[str, int | str], ...]:
    """Channel options; without an authority gRPC would send the socket's path."""
    return (*CLIENT_OPTIONS, ("grpc.default_authority", authority or "localhost"))


def _required(target: str) -> str:
    """The target, when there is one."""
    if not target:
        raise NoEgressError(
            "NIPMESH_EGRESS is not set: it names the sidecar's socket, for example unix:/run/.../egress.sock"
        )
    return target


def _with_deadline(details: Any, default_s: float | None) -> grpc.aio.ClientCallDetails:  # gRPC's own class
    """The call's details with a timeout within what the running call has left; a sidecar that restarts is waited for."""
    limits = [limit for limit in (details.timeout, remaining_s()) if limit is not None]
    timeout = min(limits) if limits else default_s
    wait_for_ready = True if details.wait_for_ready is None else details.wait_for_ready
    return grpc.aio.ClientCallDetails(details.method, timeout, details.metadata, details.credentials, wait_for_ready)


class _UnaryUnary(grpc.aio.UnaryUnaryClientInterceptor):
    """Deadline of unary calls."""

    async def intercept_unary_unary(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
        """Pass the deadline on."""
        return await continuation(_with_deadline(details, CALL_S_DEFAULT), request)


class _UnaryStream(grpc.aio.UnaryStreamClientInterceptor):
    """Deadline of server streams: none unless the running call has one."""

    async def intercept_unary_stream(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
        """Pass the deadline on."""
        return await continuation(_with_deadline(details, None), request)


class _StreamUnary(grpc.aio.StreamUnaryClientInterceptor):
    """Deadline of client streams: none unless the running call has one."""

    async def intercept_stream_unary(self, continuation: Callable[..., Any], details: Any, requests: Any) -> Any:
        """Pass the deadline on."""
        return await continuation(_with_deadline(details, None), requests)


class _StreamStream(grpc.aio.StreamStreamClientInterceptor):
    """Deadline of streams both ways: none unless the running call has one."""

    async def intercept_stream_stream(self, continuation: Callable[..., Any], details: Any, requests: Any) -> Any:
        """Pass the deadline on."""
        return await continuation(_with_deadline(details, None), requests)


def deadline_interceptors() -> tuple[grpc.aio.ClientInterceptor, ...]:
    """The interceptors that pass the running call's deadline on, one per kind of call."""
    return (_UnaryUnary(), _UnaryStream(), _StreamUnary(), _StreamStream())

"""Calling other services: one channel to the own sidecar, which finds them by the method's path.

Any program beside a sidecar can use it, with generated stubs::

    async with open_channel() as channel:          # NIPMESH_EGRESS, NIPMESH_AUTHORITY
        reply = await NipServiceStub(channel).GetKey(GetKeyRequest(key_id=...), timeout=2)

Inside a running call the time that the call has left is passed on, and the trace. A call without any deadline gets 10 s. Retries are
the sidecar's work: it knows which methods may run twice.
"""

from __future__ import annotations

import os
from typing import Any, Final, Self

import grpc
from opentelemetry.instrumentation.grpc import client_interceptor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Span, SpanKind

from services.chassis import tracing
from services.chassis.caller import remaining_s
from services.chassis.errors import StartError
from services.chassis.settings import ChassisSettings
from services.chassis.tracing import CallTracer

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

CLIENT_FAULTS: Final = frozenset(grpc.StatusCode) - {grpc.StatusCode.OK}
"""What makes a client's span an error."""

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
    """A channel that passes deadline and trace on."""
    inner = grpc.aio.insecure_channel(_required(target), options=_options(authority))
    return MeshChannel(inner, CallTracer(tracer_provider))


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


def _metadata(given: Any, span: Span) -> grpc.aio.Metadata:  # None, pairs, or gRPC's own class
    """The call's metadata and the span's, as the class that gRPC would make of them after asking what they are."""
    return grpc.aio.Metadata(*(given or ()), *tracing.headers_of(span))


def _timeout_s(timeout: float | None, default_s: float | None) -> float | None:
    """A timeout within what the running call has left."""
    limits = [limit for limit in (timeout, remaining_s()) if limit is not None]
    return min(limits) if limits else default_s


class _Method:
    """One method of a channel: passes deadline and trace on, in one step.

    No interceptor: gRPC's asyncio makes a task of each call that has one.
    """

    def __init__(self, inner: Any, method: str, tracer: CallTracer, default_s: float | None) -> None:  # gRPC's callable
        """`default_s`: the deadline where neither the caller nor the running call has one."""
        self._inner = inner
        self._method = method
        self._tracer = tracer
        self._default_s = default_s

    def __call__(
        self,
        *request: Any,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> Any:  # one of gRPC's four kinds of call
        """Begin the call; a sidecar that restarts is waited for."""
        span = self._tracer.start(self._method, SpanKind.CLIENT, tracing.current_parent())
        call = self._inner(
            *request,
            timeout=_timeout_s(timeout, self._default_s),
            metadata=_metadata(metadata, span),
            credentials=credentials,
            wait_for_ready=True if wait_for_ready is None else wait_for_ready,
            compression=compression,
        )
        if span.is_recording():
            call.add_done_callback(lambda over: tracing.end(span, tracing.code_of(over), None, faults=CLIENT_FAULTS))
        return call


class MeshChannel(grpc.aio.Channel):
    """A channel whose calls pass on what the running call has left of its deadline, and the trace."""

    def __init__(self, inner: grpc.aio.Channel, tracer: CallTracer) -> None:
        """Wrap `inner`, which is closed with this one."""
        self._inner = inner
        self._tracer = tracer

    async def __aenter__(self) -> Self:
        """The channel itself."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close, cutting running calls."""
        await self.close()

    async def close(self, grace: float | None = None) -> None:
        """Close once running calls are over, at most after `grace` seconds."""
        await self._inner.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """Whether it is connected."""
        return self._inner.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Return when the state is another one."""
        await self._inner.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """Return when it is connected."""
        await self._inner.channel_ready()

    def unary_unary(self, method: str, *details: Any, **more: Any) -> Any:  # gRPC's callables share no base
        """Calls without a deadline get CALL_S_DEFAULT."""
        return _Method(self._inner.unary_unary(method, *details, **more), method, self._tracer, CALL_S_DEFAULT)

    def unary_stream(self, method: str, *details: Any, **more: Any) -> Any:  # the same
        """No deadline unless the running call has one."""
        return _Method(self._inner.unary_stream(method, *details, **more), method, self._tracer, None)

    def stream_unary(self, method: str, *details: Any, **more: Any) -> Any:  # the same
        """No deadline unless the running call has one."""
        return _Method(self._inner.stream_unary(method, *details, **more), method, self._tracer, None)

    def stream_stream(self, method: str, *details: Any, **more: Any) -> Any:  # the same
        """No deadline unless the running call has one."""
        return _Method(self._inner.stream_stream(method, *details, **more), method, self._tracer, None)

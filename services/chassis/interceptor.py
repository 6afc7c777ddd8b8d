"""The border between gRPC and a servicer: it wraps every handler of the server.

From the outside in, for each call: span, metrics and access log, error border, identity, access rule, overload, a place for a stream,
deserialization, validation, the servicer, serialization. Span, metrics and log say the code that the client sees. Handlers are wrapped
when they are registered: an interceptor would cost each call a coroutine more.

Three things that grpc.aio does badly are mended here: an uncaught exception's text reaches the client; a call whose body is missing
or cut short is never answered (so unary requests are read here, as a stream of one); a stray CancelledError leaves the client hanging.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError, Message
from opentelemetry.trace import INVALID_SPAN, Span, SpanKind

from services.chassis import tracing
from services.chassis.caller import DENIED, Access, AccessTable, CallInfo, Identities, set_current_call
from services.chassis.draining import Draining
from services.chassis.errors import (
    STATUS_DETAILS_KEY,
    FieldViolation,
    InvalidRequest,
    Reason,
    ServiceError,
    dependency_failed,
    push_back_of,
    status_of,
    unavailable,
)
from services.chassis.load import FAULTS, LOAD_KEY, LoadMeter, available_cores
from services.chassis.logs import get_logger, log_call
from services.chassis.metrics import CallMetrics, MethodMetrics
from services.chassis.streams import OVERLOAD_RETRY_MS, Streams, until
from services.chassis.tracing import CallTracer
from services.chassis.validation import validate_request

IN_FLIGHT_MAX: Final = 2_000
"""Calls that run at once, streams included; more are OVERLOADED. Memory for each is about 50 KiB."""
STREAMS_MAX: Final = IN_FLIGHT_MAX // 2
"""Streams among them: they stay, so the other half is kept for unary calls, which are over soon."""
QUIET_METHODS: Final = frozenset({"/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"})
"""Asked every second by the sidecar: logged only when they fail."""

DEPENDENCY_FAILED_KEY: Final = "x-nipmesh-dependency-failed"
"""Trailing metadata of an UNAVAILABLE that stems from another service; the sidecars read it."""

_log = get_logger("rpc")


@dataclass(slots=True)
class Running:
    """One running call: what the log and the metrics will say."""

    info: CallInfo
    start_s: float
    span: Span
    code: grpc.StatusCode = grpc.StatusCode.OK
    reason: str = ""
    text: str = ""
    error: BaseException | None = None
    """What is to be recorded with the span: the servicer's own fault."""
    placed: bool = False
    """Whether it has one of the places for streams."""
    failed: bool = False
    """Whether it is this server's fault that it failed."""


class Border:
    """Wraps each handler of the server; see the module. It stands in for the server where servicers are registered."""

    def __init__(
        self,
        *,
        identities: Identities,
        access: AccessTable,
        metrics: CallMetrics,
        draining: Draining,
        tracer: CallTracer,
    ) -> None:
        """`access` is the whole table, the built-in methods included."""
        self._tracer = tracer
        self._identities = identities
        self._access = access
        self._metrics = metrics
        self._draining = draining
        self._in_flight = 0
        self._streams = Streams(STREAMS_MAX)
        self._last_begin_s = time.monotonic()
        self._load = LoadMeter(calls_max=IN_FLIGHT_MAX, cores=available_cores(), now_s=self._last_begin_s)

    def registry(self, server: grpc.aio.Server) -> BorderedServer:
        """What to register servicers with, in the server's place."""
        return BorderedServer(self, server)

    def wrap(self, method: str, handler: grpc.RpcMethodHandler[Any, Any]) -> grpc.RpcMethodHandler[Any, Any]:
        """A handler of bytes whose request side is always a stream (see the module) around one of messages."""
        border = _Method(self, method, handler)
        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(border.stream)
        return grpc.stream_unary_rpc_method_handler(border.unary)

    def begin(self, method: str, context: grpc.aio.ServicerContext[Any, Any]) -> Running:
        """Who calls, until when."""
        metadata: Any = context.invocation_metadata() or ()
        remaining = context.time_remaining()
        now_s = time.monotonic()
        info = CallInfo(
            method=method,
            caller=self._identities.caller(metadata),
            deadline_s=None if remaining is None else now_s + remaining,
        )
        set_current_call(info)
        self._in_flight += 1
        if method in QUIET_METHODS:
            return Running(info=info, start_s=now_s, span=INVALID_SPAN)
        self._last_begin_s = now_s
        self._load.began(now_s)
        span = self._tracer.start(method, SpanKind.SERVER, tracing.parent_of(metadata))
        tracing.enter(span)
        return Running(info=info, start_s=now_s, span=span)

    def end(self, running: Running, metrics: MethodMetrics) -> None:
        """Count and log a call that is over."""
        self._in_flight -= 1
        if running.placed:
            self._streams.leave(running.info.caller.subject)
        now_s = time.monotonic()
        duration_s = now_s - running.start_s
        metrics.ended(running.code, duration_s)
        if running.info.method not in QUIET_METHODS:
            self._load.ended(now_s, failed=running.failed)
            tracing.end(running.span, running.code, running.text, faults=tracing.SERVER_FAULTS, error=running.error)
        elif running.code is grpc.StatusCode.OK:
            return
        log_call(running.info, running.code.name, duration_s, running.reason, running.span)

    def admit(self, info: CallInfo, access: Access) -> None:
        """Refuse what may not be called, and what is too much."""
        access.check(info.caller)
        if self._in_flight > IN_FLIGHT_MAX and info.method not in QUIET_METHODS:
            raise unavailable("too many calls at once", reason=Reason.OVERLOADED, retry_delay_ms=OVERLOAD_RETRY_MS)

    def place(self, running: Running) -> contextlib.AbstractAsyncContextManager[None]:
        """What a stream runs inside of: in its place, which `end` gives back, and no longer than its token is good for.

        The sidecar's health watch needs no place.
        """
        if running.info.method in QUIET_METHODS:
            return contextlib.nullcontext()
        caller = running.info.caller
        self._streams.enter(caller.subject)
        running.placed = True
        return until(caller.expire_time_s)

    def load(self) -> tuple[str, str]:
        """The load report as trailing metadata."""
        return (LOAD_KEY, self._load.report(time.monotonic()))

    def access_of(self, method: str) -> Access:
        """Who may call a method: nobody, unless the table says so."""
        return self._access.get(method, DENIED)

    def metrics_of(self, method: str) -> MethodMetrics:
        """The metrics of one method."""
        return MethodMetrics(self._metrics, method)

    @property
    def quiet_s(self) -> float:
        """Seconds since the last call began, health checks apart."""
        return time.monotonic() - self._last_begin_s

    @property
    def draining(self) -> bool:
        """Whether the replica shuts down."""
        return self._draining.is_set()


class BorderedServer:
    """A server as generated code sees it when it registers a servicer: its handlers get the border around them."""

    def __init__(self, border: Border, server: grpc.aio.Server) -> None:
        self._border = border
        self._server = server

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Register the handlers, wrapped."""
        self._server.add_generic_rpc_handlers(tuple(_Bordered(self._border, handler) for handler in handlers))

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Nothing: these are the generic ones once more, and would be called without the border."""


class _Bordered(grpc.GenericRpcHandler):
    """Handlers of some methods, each wrapped when it is first called."""

    def __init__(self, border: Border, inner: grpc.GenericRpcHandler) -> None:
        self._border = border
        self._inner = inner
        self._wrapped: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        """The wrapped handler of a method; None for a method that is not among these."""
        method = handler_call_details.method
        wrapped = self._wrapped.get(method)
        if wrapped is None:
            handler = self._inner.service(handler_call_details)
            if handler is None:
                return None
            wrapped = self._wrapped[method] = self._border.wrap(method, handler)
        return wrapped


class _Method:
    """One method: its handler with the border around it."""

    def __init__(self, border: Border, method: str, handler: grpc.RpcMethodHandler[Any, Any]) -> None:
        """Resolve once what does not change between calls."""
        self._border = border
        self._name = method
        self._handler = handler
        self._access = border.access_of(method)
        self._metrics = border.metrics_of(method)
        kinds = (handler.unary_unary, handler.unary_stream, handler.stream_unary, handler.stream_stream)
        self._behaviour: Callable[..., Any] = next(kind for kind in kinds if kind is not None)
        self._serialize: Callable[[Any], bytes] = handler.response_serializer or bytes
        self._deserialize: Callable[[bytes], Any] = handler.request_deserializer or bytes

    async def unary(self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        """A call with one response."""
        running = self._border.begin(self._name, context)
        self._metrics.began()
        try:
            self._border.admit(running.info, self._access)
            if self._handler.request_streaming:
                async with self._border.place(running):
                    answer = await self._answer(requests, context)
            else:
                answer = await self._answer(requests, context)
            self._tell_load(context)
            return answer
        except BaseException as error:  # this is the border
            await self._fail(running, context, error)
            raise AssertionError("unreachable: abort raises") from error
        finally:
            self._border.end(running, self._metrics)

    async def stream(
        self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncGenerator[bytes, None]:
        """A call with a stream of responses; the servicer's generator is closed with it.

        A generator that yields nothing and writes instead: so a cancelled call ends here, in its own task and context, and not
        some time later when the generators are collected.
        """
        running = self._border.begin(self._name, context)
        self._metrics.began()
        try:
            self._border.admit(running.info, self._access)
            async with self._border.place(running):
                await self._send(requests, context)
            self._tell_load(context)
        except BaseException as error:  # noqa: BLE001  # this is the border
            await self._fail(running, context, error)
        finally:
            self._border.end(running, self._metrics)
        nothing: tuple[bytes, ...] = ()
        for each in nothing:
            yield each

    async def _answer(self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        """The one response of the servicer."""
        request = await self._request(requests, context)
        return self._serialize(await self._behaviour(request, context))

    async def _send(self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Write each response of the servicer as it comes."""
        responses = self._behaviour(await self._request(requests, context), context)
        assert inspect.isasyncgen(responses), f"{self._name} must be an async generator"
        async with contextlib.aclosing(responses):
            async for response in responses:
                await context.write(self._serialize(response))

    def _tell_load(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Add the load report to what the servicer may have put into the trailing metadata."""
        if self._name not in QUIET_METHODS:
            context.set_trailing_metadata((*(context.trailing_metadata() or ()), self._border.load()))

    async def _request(
        self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[Any, Any]
    ) -> Any:  # a message or a stream of them
        """The request, or a stream of them: checked messages."""
        if self._handler.request_streaming:
            return self._checked_stream(requests)
        raw: Any = await context.read()  # not the iterator: leaving it half used would cost a task to close it
        if raw is grpc.aio.EOF:
            raise InvalidRequest(message="the request's body is missing or cut short")
        return self._checked(raw)

    async def _checked_stream(self, requests: AsyncIterator[bytes]) -> AsyncIterator[Any]:
        """Messages of a request stream, each checked as it comes."""
        async for raw in requests:
            yield self._checked(raw)

    def _checked(self, raw: bytes) -> Any:  # a message, or what a generic handler deserializes to
        """One deserialized, valid message."""
        try:
            request = self._deserialize(raw)
        except DecodeError as error:
            raise InvalidRequest(
                FieldViolation(field="", description="the bytes are not a message of the request's type")
            ) from error
        if isinstance(request, Message):
            validate_request(request)
        return request

    async def _fail(self, running: Running, context: grpc.aio.ServicerContext[Any, Any], error: BaseException) -> None:
        """End the call with what the client may know of `error`; never returns."""
        if isinstance(error, grpc.aio.AbortError):  # the servicer used context.abort itself
            running.code = _code_of(context)
            raise error
        if isinstance(error, GeneratorExit) or (isinstance(error, asyncio.CancelledError) and _is_cancelled()):
            late = running.info.deadline_s is not None and time.monotonic() >= running.info.deadline_s
            running.code = grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED
            raise error
        failure = self._failure(error)
        running.code, running.reason, running.text = failure.code, failure.reason, failure.message
        running.error = error if failure is not error else None
        running.failed = failure.code in FAULTS and not failure.from_dependency
        status = status_of(failure)
        trailing: list[tuple[str, str | bytes]] = [
            (STATUS_DETAILS_KEY, status.SerializeToString()),
            *push_back_of(failure),
            self._border.load(),
        ]
        if failure.from_dependency:
            trailing.append((DEPENDENCY_FAILED_KEY, "true"))
        await context.abort(failure.code, status.message, tuple(trailing))

    def _failure(self, error: BaseException) -> ServiceError:
        """What an exception means to the client. What is not meant for it is logged in full and called INTERNAL."""
        if isinstance(error, ServiceError):
            return error
        if isinstance(error, grpc.aio.AioRpcError):
            return _dependency_failure(error)
        if isinstance(error, asyncio.CancelledError) and self._border.draining:
            return ServiceError(Reason.SERVICE_DRAINING, "the replica is shutting down; repeat the call")
        _log.error("uncaught", method=self._name, exc_info=(type(error), error, error.__traceback__))
        return ServiceError(Reason.INTERNAL, "internal error; the service's log has it under the trace id")


def _is_cancelled() -> bool:
    """Whether gRPC cancelled this call's own task, rather than something that the servicer awaited."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _code_of(context: grpc.aio.ServicerContext[Any, Any]) -> grpc.StatusCode:
    """The code that the servicer gave to abort."""
    code: Any = context.code()
    return (
        code if isinstance(code, grpc.StatusCode) else next(each for each in grpc.StatusCode if each.value[0] == code)
    )


def _dependency_failure(error: grpc.aio.AioRpcError) -> ServiceError:
    """A failed call to another service that the servicer did not handle: its text stays here."""
    _log.warning("dependency failed", code=error.code().name, details=error.details())
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return ServiceError(Reason.DEADLINE_EXCEEDED, "the deadline passed in a call to another service")
    if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED):
        return dependency_failed("another service does not answer")
    return ServiceError(Reason.INTERNAL, "internal error; the service's log has it under the trace id")

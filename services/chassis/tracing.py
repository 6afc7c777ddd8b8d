"""Spans of calls, on both sides, and the W3C trace context between them.

What opentelemetry-instrumentation-grpc does, for asyncio and at a fraction of its cost (`python -m benchmarks.services --processes`
shows what a call costs): there, each call passes two more interceptors, which gRPC's asyncio makes tasks of, and a cancelled stream loses
its span. The attributes are its: rpc.system, rpc.service, rpc.method, rpc.grpc.status_code.

Where nothing exports spans, nothing is recorded: the ids exist all the same, for logs, and for services that do export.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

import grpc
from opentelemetry import context as contexts
from opentelemetry import propagate, trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, SpanKind, Status, StatusCode, TraceFlags

TRACEPARENT: Final = "traceparent"
TRACESTATE: Final = "tracestate"
STATUS_CODE: Final = "rpc.grpc.status_code"
SERVER_FAULTS: Final = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)
"""Codes that make a server's span an error: OpenTelemetry's semantic conventions for gRPC. On a client's span every one but OK does."""
_VERSION_0: Final = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})\Z")
_NAMES: Final = frozenset({TRACEPARENT, TRACESTATE})
_IDS: Final = RandomIdGenerator()
_SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)

Metadata = Iterable[tuple[str, str | bytes]]


def parent_of(metadata: Metadata) -> SpanContext | None:
    """The span that the caller's metadata names; None when there is none.

    The usual header is read here; with anything else (another version, a trace state) the SDK decides.
    """
    carrier = {key: value for key, value in metadata if key in _NAMES and isinstance(value, str)}
    if not carrier:
        return None
    usual = None if carrier.get(TRACESTATE) else _VERSION_0.match(carrier.get(TRACEPARENT, ""))
    if usual is None:
        context = trace.get_current_span(propagate.extract(carrier)).get_span_context()
    else:
        trace_id, span_id, flags = (int(part, 16) for part in usual.groups())
        context = SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(flags))
    return context if context.is_valid else None


class CallTracer:
    """Makes the spans of calls."""

    def __init__(self, provider: TracerProvider | None) -> None:
        """`provider` None: the process's own. One that samples nothing gets no spans, only their ids."""
        self._tracer = trace.get_tracer("nipmesh", tracer_provider=provider)
        self._records = provider is None or provider.sampler is not ALWAYS_OFF
        self._attributes: dict[str, dict[str, str | int]] = {}

    def start(self, method: str, kind: SpanKind, parent: SpanContext | None) -> Span:
        """A span of a call; the caller ends it with `end`."""
        if not self._records:
            return NonRecordingSpan(_child_of(parent))
        around = contexts.Context() if parent is None else trace.set_span_in_context(NonRecordingSpan(parent))
        return self._tracer.start_span(method, around, kind, self._attributes_of(method))

    def _attributes_of(self, method: str) -> dict[str, str | int]:
        """Those that are the same in every call of a method."""
        found = self._attributes.get(method)
        if found is None:
            service, _, name = method.lstrip("/").partition("/")
            found = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name}
            self._attributes[method] = found
        return found


def _child_of(parent: SpanContext | None) -> SpanContext:
    """A span's ids without the span: of the parent's trace, or of a new one."""
    if parent is None:
        return SpanContext(_IDS.generate_trace_id(), _IDS.generate_span_id(), is_remote=False, trace_flags=_SAMPLED)
    return SpanContext(parent.trace_id, _IDS.generate_span_id(), False, parent.trace_flags, parent.trace_state)


def end(
    span: Span,
    code: grpc.StatusCode,
    text: str | None,
    *,
    faults: frozenset[grpc.StatusCode],
    error: BaseException | None = None,
) -> None:
    """End a span with the call's code; one of `faults` makes it an error."""
    if not span.is_recording():
        return
    span.set_attribute(STATUS_CODE, code.value[0])
    if code in faults:
        span.set_status(Status(StatusCode.ERROR, f"{code}:{text or ''}"))
    if error is not None:
        span.record_exception(error)
    span.end()


def enter(span: Span) -> None:
    """Make the span the running one for the rest of the task, which is the call's own."""
    contexts.attach(trace.set_span_in_context(span))


def current_parent() -> SpanContext | None:
    """The running span, None outside one."""
    context = trace.get_current_span().get_span_context()
    return context if context.is_valid else None


def headers_of(span: Span) -> tuple[tuple[str, str], ...]:
    """The metadata that names the span to whom is called; none without a provider that gives ids."""
    context = span.get_span_context()
    if not context.is_valid:
        return ()
    traceparent = (TRACEPARENT, f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}")
    return (traceparent, (TRACESTATE, context.trace_state.to_header())) if context.trace_state else (traceparent,)


def code_of(call: Any) -> grpc.StatusCode:  # one of gRPC's asyncio calls, which is over
    """The code of a call that is over: its coroutine has nothing to wait for."""
    waiting = call.code()
    try:
        waiting.send(None)
    except StopIteration as done:
        code: grpc.StatusCode = done.value
        return code
    raise AssertionError("the call is not over")

"""Trace context is read as the SDK reads it, and ids exist where nothing is recorded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import INVALID_SPAN, SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from services.chassis import tracing
from services.chassis.tracing import CallTracer

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
USUAL = f"00-{TRACE}-{SPAN}-01"

headers = st.sampled_from(
    [
        USUAL,
        USUAL.upper(),
        f"01-{TRACE}-{SPAN}-01-more",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE}-{SPAN}-00\n",
        f"00-{TRACE}-{SPAN}",
        "",
    ]
) | st.text(alphabet="0123456789abcdef-", max_size=60)


@given(traceparent=headers, tracestate=st.sampled_from(["", "a=b", "not a state", "a=1,b=2"]))
def test_the_parent_is_the_one_that_the_sdk_reads(traceparent: str, tracestate: str) -> None:
    carrier = {"traceparent": traceparent, "tracestate": tracestate}
    expected = trace.get_current_span(TraceContextTextMapPropagator().extract(carrier)).get_span_context()
    found = tracing.parent_of((("user-agent", "x"), *carrier.items()))
    if traceparent.endswith("\n"):  # the SDK reads a line break as white space; a header has none
        assert found is None or found == expected
    elif expected.is_valid:
        assert found is not None
        assert (found.trace_id, found.span_id, found.trace_flags, found.is_remote) == (
            expected.trace_id,
            expected.span_id,
            expected.trace_flags,
            expected.is_remote,
        )
        assert found.trace_state == expected.trace_state
    else:
        assert found is None


def test_bytes_and_other_headers_are_no_parent() -> None:
    assert tracing.parent_of(()) is None
    assert tracing.parent_of((("traceparent", USUAL.encode()), ("grpc-trace-bin", b"\x00"))) is None


@pytest.mark.parametrize("flags", ["00", "01"])
def test_where_nothing_is_recorded_a_call_is_of_its_callers_trace(flags: str) -> None:
    parent = tracing.parent_of((("traceparent", f"00-{TRACE}-{SPAN}-{flags}"), ("tracestate", "a=b")))
    span = CallTracer(TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)).start(
        "/a.B/C", SpanKind.SERVER, parent
    )
    assert not span.is_recording()
    names = dict(tracing.headers_of(span))
    version, trace_id, span_id, sampled = names["traceparent"].split("-")
    assert (version, trace_id, sampled) == ("00", TRACE, flags), "who exports goes on recording"
    assert span_id not in (SPAN, "0" * 16)
    assert names["tracestate"] == "a=b"


def test_a_call_without_caller_begins_a_trace() -> None:
    tracer = CallTracer(TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False))
    one, other = (tracer.start("/a.B/C", SpanKind.SERVER, None).get_span_context() for _ in range(2))
    assert one.is_valid
    assert one.trace_id != other.trace_id


def test_without_ids_no_header_is_sent() -> None:
    assert tracing.headers_of(INVALID_SPAN) == ()

"""Spans, propagation, metrics, logs, and the client's deadline."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
import structlog
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from services.chassis import ChassisSettings, ServiceDefinition, open_channel, reason_of, set_current_call
from services.chassis.caller import OUTSIDE, CallInfo
from services.chassis.logs import configure_logs, get_logger
from services.chassis.server import serve
from services.chassis.testing import as_user, running

USER = "ab" * 32
Definition = ServiceDefinition[ChassisSettings]
CODE = "rpc.grpc.status_code"


class Spans:
    def __init__(self) -> None:
        self._memory = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self._memory))

    def of(self, kind: SpanKind) -> list[ReadableSpan]:
        return [span for span in self._memory.get_finished_spans() if span.kind is kind]


def settings(folder: Path, **more: Any) -> ChassisSettings:
    folder.chmod(0o700)
    values = {"listen": f"unix:{folder}/app.sock", "egress": f"unix:{folder}/app.sock", "drain_grace": 1.0}
    return ChassisSettings(**(values | more))


@asynccontextmanager
async def traced(
    definition: Definition, folder: Path, spans: Spans, *, client: bool = False
) -> AsyncIterator[grpc.aio.Channel]:
    """The service with its spans in memory, and a channel: traced too when `client`."""
    target = f"unix:{folder}/app.sock"
    async with serve(definition, settings(folder), tracer_provider=spans.provider):
        opened = (
            open_channel(target=target, tracer_provider=spans.provider) if client else grpc.aio.insecure_channel(target)
        )
        async with opened as channel:
            yield channel


@pytest.mark.parametrize(
    ("mode", "code", "status"),
    [
        ("", 0, StatusCode.UNSET),
        ("error", 5, StatusCode.UNSET),
        ("crash", 13, StatusCode.ERROR),
        ("stray", 13, StatusCode.ERROR),
    ],
)
async def test_spans_have_the_clients_code(
    definition: Definition, echo: SimpleNamespace, short_path: Path, mode: str, code: int, status: StatusCode
) -> None:
    spans = Spans()
    async with traced(definition, short_path, spans, client=True) as channel:
        call = echo.grpc.EchoServiceStub(channel).Echo(echo.pb2.EchoRequest(text="x", mode=mode))
        await asyncio.gather(call, return_exceptions=True)
    (server,), (client,) = spans.of(SpanKind.SERVER), spans.of(SpanKind.CLIENT)
    assert (server.attributes or {})[CODE] == code
    assert (client.attributes or {})[CODE] == code
    assert server.status.status_code in (status, StatusCode.ERROR if code else status)
    assert server.parent is not None
    assert client.context is not None
    assert server.parent.span_id == client.context.span_id, "W3C trace context came through"


async def test_a_call_inside_a_call_is_one_trace(
    definition: Definition, echo: SimpleNamespace, short_path: Path
) -> None:
    spans = Spans()
    async with traced(definition, short_path, spans) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await echo.grpc.EchoServiceStub(channel).Echo(echo.pb2.EchoRequest(text="x", mode="call"))
    assert reason_of(caught.value) == "INTERNAL", "the other service's text stays inside"
    traces = {
        span.context.trace_id for span in (*spans.of(SpanKind.SERVER), *spans.of(SpanKind.CLIENT)) if span.context
    }
    assert len(traces) == 1
    assert len(spans.of(SpanKind.SERVER)) == 2


async def test_a_stream_that_fails_has_its_code(
    definition: Definition, echo: SimpleNamespace, short_path: Path
) -> None:
    spans = Spans()
    async with traced(definition, short_path, spans) as channel:
        call = echo.grpc.EchoServiceStub(channel).Count(
            echo.pb2.EchoRequest(text="x", mode="fail_first"), metadata=as_user(USER)
        )
        with pytest.raises(grpc.aio.AioRpcError):
            await call.read()
    (server,) = spans.of(SpanKind.SERVER)
    assert (server.attributes or {})[CODE] == 9


async def test_a_cancelled_stream_keeps_its_clients_span(
    definition: Definition, echo: SimpleNamespace, short_path: Path
) -> None:
    spans = Spans()
    async with traced(definition, short_path, spans, client=True) as channel:
        call = echo.grpc.EchoServiceStub(channel).Count(echo.pb2.EchoRequest(text="x"), metadata=as_user(USER))
        await call.read()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call.read()
    (client,) = spans.of(SpanKind.CLIENT)
    assert (client.attributes or {})[CODE] == 1
    assert client.status.status_code is StatusCode.ERROR


async def test_the_remaining_deadline_is_passed_on(
    definition: Definition, echo: SimpleNamespace, short_path: Path
) -> None:
    loop_s = asyncio.get_running_loop().time
    async with running(definition, short_path), open_channel(target=f"unix:{short_path}/app.sock") as channel:
        stub = echo.grpc.EchoServiceStub(channel)
        assert (await stub.Echo(echo.pb2.EchoRequest(text="x"))).remaining_s == pytest.approx(10, abs=1)
        set_current_call(CallInfo(deadline_s=loop_s() + 2))
        try:
            assert (await stub.Echo(echo.pb2.EchoRequest(text="x"))).remaining_s == pytest.approx(2, abs=0.5)
            assert (await stub.Echo(echo.pb2.EchoRequest(text="x"), timeout=1)).remaining_s == pytest.approx(1, abs=0.3)
        finally:
            set_current_call(OUTSIDE)


async def scrape(path: Path, request: bytes) -> bytes:
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(request)
    if writer.can_write_eof():
        writer.write_eof()
    answer = await asyncio.wait_for(reader.read(), 8)
    writer.close()
    return answer


async def test_metrics_over_http(definition: Definition, echo: SimpleNamespace, short_path: Path) -> None:
    async with running(definition, short_path, metrics_listen=f"unix:{short_path}/metrics.sock") as (_, channel):
        stub = echo.grpc.EchoServiceStub(channel)
        await stub.Echo(echo.pb2.EchoRequest(text="x"))
        await asyncio.gather(stub.Echo(echo.pb2.EchoRequest(text="x", mode="error")), return_exceptions=True)
        await asyncio.gather(channel.unary_unary("/chassistest.v1.EchoService/Nothing")(b""), return_exceptions=True)
        answer = await scrape(short_path / "metrics.sock", b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await scrape(short_path / "metrics.sock", b"GET /ready HTTP/1.1\r\nHost: x\r\n\r\n")).split(b" ")[
            1
        ] == b"200"
        for garbage, code in {
            b"POST /ready HTTP/1.1\r\n\r\n": b"405",
            b"\x16\x03\x01 garbage": b"400",
            b"GET /\r\n\r\n": b"400",
            b"GET /secret HTTP/1.1\r\n\r\n": b"404",
            b"POST /metrics HTTP/1.1\r\n\r\n": b"405",
            b"GET /metrics HTTP/1.1\r\nX: " + b"a" * 100_000: b"400",
            b"": b"400",
        }.items():
            assert (await scrape(short_path / "metrics.sock", garbage)).split(b" ")[1] == code
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    method = 'method="/chassistest.v1.EchoService/Echo"'
    assert f'nipmesh_server_calls_total{{code="OK",{method}}} 1.0'.encode() in body
    assert f'nipmesh_server_calls_total{{code="NOT_FOUND",{method}}} 1.0'.encode() in body
    assert f"nipmesh_server_calls_in_flight{{{method}}} 0.0".encode() in body
    assert b"nipmesh_server_call_seconds_bucket" in body
    assert b"EchoService/Nothing" not in body, "labels are bounded by the methods that exist"


@pytest.fixture
def restored_logs() -> Iterator[None]:
    """What the test configures is undone after it."""
    handlers, level = logging.getLogger().handlers, logging.getLogger().level
    yield
    logging.getLogger().handlers = handlers
    logging.getLogger().setLevel(level)
    structlog.reset_defaults()


async def test_logs_name_the_caller_and_hide_secrets(
    definition: Definition,
    echo: SimpleNamespace,
    short_path: Path,
    restored_logs: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logs(ChassisSettings(service="echo", replica=1))
    async with running(definition, short_path) as (_, channel):
        stub = echo.grpc.EchoServiceStub(channel)
        await stub.Echo(
            echo.pb2.EchoRequest(text="very-secret"), metadata=(*as_user(USER), ("authorization", "Bearer abc"))
        )
        await asyncio.gather(stub.Echo(echo.pb2.EchoRequest(text="x", mode="crash")), return_exceptions=True)
    out = capsys.readouterr().out
    lines = [json.loads(line) for line in out.splitlines()]
    first, uncaught, second = (line for line in lines if line["component"] == "rpc")
    assert first["subject"] == USER
    assert first["peer"] == "spiffe://nip.mesh/gateway"
    assert (first["service"], first["replica"]) == ("echo", 1)
    assert "Bearer" not in out
    assert "very-secret" not in out
    assert uncaught["event"] == "uncaught"
    assert "ValueError" in uncaught["exception"]
    assert uncaught["trace_id"] == second["trace_id"]
    assert second["reason"] == "INTERNAL"
    assert trace.get_current_span().get_span_context().is_valid is False


@pytest.mark.parametrize("level", ["info", "debug"])
def test_a_traceback_shows_no_values(level: str, restored_logs: None, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(ChassisSettings(log_level=level))

    def decrypt(content: str) -> str:
        text = content[::-1]
        raise ValueError(len(text))

    try:
        decrypt("terces-yrev")
    except ValueError:
        get_logger("echo").exception("failed")
    line = json.loads(capsys.readouterr().out)
    assert line["event"] == "failed"
    assert "decrypt" in str(line["exception"])
    assert "very-secret" not in str(line)
    assert "terces-yrev" not in str(line["exception"]).replace('decrypt("terces-yrev")', "")

"""Traces reach the collector, log lines carry their ids, and the application's metrics are scraped through the sidecar."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from support.envoys import MANIFEST, Envoys, call
from support.mesh import free_port

pytestmark = [pytest.mark.mesh, pytest.mark.asyncio(loop_scope="module")]
SAY = "/echo.v1.EchoService/Say"
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
METRICS = b"echo_calls_total 7\n"


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self) -> None:
        self.spans: list[tuple[str, str]] = []

    async def Export(self, request: Any, context: Any) -> Any:  # the name that gRPC gives it
        for resource in request.resource_spans:
            names = [entry.value.string_value for entry in resource.resource.attributes if entry.key == "service.name"]
            for scope in resource.scope_spans:
                self.spans += [(names[0], span.trace_id.hex()) for span in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def collector() -> AsyncIterator[tuple[Collector, int]]:
    servicer, server, port = Collector(), grpc.aio.server(), free_port()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(servicer, server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    yield servicer, port
    await server.stop(None)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def envoys(tmp_path_factory: pytest.TempPathFactory, collector: tuple[Collector, int]) -> AsyncIterator[Envoys]:
    manifest = MANIFEST.replace("replicas: 2", "replicas: 1") + f"telemetry:\n  otlp: 127.0.0.1:{collector[1]}\n"
    running = Envoys(tmp_path_factory.mktemp("telemetry"), manifest)
    try:
        await running.start()
        yield running
    finally:
        await running.stop()


async def test_both_sidecars_report_their_part_of_the_callers_trace(
    envoys: Envoys, collector: tuple[Collector, int]
) -> None:
    async with envoys.channel("front-0") as channel:
        await call(channel, "EchoService/Say", metadata=(("traceparent", f"00-{TRACE_ID}-b7ad6b7169203331-01"),))
    await envoys.until(
        lambda: {name for name, trace in collector[0].spans if trace == TRACE_ID} >= {"front", "echo"}, "no"
    )


async def test_log_lines_carry_the_trace(envoys: Envoys) -> None:
    await envoys.until(lambda: f'"trace_id":"{TRACE_ID}"' in envoys.log("echo-0"), "no trace in the log")
    line = next(json.loads(line) for line in envoys.log("front-0").splitlines() if TRACE_ID in line)
    assert (line["path"], line["grpc_status"]) == (SAY, "OK")


async def test_the_applications_metrics_are_scraped_with_get_alone(envoys: Envoys) -> None:
    replica = envoys.placement.replicas[0]
    server = await asyncio.start_unix_server(answer_metrics, replica.app_metrics.path)
    url = f"http://127.0.0.1:{replica.scrape.port}/metrics/app"
    async with server:
        assert await asyncio.to_thread(fetch, url) == METRICS
        with pytest.raises(urllib.error.HTTPError) as caught:
            await asyncio.to_thread(fetch, url, "POST")
        caught.value.close()


async def answer_metrics(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"GET /metrics HTTP/1.1\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(METRICS) + METRICS)
    await writer.drain()
    writer.close()


def fetch(url: str, method: str = "GET") -> bytes:
    request = urllib.request.Request(url, method=method)  # noqa: S310  # our own http address
    with urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310  # the same
        return bytes(answer.read())

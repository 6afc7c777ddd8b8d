"""Prometheus metrics of a server, and the small HTTP server that shows them to the sidecar's scrape listener.

Labels are bounded: `method` is one of the methods that the server has, `code` one of gRPC's seventeen.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import grpc
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

LATENCY_BUCKETS_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""From a call that only reads memory to the longest deadline of the mesh."""
HEAD_BYTES_MAX: Final = 8_192
"""Largest request head; a scraper's has some hundred bytes."""
REQUEST_S_MAX: Final = 5.0
"""A client that does not finish its request, or does not read the answer, is left after this time."""
CONNECTIONS_MAX: Final = 16
"""Connections at once: only the sidecar comes here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallMetrics:
    """What is counted per method."""

    calls: Counter
    seconds: Histogram
    in_flight: Gauge

    @classmethod
    def register(cls, registry: CollectorRegistry) -> CallMetrics:
        """The metrics, registered."""
        return cls(
            calls=Counter("nipmesh_server_calls", "Finished calls.", ("method", "code"), registry=registry),
            seconds=Histogram(
                "nipmesh_server_call_seconds",
                "Time of calls.",
                ("method",),
                buckets=LATENCY_BUCKETS_S,
                registry=registry,
            ),
            in_flight=Gauge("nipmesh_server_calls_in_flight", "Running calls.", ("method",), registry=registry),
        )


class MethodMetrics:
    """The metrics of one method, looked up once."""

    def __init__(self, metrics: CallMetrics, method: str) -> None:
        """`method`: "/package.Service/Method"."""
        self._calls = {code: metrics.calls.labels(method, code.name) for code in (grpc.StatusCode.OK,)}
        self._metrics = metrics
        self._method = method
        self._seconds = metrics.seconds.labels(method)
        self._in_flight = metrics.in_flight.labels(method)

    def began(self) -> None:
        """A call began."""
        self._in_flight.inc()

    def ended(self, code: grpc.StatusCode, duration_s: float) -> None:
        """A call ended."""
        self._in_flight.dec()
        self._seconds.observe(duration_s)
        if code not in self._calls:
            self._calls[code] = self._metrics.calls.labels(self._method, code.name)
        self._calls[code].inc()


def new_registry() -> CollectorRegistry:
    """A registry with the metrics of the process (CPU, memory, descriptors), Python and its garbage collector."""
    registry = CollectorRegistry(auto_describe=True)
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


class MetricsServer:
    """HTTP/1.1, one request per connection: GET or HEAD /metrics and /ready, everything else is refused."""

    def __init__(self, registry: CollectorRegistry, is_ready: Callable[[], bool]) -> None:
        """Serve what `registry` collects, and at /ready 200 or 503: for probes that speak no gRPC."""
        self._registry = registry
        self._is_ready = is_ready
        self._connections = 0

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one connection, whatever it sends."""
        self._connections += 1
        try:
            async with asyncio.timeout(REQUEST_S_MAX):
                answer = _answer(503) if self._connections > CONNECTIONS_MAX else await self._respond(reader)
                writer.write(answer)
                await writer.drain()
        except (TimeoutError, OSError):
            pass  # the scraper went away or dawdles; it comes again
        finally:
            self._connections -= 1
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _respond(self, reader: asyncio.StreamReader) -> bytes:
        """Read one request head and answer it."""
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            return _answer(400)
        parts = head.split(b"\r\n", 1)[0].split(b" ")
        if len(parts) != 3 or not parts[2].startswith(b"HTTP/1."):
            return _answer(400)
        page = parts[1].split(b"?")[0]
        if page not in (b"/metrics", b"/ready"):
            return _answer(404)
        if parts[0] not in (b"GET", b"HEAD"):
            return _answer(405)
        if page == b"/ready":
            return _answer(200 if self._is_ready() else 503)
        body = generate_latest(self._registry)
        return _answer(200, body, send_body=parts[0] == b"GET")


_PHRASES: Final = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    503: "Service Unavailable",
}


def _answer(code: int, body: bytes = b"", *, send_body: bool = True) -> bytes:
    """A whole HTTP/1.1 response."""
    head = (
        f"HTTP/1.1 {code} {_PHRASES[code]}\r\nContent-Type: {CONTENT_TYPE_PLAIN_0_0_4}\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + (body if send_body else b"")

"""Tracing: W3C propagation always, export by OTLP over gRPC only when OTEL_EXPORTER_OTLP_ENDPOINT is set, flushed at the end."""

from __future__ import annotations

import asyncio
import os
from typing import Final

from opentelemetry import propagate, trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, DEFAULT_ON
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from services.chassis.settings import ChassisSettings

ENDPOINT_VARIABLE: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"
EXPORT_TIMEOUT_S: Final = 2
"""Longest wait for the collector, per export and at the end: an absent collector must not hold up a shutdown."""


def make_tracer_provider(settings: ChassisSettings) -> TracerProvider:
    """The process's tracer provider. It exports when an endpoint is set; else nothing is recorded, and the ids alone exist, for logs."""
    exports = bool(os.environ.get(ENDPOINT_VARIABLE))
    provider = TracerProvider(
        sampler=DEFAULT_ON if exports else ALWAYS_OFF,
        resource=Resource.create(
            {
                "service.name": os.environ.get("OTEL_SERVICE_NAME") or settings.service or "nipmesh",
                "service.namespace": settings.mesh,
                "service.instance.id": f"{settings.version or settings.service}-{settings.replica}",
            }
        ),
        shutdown_on_exit=False,
    )
    if exports:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

        endpoint = os.environ[ENDPOINT_VARIABLE]
        exporter = OTLPSpanExporter(insecure=not endpoint.startswith("https:"), timeout=EXPORT_TIMEOUT_S)
        provider.add_span_processor(BatchSpanProcessor(exporter, export_timeout_millis=EXPORT_TIMEOUT_S * 1_000))
    return provider


def install(provider: TracerProvider) -> None:
    """Make it the process's, with W3C trace context as the only propagation (baggage could carry anything anywhere)."""
    trace.set_tracer_provider(provider)
    propagate.set_global_textmap(TraceContextTextMapPropagator())


async def shut_down(provider: TracerProvider) -> None:
    """Export what waits, for at most EXPORT_TIMEOUT_S, and end."""
    await asyncio.to_thread(provider.force_flush, EXPORT_TIMEOUT_S * 1_000)
    await asyncio.to_thread(provider.shutdown)


def trace_ids() -> dict[str, str]:
    """`trace_id` and `span_id` of the running span in hex; empty outside one."""
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return {}
    return {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}

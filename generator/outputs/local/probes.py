"""Asks a process whether it is ready: an application by grpc.health.v1, a sidecar by Envoy's `/ready`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeAlias

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2

from generator.introspection.admin import HTTP_OK, AdminError, request
from generator.model import Address, Probe, UnixAddress
from generator.model.process import PROBE_INTERVAL_MS, PROBE_TIMEOUT_MS
from generator.outputs.local.environment import target
from generator.outputs.local.workload import Verdict

STARTING_INTERVAL_S = 0.05
"""Between two probes of what starts: its delay is what the user waits for."""
READY_INTERVAL_S = PROBE_INTERVAL_MS / 1000
"""Between two probes of what runs and is nobody's service."""
CHANNEL_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)
SILENT_CODES = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED})

HEALTH_CHECK = "/grpc.health.v1.Health/Check"

Check: TypeAlias = "grpc.aio.UnaryUnaryMultiCallable[health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse]"
Report = Callable[[Verdict], Awaitable[None]]


async def probe_application(address: Address, probe: Probe, *, any_answer: bool, report: Report) -> None:
    """Report verdicts until cancelled. `any_answer`: any answer is enough (of the introspection server)."""
    await _until_socket(address)
    async with grpc.aio.insecure_channel(target(address), options=CHANNEL_OPTIONS) as channel:
        check: Check = channel.unary_unary(
            HEALTH_CHECK,
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        while True:
            verdict = await _check(check, probe, any_answer=any_answer)
            await report(verdict)
            await asyncio.sleep(probe.interval_ms / 1000 if verdict is Verdict.READY else STARTING_INTERVAL_S)


async def probe_sidecar(admin: Path, *, report: Report) -> None:
    """Report verdicts of Envoy's `/ready` until cancelled."""
    while True:
        verdict = await _ready(admin)
        await report(verdict)
        await asyncio.sleep(READY_INTERVAL_S if verdict is Verdict.READY else STARTING_INTERVAL_S)


async def _until_socket(address: Address) -> None:
    """Wait for the file: a refused connection would cost grpc its back-off."""
    while isinstance(address, UnixAddress) and not address.path.exists():  # noqa: ASYNC110  # another process makes it
        await asyncio.sleep(STARTING_INTERVAL_S)


async def _check(check: Check, probe: Probe, *, any_answer: bool) -> Verdict:
    try:
        answer = await check(health_pb2.HealthCheckRequest(service=""), timeout=probe.timeout_ms / 1000)
    except grpc.aio.AioRpcError as error:
        return Verdict.SILENT if error.code() in SILENT_CODES else Verdict.REFUSED
    is_serving = answer.status == health_pb2.HealthCheckResponse.SERVING
    return Verdict.READY if is_serving or any_answer else Verdict.REFUSED


async def _ready(admin: Path) -> Verdict:
    try:
        answer = await request(admin, "/ready", timeout_s=PROBE_TIMEOUT_MS / 1000)
    except (OSError, TimeoutError, AdminError):
        return Verdict.SILENT
    return Verdict.READY if answer.status == HTTP_OK else Verdict.REFUSED

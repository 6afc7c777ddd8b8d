"""Load reports: they cross the pair to the caller's sidecar, which weighs the replicas by them, and stop at the gateway."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio

from services.chassis.load import LOAD_KEY, LoadMeter
from support.envoys import GATEWAY, MANIFEST, Application, Envoys, Handler, call

pytestmark = [pytest.mark.mesh, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]
SAY = "/echo.v1.EchoService/Say"
COST_S = {"echo-0": 0.004, "echo-1": 0.001}
"""CPU time that a call takes: the first replica is four times as slow."""
CALLS = 400
SETTLE_S = 20.0
WEIGHTED = """
    traffic:
      load_balancing: {policy: weighted_round_robin}
      methods:
        EchoService/Say:"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def envoys(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Envoys]:
    running = Envoys(tmp_path_factory.mktemp("load"), weighted(MANIFEST) + GATEWAY)
    try:
        await running.start()
        for name, cost_s in COST_S.items():
            running.applications[name].handlers[SAY] = reporting(running.applications[name], cost_s)
        yield running
    finally:
        await running.stop()


def weighted(manifest: str) -> str:
    """The same manifest, whose services are balanced by load reports."""
    plain = WEIGHTED.replace("      load_balancing: {policy: weighted_round_robin}\n", "")
    assert plain in manifest
    return manifest.replace(plain, WEIGHTED)


def reporting(application: Application, cost_s: float) -> Handler:
    """Answers, and reports a load as if each call had cost so much CPU time."""
    meter = LoadMeter(
        calls_max=100, cores=1.0, now_s=time.monotonic(), cpu_clock=lambda: application.count(SAY) * cost_s
    )

    async def handler(request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        meter.began(time.monotonic())
        report = meter.report(time.monotonic())
        context.set_trailing_metadata(((LOAD_KEY, report), ("x-nipmesh-anything", "ours"), ("kept", "yes")))
        meter.ended(time.monotonic(), failed=False)
        return request

    return handler


async def trailers(channel: grpc.aio.Channel) -> dict[str, str | bytes]:
    answer = channel.unary_unary(SAY)(b"x", timeout=10)
    await answer
    return dict(await answer.trailing_metadata() or ())


async def test_the_report_reaches_the_caller_and_stops_at_the_gateway(envoys: Envoys) -> None:
    async with envoys.channel("front-0") as front, envoys.channel("gateway") as gateway:
        inside, outside = await trailers(front), await trailers(gateway)
    assert str(inside[LOAD_KEY]).startswith("TEXT cpu_utilization=")
    assert outside["kept"] == "yes"
    assert not [name for name in outside if name.startswith(("endpoint-load-metrics", "x-nipmesh-"))]


async def test_an_error_takes_no_report_to_the_world_either(envoys: Envoys) -> None:
    async def refuse(request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        await context.abort(grpc.StatusCode.NOT_FOUND, "no", trailing_metadata=((LOAD_KEY, "TEXT eps=1"),))
        return b""

    healthy = {name: envoys.applications[name].handlers[SAY] for name in COST_S}
    try:
        for name in COST_S:
            envoys.applications[name].handlers[SAY] = refuse
        async with envoys.channel("gateway") as gateway:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(gateway, "EchoService/Say")
    finally:
        for name, handler in healthy.items():
            envoys.applications[name].handlers[SAY] = handler
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert LOAD_KEY not in dict(caught.value.trailing_metadata() or ())


async def test_the_slower_replica_gets_fewer_calls(envoys: Envoys) -> None:
    async with envoys.channel("front-0") as channel:
        deadline_s = time.monotonic() + SETTLE_S
        while (share := await share_of_the_slower(envoys, channel)) > 0.3 and time.monotonic() < deadline_s:
            await asyncio.sleep(0.2)
    assert 0.1 < share < 0.3


async def share_of_the_slower(envoys: Envoys, channel: grpc.aio.Channel) -> float:
    """One in five, once the weights are known; one in two before."""
    before = {name: envoys.applications[name].count(SAY) for name in COST_S}
    for _ in range(CALLS):
        await call(channel, "EchoService/Say")
    return (envoys.applications["echo-0"].count(SAY) - before["echo-0"]) / CALLS

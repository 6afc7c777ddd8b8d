"""Outlier detection on real Envoys: who is taken out of rotation, for what, for how long, and who stays whatever happens."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest
import pytest_asyncio

from support.changing import ChangingEnvoys
from support.outcomes import at_once, attempt, codes, in_turn

pytestmark = [pytest.mark.mesh, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]
SAY = "EchoService/Say"
FEW = 8
"""Envoy ejects a moment after the third failure; some more calls may slip through."""
REPLICAS = ("echo-0", "echo-1", "echo-2")

PROTO = """
syntax = "proto3";
package echo.v1;
message Text { string text = 1; }
service EchoService {
  rpc Say(Text) returns (Text) { option idempotency_level = NO_SIDE_EFFECTS; }
}
service FrontService { rpc Say(Text) returns (Text); }
"""
MANIFEST = """
mesh: test
protos: [protos]
services:
  front:
    run: "true"
    replicas: 1
    serves: [FrontService]
    calls: {echo: [EchoService/*]}
  echo:
    run: "true"
    replicas: 3
    serves: [EchoService]
    traffic:
      retries: {attempts: 0}
      outlier_detection:
"""
CALM = "{interval: 100ms, consecutive_errors: 1000, consecutive_gateway_errors: 1000}"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def envoys(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ChangingEnvoys]:
    running = ChangingEnvoys(tmp_path_factory.mktemp("outliers"), f"{MANIFEST}        {CALM}\n", PROTO)
    try:
        await running.start()
        yield running
    finally:
        await running.stop()


@pytest_asyncio.fixture(loop_scope="module")
async def channel(envoys: ChangingEnvoys) -> AsyncIterator[grpc.aio.Channel]:
    for application in envoys.applications.values():
        application.handlers.clear()
        application.seen.clear()
    async with envoys.channel("front-0") as channel:
        yield channel


def fails(envoys: ChangingEnvoys, replica: str, code: grpc.StatusCode, *, share: int = 100) -> None:
    """Let a replica fail this percentage of its calls, evenly."""
    numbers = itertools.count()

    async def handler(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        number = next(numbers)
        if (number + 1) * share // 100 > number * share // 100:
            await context.abort(code, "not well")
        return request

    envoys.applications[replica].handlers[f"/echo.v1.{SAY}"] = handler


def count(envoys: ChangingEnvoys, replica: str) -> int:
    return envoys.applications[replica].count(f"/echo.v1.{SAY}")


def out(envoys: ChangingEnvoys) -> int:
    return envoys.stat("front-0", "cluster.outbound_echo.outlier_detection.ejections_active")


async def calls_until(envoys: ChangingEnvoys, channel: grpc.aio.Channel, ejected: int, seconds: float = 20) -> None:
    """Call until so many replicas are out."""
    deadline = time.monotonic() + seconds
    while out(envoys) != ejected:
        assert time.monotonic() < deadline, f"{out(envoys)} are out, not {ejected}"
        await at_once(channel, SAY, 12)


async def settle(envoys: ChangingEnvoys, channel: grpc.aio.Channel, settings: str) -> None:
    await envoys.change(f"{MANIFEST}        {settings}\n")
    assert codes(await in_turn(channel, SAY, 6)) == {"OK": 6}
    for application in envoys.applications.values():
        application.seen.clear()


async def test_errors_in_a_row_take_a_replica_out_and_it_returns_after_its_time(
    envoys: ChangingEnvoys, channel: grpc.aio.Channel
) -> None:
    await settle(envoys, channel, "{interval: 100ms, consecutive_errors: 3, base_ejection_time: 2s}")
    fails(envoys, "echo-0", grpc.StatusCode.INTERNAL)
    outcomes = await in_turn(channel, SAY, 40)
    began = time.monotonic()
    failed = codes(outcomes)["INTERNAL"]
    assert 3 <= failed <= FEW, codes(outcomes)
    assert (count(envoys, "echo-0"), out(envoys)) == (failed, 1)
    envoys.applications["echo-0"].handlers.clear()
    while count(envoys, "echo-0") == failed:
        assert (await attempt(channel, SAY)).code is grpc.StatusCode.OK
        assert time.monotonic() < began + 20, "it did not come back"
        await asyncio.sleep(0.02)
    assert time.monotonic() - began > 1
    assert out(envoys) == 0


async def test_unavailability_in_a_row_ejects_where_other_errors_do_not(
    envoys: ChangingEnvoys, channel: grpc.aio.Channel
) -> None:
    await settle(
        envoys,
        channel,
        "{interval: 100ms, consecutive_errors: 1000, consecutive_gateway_errors: 3, base_ejection_time: 1m}",
    )
    fails(envoys, "echo-0", grpc.StatusCode.INTERNAL)
    await in_turn(channel, SAY, 60)
    assert count(envoys, "echo-0") > 5
    assert out(envoys) == 0
    fails(envoys, "echo-0", grpc.StatusCode.UNAVAILABLE)
    outcomes = await in_turn(channel, SAY, 40)
    assert 3 <= codes(outcomes)["UNAVAILABLE"] <= FEW
    assert out(envoys) == 1


@pytest.mark.parametrize("code", [grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED])
async def test_what_callers_do_wrong_or_what_is_shed_ejects_nobody(
    envoys: ChangingEnvoys, channel: grpc.aio.Channel, code: grpc.StatusCode
) -> None:
    await settle(envoys, channel, "{interval: 100ms, consecutive_errors: 1, consecutive_gateway_errors: 1}")
    fails(envoys, "echo-0", code)
    outcomes = await in_turn(channel, SAY, 40)
    assert codes(outcomes)[code.name] > 3
    assert out(envoys) == 0


async def test_a_success_rate_far_below_the_others_ejects(envoys: ChangingEnvoys, channel: grpc.aio.Channel) -> None:
    for enough in (4, 3):
        settings = f"success_rate: {{min_replicas: {enough}, min_requests: 10}}"
        await settle(envoys, channel, f"{CALM[:-1]}, base_ejection_time: 1m, {settings}}}".replace("100ms", "1s"))
        fails(envoys, "echo-0", grpc.StatusCode.INTERNAL, share=50)
        if enough > len(REPLICAS):
            for _ in range(3):
                await at_once(channel, SAY, 60)
                await asyncio.sleep(0.5)
            assert out(envoys) == 0, "too few replicas to compare"
            envoys.applications["echo-0"].handlers.clear()
    await calls_until(envoys, channel, 1)
    before = count(envoys, "echo-0")
    assert codes(await in_turn(channel, SAY, 30)) == {"OK": 30}
    assert count(envoys, "echo-0") == before


async def test_a_replica_that_fails_more_than_its_share_is_ejected(
    envoys: ChangingEnvoys, channel: grpc.aio.Channel
) -> None:
    settings = "failure_percentage: {threshold: 60, min_replicas: 2, min_requests: 10}"
    await settle(envoys, channel, f"{CALM[:-1]}, base_ejection_time: 1m, {settings}}}".replace("100ms", "1s"))
    fails(envoys, "echo-0", grpc.StatusCode.INTERNAL, share=90)
    fails(envoys, "echo-1", grpc.StatusCode.INTERNAL, share=30)
    await calls_until(envoys, channel, 1)
    before = count(envoys, "echo-0")
    for _ in range(3):
        await at_once(channel, SAY, 60)
        await asyncio.sleep(0.5)
    assert count(envoys, "echo-0") == before
    assert out(envoys) == 1, "30 % is less than 60 %"


@pytest.mark.parametrize(
    ("percent", "ejected"), [("max_ejection_percent: 0", 0), ("max_ejection_percent: 34", 1), ("", 2)]
)
async def test_no_more_replicas_are_out_than_the_share_allows(
    envoys: ChangingEnvoys, channel: grpc.aio.Channel, percent: str, ejected: int
) -> None:
    await settle(envoys, channel, f"{{interval: 100ms, consecutive_errors: 1, base_ejection_time: 1m, {percent}}}")
    for replica in REPLICAS:
        fails(envoys, replica, grpc.StatusCode.INTERNAL)
    outcomes = await in_turn(channel, SAY, 60)
    assert codes(outcomes) == {"INTERNAL": 60}, "whoever is left is still asked"
    assert out(envoys) == ejected
    left = sum(count(envoys, replica) > FEW for replica in REPLICAS)
    assert left == len(REPLICAS) - ejected

"""Hedging on real Envoys: a slow replica costs its callers the hedge's delay, and never more executions than allowed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import grpc
import grpc.aio
import pytest
import pytest_asyncio

from support.envoys import Envoys
from support.outcomes import attempt, codes, executions, in_turn, quantile

pytestmark = [pytest.mark.mesh, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]
SLOW_S = 3.0
CALLS = 40
HEDGED, PLAIN, TWICE = "EchoService/Hedged", "EchoService/Plain", "EchoService/Twice"

PROTO = """
syntax = "proto3";
package echo.v1;
message Text { string text = 1; }
service EchoService {
  rpc Hedged(Text) returns (Text) { option idempotency_level = NO_SIDE_EFFECTS; }
  rpc Twice(Text) returns (Text) { option idempotency_level = NO_SIDE_EFFECTS; }
  rpc Plain(Text) returns (Text) { option idempotency_level = NO_SIDE_EFFECTS; }
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
    replicas: 2
    serves: [EchoService]
    traffic:
      methods:
        EchoService/Hedged: {hedging: {delay: 150ms}}
        EchoService/Twice: {hedging: {delay: 150ms, attempts: 2}}
"""


@dataclass
class Slow:
    """A handler that takes its time, and counts who did not wait."""

    started: int = 0
    cancelled: int = 0

    async def __call__(self, request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        self.started += 1
        try:
            await asyncio.sleep(SLOW_S)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return request


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def envoys(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Envoys]:
    running = Envoys(tmp_path_factory.mktemp("hedging"), MANIFEST, PROTO)
    try:
        await running.start()
        yield running
    finally:
        await running.stop()


@pytest_asyncio.fixture(loop_scope="module")
async def channel(envoys: Envoys) -> AsyncIterator[grpc.aio.Channel]:
    for application in envoys.applications.values():
        application.handlers.clear()
        application.seen.clear()
    async with envoys.channel("front-0") as channel:
        yield channel


def slow_at(envoys: Envoys, method: str, *replicas: str) -> Slow:
    slow = Slow()
    for replica in replicas:
        envoys.applications[replica].handlers[f"/echo.v1.{method}"] = slow
    return slow


async def test_a_slow_replica_costs_the_delay_and_is_told_to_stop(envoys: Envoys, channel: grpc.aio.Channel) -> None:
    slow = slow_at(envoys, HEDGED, "echo-0")
    outcomes = await in_turn(channel, HEDGED, CALLS)
    assert codes(outcomes) == {"OK": CALLS}
    assert quantile(outcomes, 0.9) < SLOW_S / 2
    assert slow.started >= CALLS // 10, "half of the calls begin at the slow replica"
    await envoys.until(lambda: slow.cancelled == slow.started, "a slower attempt was not ended")
    assert executions(envoys.applications.values(), HEDGED) == CALLS + slow.started


async def test_a_replica_that_is_slower_than_the_delay_is_not_taken_for_a_sick_one(
    envoys: Envoys, channel: grpc.aio.Channel
) -> None:
    slow = slow_at(envoys, HEDGED, "echo-0")
    await asyncio.gather(*(attempt(channel, HEDGED) for _ in range(CALLS)))
    assert slow.started >= 10
    await asyncio.sleep(1.5)  # a look of the outlier detection
    assert envoys.stat("front-0", "cluster.outbound_echo.outlier_detection.ejections_enforced_total") == 0


async def test_without_hedging_the_slow_replica_is_waited_for(envoys: Envoys, channel: grpc.aio.Channel) -> None:
    slow = slow_at(envoys, PLAIN, "echo-0")
    outcomes = await asyncio.gather(*(attempt(channel, PLAIN) for _ in range(8)))
    assert codes(outcomes) == {"OK": 8}
    assert slow.cancelled == 0
    assert max(outcome.seconds for outcome in outcomes) > 0.9 * SLOW_S


@pytest.mark.parametrize(("method", "count"), [(HEDGED, 2), (TWICE, 3)])
async def test_a_service_that_is_slow_as_a_whole_is_asked_as_often_as_the_attempts_say(
    envoys: Envoys, channel: grpc.aio.Channel, method: str, count: int
) -> None:
    slow = slow_at(envoys, method, "echo-0", "echo-1")
    outcome = await attempt(channel, method)
    assert outcome.code is grpc.StatusCode.OK, "nobody gives up because copies are slow, too"
    assert 0.9 * SLOW_S < outcome.seconds < 3 * SLOW_S
    assert slow.started == count
    await envoys.until(lambda: slow.cancelled == count - 1, "the slower copies were not ended")

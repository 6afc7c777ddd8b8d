"""Retries on real Envoys: how often, on what, how soon, where, and how many at once."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest
import pytest_asyncio

from support.envoys import Envoys, Handler
from support.outcomes import at_once, attempt, codes, executions, in_turn

pytestmark = [pytest.mark.mesh, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

PROTO = """
syntax = "proto3";
package echo.v1;
message Text { string text = 1; }
service EchoService {
  rpc Plain(Text) returns (Text) { option idempotency_level = NO_SIDE_EFFECTS; }
  rpc Never(Text) returns (Text) { option idempotency_level = NO_SIDE_EFFECTS; }
  rpc Deaf(Text) returns (Text) { option idempotency_level = NO_SIDE_EFFECTS; }
  rpc Thrice(Text) returns (Text) { option idempotency_level = NO_SIDE_EFFECTS; }
  rpc Leisurely(Text) returns (Text) { option idempotency_level = NO_SIDE_EFFECTS; }
  rpc Impatient(Text) returns (Text) { option idempotency_level = IDEMPOTENT; }
  rpc Late(Text) returns (Text) { option idempotency_level = IDEMPOTENT; }
  rpc Once(Text) returns (Text);
  rpc Daring(Text) returns (Text);
}
service ThriftyService {
  rpc Say(Text) returns (Text) { option idempotency_level = NO_SIDE_EFFECTS; }
}
service FrontService { rpc Say(Text) returns (Text); }
"""
MANIFEST = """
mesh: test
protos: [protos]
traffic:
  outlier_detection: {max_ejection_percent: 0}
services:
  front:
    run: "true"
    replicas: 1
    serves: [FrontService]
    calls: {echo: [EchoService/*], thrifty: [ThriftyService/Say]}
  echo:
    run: "true"
    replicas: 2
    serves: [EchoService]
    traffic:
      deadline: 20s
      methods:
        EchoService/Never: {retries: {attempts: 0}}
        EchoService/Deaf: {retries: {on: [not_delivered, reset]}}
        EchoService/Thrice: {retries: {attempts: 2}}
        EchoService/Leisurely: {retries: {attempts: 1, backoff: {base: 2s, max: 2s}}}
        EchoService/Impatient: {retries: {attempts: 1, per_try_timeout: 400ms}}
        EchoService/Late: {deadline: 1s, retries: {attempts: 4, per_try_timeout: 700ms}}
        EchoService/Daring: {retries: {on: [unavailable], attempts: 1}, unsafe: a test says that it may run twice}
  thrifty:
    run: "true"
    replicas: 1
    serves: [ThriftyService]
    traffic:
      deadline: 20s
      retries: {attempts: 4}
      retry_budget: {percent: 0, min_concurrency: 1}
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def envoys(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Envoys]:
    running = Envoys(tmp_path_factory.mktemp("retries"), MANIFEST, PROTO)
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


async def unavailable(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
    await context.abort(grpc.StatusCode.UNAVAILABLE, "not now")


async def hung(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
    await asyncio.sleep(60)
    return request


def behave(envoys: Envoys, method: str, handler: Handler, *, of: str = "echo", only: str | None = None) -> None:
    for name, application in envoys.applications.items():
        if name.startswith(f"{of}-") and (only is None or name == only):
            application.handlers[f"/echo.v1.{method}"] = handler


def seen(envoys: Envoys, method: str) -> int:
    return executions(envoys.applications.values(), method)


@pytest.mark.parametrize(
    ("method", "count"),
    [("Plain", 4), ("Never", 1), ("Deaf", 1), ("Thrice", 3), ("Once", 1), ("Daring", 2)],
)
async def test_a_call_that_fails_everywhere_runs_as_often_as_its_attempts_and_conditions_say(
    envoys: Envoys, channel: grpc.aio.Channel, method: str, count: int
) -> None:
    behave(envoys, f"EchoService/{method}", unavailable)
    outcome = await attempt(channel, f"EchoService/{method}")
    assert (outcome.code, outcome.details) == (grpc.StatusCode.UNAVAILABLE, "not now")
    assert seen(envoys, f"EchoService/{method}") == count


async def test_another_attempt_goes_to_the_other_replica(envoys: Envoys, channel: grpc.aio.Channel) -> None:
    behave(envoys, "EchoService/Plain", unavailable, only="echo-0")
    outcomes = await in_turn(channel, "EchoService/Plain", 40)
    assert codes(outcomes) == {"OK": 40}
    bad, good = (executions([envoys.applications[name]], "EchoService/Plain") for name in ("echo-0", "echo-1"))
    assert good == 40
    assert 5 <= bad <= 35


async def test_pauses_between_attempts_follow_the_backoff(envoys: Envoys, channel: grpc.aio.Channel) -> None:
    for method in ("Plain", "Leisurely"):
        behave(envoys, f"EchoService/{method}", unavailable)
    quick, slow = [
        statistics.median(outcome.seconds for outcome in await at_once(channel, f"EchoService/{method}", 20))
        for method in ("Plain", "Leisurely")
    ]
    assert slow > 2 * quick, "half of the pauses are random: 1 s on average against 3 of at most 250 ms"
    assert slow < 5


async def test_a_hung_replica_costs_no_call_that_gives_attempts_up(envoys: Envoys, channel: grpc.aio.Channel) -> None:
    behave(envoys, "EchoService/Impatient", hung, only="echo-0")
    outcomes = await at_once(channel, "EchoService/Impatient", 20)
    assert codes(outcomes) == {"OK": 20}
    assert max(outcome.seconds for outcome in outcomes) < 10
    assert executions([envoys.applications["echo-1"]], "EchoService/Impatient") == 20


async def test_when_all_replicas_hang_the_caller_hears_so_after_the_attempts(
    envoys: Envoys, channel: grpc.aio.Channel
) -> None:
    behave(envoys, "EchoService/Impatient", hung)
    outcome = await attempt(channel, "EchoService/Impatient")
    assert outcome.code is grpc.StatusCode.DEADLINE_EXCEEDED, outcome
    assert 0.7 < outcome.seconds < 10, "two attempts of 400 ms, far from the deadline of 20 s"
    assert seen(envoys, "EchoService/Impatient") == 2


async def test_the_deadline_bounds_all_attempts(envoys: Envoys, channel: grpc.aio.Channel) -> None:
    behave(envoys, "EchoService/Late", hung)
    outcome = await attempt(channel, "EchoService/Late")
    assert outcome.code is grpc.StatusCode.DEADLINE_EXCEEDED, outcome
    assert 0.9 < outcome.seconds < 5
    assert seen(envoys, "EchoService/Late") <= 2


async def test_a_storm_is_bounded_by_the_retry_budget(envoys: Envoys, channel: grpc.aio.Channel) -> None:
    async def slowly_unavailable(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        await asyncio.sleep(0.3)
        await context.abort(grpc.StatusCode.UNAVAILABLE, "not now")

    behave(envoys, "ThriftyService/Say", slowly_unavailable, of="thrifty")
    outcomes = await at_once(channel, "ThriftyService/Say", 40)
    assert codes(outcomes) == {"UNAVAILABLE": 40}
    repeated = seen(envoys, "ThriftyService/Say") - 40
    assert 1 <= repeated <= 8, f"one at a time, of 160 that the attempts would allow: {repeated}"
    assert envoys.stat("front-0", "cluster.outbound_thrifty.upstream_rq_retry_overflow") > 20

"""Adaptive concurrency and admission control on real Envoys: what an overloaded application never sees, and who takes it."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import grpc
import grpc.aio
import pytest
import pytest_asyncio

from support.changing import ChangingEnvoys
from support.outcomes import Outcome, at_once, attempt, codes, executions, in_turn

pytestmark = [pytest.mark.mesh, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]
SOLO, PAIR, ILL = "SoloService/Say", "PairService/Once", "IllService/Say"
LIMIT = "http.inbound.adaptive_concurrency.gradient_controller.concurrency_limit"
PAIRED = ("pair-0", "pair-1")
BUDGET = "retry_budget: {percent: 20, min_concurrency: 4}"
SHED = "http.inbound.adaptive_concurrency.gradient_controller.rq_blocked"
MEASURING = "http.inbound.adaptive_concurrency.gradient_controller.min_rtt_calculation_active"

PROTO = """
syntax = "proto3";
package echo.v1;
message Text { string text = 1; }
service SoloService {
  rpc Say(Text) returns (Text) { option idempotency_level = NO_SIDE_EFFECTS; }
  rpc Watch(Text) returns (stream Text) { option idempotency_level = NO_SIDE_EFFECTS; }
}
service PairService { rpc Once(Text) returns (Text); }
service IllService { rpc Say(Text) returns (Text) { option idempotency_level = NO_SIDE_EFFECTS; } }
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
    calls: {solo: [SoloService/*], pair: [PairService/*], ill: [IllService/*]}
  solo:
    run: "true"
    replicas: 1
    serves: [SoloService]
    traffic:
      retries: {attempts: 0}
      adaptive_concurrency: {min_concurrency: 3, measure_requests: 20, measure_interval: 1h}
  pair:
    run: "true"
    replicas: 2
    serves: [PairService]
    traffic:
      adaptive_concurrency: {min_concurrency: 3, measure_requests: 20, measure_interval: 1h}
  ill:
    run: "true"
    replicas: 1
    serves: [IllService]
    traffic:
      retries: {attempts: 0}
      admission_control: {success_rate_threshold: 90, window: 2s, min_requests_per_second: 1, max_rejection_percent: 80}
"""


@dataclass
class Worker:
    """An application that does one thing at a time: it slows down with load."""

    seconds: float
    running: int = 0
    running_sum: int = 0
    calls: int = 0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def __call__(self, request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        self.running += 1
        self.running_sum += self.running
        self.calls += 1
        try:
            async with self.lock:
                await asyncio.sleep(self.seconds)
        finally:
            self.running -= 1
        return request


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def envoys(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ChangingEnvoys]:
    running = ChangingEnvoys(tmp_path_factory.mktemp("overload"), MANIFEST, PROTO)
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


async def until(
    channel: grpc.aio.Channel, method: str, holds: Callable[[], bool], callers: int, seconds: float = 30
) -> list[Outcome]:
    """So many callers, each with one call after the other, until something holds."""
    deadline = time.monotonic() + seconds
    outcomes: list[Outcome] = []

    async def caller() -> None:
        while not holds():
            assert time.monotonic() < deadline, codes(outcomes)
            outcomes.append(await attempt(channel, method))
            await asyncio.sleep(0.002)

    await asyncio.gather(*(caller() for _ in range(callers)))
    return outcomes


async def learn(envoys: ChangingEnvoys, channel: grpc.aio.Channel, workload: str, method: str, handler: Worker) -> None:
    """Let the sidecars of a service measure how quick its application is with few calls."""
    for name, application in envoys.applications.items():
        if name.startswith(workload):
            application.handlers[f"/echo.v1.{method}"] = handler
    await until(channel, method, lambda: not envoys.stat(workload, MEASURING), 3)


async def test_an_application_that_slows_down_with_load_is_spared_calls_beyond_what_it_runs_well(
    envoys: ChangingEnvoys, channel: grpc.aio.Channel
) -> None:
    worker = Worker(seconds=0.02)
    await learn(envoys, channel, "solo-0", SOLO, worker)
    envoys.applications["solo-0"].seen.clear()
    checks = envoys.stat("front-0", "cluster.outbound_solo.health_check.attempt")
    unwell = envoys.stat("front-0", "cluster.outbound_solo.health_check.failure")
    done = asyncio.Event()
    load = asyncio.create_task(until(channel, SOLO, done.is_set, 60))
    await asyncio.sleep(1)
    worker.running_sum = worker.calls = 0
    streams = [channel.unary_stream("/echo.v1.SoloService/Watch")(b"\x0a\x02hi") for _ in range(30)]
    for stream in streams:
        assert await stream.read() == b"\x0a\x02hi", "streams are not shed"
        stream.cancel()
    await envoys.until(
        lambda: envoys.stat("front-0", "cluster.outbound_solo.health_check.attempt") >= checks + 3, "no health checks"
    )
    done.set()
    outcomes = await load
    shed = [outcome for outcome in outcomes if outcome.code is grpc.StatusCode.RESOURCE_EXHAUSTED]
    assert set(codes(outcomes)) == {"OK", "RESOURCE_EXHAUSTED"}
    assert len(shed) > len(outcomes) / 4
    assert {outcome.details for outcome in shed} == {"the service has no room for this call"}
    assert executions(envoys.applications.values(), SOLO) == len(outcomes) - len(shed)
    assert worker.running_sum / worker.calls < 30, "60 callers would like to"
    assert envoys.stat("front-0", "cluster.outbound_solo.health_check.failure") == unwell


async def test_the_limit_recovers_with_the_application(envoys: ChangingEnvoys, channel: grpc.aio.Channel) -> None:
    before = envoys.stat("solo-0", LIMIT)
    await until(channel, SOLO, lambda: envoys.stat("solo-0", LIMIT) > max(40, 2 * before), 20)
    assert codes(await at_once(channel, SOLO, 20)) == {"OK": 20}


async def test_what_a_busy_replica_sheds_an_idle_one_takes(envoys: ChangingEnvoys, channel: grpc.aio.Channel) -> None:
    for replica in PAIRED:
        await learn(envoys, channel, replica, PAIR, Worker(seconds=0.001))
    await until(channel, PAIR, lambda: min(envoys.stat(replica, LIMIT) for replica in PAIRED) >= 12, 8)
    envoys.applications["pair-0"].handlers[f"/echo.v1.{PAIR}"] = Worker(seconds=0.1)
    await until(channel, PAIR, lambda: envoys.stat("pair-0", LIMIT) <= 6, 8)
    shed = envoys.stat("pair-0", SHED)
    for application in envoys.applications.values():
        application.seen.clear()
    numbers = itertools.count()
    outcomes = await until(channel, PAIR, lambda: next(numbers) > 400, 8)
    assert codes(outcomes) == {"OK": len(outcomes)}
    assert envoys.stat("pair-0", SHED) > shed, "nothing was shed"
    assert executions(envoys.applications.values(), PAIR) == len(outcomes), "nothing ran twice"


async def test_a_service_that_is_busy_as_a_whole_is_asked_again_within_the_retry_budget(
    envoys: ChangingEnvoys, channel: grpc.aio.Channel
) -> None:
    await envoys.change(
        MANIFEST.replace("PairService]\n    traffic:\n", f"PairService]\n    traffic:\n      {BUDGET}\n")
    )
    for replica in PAIRED:
        envoys.applications[replica].handlers[f"/echo.v1.{PAIR}"] = Worker(seconds=0.1)
    await until(channel, PAIR, lambda: max(envoys.stat(replica, LIMIT) for replica in PAIRED) <= 6, 30)
    for application in envoys.applications.values():
        application.seen.clear()
    repeated = envoys.stat("front-0", r"cluster.outbound_pair.upstream_rq_retry$")
    outcomes = await at_once(channel, PAIR, 80)
    repeated = envoys.stat("front-0", r"cluster.outbound_pair.upstream_rq_retry$") - repeated
    assert codes(outcomes)["RESOURCE_EXHAUSTED"] > 40
    assert executions(envoys.applications.values(), PAIR) == codes(outcomes)["OK"]
    assert envoys.stat("front-0", "cluster.outbound_pair.upstream_rq_retry_overflow") > 20
    assert 1 <= repeated <= 48, f"a fifth of 80 at a time, not three times each: {repeated}"


def failing(envoys: ChangingEnvoys, share: int) -> None:
    numbers = itertools.count()

    async def handler(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        if next(numbers) % 100 < share:
            await context.abort(grpc.StatusCode.INTERNAL, "not well")
        return request

    envoys.applications["ill-0"].handlers[f"/echo.v1.{ILL}"] = handler


async def test_the_more_calls_an_application_fails_the_fewer_it_gets_until_it_is_well_again(
    envoys: ChangingEnvoys, channel: grpc.aio.Channel
) -> None:
    unwell = envoys.stat("front-0", "cluster.outbound_ill.health_check.failure")
    assert codes(await in_turn(channel, ILL, 100)) == {"OK": 100}
    await asyncio.sleep(2.5)  # the window
    shares = []
    for share in (50, 100):
        failing(envoys, share)
        stop = time.monotonic() + 2.5
        await until(channel, ILL, lambda stop=stop: time.monotonic() > stop, 4)
        envoys.applications["ill-0"].seen.clear()
        outcomes = await at_once(channel, ILL, 300)
        refused = codes(outcomes)["RESOURCE_EXHAUSTED"]
        assert executions(envoys.applications.values(), ILL) == 300 - refused
        shares.append(refused / 300)
    assert 0.2 < shares[0] < 0.7, "1 - 0.5 / 0.9 = 0.44"
    assert 0.65 < shares[1] < 0.95, "80 % at most"
    assert shares[0] < shares[1]
    envoys.applications["ill-0"].handlers.clear()
    recent: list[Outcome] = []
    for _ in range(200):
        recent = await in_turn(channel, ILL, 50)
        if codes(recent) == {"OK": 50}:
            break
    assert codes(recent) == {"OK": 50}
    assert envoys.stat("front-0", "cluster.outbound_ill.health_check.failure") == unwell

"""Which replica takes a call, when nothing about the call itself decides: shares, weights, reported load, illness."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio

from support.changing import SAY, ChangingEnvoys, Handler, assert_shares, manifest, tally, text
from support.envoys import failure

pytestmark = [pytest.mark.mesh, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]
REPLICAS = ("echo-0", "echo-1", "echo-2")
ROUNDS_MAX = 40


def balanced(**load_balancing: Any) -> str:
    return manifest({"traffic": {"load_balancing": load_balancing}})


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def envoys(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ChangingEnvoys]:
    running = ChangingEnvoys(tmp_path_factory.mktemp("balancing"), manifest({}))
    try:
        await running.start()
        yield running
    finally:
        await running.stop()


async def test_by_default_a_slow_replica_gets_fewer_calls(envoys: ChangingEnvoys) -> None:
    await envoys.change(manifest({}))
    envoys.applications["echo-0"].handlers[SAY] = slow
    async with envoys.channel("front-0") as front:
        found = await tally(front, 300, callers=8)
    assert 0 < found["slow"] < min(found["echo-1"], found["echo-2"]) / 2, found


async def slow(request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
    await asyncio.sleep(0.05)
    return text("slow")


@pytest.mark.parametrize("caller", ["front-0", "gateway"])
async def test_round_robin_gives_each_replica_the_same(envoys: ChangingEnvoys, caller: str) -> None:
    await envoys.change(balanced(policy="round_robin"))
    async with envoys.channel(caller) as channel:
        found = await tally(channel, 90)
    assert found == dict.fromkeys(REPLICAS, 30)


async def test_random_gives_each_replica_what_chance_gives(envoys: ChangingEnvoys) -> None:
    await envoys.change(balanced(policy="random"))
    async with envoys.channel("front-0") as front:
        found = await tally(front, 600)
    assert_shares(found, dict.fromkeys(REPLICAS, 1))


@pytest.mark.parametrize("policy", ["round_robin", "least_request"])
async def test_weights_decide_the_shares(envoys: ChangingEnvoys, policy: str) -> None:
    """One call after the other: none is running when the next one is placed, and the weights alone decide."""
    await envoys.change(balanced(policy=policy, weights=[5, 3]))
    async with envoys.channel("front-0") as front:
        found = await tally(front, 180, callers=1)
    for name, share in zip(REPLICAS, (100, 60, 20), strict=True):
        assert abs(found[name] - share) <= 9, found


@pytest.mark.parametrize(("caller", "how"), [("front-0", "trailers"), ("gateway", "headers")])
async def test_reported_loads_decide_the_shares(envoys: ChangingEnvoys, caller: str, how: str) -> None:
    """A report in the headers is taken away by the gateway's routes, after the balancer has read it."""
    await envoys.change(balanced(policy="weighted_round_robin"))
    async with envoys.channel(caller) as channel:
        for loads in ((0.1, 0.2, 0.4), (0.4, 0.2, 0.1)):
            for name, load in zip(REPLICAS, loads, strict=True):
                envoys.applications[name].handlers[SAY] = reporting(name, load, how)
            wanted = dict(zip(REPLICAS, (140 * 0.1 / load / 1.75 for load in loads), strict=True))
            await until_shares(channel, 140, wanted)


def reporting(name: str, load: float, how: str) -> Handler:
    async def answer(request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        report = (("endpoint-load-metrics", f"TEXT application_utilization={load},rps_fractional=100"),)
        if how == "headers":
            await context.send_initial_metadata(report)
        else:
            context.set_trailing_metadata(report)
        return text(name)

    return answer


async def until_shares(channel: grpc.aio.Channel, calls: int, wanted: dict[str, float]) -> None:
    found: Counter[str] = Counter()
    for _ in range(ROUNDS_MAX):
        found = await tally(channel, calls)
        if all(abs(found[name] - count) <= 0.1 * calls for name, count in wanted.items()):
            return
        await asyncio.sleep(0.3)
    raise AssertionError((found, wanted))


async def test_nobody_outside_learns_of_reported_loads(envoys: ChangingEnvoys) -> None:
    await envoys.change(balanced(policy="weighted_round_robin"))
    for how in ("headers", "trailers"):
        for name in REPLICAS:
            envoys.applications[name].handlers[SAY] = reporting(name, 0.1, how)
        async with envoys.channel("gateway") as client:
            call = client.unary_unary(SAY)(b"")
            seen = {name for name, _ in (*await call.initial_metadata(), *await call.trailing_metadata())}
        assert not [name for name in seen if "load" in name], how


@pytest.mark.parametrize("policy", ["round_robin", "least_request"])
async def test_the_share_of_a_new_replica_grows(envoys: ChangingEnvoys, policy: str) -> None:
    await envoys.change(balanced(policy=policy, slow_start="5s"))
    await asyncio.sleep(5.5)  # the other replicas have just been met, too
    await envoys.bring("echo-2", into=False)
    await envoys.bring("echo-2", into=True)
    async with envoys.channel("front-0") as front:
        first = await tally(front, 150, callers=1)
        assert 0 < first["echo-2"] < 40, first
        await until_shares(front, 150, {"echo-2": 50})


async def test_without_panic_nothing_goes_to_sick_replicas(envoys: ChangingEnvoys) -> None:
    await envoys.change(balanced(policy="round_robin", panic_threshold=0))
    await envoys.stop_applications("echo-0", "echo-1", caller="front-0")
    before = arrivals(envoys)
    async with envoys.channel("front-0") as front:
        assert await tally(front, 30, method="EchoService/Once") == {"echo-2": 30}
        assert [after - now for after, now in zip(arrivals(envoys), before, strict=True)] == [0, 0, 30]
        await envoys.stop_applications("echo-2", caller="front-0")
        error = await failure(front, "EchoService/Once")
        assert (error.code(), error.details()) == (grpc.StatusCode.UNAVAILABLE, "no healthy upstream")
    await envoys.start_applications(*REPLICAS)


async def test_below_the_panic_threshold_all_replicas_get_calls(envoys: ChangingEnvoys) -> None:
    """No call is lost: whoever is dead says so, and the call goes on to another replica."""
    await envoys.change(balanced(policy="round_robin", panic_threshold=70))
    await envoys.stop_applications("echo-0", caller="front-0")
    before = arrivals(envoys)
    async with envoys.channel("front-0") as front:
        found = await tally(front, 30, method="EchoService/Once")
    assert set(found) == {"echo-1", "echo-2"}
    assert min(after - now for after, now in zip(arrivals(envoys), before, strict=True)) >= 5
    await envoys.start_applications("echo-0")


def arrivals(envoys: ChangingEnvoys) -> list[int]:
    """How many calls each sidecar has taken, whatever became of them; health checks are not among them."""
    return [envoys.stat(name, "^http.inbound.downstream_rq_completed") for name in REPLICAS]

"""Calls stay in their caller's zone, leave it when it is ill, and come back."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio

from support.changing import NEVER, ONCE, SAY, ChangingEnvoys, manifest, tally
from support.envoys import call

pytestmark = [pytest.mark.mesh, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]
CALLERS = 8


def zoned(*zones: str, **load_balancing: Any) -> str:
    """Front is in the first zone, the gateway in b; four replicas of echo."""
    traffic = {"load_balancing": load_balancing, "outlier_detection": NEVER}
    return manifest({"replicas": 4, "traffic": traffic}, zones=zones, gateway={"zone": "b"})


TWO = zoned("a", "b")
IN_A, IN_B = {"echo-0", "echo-2"}, {"echo-1", "echo-3"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def envoys(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ChangingEnvoys]:
    running = ChangingEnvoys(tmp_path_factory.mktemp("zones"), TWO)
    try:
        await running.start()
        yield running
    finally:
        await running.stop()


async def reached(envoys: ChangingEnvoys, caller: str = "front-0", calls: int = 60) -> Counter[str]:
    async with envoys.channel(caller) as channel:
        return await tally(channel, calls)


async def test_calls_stay_in_the_zone_of_their_caller(envoys: ChangingEnvoys) -> None:
    await envoys.change(TWO)
    assert set(await reached(envoys)) == IN_A
    assert set(await reached(envoys, "gateway")) == IN_B


async def test_a_zone_that_is_half_dead_keeps_most_calls(envoys: ChangingEnvoys) -> None:
    """Envoy takes a zone for healthy while 10 of 14 of its replicas are: of two with one dead, 70 % of the calls stay."""
    await envoys.change(TWO)
    await envoys.stop_applications("echo-0", caller="front-0")
    found = await reached(envoys, calls=200)
    assert "echo-0" not in found
    assert 100 < found["echo-2"] < 180, found


async def test_a_zone_that_is_dead_is_left_and_come_back_to(envoys: ChangingEnvoys) -> None:
    await envoys.change(TWO)
    await envoys.stop_applications(*IN_A, caller="front-0")
    assert set(await reached(envoys)) == IN_B
    await envoys.start_applications(*IN_A)
    assert set(await reached(envoys)) == IN_A


async def test_a_zone_without_replicas_in_rotation_is_left(envoys: ChangingEnvoys) -> None:
    await envoys.change(TWO)
    for workload in IN_A:
        await envoys.bring(workload, into=False)
    assert set(await reached(envoys)) == IN_B
    for workload in IN_A:
        await envoys.bring(workload, into=True)
    assert set(await reached(envoys)) == IN_A


@pytest.mark.parametrize("path", [SAY, ONCE])
async def test_a_zone_that_dies_costs_no_idempotent_call(envoys: ChangingEnvoys, path: str) -> None:
    """Both replicas of the zone die at once, under load. What may not run twice loses at most what was in flight."""
    await envoys.change(TWO)
    numbers, failures, stop, dead = itertools.count(), Counter[str](), asyncio.Event(), asyncio.Event()

    async def caller(channel: grpc.aio.Channel) -> None:
        while not stop.is_set():
            try:
                await call(channel, path, metadata=(("x-number", str(next(numbers))),))
            except grpc.aio.AioRpcError as error:
                failures[f"{error.code().name}: {error.details()}"] += 1
                await dead.wait()  # a busy machine takes a while from one death to the other: no new call in between

    async with envoys.channel("front-0") as front:
        callers = [asyncio.create_task(caller(front)) for _ in range(CALLERS)]
        await envoys.until(lambda: at(envoys, path, IN_A) > 200, "no calls in the zone")
        for workload in IN_A:
            envoys.processes[workload].kill()
        for workload in IN_A:
            await asyncio.to_thread(envoys.processes[workload].wait)
        dead.set()
        await envoys.until(lambda: at(envoys, path, IN_B) > 200, "no calls in the other zone")
        stop.set()
        await asyncio.gather(*callers)
    for workload in IN_A:
        await envoys.restart_envoy(workload)
    await envoys.settle()
    assert set(await reached(envoys)) == IN_A
    seen = [
        number for each in envoys.applications.values() for _, seen in each.seen if (number := seen.get("x-number"))
    ]
    if path == SAY:
        assert failures == {}
    else:
        assert sum(failures.values()) <= CALLERS, failures
        assert len(seen) == len(set(seen)), "a call ran twice"


def at(envoys: ChangingEnvoys, path: str, workloads: set[str]) -> int:
    return sum(envoys.counts(path)[workload] for workload in workloads)


async def test_a_repeated_call_goes_to_another_zone(envoys: ChangingEnvoys) -> None:
    await envoys.change(TWO)
    for workload in IN_A:
        envoys.applications[workload].handlers[SAY] = refuse
    assert set(await reached(envoys)) == IN_B
    assert at(envoys, SAY, IN_A) == 60, "tried twice in a zone that refuses"


async def refuse(request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
    await context.abort(grpc.StatusCode.UNAVAILABLE, "busy")
    return b""


async def test_zones_follow_in_the_order_of_failover(envoys: ChangingEnvoys) -> None:
    """Replicas 0 and 3 are in a, 1 is in b, 2 in c."""
    await envoys.change(zoned("a", "b", "c", failover=["c", "b"]))
    assert set(await reached(envoys)) == {"echo-0", "echo-3"}
    await envoys.stop_applications("echo-0", "echo-3", caller="front-0")
    assert set(await reached(envoys)) == {"echo-2"}
    await envoys.stop_applications("echo-2", caller="front-0")
    assert set(await reached(envoys)) == {"echo-1"}
    await envoys.start_applications("echo-2")
    assert set(await reached(envoys)) == {"echo-2"}
    await envoys.start_applications("echo-0", "echo-3")
    assert set(await reached(envoys)) == {"echo-0", "echo-3"}


async def test_without_an_order_all_other_zones_are_alike(envoys: ChangingEnvoys) -> None:
    await envoys.change(zoned("a", "b", "c"))
    await envoys.stop_applications("echo-0", "echo-3", caller="front-0")
    assert set(await reached(envoys)) == {"echo-1", "echo-2"}
    assert set(await reached(envoys, "gateway")) == {"echo-1"}

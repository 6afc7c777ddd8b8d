"""Calls in flight while something dies behind the pair: idempotent ones never fail, others never run twice."""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import grpc
import grpc.aio
import pytest
import pytest_asyncio

from support import mortal_app
from support.envoys import Envoys, call

pytestmark = [pytest.mark.mesh, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]
SAY, ONCE = "/echo.v1.EchoService/Say", "/echo.v1.EchoService/Once"
CALLERS = 16
SECONDS = 4.0
WORK_S = 0.02
"""How long a call takes: with 16 callers about 16 are in flight."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def envoys(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Envoys]:
    running = Envoys(tmp_path_factory.mktemp("resilience"))
    try:
        await running.start()
        yield running
    finally:
        await running.stop()


async def work(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
    await asyncio.sleep(WORK_S)
    return request


class Load:
    """16 callers, each with one call after the other; every request is its own number."""

    def __init__(self, envoys: Envoys, method: str) -> None:
        self.envoys, self.method = envoys, method
        self.numbers = itertools.count(1)
        self.failures: Counter[str] = Counter()
        self.done = 0
        for application in envoys.applications.values():
            application.seen.clear()
            application.handlers.update({SAY: work, ONCE: work})

    async def during(self, disturb: Callable[[], Awaitable[None]]) -> None:
        stop = asyncio.get_running_loop().time() + SECONDS
        async with self.envoys.channel("front-0") as channel:
            callers = [asyncio.create_task(self._caller(channel, stop)) for _ in range(CALLERS)]
            await asyncio.sleep(SECONDS / 4)
            await disturb()
            await asyncio.gather(*callers)

    async def _caller(self, channel: grpc.aio.Channel, stop: float) -> None:
        while asyncio.get_running_loop().time() < stop:
            number = str(next(self.numbers))
            try:
                await call(channel, self.method, metadata=(("x-number", number),))
            except grpc.aio.AioRpcError as error:
                self.failures[f"{error.code().name}: {error.details()}"] += 1
            self.done += 1

    def executions(self) -> Counter[str]:
        seen = (seen for application in self.envoys.applications.values() for _, seen in application.seen)
        return Counter(metadata["x-number"] for metadata in seen if "x-number" in metadata)


async def recover(envoys: Envoys) -> None:
    await envoys.until(lambda: envoys.ready("echo-0"), "echo-0 is not back", 20)
    await envoys.until(lambda: envoys.healthy("front-0"), "echo-0 is not healthy", 30)


async def test_an_application_that_is_killed_costs_no_idempotent_call(envoys: Envoys) -> None:
    replaced = envoys.applications["echo-0"]
    await replaced.stop()
    Path(replaced.listen.removeprefix("unix:")).unlink(missing_ok=True)
    mortal = await asyncio.create_subprocess_exec(sys.executable, mortal_app.__file__, replaced.listen)
    try:
        await recover(envoys)
        load = Load(envoys, "EchoService/Say")

        async def kill() -> None:
            mortal.kill()
            await mortal.wait()

        await load.during(kill)
    finally:
        if mortal.returncode is None:
            mortal.kill()
            await mortal.wait()
        await replaced.start()
    assert load.failures == {}
    assert load.done > 500
    await recover(envoys)


async def test_a_sidecar_that_dies_costs_no_idempotent_call(envoys: Envoys) -> None:
    load = Load(envoys, "EchoService/Say")

    async def kill() -> None:
        envoys.processes["echo-0"].kill()

    await load.during(kill)
    await envoys.restart_envoy("echo-0")
    assert load.failures == {}
    await recover(envoys)


async def test_a_call_that_may_not_be_repeated_runs_at_most_once_whatever_dies(envoys: Envoys) -> None:
    load = Load(envoys, "EchoService/Once")
    await load.during(envoys.applications["echo-0"].stop)
    await envoys.applications["echo-0"].start()
    assert max(load.executions().values()) == 1
    assert sum(load.failures.values()) <= CALLERS, load.failures
    await recover(envoys)


async def test_a_replica_that_drains_costs_no_call_at_all(envoys: Envoys) -> None:
    load = Load(envoys, "EchoService/Once")

    async def drain() -> None:
        envoys.rotate("echo-0", into=False)
        await asyncio.sleep(0.3)
        envoys.admin("echo-0", "/healthcheck/fail", "POST")
        envoys.admin("echo-0", "/drain_listeners?graceful&skip_exit", "POST")
        await asyncio.sleep(0.5)
        envoys.processes["echo-0"].kill()

    await load.during(drain)
    assert load.failures == {}
    envoys.rotate("echo-0", into=True)
    await envoys.restart_envoy("echo-0")
    await recover(envoys)


async def test_certificates_that_change_under_load_cost_no_call(envoys: Envoys) -> None:
    load = Load(envoys, "EchoService/Once")

    async def renew() -> None:
        for name in ("front-0", "echo-0", "echo-1"):
            envoys.issue(name)
            await asyncio.sleep(0.2)

    await load.during(renew)
    assert load.failures == {}

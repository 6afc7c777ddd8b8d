"""Restarts, scaling and deaths of applications that are not ours: one with TCP only, one in JavaScript. No call fails."""

from __future__ import annotations

import asyncio
import os
import signal
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest

from mesh.conftest import alive, process_ids
from support.courier import DEADLINE_S
from support.foreign import CourierMesh, grpc_stubs, missing_toolchain, only, setting, stubs

pytestmark = [pytest.mark.mesh, pytest.mark.timeout(180)]

CALLERS = 4
SETTLED_S_MAX = 40


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CourierMesh]:
    """Two replicas of each of the two, or only the one with TCP where Node.js is missing."""
    folder, machine = tmp_path_factory.mktemp("life"), setting("sorting", replicas=2)
    edits = (only("customs"),) if missing_toolchain() else (only("customs", "sorting"), machine)
    mesh = CourierMesh(folder, *edits)
    mesh.up()
    yield mesh
    pids = process_ids(mesh)
    mesh.down()
    assert not [pid for pid in pids if alive(pid)]


def client(channel: grpc.aio.Channel, service: str) -> tuple[Any, Any]:
    """A method that may run twice, of either service, and a request."""
    if service == "customs":
        request = stubs("customs").ArrivalNotice(movement_reference="26US00000001")
        return grpc_stubs("customs").CustomsDeskStub(channel).Arrive, request
    sorting = "courier/sorting/v1/sorting"
    return grpc_stubs(sorting).LabelServiceStub(channel).Print, stubs(sorting).PrintRequest(waybill="CP1")


@asynccontextmanager
async def load(mesh: CourierMesh, service: str) -> AsyncIterator[list[str]]:
    """Calls on and on; what became of those that failed."""
    failed: list[str] = []
    answered = asyncio.Event()
    stop = asyncio.Event()

    async def caller() -> None:
        async with mesh.channel() as channel:
            method, request = client(channel, service)
            while not stop.is_set():
                call = method(request, timeout=DEADLINE_S)
                if await call.code() is not grpc.StatusCode.OK:
                    failed.append(f"{await call.code()}: {await call.details()}")
                answered.set()

    tasks = [asyncio.create_task(caller()) for _ in range(CALLERS)]
    try:
        await asyncio.wait_for(answered.wait(), DEADLINE_S)
        yield failed
    finally:
        stop.set()
        await asyncio.gather(*tasks)


async def replicas_that_answer(mesh: CourierMesh, service: str, count: int) -> set[int]:
    """The replicas that see a call, asked until so many have been seen."""
    call_id, found = str(uuid.uuid4()), set[int]()
    async with mesh.channel() as channel:
        method, request = client(channel, service)
        for _ in range(SETTLED_S_MAX * 10):
            await method(request, metadata=mesh.metadata(call_id), timeout=DEADLINE_S)
            found = {note["replica"] for note in mesh.executions(call_id)}
            if len(found) == count:
                break
            await asyncio.sleep(0.1)
    return found


def ready_again(mesh: CourierMesh, service: str, index: int, dead: int) -> bool:
    replica = mesh.replicas(service)[index]
    return replica["pid"] not in {dead, None} and replica["app"] == "ready" and bool(replica["in_rotation"])


@pytest.mark.parametrize("service", ["customs", "sorting"])
async def test_no_call_fails_whatever_happens_to_a_replica(pair: CourierMesh, service: str) -> None:
    if service not in pair.document["services"]:
        pytest.skip(str(missing_toolchain()))
    async with load(pair, service) as failed:
        for command in (("restart", service), ("scale", service, "3"), ("scale", service, "2")):
            await asyncio.to_thread(pair.succeed, *command)
            assert failed == [], command
            if command[-1] == "3":
                assert await replicas_that_answer(pair, service, 3) == {0, 1, 2}
        dead = pair.replicas(service)[1]["pid"]
        os.kill(dead, signal.SIGKILL)
        for _ in range(SETTLED_S_MAX * 5):
            if await asyncio.to_thread(ready_again, pair, service, 1, dead):
                break
            await asyncio.sleep(0.2)
        assert await replicas_that_answer(pair, service, 2) == {0, 1}
    assert failed == []

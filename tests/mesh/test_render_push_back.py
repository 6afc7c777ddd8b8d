"""A service says itself whether and when it is asked again (gRFC A6); the callers' sidecars obey."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio

from support.envoys import GATEWAY, MANIFEST, Envoys, Handler, call, failure

pytestmark = [pytest.mark.mesh, pytest.mark.asyncio(loop_scope="module")]
SAY, ONCE = "/echo.v1.EchoService/Say", "/echo.v1.EchoService/Once"
ATTEMPTS = 4
"""The first and three more, of two replicas."""
UNAVAILABLE, RESOURCE_EXHAUSTED = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED
PUSH_BACK, WAIT = "grpc-retry-pushback-ms", "retry-after"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def envoys(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Envoys]:
    running = Envoys(tmp_path_factory.mktemp("push-back"), MANIFEST + GATEWAY)
    try:
        await running.start()
        yield running
    finally:
        await running.stop()


@pytest_asyncio.fixture(loop_scope="module")
async def front(envoys: Envoys) -> AsyncIterator[grpc.aio.Channel]:
    for application in envoys.applications.values():
        application.seen.clear()
        application.handlers.clear()
    active = "outbound_echo.outlier_detection.ejections_active"
    for caller in ("front-0", "gateway"):
        await envoys.until(lambda caller=caller: envoys.stat(caller, active) == 0, "ejected", 20)
    async with envoys.channel("front-0") as channel:
        yield channel


def refuse(code: grpc.StatusCode, *metadata: tuple[str, str]) -> Handler:
    async def handler(request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        await context.abort(code, "later", trailing_metadata=metadata)
        return b""

    return handler


def everywhere(envoys: Envoys, handler: Handler) -> None:
    for name in ("echo-0", "echo-1"):
        envoys.applications[name].handlers.update({SAY: handler, ONCE: handler})


def executions(envoys: Envoys) -> int:
    return sum(envoys.applications[name].count(path) for name in ("echo-0", "echo-1") for path in (SAY, ONCE))


@pytest.mark.parametrize(
    ("code", "metadata", "attempts"),
    [
        (UNAVAILABLE, (), ATTEMPTS),
        (UNAVAILABLE, ((PUSH_BACK, "0"),), ATTEMPTS),
        (UNAVAILABLE, ((PUSH_BACK, "20"),), ATTEMPTS),
        (UNAVAILABLE, ((PUSH_BACK, "-1"),), 1),
        (UNAVAILABLE, ((PUSH_BACK, "soon"),), 1),
        (UNAVAILABLE, ((PUSH_BACK, "60000"), (WAIT, "60")), 1),
        (UNAVAILABLE, ((PUSH_BACK, "0"), ("x-nipmesh-dependency-failed", "true")), 1),
        (RESOURCE_EXHAUSTED, (), 1),
        (RESOURCE_EXHAUSTED, ((PUSH_BACK, "0"),), ATTEMPTS),
        (RESOURCE_EXHAUSTED, ((PUSH_BACK, "20"),), ATTEMPTS),
        (RESOURCE_EXHAUSTED, ((PUSH_BACK, "-1"),), 1),
        (RESOURCE_EXHAUSTED, ((PUSH_BACK, "1500"),), 1),
        (RESOURCE_EXHAUSTED, ((WAIT, "1"),), 1),
        (grpc.StatusCode.ABORTED, ((PUSH_BACK, "0"),), 1),
    ],
)
async def test_the_service_decides_whether_it_is_asked_again(
    envoys: Envoys,
    front: grpc.aio.Channel,
    code: grpc.StatusCode,
    metadata: tuple[tuple[str, str], ...],
    attempts: int,
) -> None:
    everywhere(envoys, refuse(code, *metadata))
    error = await failure(front, "EchoService/Say")
    assert (error.code(), error.details()) == (code, "later")
    assert executions(envoys) == attempts


@pytest.mark.parametrize("code", [UNAVAILABLE, RESOURCE_EXHAUSTED])
async def test_what_may_not_run_twice_runs_once_whatever_the_service_says(
    envoys: Envoys, front: grpc.aio.Channel, code: grpc.StatusCode
) -> None:
    everywhere(envoys, refuse(code, (PUSH_BACK, "0")))
    error = await failure(front, "EchoService/Once")
    assert error.code() is code
    assert executions(envoys) == 1


async def test_a_replica_that_pushes_back_costs_no_call_while_another_has_room(
    envoys: Envoys, front: grpc.aio.Channel
) -> None:
    envoys.applications["echo-0"].handlers[SAY] = refuse(RESOURCE_EXHAUSTED, (PUSH_BACK, "5"))
    for _ in range(20):
        await call(front, "EchoService/Say")
    assert envoys.applications["echo-1"].count(SAY) == 20
    assert envoys.applications["echo-0"].count(SAY) > 0


async def test_a_second_is_waited_for_and_no_call_waits_past_its_deadline(
    envoys: Envoys, front: grpc.aio.Channel
) -> None:
    begin_s: list[float] = []

    async def handler(request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        begin_s.append(time.monotonic())
        if len(begin_s) == 1:
            await refuse(RESOURCE_EXHAUSTED, (PUSH_BACK, "1000"), (WAIT, "1"))(request, context)
        return request

    everywhere(envoys, handler)
    await call(front, "EchoService/Say")
    assert len(begin_s) == 2
    assert begin_s[1] - begin_s[0] >= 0.99
    begin_s.clear()
    error = await failure(front, "EchoService/Say", timeout=0.5)
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert len(begin_s) == 1


async def test_the_world_hears_the_push_back_and_none_of_our_own_words(envoys: Envoys, front: grpc.aio.Channel) -> None:
    everywhere(envoys, refuse(RESOURCE_EXHAUSTED, (PUSH_BACK, "30000"), (WAIT, "30")))
    async with envoys.channel("gateway") as channel:
        error = await failure(channel, "EchoService/Say")
    metadata = dict(error.trailing_metadata() or ())
    assert (metadata[PUSH_BACK], metadata[WAIT]) == ("30000", "30")
    assert not [key for key in metadata if key.startswith("x-nipmesh-")]
    assert executions(envoys) == 1

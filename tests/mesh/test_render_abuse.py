"""Strangers who send nonsense or hold on to streams: they harm nobody's calls but their own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from subprocess import PIPE
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio

from generator.model import TrafficPolicy
from support.envoys import GATEWAY, MANIFEST, Envoys, call
from support.meshes import retuned
from support.raw_app import REFUSED_STREAM, RawApplication, reset

pytestmark = [pytest.mark.mesh, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]
SAY, WATCH = "/echo.v1.EchoService/Say", "/echo.v1.EchoService/Watch"
CALLS_MAX, STREAMS_MAX = 8, 4
"""What each caller may have at once, far below the default, and the half of it."""
ROUTED = r"^cluster\.(outbound_echo|introspection)\.upstream_rq_(total|pending_total)$"
GARBAGE = "xxxxxxxxxxxxxxx"
GARBAGE_COUNT = 60


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def envoys(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Envoys]:
    gateway = GATEWAY.replace("public: [EchoService/Say]", "public: [EchoService/Say, EchoService/Watch]")
    gateway = gateway.replace("    roles: {operator: [EchoService/Watch]}\n", "")
    running = Envoys(tmp_path_factory.mktemp("abuse"), MANIFEST + gateway)
    running.mesh = retuned(running.mesh, narrow)
    try:
        await running.start()
        yield running
    finally:
        await running.stop()


def narrow(traffic: TrafficPolicy) -> TrafficPolicy:
    """The same policy with room for few calls."""
    breaker = replace(traffic.circuit_breaker, requests_max=CALLS_MAX, streams_max=STREAMS_MAX)
    return replace(traffic, circuit_breaker=breaker)


async def curl(envoys: Envoys, path: str, *options: str) -> str:
    """The status line, the headers and the body that a stranger at the gateway gets."""
    assert envoys.placement.gateway is not None
    url = f"http://127.0.0.1:{envoys.placement.gateway.listen.port}{path}"
    command = ("curl", "-s", "-i", "--http2-prior-knowledge", "-m", "10", "-H", "content-type: application/grpc")
    process = await asyncio.create_subprocess_exec(*command, *options, url, stdout=PIPE)
    answer, _ = await process.communicate()
    return answer.decode()


def ejections(envoys: Envoys) -> int:
    """How often the gateway has called a replica sick."""
    return envoys.stat("gateway", "outbound_echo.outlier_detection.ejections_enforced_total")


async def test_garbage_is_the_callers_mistake_and_ejects_nobody(envoys: Envoys) -> None:
    for _ in range(GARBAGE_COUNT):
        answer = await curl(envoys, SAY, "-X", "POST", "--data-binary", GARBAGE)
        assert "grpc-status: 3" in answer, answer
        assert "grpc-message: the application refused the bytes of this call" in answer
        assert "x-nipmesh" not in answer
    assert ejections(envoys) == 0
    assert envoys.stat("gateway", r"outbound_echo.upstream_rq_retry$") == 0
    async with envoys.channel("gateway") as channel:
        for _ in range(10):
            await call(channel, "EchoService/Say")
    assert envoys.stat("gateway", "outbound_echo.membership_healthy") == 2


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS"])
@pytest.mark.parametrize("path", [SAY, "/grpc.health.v1.Health/Check", "/made.up.Service/Method"])
async def test_what_is_no_post_gets_no_further_than_the_gateway(envoys: Envoys, path: str, method: str) -> None:
    before = envoys.stat("gateway", ROUTED)
    answer = await curl(envoys, path, "-X", method)
    assert "with POST" in answer, answer
    assert envoys.stat("gateway", ROUTED) == before


async def test_a_refused_stream_is_repeated_elsewhere(envoys: Envoys) -> None:
    application = envoys.applications["echo-0"]
    await application.stop()
    try:
        refuser = RawApplication(application.listen, reset(REFUSED_STREAM), seen=bytes, at_once=True)
        async with refuser, envoys.channel("front-0") as channel:
            for _ in range(12):
                assert await call(channel, "EchoService/Say") == b"\x0a\x02hi"
        assert refuser.streams > 0
    finally:
        await application.start()
    await envoys.until(lambda: envoys.healthy("front-0") and envoys.healthy("gateway"), "echo-0 is not back", 30)


async def watch(channel: grpc.aio.Channel) -> Any:
    """An open stream whose first message has come. Raises AioRpcError."""
    method: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(WATCH)
    stream = method(b"x", timeout=60)
    assert await stream.read() == b"x"
    return stream


async def slow(request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
    await asyncio.sleep(0.3)
    return request


@pytest.mark.parametrize("caller", ["gateway", "front-0"])
async def test_open_streams_leave_unary_calls_all_their_room(envoys: Envoys, caller: str) -> None:
    for application in envoys.applications.values():
        application.handlers[SAY] = slow
    active = r"^cluster\.outbound_echo\.upstream_rq_active$"
    async with AsyncExitStack() as stack:
        channel = await stack.enter_async_context(envoys.channel(caller))
        streams = [await watch(channel) for _ in range(STREAMS_MAX)]
        for stream in streams:
            stack.callback(stream.cancel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await watch(channel)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        answers = await asyncio.gather(*(call(channel, "EchoService/Say") for _ in range(CALLS_MAX)))
        assert answers == [b"\x0a\x02hi"] * CALLS_MAX
        assert ejections(envoys) == 0
    await envoys.until(lambda: envoys.stat(caller, active) == 0, "streams stay open")

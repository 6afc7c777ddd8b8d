"""An application's call through its sidecar and the callee's: what arrives, what is refused, what is repeated."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import pytest
import pytest_asyncio

from support.envoys import Envoys, call, failure

pytestmark = [pytest.mark.mesh, pytest.mark.asyncio(loop_scope="module")]
SAY, ONCE = "/echo.v1.EchoService/Say", "/echo.v1.EchoService/Once"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def envoys(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Envoys]:
    running = Envoys(tmp_path_factory.mktemp("pair"))
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
    async with envoys.channel("front-0") as channel:
        yield channel


async def test_a_call_crosses_the_pair(envoys: Envoys, front: grpc.aio.Channel) -> None:
    for _ in range(20):
        assert await call(front, "EchoService/Say") == b"\x0a\x02hi"
    counts = [envoys.applications[name].count(SAY) for name in ("echo-0", "echo-1")]
    assert sum(counts) == 20
    assert min(counts) > 0, "one replica got every call"

"""Servers that run as another user are forked off a process whose gRPC calls are under way."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc

FORKS = 15
CALLERS = 8
METHOD = "/house.v1.HouseService/Answer"


async def _answer(request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
    return request


@contextlib.asynccontextmanager
async def calls_under_way(target: str) -> AsyncIterator[None]:
    server = grpc.aio.server()
    handlers = {"Answer": grpc.unary_unary_rpc_method_handler(_answer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("house.v1.HouseService", handlers),))
    server.add_insecure_port(target)
    await server.start()

    async def call() -> None:
        async with grpc.aio.insecure_channel(target) as channel:
            while True:
                await channel.unary_unary(METHOD)(b"x")

    callers = [asyncio.create_task(call()) for _ in range(CALLERS)]
    try:
        yield
    finally:
        for caller in callers:
            caller.cancel()
        await asyncio.gather(*callers, return_exceptions=True)
        await server.stop(None)


def fork_often() -> list[int]:
    """What became of each; anything to do before the other program begins makes it a fork, as another user does."""
    return [subprocess.run(["true"], preexec_fn=lambda: None, check=False).returncode for _ in range(FORKS)]


async def test_each_becomes_the_program_that_it_should(tmp_path: Path) -> None:
    async with calls_under_way(f"unix:{tmp_path}/house.sock"):
        assert await asyncio.to_thread(fork_often) == [0] * FORKS

"""What became of calls: their codes and times, one by one and many at once."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import grpc
import grpc.aio

from support.envoys import Application, call

OK = grpc.StatusCode.OK


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How one call ended, and after how many seconds."""

    code: grpc.StatusCode
    seconds: float
    details: str = ""
    trailers: dict[str, str | bytes] = field(default_factory=dict)


async def attempt(
    channel: grpc.aio.Channel,
    method: str,
    *,
    request: bytes = b"\x0a\x02hi",
    metadata: tuple[tuple[str, str], ...] = (),
    timeout: float | None = None,
) -> Outcome:
    """One call, whatever becomes of it. Without a timeout only the mesh bounds it."""
    started = time.monotonic()
    try:
        await call(channel, method, request, metadata=metadata, timeout=timeout)
    except grpc.aio.AioRpcError as error:
        return Outcome(
            code=error.code(),
            seconds=time.monotonic() - started,
            details=error.details() or "",
            trailers={**dict(error.initial_metadata()), **dict(error.trailing_metadata())},
        )
    return Outcome(code=OK, seconds=time.monotonic() - started)


async def at_once(channel: grpc.aio.Channel, method: str, count: int) -> list[Outcome]:
    """So many calls at the same time."""
    return list(await asyncio.gather(*(attempt(channel, method) for _ in range(count))))


async def in_turn(channel: grpc.aio.Channel, method: str, count: int) -> list[Outcome]:
    """So many calls, one after the other."""
    return [await attempt(channel, method) for _ in range(count)]


def codes(outcomes: Iterable[Outcome]) -> Counter[str]:
    """How often each code was seen."""
    return Counter(outcome.code.name for outcome in outcomes)


def executions(applications: Iterable[Application], method: str) -> int:
    """How often applications were given calls of a method."""
    return sum(application.count(f"/echo.v1.{method}") for application in applications)


def quantile(outcomes: Iterable[Outcome], share: float) -> float:
    """The time within which this share of the calls ended."""
    seconds = sorted(outcome.seconds for outcome in outcomes)
    return seconds[min(len(seconds) - 1, int(share * len(seconds)))]

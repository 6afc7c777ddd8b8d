"""Load on loopback, bounded in count and time: closed loops of callers at a paced rate."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import grpc

CALLS_MAX = 200_000
"""No load here sends more, whatever its rate and time."""


@dataclass(slots=True)
class Outcome:
    """What a load saw: calls that ended well, the failures by code, and the most calls in flight at once."""

    succeeded: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    in_flight: int = 0
    in_flight_max: int = 0
    seconds: float = 0.0

    @property
    def calls(self) -> int:
        """All calls that ended."""
        return self.succeeded + self.failures.total()

    @property
    def per_second(self) -> float:
        """Calls that ended, by time."""
        return self.calls / self.seconds if self.seconds else 0.0


async def run_load(
    call: Callable[[int], Awaitable[object]], *, seconds: float, callers: int = 16, per_second: float = 600
) -> Outcome:
    """Let `callers` loops call as fast as they can, together at most `per_second`, for `seconds`."""
    outcome = Outcome()
    start = time.monotonic()
    numbers = iter(range(CALLS_MAX))

    async def loop() -> None:
        for number in numbers:
            due = start + number / per_second
            if due >= start + seconds:
                return
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            await _one(call, number, outcome)

    await asyncio.gather(*(loop() for _ in range(callers)))
    outcome.seconds = time.monotonic() - start
    return outcome


async def _one(call: Callable[[int], Awaitable[object]], number: int, outcome: Outcome) -> None:
    outcome.in_flight += 1
    outcome.in_flight_max = max(outcome.in_flight_max, outcome.in_flight)
    try:
        await call(number)
        outcome.succeeded += 1
    except grpc.RpcError as error:
        outcome.failures[f"{error.code().name}: {error.details()}"] += 1
    finally:
        outcome.in_flight -= 1

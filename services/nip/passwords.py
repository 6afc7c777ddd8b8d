"""Work with passwords, which is meant to be costly: in one thread, for a few who wait, and of them not many for one owner."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Final, TypeVar

from services.chassis.errors import Reason, unavailable

ResultT = TypeVar("ResultT")

WAITING_MAX: Final = 8
"""Turns that are taken or waited for in a replica: at most 256 MiB of memory at a time, and 8 s of waiting."""
OWNER_WAITING_MAX: Final = 3
"""Of them one owner's: nobody keeps all others out."""
RETRY_DELAY_MS: Final = 1_000
"""When to ask again: about as long as the costliest password takes."""


class Turn:
    """An owner's turn: work is run in the thread, one piece after the other."""

    def __init__(self, executor: ThreadPoolExecutor) -> None:
        self._executor = executor
        self.running: asyncio.Future[Any] | None = None

    async def run(self, work: Callable[[], ResultT]) -> ResultT:
        """Run `work` and return its result. It runs to its end also when whoever waits is cancelled."""
        running = asyncio.get_running_loop().run_in_executor(self._executor, work)
        self.running = running
        return await asyncio.shield(running)


class PasswordWork:
    """Gives turns. Used from one event loop."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="passwords")
        self._turns: Counter[str] = Counter()

    @contextmanager
    def turn(self, owner: str) -> Iterator[Turn]:
        """Take a turn, which ends with its work. Raises OVERLOADED when too many wait, or too many of this owner."""
        if self._turns[owner] >= OWNER_WAITING_MAX or self._turns.total() >= WAITING_MAX:
            raise unavailable(
                "too much work with passwords waits", reason=Reason.OVERLOADED, retry_delay_ms=RETRY_DELAY_MS
            )
        self._turns[owner] += 1
        turn = Turn(self._executor)
        try:
            yield turn
        finally:
            if turn.running is None or turn.running.done():
                self._end(owner)
            else:
                turn.running.add_done_callback(lambda _: self._end(owner))

    def _end(self, owner: str) -> None:
        self._turns[owner] -= 1
        if self._turns[owner] == 0:
            del self._turns[owner]

    async def run(self, owner: str, work: Callable[[], ResultT]) -> ResultT:
        """Take a turn for one piece of work. Raises OVERLOADED."""
        with self.turn(owner) as turn:
            return await turn.run(work)

    def close(self) -> None:
        """End the thread when its running work is done."""
        self._executor.shutdown(wait=True, cancel_futures=True)

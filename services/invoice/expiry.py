"""Expiry by itself: each replica wakes at the next expire time, and a compare-and-set makes each invoice expire once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final

from services.chassis.errors import ServiceError
from services.chassis.logs import get_logger
from services.invoice.store import EXPIRE_ROWS_MAX, expire_invoices, next_expire_time_ms
from services.storage.database import Database

LOOK_S_MAX: Final = 1.0
"""A look at least this often: another replica may have made an invoice with a nearer expire time and died since."""
RETRY_S: Final = 0.25
"""Pause when the database does not take the write."""
MS_PER_SECOND: Final = 1_000
ALWAYS_MS: Final = 2**63
"""Later than every expire time."""

_log = get_logger("invoice")


class ExpirySweeper:
    """Expires invoices when their time has come. `run` belongs in a background task; `note` hastens it."""

    def __init__(self, database: Database, clock: Callable[[], int], on_expiry: Callable[[int], None]) -> None:
        """`clock`: milliseconds since 1970. `on_expiry` is told when something was expired and is to be closed at the node."""
        self._database = database
        self._clock = clock
        self._on_expiry = on_expiry
        self._nearer = asyncio.Event()
        self._wake_time_ms = ALWAYS_MS

    def note(self, expire_time_ms: int) -> None:
        """Say that an invoice was made that expires then."""
        if expire_time_ms < self._wake_time_ms:
            self._nearer.set()

    async def run(self) -> None:
        """Expire for ever. A database that is busy or locked is tried again."""
        while True:
            self._nearer.clear()
            self._wake_time_ms = ALWAYS_MS  # until the pause is known, each new invoice ends it
            try:
                await self._sweep()
                pause_s = await self._pause_s()
            except ServiceError as error:
                _log.warning("expiry postponed", reason=error.reason)
                pause_s = RETRY_S
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._nearer.wait()

    async def _sweep(self) -> None:
        """Expire all that are due; no write when none is."""
        while await self._due_in_ms() <= 0:
            expired = await self._database.write(lambda connection: expire_invoices(connection, self._clock()))
            if expired:
                self._on_expiry(self._clock())
            if expired < EXPIRE_ROWS_MAX:
                return

    async def _due_in_ms(self) -> int:
        """Return how long until the next invoice expires, at most LOOK_S_MAX."""
        next_ms = await self._database.read(next_expire_time_ms)
        longest_ms = int(LOOK_S_MAX * MS_PER_SECOND)
        return longest_ms if next_ms is None else min(longest_ms, next_ms - self._clock())

    async def _pause_s(self) -> float:
        """Return how long to sleep, and remember until when."""
        due_in_ms = max(0, await self._due_in_ms())
        self._wake_time_ms = self._clock() + due_in_ms
        return due_in_ms / MS_PER_SECOND

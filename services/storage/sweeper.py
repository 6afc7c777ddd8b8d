"""Housekeeping of a database: old requests, events and inbox rows go, a few at a time."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from services.chassis.errors import ServiceError
from services.storage import events, idempotency, inbox
from services.storage.database import Database

SWEEP_S: Final = 60.0
"""Pause between two sweeps; retention is counted in days."""
SWEEP_ROWS_MAX: Final = 500
"""Rows deleted per transaction: the writer is not held up by housekeeping."""


async def sweep(database: Database, *, now_ms: int | None = None) -> int:
    """Delete what is older than its retention, in small transactions; return how many rows went."""
    moment_ms = time.time_ns() // 1_000_000 if now_ms is None else now_ms
    total = 0
    for remove in (idempotency.forget_old_requests, events.remove_old_events, inbox.forget_old_events):
        removed = SWEEP_ROWS_MAX
        while removed >= SWEEP_ROWS_MAX:
            removed = await database.write(lambda connection: remove(connection, moment_ms, limit=SWEEP_ROWS_MAX))  # noqa: B023
            total += removed
    return total


async def run_sweeper(database: Database, *, pause_s: float = SWEEP_S) -> None:
    """Sweep for ever: `app.spawn(run_sweeper(database), name="sweeper")`. A busy database is tried again later."""
    while True:
        await asyncio.sleep(pause_s)
        try:
            await sweep(database)
        except ServiceError:
            continue  # overloaded or locked, and logged there: housekeeping waits

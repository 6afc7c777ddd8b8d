"""The expiry sweeper by itself."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from services.invoice.expiry import ExpirySweeper
from services.invoice.service import MIGRATIONS
from services.storage.database import Database

PAUSE_S = 0.05
"""It looks once, and waits."""
END_S_MAX = 5


@pytest.mark.parametrize("steps", range(6))
async def test_it_ends_when_it_is_told_to_also_while_it_is_hastened(tmp_path: Path, steps: int) -> None:
    """A draining service waits for it; `steps` of the event loop lie between the last invoice and the end."""
    async with await Database.open(tmp_path / "invoice.db", migrations=MIGRATIONS) as database:
        sweeper = ExpirySweeper(database, lambda: time.time_ns() // 1_000_000, lambda _: None)
        running = asyncio.create_task(sweeper.run())
        await asyncio.sleep(PAUSE_S)
        sweeper.note(0)
        for _ in range(steps):
            await asyncio.sleep(0)
        running.cancel()
        await asyncio.wait((running,), timeout=END_S_MAX)
        assert running.cancelled()

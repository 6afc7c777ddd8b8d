"""Housekeeping of held keys: what may not be used any more is destroyed, in the database and in this replica's memory.

Nothing depends on it: whether a key may be used is decided at each use.
"""

from __future__ import annotations

import asyncio
from typing import Final

from services.chassis.errors import ServiceError
from services.nip.keys import Clock, Keys, wall_clock
from services.nip.life_store import SWEEP_ROWS_MAX, LifeStore

KEY_SWEEP_S: Final = 5.0
"""So long at most does a locked, disabled or deleted key stay in a replica's memory, and an unlocking that is over in the database."""


async def sweep_keys(keys: Keys, store: LifeStore, *, clock: Clock = wall_clock) -> None:
    """Sweep once."""
    await keys.forget_unusable()
    while await store.unlockings_are_over(clock()) and await store.forget_unlockings(clock()) == SWEEP_ROWS_MAX:
        pass


async def run_key_sweeper(keys: Keys, store: LifeStore, *, pause_s: float = KEY_SWEEP_S) -> None:
    """Sweep for ever. A busy database is tried again later."""
    while True:
        await asyncio.sleep(pause_s)
        try:
            await sweep_keys(keys, store)
        except ServiceError:
            continue  # overloaded or locked, and logged there: housekeeping waits

"""Writing a SQLite file anew: what was deleted or replaced is gone from its free pages and its WAL afterwards."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final

import apsw

from services.storage.sqlite.connection import connect

REWRITE_BUSY_MS: Final = 15_000
"""How long to wait for writers and readers of a running service; theirs take milliseconds."""


def rewrite(path: Path) -> bool:
    """Rewrite the file, beside running services; False when they kept it busy for too long. Blocks, and holds writers up meanwhile."""
    with contextlib.closing(connect(path, busy_timeout_ms=REWRITE_BUSY_MS)) as connection:
        try:
            connection.execute("VACUUM")
            connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        except apsw.BusyError:
            return False
    return True

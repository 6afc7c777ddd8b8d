"""What an engine gives the database: the same for SQLite and PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol, TypeVar

from services.storage.changes import ChangeWatch
from services.storage.sql import Connection
from services.storage.writing import Writer

T = TypeVar("T")


class Engine(Protocol):
    """One open database."""

    @property
    def name(self) -> str:
        """What to call it in logs and errors."""

    @property
    def writer(self) -> Writer:
        """Takes the writes."""

    @property
    def watch(self) -> ChangeWatch:
        """Notices commits."""

    def read(self, work: Callable[[Connection], T], min_sequence: int | None) -> asyncio.Future[T]:
        """Run `work` in a thread on a read-only connection; see `Database.read`."""

    def close(self) -> None:
        """Commit what is queued, end all threads, close all connections. Blocks."""

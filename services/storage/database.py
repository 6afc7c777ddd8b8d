"""A service's database: one writer with group commit, readers beside it, on SQLite or PostgreSQL.

    database = await Database.open(place_of(settings, "payment.sqlite3"), migrations=FOLDER)
    account = await database.write(lambda connection: insert_account(connection, ...))
    rows = await database.read(lambda connection: list_accounts(connection, ...))

Writes are durable when `write` returns. All that are queued when the writer is free (at most 256) share one transaction and its sync; an
exception undoes the write that raised it alone: the batch is then rolled back and run again, with a savepoint for each. One transaction
writes at a time, over all replicas of a service: SQLite's BEGIN IMMEDIATE, on PostgreSQL an advisory lock. So a write sees every earlier
one, and events are numbered in commit order.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Self, TypeVar

from services.storage.changes import Changes
from services.storage.engine import Engine
from services.storage.places import Place, PostgresPlace
from services.storage.sql import Connection
from services.storage.sqlite.engine import SqliteEngine

T = TypeVar("T")


class DatabaseClosedError(RuntimeError):
    """The database was used after close(): a mistake in the order of shutting down."""


class Database:
    """One open database. Make it with `await Database.open(...)`, end it with `await database.close()`, or use `async with`."""

    def __init__(self, engine: Engine) -> None:
        """For `open` only."""
        self._engine = engine
        self._closed = False

    @classmethod
    async def open(cls, place: Place, *, migrations: Path | None = None) -> Self:
        """Open or make the database and bring it to the newest version, safely beside other processes.

        `migrations` is the service's folder of migrations. Raises MigrationError when applied ones were changed since, and StartError
        when a PostgreSQL server cannot be reached for a minute.
        """
        if not isinstance(place, PostgresPlace):
            return cls(await SqliteEngine.open(place, migrations))
        from services.storage.postgresql.engine import PostgresEngine  # a service on SQLite needs no libpq

        return cls(await PostgresEngine.open(place, migrations))

    @property
    def name(self) -> str:
        """What to call it in logs and errors."""
        return self._engine.name

    async def write(self, work: Callable[[Connection], T]) -> T:
        """Run `work(connection)` in the writer thread, in a transaction; return its result once that is committed and on disk.

        `work` runs its statements and returns; it neither begins nor commits, nor waits for anything. It may run more than once (see
        `batches`): it changes nothing but the database. What it raises undoes it and is raised here. Cancelling
        the waiting task does not undo a write: it may still be committed (idempotency makes that harmless).
        Raises OVERLOADED when too many writes wait and BACKEND_UNAVAILABLE when the database stays locked, the disk fails or the server
        is lost: in the last case the write may have been committed, which idempotency makes harmless, too.
        A `BatchWrite` as `work` may be done together with others of its kind.
        """
        self._check_open()
        result: T = await self._engine.writer.submit(work)
        return result

    async def read(self, work: Callable[[Connection], T], *, min_sequence: int | None = None) -> T:
        """Run `work(connection)` on a read-only connection in a thread; all its statements see one snapshot of what is committed.

        Without `min_sequence` that is all that was committed before. With it a replica that lags may answer, as long as it has the event
        with this sequence (0: any state will do); `work` may run twice.
        """
        self._check_open()
        return await self._engine.read(work, min_sequence)

    def changes(self) -> Changes:
        """A view on commits, of this process or another: `changes = database.changes()`, then `await changes.wait(timeout_s=...)`."""
        return self._engine.watch.changes()

    def generation(self) -> int | None:
        """A number that differs as soon as anything was committed, by whatever process; None when only a read can tell."""
        self._check_open()
        watch = self._engine.watch
        return watch.look() if watch.exact else None

    async def close(self) -> None:
        """Commit what is queued, end all threads, close all connections. Further calls do nothing."""
        if self._closed:
            return
        self._closed = True
        await self._engine.watch.close()
        await asyncio.to_thread(self._engine.close)

    def _check_open(self) -> None:
        if self._closed:
            raise DatabaseClosedError(f"{self.name} is closed")

    async def __aenter__(self) -> Self:
        """The database itself."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close."""
        await self.close()

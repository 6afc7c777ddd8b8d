"""One SQLite file, shared by the replicas of a service on this host: one writer thread with group commit, readers beside it.

    database = await Database.open(settings.data_directory / "payment.db", migrations=FOLDER)
    account = await database.write(lambda connection: insert_account(connection, ...))
    rows = await database.read(lambda connection: list_accounts(connection, ...))

Writes are durable (WAL, synchronous=FULL) when `write` returns. All that are queued when the writer is free (at most 256) share one
BEGIN IMMEDIATE and one COMMIT; each has a SAVEPOINT of its own, so an exception undoes that write alone.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Final, Self, TypeVar

import apsw

from services.storage.changes import Changes, ChangeWatch
from services.storage.connection import ReaderPool, connect, prepare_file
from services.storage.migrations import STORAGE_MIGRATIONS, load_migrations, migrate
from services.storage.writer import Checkpointer, Writer

T = TypeVar("T")

READERS: Final = 4
"""Read-only connections: SQLite releases the GIL while it reads, but more than a few threads only compete."""


class DatabaseClosedError(RuntimeError):
    """The database was used after close(): a mistake in the order of shutting down."""


class Database:
    """A SQLite file. Make it with `await Database.open(...)`, end it with `await database.close()`, or use `async with`."""

    def __init__(self, path: Path) -> None:
        """For `open` only: needs a running event loop and a migrated file."""
        self.path = path
        self._closed = False
        self._watch = ChangeWatch(path)
        self._writer = Writer(path, self._watch.committed)
        self._checkpointer = Checkpointer(path)
        self._readers = ReaderPool(path, READERS)

    @classmethod
    async def open(cls, path: Path, *, migrations: Path | None = None) -> Self:
        """Open or make the file (0600, in a 0700 folder) and bring it to the newest version, safely beside other processes.

        `migrations` is the service's folder of `0001_name.sql` files. Raises MigrationError when applied ones were changed since.
        """
        await asyncio.to_thread(_prepare, path, migrations)
        return cls(path)

    async def write(self, work: Callable[[apsw.Connection], T]) -> T:
        """Run `work(connection)` in the writer thread, in a transaction; return its result once that is committed and on disk.

        `work` runs its statements and returns; it neither begins nor commits, nor waits for anything. What it raises undoes it and is
        raised here. Cancelling the waiting task does not undo a write: it may still be committed (idempotency makes that harmless).
        Raises OVERLOADED when too many writes wait and BACKEND_UNAVAILABLE when the file stays locked or the disk fails.
        """
        if self._closed:
            raise DatabaseClosedError(f"{self.path.name} is closed")
        result: T = await self._writer.submit(work)
        return result

    async def read(self, work: Callable[[apsw.Connection], T]) -> T:
        """Run `work(connection)` on a read-only connection in a thread; all its statements see one snapshot of what is committed."""
        if self._closed:
            raise DatabaseClosedError(f"{self.path.name} is closed")
        return await self._readers.run(work)

    def changes(self) -> Changes:
        """A view on commits, of this process or another: `changes = database.changes()`, then `await changes.wait(timeout_s=...)`."""
        return self._watch.changes()

    async def close(self) -> None:
        """Commit what is queued, end all threads, close all connections. Further calls do nothing."""
        if self._closed:
            return
        self._closed = True
        await self._watch.close()
        await asyncio.to_thread(self._close_threads)

    def _close_threads(self) -> None:
        """Blocks until the threads have ended; the writer's last results are delivered to the loop."""
        self._writer.close()
        self._checkpointer.close()
        self._readers.close()

    async def __aenter__(self) -> Self:
        """The database itself."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close."""
        await self.close()


def _prepare(path: Path, migrations: Path | None) -> None:
    """Make the file and migrate it: the storage package's own tables, then the service's."""
    prepare_file(path)
    with contextlib.closing(connect(path)) as connection:
        migrate(connection, "storage", load_migrations(STORAGE_MIGRATIONS))
        if migrations is not None:
            migrate(connection, "service", load_migrations(migrations))

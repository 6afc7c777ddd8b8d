"""The parts of one SQLite file, put together."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Final, Self, TypeVar

from services.storage.migrations import SQLITE, STORAGE_MIGRATIONS, load_migrations, migrate
from services.storage.sql import Connection
from services.storage.sqlite.changes import FileWatch
from services.storage.sqlite.connection import ReaderPool, connect, prepare_file
from services.storage.sqlite.migrating import FileMigrator
from services.storage.sqlite.writer import Checkpointer, FileBatcher
from services.storage.writing import Writer

T = TypeVar("T")

READERS: Final = 4
"""Read-only connections: SQLite releases the GIL while it reads, but more than a few threads only compete."""


class SqliteEngine:
    """A SQLite file: one writer thread with group commit, a checkpointer, and readers beside them."""

    def __init__(self, path: Path) -> None:
        """For `open` only: needs a running event loop and a migrated file."""
        self.name = path.name
        self.watch = FileWatch(path)
        self.writer = Writer(path.name, FileBatcher(path), self.watch.committed)
        self._checkpointer = Checkpointer(path)
        self._readers = ReaderPool(path, READERS)

    @classmethod
    async def open(cls, path: Path, migrations: Path | None) -> Self:
        """Open or make the file (0600, in a 0700 folder) and bring it to the newest version, safely beside other processes."""
        await asyncio.to_thread(prepare, path, migrations)
        return cls(path)

    def read(self, work: Callable[[Connection], T], min_sequence: int | None) -> asyncio.Future[T]:
        """A file is always up to date, whatever sequence is asked for."""
        return self._readers.run(work)

    def close(self) -> None:
        """Blocks until the threads have ended; the writer's last results are delivered to the loop."""
        self.writer.close()
        self._checkpointer.close()
        self._readers.close()


def prepare(path: Path, migrations: Path | None) -> None:
    """Make the file and migrate it: the storage package's own tables, then the service's."""
    prepare_file(path)
    with contextlib.closing(connect(path)) as connection:
        migrator = FileMigrator(connection)
        migrate(migrator, "storage", load_migrations(STORAGE_MIGRATIONS / SQLITE))
        if migrations is not None:
            migrate(migrator, "service", load_migrations(migrations / SQLITE))

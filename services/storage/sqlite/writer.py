"""Batches on SQLite: BEGIN IMMEDIATE, the writes, one synced COMMIT; and the checkpointer that works beside it."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path
from typing import Final

import apsw

from services.chassis.errors import ServiceError
from services.chassis.logs import get_logger
from services.storage.batches import BatchRunner
from services.storage.sqlite.connection import busy_handler, connect
from services.storage.writing import PendingWrite, not_written

BEGIN_ATTEMPTS_MAX: Final = 3
"""BEGIN IMMEDIATE is tried this often, each time for the busy timeout; then the batch fails with BACKEND_UNAVAILABLE."""
CACHE_KIB: Final = 64 * 1024
"""Pages that the writer keeps at most: with SQLite's 2 MiB the inner pages of larger indexes are read again in every batch."""
CHECKPOINT_S: Final = 0.1
"""How often the checkpointer looks whether the WAL has changed."""
CHECKPOINT_BYTES: Final = 8 * 1024 * 1024
"""When the WAL holds so much that the database does not, that is copied, beside the writers.

A page that was written often is copied once."""
RESTART_BYTES: Final = 32 * 1024 * 1024
"""From this length on the WAL is to start over, for which the writers wait: under endless load it would never do so otherwise."""
RESTART_REST_S: Final = 0.005
"""Before that, what is left is copied beside the writers until it takes no longer than this: only then they are held up."""
RESTART_PASSES_MAX: Final = 5
"""So often at most: a disk that is slower than the writers never catches up."""
TRUNCATE_BYTES: Final = 256 * 1024 * 1024
"""A WAL that grew so far, beside a long read, gives its room back. A shorter one keeps it: syncing is cheaper where no file grows."""
CHECKPOINT_BUSY_MS: Final = 20
"""To start the WAL over waits this long for readers while it holds the writers up: one long read (a backup, a verification) must not
stop them for as long as it lasts. Then it is tried again with the next look; the WAL grows meanwhile."""

_log = get_logger("storage")


class FileBatcher:
    """The writer's connection to the file."""

    def __init__(self, path: Path) -> None:
        """Opens it."""
        self._connection = connect(path)
        self._connection.pragma("cache_size", -CACHE_KIB)
        self._runner = BatchRunner()

    def run(self, batch: list[PendingWrite]) -> bool:
        """Run all in one transaction; True when it was committed."""
        return run_batch(self._connection, batch, self._runner)

    def told(self) -> float | None:
        """Nothing is left to do."""
        return None

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def run_batch(connection: apsw.Connection, batch: list[PendingWrite], runner: BatchRunner) -> bool:
    """Run all writes of a batch in one transaction; True when it was committed. Each write gets its result or error."""
    try:
        _begin(connection)
        runner.run(FileTransaction(connection), batch)
        connection.execute("COMMIT")
    except Exception as error:  # noqa: BLE001  # whoever waits must be told, and the thread must live
        _log.error("batch failed", writes=len(batch), error=str(error), kind=type(error).__name__)
        _roll_back(connection)
        for write in batch:
            write.error = write.error or _failure(error)
        return False
    return any(write.error is None for write in batch)


def _begin(connection: apsw.Connection) -> None:
    """BEGIN IMMEDIATE, tried again when another process holds the lock for longer than the busy timeout."""
    for attempt in range(1, BEGIN_ATTEMPTS_MAX + 1):
        try:
            connection.execute("BEGIN IMMEDIATE")
            return
        except apsw.BusyError:
            if attempt == BEGIN_ATTEMPTS_MAX:
                raise


class FileTransaction:
    """The transaction of a batch, as `BatchRunner` wants it."""

    def __init__(self, connection: apsw.Connection) -> None:
        self.connection = connection

    def begin_again(self) -> None:
        """Roll back, and begin anew."""
        self.connection.execute("ROLLBACK")
        _begin(self.connection)

    def savepoint(self) -> None:
        """Set one."""
        self.connection.execute("SAVEPOINT one_write")

    def end_savepoint(self, *, undo: bool) -> None:
        """Release it, undone before if that is wanted."""
        if undo:
            self.connection.execute("ROLLBACK TO one_write")
        self.connection.execute("RELEASE one_write")

    def settle(self) -> None:
        """Raise when the transaction is over: by mistake, for no statement raised."""
        if not self.connection.in_transaction:
            raise apsw.AbortError("the transaction ended inside a write")

    def finish(self) -> None:
        """Its COMMIT comes later: one that fails is no fault of a write."""
        self.settle()

    def told(self, error: BaseException) -> BaseException:
        """A full disk and an I/O error roll back everything as a rule; whatever else ended the transaction did so by mistake."""
        if not self.connection.in_transaction:
            if isinstance(error, apsw.Error):
                raise error
            raise apsw.AbortError("the transaction ended inside a write") from error
        return _failure(error) if isinstance(error, apsw.FullError | apsw.IOError) else error


def _roll_back(connection: apsw.Connection) -> None:
    """Leave no transaction behind."""
    with contextlib.suppress(apsw.Error):  # a disk that fails now failed before: that error is the one to report
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _failure(error: Exception) -> ServiceError:
    """What whoever waits is told."""
    return not_written(error, full=isinstance(error, apsw.FullError))


class Checkpointer:
    """Copies the WAL into the database in a thread of its own, so that no write waits for it as a rule."""

    def __init__(self, path: Path) -> None:
        """Starts at once."""
        self._wal = path.with_name(path.name + "-wal")
        self._connection = connect(path)
        self._connection.set_busy_handler(busy_handler(CHECKPOINT_BUSY_MS))
        self._page_bytes = int(self._connection.pragma("page_size"))
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"checkpointer {path.name}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread. Blocks for at most one checkpoint."""
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        """The thread: look, copy when it is worth it."""
        seen: tuple[int, int] | None = None
        with contextlib.closing(self._connection) as connection:
            while not self._end.wait(CHECKPOINT_S):
                state = self._wal_state()
                if state != seen and self._checkpoint(connection):
                    seen = state

    def _wal_state(self) -> tuple[int, int] | None:
        """What changes whenever the WAL does; None when there is none."""
        try:
            found = self._wal.stat()
        except FileNotFoundError:
            return None
        return found.st_size, found.st_mtime_ns

    def _checkpoint(self, connection: apsw.Connection) -> bool:
        """Copy what is worth it; False when somebody was in the way."""
        try:
            pages, copied = connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_NOOP)
            if pages * self._page_bytes >= RESTART_BYTES:
                self._restart(connection)
            elif (pages - copied) * self._page_bytes >= CHECKPOINT_BYTES:
                connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        except apsw.BusyError:
            _log.debug("checkpoint busy")  # another replica is at it, or a long read
            return False
        except apsw.Error as error:
            _log.error("checkpoint failed", error=str(error))
            return False
        return True

    def _restart(self, connection: apsw.Connection) -> None:
        """Copy beside the writers until little is left, then the rest while they wait; the next of them begins the WAL anew."""
        for _ in range(RESTART_PASSES_MAX):
            start_s = time.monotonic()
            connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
            if time.monotonic() - start_s < RESTART_REST_S:
                break
        grown = self._wal.stat().st_size >= TRUNCATE_BYTES
        connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE if grown else apsw.SQLITE_CHECKPOINT_RESTART)

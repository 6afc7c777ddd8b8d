"""The writer of a database: one thread, one connection, group commit; and the checkpointer that works beside it."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import apsw

from services.chassis.errors import Reason, ServiceError, unavailable
from services.chassis.logs import get_logger
from services.storage.connection import connect

BATCH_WRITES_MAX: Final = 256
"""Writes per transaction: more gains nothing (the sync is shared by then) and makes the first wait for the last."""
QUEUE_WRITES_MAX: Final = 4_096
"""Writes that may wait: well under a second of work. More are refused as OVERLOADED at once instead of being late."""
BEGIN_ATTEMPTS_MAX: Final = 3
"""BEGIN IMMEDIATE is tried this often, each time for the busy timeout; then the batch fails with BACKEND_UNAVAILABLE."""
CHECKPOINT_S: Final = 0.25
"""How often the size of the WAL is looked at."""
CHECKPOINT_BYTES: Final = 4 * 1024 * 1024
"""From this size on the WAL is copied into the database, beside the writers."""
CHECKPOINT_BLOCKING_BYTES: Final = 64 * 1024 * 1024
"""From this size on the writers wait for the checkpoint: under endless load the WAL would never start over otherwise."""

_log = get_logger("storage")


@dataclass(slots=True)
class PendingWrite:
    """One queued write, the future of its result, and how it went."""

    work: Callable[[apsw.Connection], Any]
    context: contextvars.Context
    future: asyncio.Future[Any]
    result: Any = None
    error: BaseException | None = None


class Writer:
    """Takes writes from the event loop and commits them in batches in its own thread."""

    def __init__(self, path: Path, on_commit: Callable[[], None]) -> None:
        """`on_commit` is called on the event loop after each batch that was committed."""
        self._loop = asyncio.get_running_loop()
        self._on_commit = on_commit
        self._queue: queue.SimpleQueue[PendingWrite | None] = queue.SimpleQueue()
        self._depth = 0
        self._connection = connect(path)
        self._thread = threading.Thread(target=self._run, name=f"writer {path.name}", daemon=True)
        self._thread.start()

    @property
    def depth(self) -> int:
        """Writes that wait or run."""
        return self._depth

    def submit(self, work: Callable[[apsw.Connection], Any]) -> asyncio.Future[Any]:
        """Queue a write. Raises OVERLOADED when too many wait."""
        if self._depth >= QUEUE_WRITES_MAX:
            raise unavailable("too many writes wait", reason=Reason.OVERLOADED)
        future: asyncio.Future[Any] = self._loop.create_future()
        self._depth += 1
        self._queue.put(PendingWrite(work=work, context=contextvars.copy_context(), future=future))
        return future

    def close(self) -> None:
        """Commit what is queued and end the thread. Blocks; call it in a thread of its own."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        """The thread: take all that waits, commit it, tell the loop."""
        with contextlib.closing(self._connection) as connection:
            more = True
            while more:
                batch, more = self._take()
                if batch:
                    committed = run_batch(connection, batch)
                    self._loop.call_soon_threadsafe(self._resolve, batch, committed)

    def _take(self) -> tuple[list[PendingWrite], bool]:
        """Wait for a write, then take all that are there, up to the cap; False when it is time to end."""
        first = self._queue.get()
        batch: list[PendingWrite] = []
        while first is not None:
            batch.append(first)
            if len(batch) == BATCH_WRITES_MAX:
                return batch, True
            try:
                first = self._queue.get_nowait()
            except queue.Empty:
                return batch, True
        return batch, False

    def _resolve(self, batch: list[PendingWrite], committed: bool) -> None:
        """On the loop: hand out results and errors. A cancelled awaiter is simply not told."""
        self._depth -= len(batch)
        if committed:
            self._on_commit()
        for write in batch:
            if write.future.done():
                continue
            if write.error is not None:
                write.future.set_exception(write.error)
            else:
                write.future.set_result(write.result)


def run_batch(connection: apsw.Connection, batch: list[PendingWrite]) -> bool:
    """Run all writes of a batch in one transaction; True when it was committed. Each write gets its result or error."""
    try:
        _begin(connection)
        for write in batch:
            _run_one(connection, write)
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


def _run_one(connection: apsw.Connection, write: PendingWrite) -> None:
    """Run one write under its savepoint. What it raises undoes it alone; a lost transaction is raised as apsw.AbortError."""
    connection.execute("SAVEPOINT one_write")
    try:
        write.result = write.context.run(write.work, connection)  # the caller and the trace of whoever asked
    except BaseException as error:  # noqa: BLE001  # it belongs to whoever waits, and the thread must live
        write.error = error
    if (
        not connection.in_transaction
    ):  # a full disk or an I/O error rolls back everything, work may have committed by mistake
        raise apsw.AbortError("the transaction ended inside a write")
    if write.error is not None:
        connection.execute("ROLLBACK TO one_write")
    connection.execute("RELEASE one_write")


def _roll_back(connection: apsw.Connection) -> None:
    """Leave no transaction behind."""
    with contextlib.suppress(apsw.Error):  # a disk that fails now failed before: that error is the one to report
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _failure(error: Exception) -> ServiceError:
    """What whoever waits is told; each gets an exception of its own."""
    failure = unavailable("the database did not take the write")
    failure.__cause__ = error
    return failure


class Checkpointer:
    """Copies the WAL into the database in a thread of its own, so that no write waits for it as a rule."""

    def __init__(self, path: Path) -> None:
        """Starts at once."""
        self._wal = path.with_name(path.name + "-wal")
        self._connection = connect(path)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"checkpointer {path.name}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread. Blocks for at most one checkpoint."""
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        """The thread: look, copy when it is worth it."""
        with contextlib.closing(self._connection) as connection:
            while not self._end.wait(CHECKPOINT_S):
                size = self._wal_bytes()
                if size >= CHECKPOINT_BYTES:
                    self._checkpoint(connection, size)

    def _wal_bytes(self) -> int:
        """Size of the WAL; 0 when there is none."""
        try:
            return self._wal.stat().st_size
        except FileNotFoundError:
            return 0

    def _checkpoint(self, connection: apsw.Connection, size: int) -> None:
        """PASSIVE first; a WAL that grew too far is also emptied, which holds the writers back for a moment."""
        try:
            connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
            if size >= CHECKPOINT_BLOCKING_BYTES:
                connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        except apsw.BusyError:
            _log.debug("checkpoint busy", wal_bytes=size)  # another replica is at it
        except apsw.Error as error:
            _log.error("checkpoint failed", wal_bytes=size, error=str(error))

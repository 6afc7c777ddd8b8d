"""SQLite connections as this project wants them, and the pool of read-only ones."""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

import apsw

from services.chassis.errors import unavailable
from services.storage.sql import Connection

T = TypeVar("T")

BUSY_TIMEOUT_MS: Final = 5_000
"""How long a connection waits for another process's lock; a batch of theirs takes milliseconds."""
BUSY_SLEEP_S: Final = 0.000_25
"""Pause between two tries for a lock at first: a batch of another process takes a few milliseconds, and the lock lies idle until the next
try. SQLite's own handler sleeps up to 100 ms, which starves one of two busy processes."""
BUSY_SLEEP_LATER_S: Final = 0.001
"""Pause after BUSY_TRIES_FIRST tries."""
BUSY_TRIES_FIRST: Final = 40
"""Tries within about ten milliseconds."""
SQLITE_VERSION_MIN: Final = (3, 51, 3)
"""First version without the WAL-reset corruption that two processes on one file can meet."""


def connect(path: Path, *, read_only: bool = False, busy_timeout_ms: int = BUSY_TIMEOUT_MS) -> apsw.Connection:
    """Open `path` in WAL mode with durable commits and foreign keys; `read_only` connections refuse to write."""
    if tuple(int(part) for part in apsw.sqlite_lib_version().split(".")) < SQLITE_VERSION_MIN:
        raise RuntimeError("this SQLite can corrupt a shared WAL file; install a newer apsw")
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_NOMUTEX)
    connection.set_busy_handler(busy_handler(busy_timeout_ms))
    _enter_wal_mode(connection, busy_timeout_ms)
    connection.pragma("synchronous", "FULL")
    connection.pragma("foreign_keys", True)
    connection.pragma("temp_store", "MEMORY")  # a savepoint would write each page's earlier state to a temporary file
    connection.pragma("wal_autocheckpoint", 0)  # the checkpointer does it, off the writer's path
    connection.pragma("secure_delete", "FAST")  # what is replaced is overwritten where its page is written anyway
    if read_only:
        connection.pragma("query_only", True)
    return connection


def busy_handler(timeout_ms: int) -> Callable[[int], bool]:
    """A handler that retries until `timeout_ms` passed since its first call."""
    until_s = 0.0

    def wait(tries: int) -> bool:
        nonlocal until_s
        now_s = time.monotonic()
        if tries == 0:
            until_s = now_s + timeout_ms / 1_000
        if now_s >= until_s:
            return False
        pause_s = BUSY_SLEEP_S if tries < BUSY_TRIES_FIRST else BUSY_SLEEP_LATER_S
        time.sleep(pause_s * random.uniform(0.5, 1.5))  # noqa: S311  # jitter, not a secret
        return True

    return wait


def _enter_wal_mode(connection: apsw.Connection, timeout_ms: int) -> None:
    """Switch to WAL; SQLite calls no busy handler here while another process does the same."""
    until_s = time.monotonic() + timeout_ms / 1_000
    while True:
        try:
            mode = connection.pragma("journal_mode", "wal")
            break
        except apsw.BusyError:
            if time.monotonic() > until_s:
                raise
            time.sleep(BUSY_SLEEP_LATER_S)
    if mode != "wal":
        raise RuntimeError(f"the file system does not support SQLite's WAL mode (got {mode})")


def prepare_file(path: Path) -> None:
    """Make the folder (0700) and the file (0600) if missing; SQLite gives its -wal and -shm the file's mode."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))


class ReaderPool:
    """A few threads with a read-only connection each."""

    def __init__(self, path: Path, size: int) -> None:
        """Connections open with the first read in each thread."""
        self._path = path
        self._local = threading.local()
        self._connections: list[apsw.Connection] = []
        self._executor = ThreadPoolExecutor(size, thread_name_prefix=f"reader {path.name}")

    def run(self, work: Callable[[Connection], T]) -> asyncio.Future[T]:
        """Run `work` in a thread, inside one read transaction."""
        return asyncio.get_running_loop().run_in_executor(self._executor, self._run, work)

    def _run(self, work: Callable[[Connection], T]) -> T:
        """In the thread: one snapshot for all statements of `work`."""
        connection: apsw.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = connect(self._path, read_only=True)
            self._connections.append(connection)
        try:
            connection.execute("BEGIN")
            return work(connection)
        except apsw.BusyError as error:
            raise unavailable("the database is locked") from error
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")

    def close(self) -> None:
        """Wait for running reads and close the connections."""
        self._executor.shutdown(wait=True, cancel_futures=True)
        for connection in self._connections:
            connection.close()
        self._connections.clear()

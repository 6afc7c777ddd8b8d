"""Read-only connections to PostgreSQL: a few threads with one each, to the database or to its replica."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

import psycopg

from services.chassis.errors import unavailable
from services.chassis.logs import get_logger
from services.chassis.secret import SecretBytes
from services.storage.places import PostgresPlace
from services.storage.postgresql.connection import LostError, PostgresConnection
from services.storage.postgresql.session import connect
from services.storage.sequence import newest_sequence
from services.storage.sql import Connection

T = TypeVar("T")

READERS: Final = 4
"""Threads and connections: reads are short, and a thread waits for the server without the GIL."""
REPLICA_S_MAX: Final = 0.2
"""How long a read waits for a replica to catch up; then the database itself is asked."""
REPLICA_PAUSE_S: Final = 0.01
"""Pause between two looks at how far the replica is."""
REPLICA_RETRY_S: Final = 2.0
"""A replica that could not be reached is left alone this long."""
_BEGIN: Final = b"BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"

_log = get_logger("storage")


class BehindError(Exception):
    """The replica does not have the event yet."""


class Sessions:
    """Connections to one server, one per thread."""

    def __init__(self, url: SecretBytes, schema: str, use: str) -> None:
        """They are opened at first use and again when they were lost."""
        self._url, self._schema, self._use = url, schema, use
        self._local = threading.local()
        self._open: set[PostgresConnection] = set()
        self._lock = threading.Lock()

    def run(self, work: Callable[[Connection], T], min_sequence: int = 0) -> T:
        """Run `work` in one snapshot, a second time when a connection that was open before turns out to be lost.

        Raises LostError and psycopg.OperationalError, and BehindError when the event with this sequence is not there yet.
        """
        connection: PostgresConnection | None = getattr(self._local, "connection", None)
        if connection is not None:
            try:
                return self._read(connection, work, min_sequence)
            except LostError:
                self._forget(connection)
        connection = self._local.connection = self._connect()
        try:
            return self._read(connection, work, min_sequence)
        except LostError:
            self._forget(connection)
            raise

    def close(self) -> None:
        """Close all; no thread uses them any more."""
        for connection in tuple(self._open):
            connection.close()
        self._open.clear()

    def _connect(self) -> PostgresConnection:
        connection = PostgresConnection(connect(self._url, self._schema, use=self._use))
        with self._lock:
            self._open.add(connection)
        return connection

    def _forget(self, connection: PostgresConnection) -> None:
        self._local.connection = None
        with self._lock:
            self._open.discard(connection)
        connection.close()

    def _read(self, connection: PostgresConnection, work: Callable[[Connection], T], min_sequence: int) -> T:
        connection.command(_BEGIN)
        try:
            if min_sequence and newest_sequence(connection) < min_sequence:
                raise BehindError
            result = work(connection)
            connection.settle()
            return result
        finally:
            with contextlib.suppress(LostError):  # raised above already, or found by the next read
                connection.drop()
                connection.command(b"ROLLBACK")
                connection.settle()


class Readers:
    """The threads, and which server they ask."""

    def __init__(self, place: PostgresPlace) -> None:
        self._primary = Sessions(place.url, place.schema, "reader")
        self._replica = Sessions(place.replica_url, place.schema, "replica reader") if place.replica_url else None
        self._replica_from_s = 0.0
        self._executor = ThreadPoolExecutor(READERS, thread_name_prefix=f"reader {place.schema}")

    def run(self, work: Callable[[Connection], T], min_sequence: int | None) -> asyncio.Future[T]:
        """Run `work` in a thread: on the replica only when the caller has said which sequence will do."""
        return asyncio.get_running_loop().run_in_executor(self._executor, self._run, work, min_sequence)

    def _run(self, work: Callable[[Connection], T], min_sequence: int | None) -> T:
        if self._replica is not None and min_sequence is not None and time.monotonic() >= self._replica_from_s:
            try:
                return self._ask_replica(self._replica, work, min_sequence)
            except BehindError:
                _log.debug("replica is behind", min_sequence=min_sequence)
            except (LostError, psycopg.OperationalError) as error:
                self._replica_from_s = time.monotonic() + REPLICA_RETRY_S
                _log.warning("replica not reached; the database answers", error=str(error))
        try:
            return self._primary.run(work)
        except (LostError, psycopg.OperationalError) as error:
            raise unavailable("the database cannot be reached") from error

    def _ask_replica(self, replica: Sessions, work: Callable[[Connection], T], min_sequence: int) -> T:
        """Ask until it is far enough. Raises BehindError when that takes too long."""
        until_s = time.monotonic() + REPLICA_S_MAX
        while True:
            try:
                return replica.run(work, min_sequence)
            except BehindError:
                if time.monotonic() > until_s:
                    raise
            time.sleep(REPLICA_PAUSE_S)

    def close(self) -> None:
        """Wait for running reads and close the connections."""
        self._executor.shutdown(wait=True, cancel_futures=True)
        self._primary.close()
        if self._replica is not None:
            self._replica.close()

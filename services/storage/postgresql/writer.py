"""Batches on PostgreSQL: BEGIN, the lock of the schema's writers, the writes, COMMIT; and connecting again."""

from __future__ import annotations

import math
import time
from typing import Final

import psycopg
from psycopg import errors

from services.chassis.errors import ServiceError
from services.chassis.logs import get_logger
from services.storage.batches import BatchRunner
from services.storage.places import PostgresPlace
from services.storage.postgresql.connection import LostError, PostgresConnection
from services.storage.postgresql.session import connect, lock_key
from services.storage.writing import PendingWrite, not_written

BEGIN_ATTEMPTS_MAX: Final = 3
"""Waiting for the other replicas is tried this often, each time for LOCK_MS_MAX; then the batch fails with BACKEND_UNAVAILABLE."""
RECONNECT_S_MAX: Final = 2.0
"""A batch waits this long for a server that restarts; then it fails, and the next one tries again."""
RECONNECT_PAUSE_S: Final = 0.05
"""Pause between two tries to connect; it doubles."""
RECONNECT_PAUSE_S_MAX: Final = 0.4
"""Longest pause between two tries to connect."""
ANNOUNCE_S: Final = 0.01
"""Commits are announced this often at most; watchers on SQLite look every 50 ms."""
_PLANS: Final = b"SET enable_seqscan = off; SET plan_cache_mode = force_generic_plan"
"""A statement of the writer finds rows by an index, whatever its values are, and is planned once: a plan for each batch takes longer than
many a statement does, and one made while a table was small reads all of it, also when it has grown."""

_log = get_logger("storage")


class SchemaBatcher:
    """The writer's connection to the schema."""

    def __init__(self, place: PostgresPlace, channel: str, sender: str) -> None:
        """Commits are announced on `channel` by `sender`. Connects with the first batch."""
        self._place = place
        self._announcement = f"NOTIFY {channel}, '{sender}'".encode()
        self._announce_s = -math.inf
        self._announced = True
        self._connection: PostgresConnection | None = None
        self._runner = BatchRunner()

    def run(self, batch: list[PendingWrite]) -> bool:
        """Run all in one transaction and give each its result or error; True when it was committed."""
        try:
            touched = self._run(batch)
        except Exception as error:  # noqa: BLE001  # whoever waits must be told, and the thread must live
            _log.error("batch failed", writes=len(batch), error=str(error), kind=type(error).__name__)
            self.close()  # which rolls back
            for write in batch:
                write.error = write.error or _failure(error)
            return False
        self._announced = self._announced and not touched
        return any(write.error is None for write in batch)

    def _run(self, batch: list[PendingWrite]) -> bool:
        """Run all and commit; whether anything was written. A connection that was lost before is opened again."""
        if self._connection is not None:
            _begin(self._connection, self._place)  # nobody waits for the lock alone: the first statements come with it
            transaction = SchemaTransaction(self, self._connection)
            try:
                return self._run_in(transaction, batch)
            except LostError:
                if transaction.answered:
                    raise  # nobody knows how far the server got
                self.close()
                for write in batch:
                    write.result = write.error = None
        return self._run_in(SchemaTransaction(self, self.begun()), batch)

    def _run_in(self, transaction: SchemaTransaction, batch: list[PendingWrite]) -> bool:
        self._runner.run(transaction, batch)
        transaction.commit()
        return transaction.connection.touched > 0

    def told(self) -> float | None:
        """Wake the watchers of other replicas: after the commit, because NOTIFY inside it makes all services' commits queue up.

        Under load that is not done for each commit: every announcement wakes all replicas. It is not synced either, because whoever
        missed it looks every second.
        """
        if self._announced or self._connection is None:
            return None
        left_s = self._announce_s - time.monotonic()
        if left_s > 0:
            return left_s
        self._announced = True
        self._announce_s = time.monotonic() + ANNOUNCE_S
        try:
            for command in (b"BEGIN", b"SET LOCAL synchronous_commit = off", self._announcement, b"COMMIT"):
                self._connection.command(command)
            self._connection.settle()
        except (LostError, psycopg.Error) as error:
            _log.warning("commit not announced", error=str(error))  # the others look every second
            self.close()
        return None

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def begun(self) -> PostgresConnection:
        """A connection with a transaction that holds the lock. Nothing was done yet, so that all failures are tried again."""
        until_s = time.monotonic() + RECONNECT_S_MAX
        pause_s = RECONNECT_PAUSE_S
        attempt = 1
        while True:
            try:
                return self._begin()
            except errors.LockNotAvailable:
                self.close()
                attempt += 1
                if attempt > BEGIN_ATTEMPTS_MAX:
                    raise
            except (LostError, psycopg.OperationalError):
                self.close()
                if time.monotonic() > until_s:
                    raise
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, RECONNECT_PAUSE_S_MAX)

    def _begin(self) -> PostgresConnection:
        if self._connection is None:
            connection = connect(self._place.url, self._place.schema, use="writer")
            connection.execute(_PLANS)
            self._connection = PostgresConnection(connection)
        _begin(self._connection, self._place)
        self._connection.settle()
        return self._connection


def _begin(connection: PostgresConnection, place: PostgresPlace) -> None:
    connection.touched = 0
    connection.command(b"BEGIN ISOLATION LEVEL READ COMMITTED, READ WRITE")
    connection.execute("SELECT pg_advisory_xact_lock(?)", (lock_key(place.schema),))


class SchemaTransaction:
    """The transaction of a batch, as `BatchRunner` wants it. Nothing but `settle`, `finish` and `told` awaits an answer."""

    def __init__(self, batcher: SchemaBatcher, connection: PostgresConnection) -> None:
        """`connection` was told to begin."""
        self._batcher = batcher
        self._begun_at = connection.answers
        self._committing = self._committed = False
        self.connection = connection

    @property
    def answered(self) -> bool:
        """Whether the server may have done something: it answered since the beginning, or was told to commit."""
        return self._committing or self.connection.answers > self._begun_at

    def begin_again(self) -> None:
        """Roll back, and begin anew."""
        self.connection.drop()
        self.connection.command(b"ROLLBACK")
        self.connection.settle()
        self._committing = False
        self.connection = self._batcher.begun()

    def finish(self) -> None:
        """COMMIT, with what was sent before: what a statement comes to keeps the server from it."""
        self.commit()

    def commit(self) -> None:
        """COMMIT, unless that was done. Raises LostError when it is not known whether the server did."""
        if self._committed:
            return
        if not self.answered:
            self.connection.settle()  # a connection that was lost before shows so now, when all can be done again
        self._committing = True
        answer = self.connection.command(b"COMMIT")
        self.connection.settle()
        done = answer.resolved().command_status
        assert done == b"COMMIT", f"the server answered COMMIT with {done!r}"
        self._committed = True

    def savepoint(self) -> None:
        """Set one."""
        self.connection.command(b"SAVEPOINT one_write")

    def end_savepoint(self, *, undo: bool) -> None:
        """With the next statement that is awaited."""
        if undo:
            self.connection.drop()
            self.connection.command(b"ROLLBACK TO SAVEPOINT one_write")
        self.connection.command(b"RELEASE SAVEPOINT one_write")

    def settle(self) -> None:
        """Raise what a statement came to."""
        self.connection.settle()

    def told(self, error: BaseException) -> BaseException:
        """A limit of the server, or its disk, is no fault of the write; a lost connection is the end of the transaction."""
        if isinstance(error, LostError):
            raise error
        return _failure(error) if isinstance(error, psycopg.OperationalError) else error


def _failure(error: Exception) -> ServiceError:
    """What whoever waits is told."""
    return not_written(error, full=isinstance(error, errors.DiskFull))

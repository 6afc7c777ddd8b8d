"""One connection to PostgreSQL in libpq's pipeline mode: statements are sent as they come, answers are awaited where they are read.

So BEGIN, SAVEPOINT, RELEASE and every INSERT whose outcome nobody reads cost no round trip. What a statement raises is raised where the
next answer is read, at the latest at the end of the write: psycopg's exceptions, or LostError when the connection is gone. It is used
by one thread at a time.
"""

from __future__ import annotations

import contextlib
import itertools
import select
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Final

import psycopg
from psycopg import OperationalError, errors, pq
from psycopg.pq.abc import PGconn, PGresult

from services.storage.postgresql.statements import translate
from services.storage.postgresql.values import dump_all, loader
from services.storage.sql import Parameters

PREPARED_MAX: Final = 500
"""Statements that the server keeps prepared for a connection; later ones are parsed each time."""
ANSWER_S_MAX: Final = 30.0
"""An answer that takes longer never comes: every statement and every lock has a shorter limit on the server."""
_ENDED: Final = ("57P01", "57P02", "57P03", "57P04", "57P05", "25P03", "25P04", "")
"""SQLSTATEs with which the server ends a connection: it shuts down, was idle or in a transaction for too long; none: it is gone."""
_CHANGING: Final = (b"INSERT", b"UPDATE", b"DELETE", b"MERGE")
_DONE: Final = (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK)


class LostError(Exception):
    """The connection broke. Whether the server did what it was told last is not known."""


class PostgresRows:
    """What a statement returned, or will return."""

    __slots__ = ("_at", "_connection", "_loaders", "prepares", "result")

    def __init__(self, connection: PostgresConnection, prepares: tuple[bytes, tuple[int, ...]] | None = None) -> None:
        """`prepares`: this is not a statement's answer, but that of preparing it."""
        self._connection = connection
        self.prepares = prepares
        self.result: PGresult | None = None
        self._at = 0
        self._loaders: list[Any] | None = None

    def resolved(self) -> PGresult:
        """The answer, awaited if need be."""
        if self.result is None:
            self._connection.settle()
        assert self.result is not None, "the statement failed, and that was raised before"
        return self.result

    @property
    def changes(self) -> int:
        """How many rows an INSERT, UPDATE or DELETE touched."""
        return self.resolved().command_tuples or 0

    def fetchone(self) -> tuple[Any, ...] | None:
        """The next row, None when there is none left."""
        result = self.resolved()
        if self._at >= result.ntuples:
            return None
        if self._loaders is None:
            self._loaders = [loader(result.ftype(column)) for column in range(result.nfields)]
        row, self._at = self._at, self._at + 1
        return tuple(
            None if (value := result.get_value(row, column)) is None else load(value)
            for column, load in enumerate(self._loaders)
        )

    def fetchall(self) -> list[tuple[Any, ...]]:
        """All rows that are left."""
        return list(self)

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        """The rows that are left."""
        while (row := self.fetchone()) is not None:
            yield row


class PostgresConnection:
    """`services.storage.sql.Connection` over libpq."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        """`connection` is in autocommit mode, and nobody else's."""
        libpq = connection.pgconn
        libpq.nonblocking = 1
        libpq.enter_pipeline_mode()
        self._owner = connection
        self._libpq: PGconn = libpq
        self._poll = select.poll()
        self._socket = libpq.socket
        self._sent: deque[PostgresRows] = deque()
        self._last: PostgresRows | None = None
        self._prepared: dict[tuple[bytes, tuple[int, ...]], bytes] = {}
        self._names = itertools.count()
        self.answers = 0
        """How often the server has answered."""
        self.touched = 0
        """Rows that were inserted, updated or deleted since somebody set this to 0."""

    @property
    def process(self) -> int:
        """The server's process for this connection."""
        return self._libpq.backend_pid

    def execute(self, sql: str, parameters: Parameters = (), /) -> PostgresRows:
        """Send a statement; its answer is awaited where it is read."""
        statement = translate(sql)
        types, values, formats = dump_all(statement.arrange(parameters))
        rows = self._send(statement.text, types, values, formats)
        if statement.changing:
            self._last = rows
        return rows

    def changes(self) -> int:
        """How many rows the last INSERT, UPDATE or DELETE touched."""
        assert self._last is not None, "nothing was written yet"
        return self._last.changes

    def command(self, text: bytes) -> PostgresRows:
        """Send a statement without parameters that begins, ends or divides a transaction."""
        try:
            self._libpq.send_query_params(text, None)
        except OperationalError as error:
            raise LostError(str(error)) from error
        return self._queue(PostgresRows(self))

    def settle(self) -> None:
        """Await all answers. Raises the first error; the transaction is then over or to be rolled back to a savepoint.

        Each time with a Sync: only then does the server know that it waits for us, and ends a transaction that hangs.
        """
        if not self._sent:
            return
        try:
            self._libpq.pipeline_sync()
            self._flush()
            failed = self._read_sent()
            self.answers += 1
        except OperationalError as error:
            self._sent.clear()
            raise LostError(str(error)) from error
        if failed is not None:
            raise _error_of(failed)

    def drop(self) -> None:
        """Await all answers, whatever they are: the transaction goes back to a savepoint, or ends. Raises LostError."""
        with contextlib.suppress(psycopg.Error):
            self.settle()

    def close(self) -> None:
        """Close the connection, whatever its state."""
        self._sent.clear()
        self._owner.close()

    def _send(
        self, text: bytes, types: tuple[int, ...], values: Sequence[bytes | None], formats: Sequence[int]
    ) -> PostgresRows:
        """Send a statement, prepared on the server from its first use on."""
        key = (text, types)
        name = self._prepared.get(key)
        try:
            if name is None and len(self._prepared) < PREPARED_MAX:
                name = self._prepared[key] = b"s%d" % next(self._names)
                self._libpq.send_prepare(name, text, types)
                self._queue(PostgresRows(self, prepares=key))
            if name is None:
                self._libpq.send_query_params(text, values, types, formats)
            else:
                self._libpq.send_query_prepared(name, values, formats)
        except OperationalError as error:
            raise LostError(str(error)) from error
        return self._queue(PostgresRows(self))

    def _queue(self, rows: PostgresRows) -> PostgresRows:
        self._sent.append(rows)
        return rows

    def _read_sent(self) -> PGresult | None:
        """Read the answers to all that was sent; return the first error."""
        failed = None
        while self._sent:
            rows = self._sent.popleft()
            result = self._next_result()
            assert result is not None
            if result.status in _DONE:
                rows.result = result
                if (result.command_status or b"").startswith(_CHANGING):
                    self.touched += result.command_tuples or 0
            else:
                failed = failed or result
                if rows.prepares is not None:  # the server does not have it: the next one is prepared under a new name
                    self._prepared.pop(rows.prepares)
            end = self._next_result()
            assert end is None, "one statement, one answer"
        last = self._next_result()
        if last is None or last.status != pq.ExecStatus.PIPELINE_SYNC:
            raise OperationalError("the server ended the connection")
        return failed

    def _next_result(self) -> PGresult | None:
        while self._libpq.is_busy():
            self._wait(select.POLLIN)
            self._libpq.consume_input()
        return self._libpq.get_result()

    def _flush(self) -> None:
        """Send what is buffered, and read meanwhile: a server whose answers nobody takes takes nothing either."""
        while self._libpq.flush() == 1:
            if self._wait(select.POLLIN | select.POLLOUT) & select.POLLIN:
                self._libpq.consume_input()

    def _wait(self, events: int) -> int:
        self._poll.register(self._socket, events)
        ready = self._poll.poll(ANSWER_S_MAX * 1_000)
        if not ready:
            raise OperationalError(f"no answer for {ANSWER_S_MAX:g} s")
        return ready[0][1]


def _error_of(result: PGresult) -> Exception:
    """The exception of a failed statement: the server's message without its details, which hold values of rows."""
    state = (result.error_field(pq.DiagnosticField.SQLSTATE) or b"").decode()
    message = (result.error_field(pq.DiagnosticField.MESSAGE_PRIMARY) or b"").decode(errors="replace")
    if state in _ENDED:
        return LostError(message)
    try:
        kind = errors.lookup(state)
    except KeyError:
        kind = psycopg.DatabaseError
    return kind(f"{message} ({state})")

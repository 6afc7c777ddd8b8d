"""Prepared transactions: a change that is durable and promised, and not yet made. PREPARE TRANSACTION, then COMMIT or ROLLBACK PREPARED.

They have connections of their own beside the writer, and never hold the writers' lock: PostgreSQL would keep it with the prepared
transaction. So such a transaction locks the rows that it reads, and appends no event. Until it is finished its rows stay locked,
through crashes of everybody, the server included: whoever prepares also sweeps.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Final, Self, TypeVar

import psycopg
from psycopg import errors

from services.chassis.errors import StartError
from services.chassis.logs import get_logger
from services.storage.places import Place, PostgresPlace, shown
from services.storage.postgresql.connection import LostError, PostgresConnection
from services.storage.postgresql.session import connect
from services.storage.sql import Connection
from services.storage.writing import not_written

T = TypeVar("T")

SETTING: Final = "NIPMESH_TWO_PHASE_COMMIT"
CONNECTIONS: Final = 8
"""Threads, each with one connection while it works: a prepared transaction costs two syncs, and they are waited for side by side."""
PREPARED_READ_MAX: Final = 500
"""Prepared transactions that are listed at once."""
_LIST: Final = (
    "SELECT gid FROM pg_prepared_xacts WHERE database = current_database() AND left(gid, length(?)) = ?"
    " AND prepared <= now() - ? * interval '1 millisecond' ORDER BY prepared LIMIT ?"
)

_log = get_logger("storage")


def two_phase_place(place: Place) -> PostgresPlace:
    """The place, when it can take part in a two-phase commit. Raises StartError."""
    if not isinstance(place, PostgresPlace):
        raise StartError(
            f"{SETTING} needs PostgreSQL, and the state is in {shown(place)}; set NIPMESH_DATABASE_URL, or leave {SETTING} off"
        )
    return place


class PreparedTransactions:
    """The prepared transactions of one schema; each has a name that is unique in it (letters, digits, dashes)."""

    def __init__(self, place: PostgresPlace) -> None:
        """For `open` only."""
        self._place = place
        self._prefix = f"nipmesh/{place.schema}/"
        self._threads = ThreadPoolExecutor(CONNECTIONS, thread_name_prefix=f"{place.schema} two-phase")
        self._idle: deque[PostgresConnection] = deque()

    @classmethod
    @asynccontextmanager
    async def open(cls, place: Place) -> AsyncIterator[Self]:
        """For as long as the service runs. Raises StartError where the server keeps no prepared transactions."""
        transactions = cls(two_phase_place(place))
        try:
            if await transactions._run(_prepared_max) == 0:
                raise StartError(
                    f"{SETTING} needs a PostgreSQL with max_prepared_transactions above 0, at least the number of connections;"
                    " set it (ALTER SYSTEM SET max_prepared_transactions = 100) and restart the server,"
                    f" or leave {SETTING} off"
                )
            yield transactions
        finally:
            await asyncio.to_thread(transactions._close)

    async def prepare(self, name: str, work: Callable[[Connection], T]) -> T:
        """Run `work` in a transaction and prepare it; what it raises undoes it. Raises ServiceError: it may be prepared, or not."""
        gid = self._gid(name)

        def prepare(connection: PostgresConnection) -> T:
            connection.command(b"BEGIN ISOLATION LEVEL READ COMMITTED, READ WRITE")
            result = work(connection)
            connection.settle()
            answer = connection.command(b"PREPARE TRANSACTION '%s'" % gid)
            connection.settle()
            done = answer.resolved().command_status
            assert done == b"PREPARE TRANSACTION", f"the server answered PREPARE TRANSACTION with {done!r}"
            return result

        return await self._run(prepare)

    async def commit(self, name: str) -> bool:
        """Make a prepared change; False when none is prepared under this name (any more). Raises ServiceError: unknown."""
        return await self._finish(b"COMMIT PREPARED '%s'", name)

    async def rollback(self, name: str) -> bool:
        """Forget a prepared change; False when none is prepared under this name (any more). Raises ServiceError: unknown."""
        return await self._finish(b"ROLLBACK PREPARED '%s'", name)

    async def names(self, *, older_than_ms: int = 0) -> list[str]:
        """The prepared transactions of the schema, whoever prepared them, the oldest first; at most PREPARED_READ_MAX."""
        values = (self._prefix, self._prefix, older_than_ms, PREPARED_READ_MAX)
        gids = await self._run(lambda connection: [row[0] for row in connection.execute(_LIST, values)])
        return [gid.removeprefix(self._prefix) for gid in gids]

    def _gid(self, name: str) -> bytes:
        assert name.replace("-", "").isalnum(), "the name becomes a part of the statement"
        return f"{self._prefix}{name}".encode()

    async def _finish(self, statement: bytes, name: str) -> bool:
        gid = self._gid(name)

        def finish(connection: PostgresConnection) -> bool:
            connection.command(statement % gid)
            try:
                connection.settle()
            except errors.UndefinedObject:
                return False
            return True

        return await self._run(finish)

    async def _run(self, work: Callable[[PostgresConnection], T]) -> T:
        """In a thread. It ends also when nobody waits for it any more."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._with_connection, work)

    def _with_connection(self, work: Callable[[PostgresConnection], T]) -> T:
        """With an idle connection, or a new one; one that failed is closed, which ends its transaction."""
        connection: PostgresConnection | None = None
        try:
            connection = self._idle.pop() if self._idle else self._connect()
            result = work(connection)
        except (LostError, psycopg.Error) as error:
            _log.warning("prepared transaction", schema=self._place.schema, error=str(error), kind=type(error).__name__)
            self._discard(connection)
            raise not_written(error, full=isinstance(error, errors.DiskFull)) from error
        except BaseException:
            self._discard(connection)
            raise
        self._idle.append(connection)
        return result

    def _connect(self) -> PostgresConnection:
        return PostgresConnection(connect(self._place.url, self._place.schema, use="two-phase"))

    def _discard(self, connection: PostgresConnection | None) -> None:
        """Close it, and the idle ones: when the server restarted they are lost as well, and a new one costs little."""
        if connection is not None:
            connection.close()
        while self._idle:
            self._idle.pop().close()

    def _close(self) -> None:
        self._threads.shutdown(wait=True)
        while self._idle:
            self._idle.pop().close()


def _prepared_max(connection: PostgresConnection) -> int:
    row = connection.execute("SELECT setting FROM pg_settings WHERE name = 'max_prepared_transactions'").fetchone()
    assert row is not None
    return int(row[0])

"""One snapshot of a database, read-only: that of a running service, or a copy that somebody keeps."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

import apsw

from services.storage.places import Place, PostgresPlace
from services.storage.postgresql.connection import PostgresConnection
from services.storage.postgresql.session import connect
from services.storage.sql import Connection
from services.storage.sqlite.connection import BUSY_TIMEOUT_MS, busy_handler

_BEGIN: Final = b"BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"


def snapshot(place: Place) -> AbstractContextManager[Connection]:
    """The database at one moment. Raises apsw.Error, psycopg.Error, LostError, StartError."""
    return _of_schema(place) if isinstance(place, PostgresPlace) else _of_file(place)


@contextlib.contextmanager
def _of_schema(place: PostgresPlace) -> Iterator[Connection]:
    with contextlib.closing(PostgresConnection(connect(place.url, place.schema, use="verify"))) as connection:
        connection.command(_BEGIN)
        yield connection


@contextlib.contextmanager
def _of_file(path: Path) -> Iterator[Connection]:
    with contextlib.closing(_open(path)) as connection:
        connection.execute("BEGIN")
        yield connection


def _open(path: Path) -> apsw.Connection:
    """A copy in a folder that cannot be written is taken as nobody else's: SQLite could not share it."""
    flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
    alone = not os.access(path.parent, os.W_OK) and not path.with_name(f"{path.name}-wal").exists()
    connection = apsw.Connection(f"{path.resolve().as_uri()}{'?immutable=1' if alone else ''}", flags=flags)
    connection.set_busy_handler(busy_handler(BUSY_TIMEOUT_MS))
    return connection

"""Migrations on a PostgreSQL schema, under the lock of its writers."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final

import psycopg
from psycopg.pq import TransactionStatus

from services.storage.migrations import POSTGRESQL, STORAGE_MIGRATIONS, load_migrations, migrate
from services.storage.places import PostgresPlace
from services.storage.postgresql.session import connect, lock_key
from services.storage.postgresql.statements import translate
from services.storage.sql import Connection, Parameters, Rows

LOCK_S_MAX: Final = 60
"""How long a replica that starts waits for another one's migrations."""
_VERSION_TABLE: Final = """
CREATE TABLE IF NOT EXISTS storage_migration (
    component TEXT NOT NULL, number BIGINT NOT NULL, name TEXT NOT NULL, sha256 TEXT NOT NULL, applied_time_ms BIGINT NOT NULL,
    PRIMARY KEY (component, number)
)
"""


class PlainConnection:
    """`services.storage.sql.Connection` over psycopg, for the few statements beside the scripts."""

    def __init__(self, connection: psycopg.Connection[tuple[object, ...]]) -> None:
        self._connection = connection
        self._changes = 0

    def execute(self, sql: str, parameters: Parameters = (), /) -> Rows:
        """Run one statement with `?` placeholders."""
        statement = translate(sql)
        cursor = psycopg.RawCursor(self._connection)
        cursor.execute(statement.text, statement.arrange(parameters))
        if statement.changing:
            self._changes = cursor.rowcount
        return cursor

    def changes(self) -> int:
        """How many rows the last statement touched."""
        return self._changes


class SchemaMigrator:
    """Runs migrations on one connection. The schema is made when it is missing."""

    failure = psycopg.Error

    def __init__(self, connection: psycopg.Connection[tuple[object, ...]], schema: str) -> None:
        """`connection` is in autocommit mode, with `schema` as its search path."""
        self._psycopg = connection
        self._schema = schema
        self.connection: Connection = PlainConnection(connection)

    @property
    def in_transaction(self) -> bool:
        """Whether the transaction that `begin` began still runs."""
        return self._psycopg.info.transaction_status == TransactionStatus.INTRANS

    def begin(self) -> None:
        """Begin a transaction that no other writer shares, make the schema and the table of versions."""
        self._psycopg.execute("BEGIN")
        self.make_schema()

    def make_schema(self) -> None:
        """The schema and the table of versions, under the lock of the schema's writers."""
        self.connection.execute("SELECT pg_advisory_xact_lock(?)", (lock_key(self._schema),))
        known = self.connection.execute("SELECT 1 FROM pg_namespace WHERE nspname = ?", (self._schema,))
        if known.fetchone() is None:
            self.connection.execute(f"CREATE SCHEMA {self._schema}")
        self.connection.execute(_VERSION_TABLE)

    def run_script(self, sql: str) -> None:
        """Run the statements of a file."""
        self._psycopg.execute(sql.encode())

    def commit(self) -> None:
        """Make it so."""
        self._psycopg.execute("COMMIT")

    def roll_back(self) -> None:
        """Leave nothing behind."""
        with contextlib.suppress(psycopg.OperationalError):  # a connection that is lost has rolled back
            self._psycopg.execute("ROLLBACK")


def prepare(place: PostgresPlace, migrations: Path | None) -> None:
    """Make the schema and migrate it: the storage package's own tables, then the service's."""
    with contextlib.closing(connect(place.url, place.schema, use="migrations")) as connection:
        connection.execute(f"SET statement_timeout = 0; SET lock_timeout = '{LOCK_S_MAX}s'".encode())
        migrator = SchemaMigrator(connection, place.schema)
        migrate(migrator, "storage", load_migrations(STORAGE_MIGRATIONS / POSTGRESQL))
        if migrations is not None:
            migrate(migrator, "service", load_migrations(migrations / POSTGRESQL))

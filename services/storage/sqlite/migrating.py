"""Migrations on a SQLite file."""

from __future__ import annotations

from typing import Final

import apsw

from services.storage.sql import Connection

_VERSION_TABLE: Final = """
CREATE TABLE IF NOT EXISTS storage_migration (
    component TEXT NOT NULL, number INTEGER NOT NULL, name TEXT NOT NULL, sha256 TEXT NOT NULL, applied_time_ms INTEGER NOT NULL,
    PRIMARY KEY (component, number)
) STRICT, WITHOUT ROWID
"""


class FileMigrator:
    """Runs migrations on one connection, which must not be used by anybody else meanwhile."""

    failure = apsw.Error

    def __init__(self, connection: apsw.Connection) -> None:
        """`connection` may write."""
        self._connection = connection

    @property
    def connection(self) -> Connection:
        """For plain statements."""
        connection: Connection = self._connection
        return connection

    @property
    def in_transaction(self) -> bool:
        """Whether the transaction that `begin` began still runs."""
        return bool(self._connection.in_transaction)

    def begin(self) -> None:
        """Begin a transaction that no other writer shares, and make the table of versions."""
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.execute(_VERSION_TABLE)

    def run_script(self, sql: str) -> None:
        """Run the statements of a file."""
        for _ in self._connection.execute(sql):
            pass

    def commit(self) -> None:
        """Make it so."""
        self._connection.execute("COMMIT")

    def roll_back(self) -> None:
        """Leave nothing behind."""
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

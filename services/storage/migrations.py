"""Migrations: numbered SQL files, applied once each at start, safely when several replicas start at the same moment.

A folder of migrations has one for each engine, `sqlite` and `postgresql`, with `0001_name.sql`, `0002_name.sql`, … without gaps: twins
that make the same tables. All that are missing run in one transaction that no other writer shares, so a file must not hold BEGIN, COMMIT
or PRAGMAs that refuse to run inside one. An applied file is never edited: its hash is checked.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from services.chassis.errors import StartError
from services.storage.sql import Connection

STORAGE_MIGRATIONS: Final = Path(__file__).parent / "tables"
"""The tables of this package: idempotency keys, events, settings of the database."""
SQLITE: Final = "sqlite"
"""Folder of the files for SQLite, inside a folder of migrations."""
POSTGRESQL: Final = "postgresql"
"""Folder of the files for PostgreSQL."""
MIGRATIONS_MAX: Final = 9_999
"""Four digits."""
_NAME: Final = re.compile(r"(\d{4})_([a-z0-9_]+)\.sql\Z")


class MigrationError(StartError):
    """The migrations and the database do not fit together; the text says which and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Migration:
    """One file."""

    number: int
    name: str
    sql: str

    @property
    def sha256(self) -> str:
        """Hash of the text, hex."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


def load_migrations(folder: Path) -> tuple[Migration, ...]:
    """The files of `folder` in order. Raises MigrationError on a wrong name or a gap in the numbers."""
    found = []
    for path in sorted(folder.glob("*.sql")):
        match = _NAME.match(path.name)
        if match is None:
            raise MigrationError(f"{path} must be named like 0001_name.sql")
        found.append(Migration(number=int(match[1]), name=match[2], sql=path.read_text(encoding="utf-8")))
    if [each.number for each in found] != list(range(1, len(found) + 1)):
        raise MigrationError(f"the migrations in {folder} must be numbered 0001, 0002, … without gaps or doubles")
    if not found:
        raise MigrationError(f"there are no migrations in {folder}")
    return tuple(found)


class Migrator(Protocol):
    """How an engine runs migrations."""

    @property
    def failure(self) -> type[Exception]:
        """What a statement raises that does not succeed."""

    @property
    def connection(self) -> Connection:
        """For plain statements."""

    @property
    def in_transaction(self) -> bool:
        """Whether the transaction that `begin` began still runs."""

    def begin(self) -> None:
        """Begin a transaction that no other writer shares, and make the table of versions if it is missing."""

    def run_script(self, sql: str) -> None:
        """Run the statements of a file."""

    def commit(self) -> None:
        """Make it so."""

    def roll_back(self) -> None:
        """Leave nothing behind."""


def migrate(migrator: Migrator, component: str, migrations: Sequence[Migration]) -> int:
    """Bring `component`'s tables to the newest version; return how many files ran. All or none are applied."""
    migrator.begin()
    try:
        applied = applied_versions(migrator.connection, component)
        _check_applied(component, applied, migrations)
        pending = migrations[len(applied) :]
        for migration in pending:
            _apply(migrator, component, migration)
        migrator.commit()
    except BaseException:
        migrator.roll_back()
        raise
    return len(pending)


def applied_versions(connection: Connection, component: str) -> list[tuple[int, str, str]]:
    """Number, name and hash of what was applied."""
    query = "SELECT number, name, sha256 FROM storage_migration WHERE component = ? ORDER BY number"
    return [(int(row[0]), str(row[1]), str(row[2])) for row in connection.execute(query, (component,))]


def _check_applied(component: str, applied: Sequence[tuple[int, str, str]], migrations: Sequence[Migration]) -> None:
    """Refuse a database of a newer program, and edited files."""
    if len(applied) > len(migrations):
        raise MigrationError(
            f"the database is newer than this program ({component} {len(applied)}); start the newer program"
        )
    for (number, name, sha256), migration in zip(applied, migrations, strict=False):
        if (number, sha256) != (migration.number, migration.sha256):
            raise MigrationError(
                f"migration {component} {number:04d}_{name} was edited after it was applied; add a new one instead"
            )


def _apply(migrator: Migrator, component: str, migration: Migration) -> None:
    """Run one file and record it."""
    title = f"migration {component} {migration.number:04d}_{migration.name}"
    try:
        migrator.run_script(migration.sql)
    except migrator.failure as error:
        raise MigrationError(f"{title} failed: {error}") from error
    if not migrator.in_transaction:
        raise MigrationError(f"{title} ended the transaction")
    migrator.connection.execute(
        "INSERT INTO storage_migration (component, number, name, sha256, applied_time_ms) VALUES (?, ?, ?, ?, ?)",
        (component, migration.number, migration.name, migration.sha256, time.time_ns() // 1_000_000),
    )

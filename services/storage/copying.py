"""Moving a service's state from its SQLite file to PostgreSQL: copied in one transaction, verified before it is committed.

The file is locked meanwhile and left as it is. Whatever does not fit is refused before anything is copied: a file that somebody uses, one
of another version of the program, a schema that is not empty.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import apsw
import psycopg

from services.storage.migrations import (
    POSTGRESQL,
    SQLITE,
    STORAGE_MIGRATIONS,
    Migration,
    applied_versions,
    load_migrations,
    migrate,
)
from services.storage.places import PostgresPlace
from services.storage.postgresql.migrating import SchemaMigrator
from services.storage.postgresql.session import connect

SERVICES: Final = Path(__file__).parents[1]
"""Where the services' migrations are looked for: the file says which of them it was made with."""
VERSION_TABLE: Final = "storage_migration"
"""Not copied: each engine has its own files."""
HASH_BITS: Final = 256
"""The hash of a table is the sum of its rows' SHA-256, so that their order does not matter."""


class CopyRefusedError(Exception):
    """The copy was not begun, or undone; the text says why and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """What was copied: the table, how many rows, and the hash that both sides have."""

    name: str
    rows: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """With which migrations the source was made: those of the storage package, and the folder of the service's."""

    service: Path | None


def copy_database(file: Path, target: PostgresPlace) -> tuple[Table, ...]:
    """Copy all tables of `file` into `target`. Raises CopyRefusedError, and psycopg.Error when the server fails."""
    with locked(file) as source, contextlib.closing(connect(target.url, target.schema, use="copy")) as connection:
        version = version_of(source)
        connection.execute(b"SET statement_timeout = 0")
        migrator = OneTransaction(connection, target.schema)
        connection.execute("BEGIN")
        _refuse_used(connection, target.schema)
        migrate(migrator, "storage", load_migrations(STORAGE_MIGRATIONS / POSTGRESQL))
        if version.service is not None:
            migrate(migrator, "service", load_migrations(version.service / POSTGRESQL))
        tables = _copied_tables(source, connection, target.schema)
        for name in reversed(tables):  # what the migrations put there stands in the file, too
            connection.execute(f'DELETE FROM "{name}"'.encode())  # noqa: S608  # names from the schema itself
        copied = tuple(_copy_table(source, connection, name) for name in tables)
        _set_sequences(source, connection, tables)
        connection.execute("COMMIT")
        return copied


class OneTransaction(SchemaMigrator):
    """Migrations inside a transaction that somebody else began and ends."""

    def begin(self) -> None:
        """Only the schema, its lock and the table of versions."""
        self.make_schema()

    def commit(self) -> None:
        """Not yet."""

    def roll_back(self) -> None:
        """The connection is closed instead."""


@contextlib.contextmanager
def locked(file: Path) -> Iterator[apsw.Connection]:
    """The file, for nobody else. Raises CopyRefusedError when there is none or somebody has it open."""
    if not file.is_file():
        raise CopyRefusedError(f"there is no file {file}")
    connection = apsw.Connection(str(file), flags=apsw.SQLITE_OPEN_READWRITE)
    with contextlib.closing(connection):
        try:
            connection.pragma("locking_mode", "exclusive")
            connection.execute("BEGIN IMMEDIATE")
        except apsw.BusyError:
            raise CopyRefusedError(
                f"{file} is in use: stop the service that has it open, on all its replicas"
            ) from None
        except apsw.NotADBError:
            raise CopyRefusedError(f"{file} is no SQLite file") from None
        yield connection
        connection.execute("ROLLBACK")


def version_of(source: apsw.Connection) -> Version:
    """Which migrations the source has: exactly those of this program. Raises CopyRefusedError."""
    if not source.execute("SELECT 1 FROM sqlite_schema WHERE name = ?", (VERSION_TABLE,)).fetchone():
        raise CopyRefusedError("the file is no database of a service")
    if not _same(applied_versions(source, "storage"), load_migrations(STORAGE_MIGRATIONS / SQLITE)):
        raise CopyRefusedError("the file is of another version: start the service once with this program, then stop it")
    applied = applied_versions(source, "service")
    if not applied:
        return Version(service=None)
    for folder in sorted(SERVICES.rglob(f"migrations/{SQLITE}")):
        if _same(applied, load_migrations(folder)):
            return Version(service=folder.parent)
    raise CopyRefusedError("the file is of another version: start the service once with this program, then stop it")


def _same(applied: Sequence[tuple[int, str, str]], migrations: Sequence[Migration]) -> bool:
    return [each[2] for each in applied] == [each.sha256 for each in migrations]


def _refuse_used(connection: psycopg.Connection[Any], schema: str) -> None:
    query = b"SELECT count(*) FROM pg_tables WHERE schemaname = current_schema()"
    (count,) = connection.execute(query).fetchone() or (0,)
    if count:
        raise CopyRefusedError(
            f"the schema {schema} is not empty: copy into a new one, or drop it if nothing in it counts"
        )


def _copied_tables(source: apsw.Connection, connection: psycopg.Connection[Any], schema: str) -> list[str]:
    """The tables, each after those that it refers to. What only fresh databases have is dropped, as the service does at its start."""
    ours = {
        str(row[0])
        for row in source.execute(
            "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%' AND name <> ?",
            (VERSION_TABLE,),
        )
    }
    query = b"SELECT tablename FROM pg_tables WHERE schemaname = current_schema()"
    theirs = {str(row[0]) for row in connection.execute(query)} - {VERSION_TABLE}
    if not ours <= theirs:
        raise CopyRefusedError(f"the schema {schema} has no table for {', '.join(sorted(ours - theirs))}")
    for name in sorted(theirs - ours):
        connection.execute(f'DROP TABLE "{name}"'.encode())
    return _sorted_by_references(source, ours)


def _sorted_by_references(source: apsw.Connection, names: set[str]) -> list[str]:
    query = 'SELECT DISTINCT "table" FROM pragma_foreign_key_list(?)'
    needs = {name: {str(row[0]) for row in source.execute(query, (name,))} - {name} for name in names}
    ordered: list[str] = []
    while needs:
        ready = sorted(name for name, others in needs.items() if not others - set(ordered))
        assert ready, "tables do not refer to each other in a circle"
        ordered += ready
        needs = {name: others for name, others in needs.items() if name not in ready}
    return ordered


def _copy_table(source: apsw.Connection, connection: psycopg.Connection[Any], name: str) -> Table:
    """Copy the rows and compare both sides. Raises CopyRefusedError when they differ."""
    columns = [str(row[0]) for row in source.execute("SELECT name FROM pragma_table_info(?) ORDER BY cid", (name,))]
    listed = ", ".join(f'"{column}"' for column in columns)
    query = f'SELECT {listed} FROM "{name}"'  # noqa: S608  # names from the schema itself
    with connection.cursor() as cursor:
        with cursor.copy(f'COPY "{name}" ({listed}) FROM STDIN'.encode()) as copy:
            for row in source.execute(query):
                _refuse_zero(name, columns, row)
                copy.write_row(row)
        before = digest(source.execute(query))
        after = digest(cursor.stream(query.encode()))
    if before != after:
        raise CopyRefusedError(f"{name}: {before[0]} rows became {after[0]} other ones; nothing was copied")
    return Table(name=name, rows=before[0], sha256=before[1])


def _refuse_zero(name: str, columns: Sequence[str], row: Sequence[Any]) -> None:
    for column, value in zip(columns, row, strict=True):
        if isinstance(value, str) and "\0" in value:
            raise CopyRefusedError(
                f"{name}.{column} holds a text with U+0000, which PostgreSQL cannot keep: {row[0]!r}"
            )


def digest(rows: Iterable[Sequence[Any]]) -> tuple[int, str]:
    """How many rows, and a hash of them in whatever order they come."""
    count = total = 0
    for row in rows:
        total += int.from_bytes(hashlib.sha256(b"".join(map(_canonical, row))).digest())
        count += 1
    return count, f"{total % 2**HASH_BITS:064x}"


def _canonical(value: Any) -> bytes:
    """The same for the same value on both engines: its kind, its length, its octets."""
    if value is None:
        return b"n"
    if isinstance(value, int):
        kind, octets = b"i", b"%d" % value
    elif isinstance(value, str):
        kind, octets = b"t", value.encode()
    else:
        assert isinstance(value, bytes), type(value)
        kind, octets = b"b", value
    return b"%s%d:%s" % (kind, len(octets), octets)


def _set_sequences(source: apsw.Connection, connection: psycopg.Connection[Any], tables: Sequence[str]) -> None:
    """Numbers go on where they stopped: after the highest that was ever given out."""
    query = (
        b"SELECT table_name, column_name FROM information_schema.columns"
        b" WHERE table_schema = current_schema() AND is_identity = 'YES'"
    )
    given = _given_out(source)
    for table, column in connection.execute(query).fetchall():
        assert table in tables, table
        (highest,) = source.execute(f'SELECT coalesce(max("{column}"), 0) FROM "{table}"').fetchone() or (0,)  # noqa: S608
        last = max(int(highest), given.get(table, 0))
        setting = "SELECT setval(pg_get_serial_sequence(%s, %s), %s, %s)"
        connection.execute(setting, (table, column, max(last, 1), last > 0))


def _given_out(source: apsw.Connection) -> dict[str, int]:
    """The highest number of each AUTOINCREMENT column, also of rows that are gone."""
    return {str(name): int(number) for name, number in source.execute("SELECT name, seq FROM sqlite_sequence")}

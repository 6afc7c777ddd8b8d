"""Migrations: in order, once, all or none, never edited; on both engines. The twins of the services make the same tables."""

from __future__ import annotations

from pathlib import Path

import apsw
import psycopg
import pytest

from services.storage import Database, MigrationError
from services.storage.migrations import POSTGRESQL, SQLITE, load_migrations
from services.storage.places import Place, PostgresPlace
from services.storage.sql import Connection
from services.storage.sqlite.connection import connect
from support.postgresql import schema_at

SERVICES = Path(__file__).parents[3] / "services"
FOLDERS = sorted(folder.parent for folder in SERVICES.rglob(SQLITE) if list(folder.glob("0001_*.sql")))


@pytest.fixture
def folder(place: Place, migrations: Path) -> Path:
    """Of the migrations for the engine."""
    return migrations / (POSTGRESQL if isinstance(place, PostgresPlace) else SQLITE)


async def test_migrations_run_once_and_in_order(place: Place, migrations: Path, folder: Path) -> None:
    await (await Database.open(place, migrations=migrations)).close()
    more = "ALTER TABLE item ADD COLUMN size INTEGER; CREATE INDEX by_size ON item (size);"
    (folder / "0002_more.sql").write_text(more)
    async with await Database.open(place, migrations=migrations) as database:
        await database.write(lambda c: c.execute("INSERT INTO item (name, size) VALUES ('a', 1)") and None)


async def test_an_edited_migration_is_refused(place: Place, migrations: Path, folder: Path) -> None:
    await (await Database.open(place, migrations=migrations)).close()
    path = folder / "0001_items.sql"
    path.write_text(path.read_text() + " -- edited")
    with pytest.raises(MigrationError, match="0001_items was edited"):
        await Database.open(place, migrations=migrations)


async def test_an_older_program_is_refused(place: Place, migrations: Path, folder: Path) -> None:
    (folder / "0002_more.sql").write_text("CREATE TABLE more (a INTEGER)")
    await (await Database.open(place, migrations=migrations)).close()
    (folder / "0002_more.sql").unlink()
    with pytest.raises(MigrationError, match="newer than this program"):
        await Database.open(place, migrations=migrations)


@pytest.mark.parametrize(
    "text", ["CREATE TABLE broken (", "COMMIT", "CREATE TABLE x (a INTEGER); SELECT * FROM nowhere"]
)
async def test_a_broken_migration_leaves_nothing(place: Place, migrations: Path, folder: Path, text: str) -> None:
    (folder / "0002_broken.sql").write_text(text)
    with pytest.raises(MigrationError, match="0002_broken"):
        await Database.open(place, migrations=migrations)
    if text != "COMMIT":
        assert not await tables_at(place) & {"item", "x"}


async def tables_at(place: Place) -> set[str]:
    """The tables that are there, without migrating."""
    if isinstance(place, PostgresPlace):
        with psycopg.connect(place.url.reveal().decode()) as connection:
            sql = "SELECT tablename FROM pg_tables WHERE schemaname = 'item'"
            return {row[0] for row in connection.execute(sql)}
    file = connect(place)
    try:
        return {row[0] for row in file.execute("SELECT name FROM sqlite_schema")}
    finally:
        file.close()


@pytest.mark.parametrize("name", ["0003_gap.sql", "two.sql", "0001_double.sql"])
async def test_wrong_numbers_are_refused(place: Place, migrations: Path, folder: Path, name: str) -> None:
    (folder / name).write_text("CREATE TABLE x (a INTEGER)")
    with pytest.raises(MigrationError):
        await Database.open(place, migrations=migrations)


def of_service(folder: Path) -> Path | None:
    """None for the storage package's own tables, which every database has."""
    return None if folder.is_relative_to(SERVICES / "storage") else folder


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: str(folder.relative_to(SERVICES)))
def test_every_migration_has_its_twin(folder: Path) -> None:
    sqlite, postgresql = load_migrations(folder / SQLITE), load_migrations(folder / POSTGRESQL)
    assert [each.name for each in sqlite] == [each.name for each in postgresql]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: str(folder.relative_to(SERVICES)))
async def test_twins_make_the_same_tables(folder: Path, tmp_path: Path, postgresql_url: str) -> None:
    async with await Database.open(tmp_path / "a.db", migrations=of_service(folder)) as database:
        of_sqlite = await database.read(sqlite_columns)
    async with await Database.open(schema_at(postgresql_url), migrations=of_service(folder)) as database:
        of_postgresql = await database.read(postgresql_columns)
    assert of_sqlite == of_postgresql
    assert ("sequence", "BIGINT", False) in of_sqlite["storage_event"]


Columns = dict[str, set[tuple[str, str, bool]]]
SAME_TYPES = {"INTEGER": "BIGINT", "BLOB": "BYTEA"}


def sqlite_columns(connection: Connection) -> Columns:
    """Name, type and whether it may be NULL, by table."""
    assert isinstance(connection, apsw.Connection)
    tables = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
    found: Columns = {}
    for (table,) in tables.fetchall():
        rows = connection.execute(
            'SELECT name, type, "notnull" OR pk > 0 FROM pragma_table_info(?) ORDER BY cid', (table,)
        )
        found[table] = {(name, SAME_TYPES.get(kind, kind), not never) for name, kind, never in rows}
    return found


def postgresql_columns(connection: Connection) -> Columns:
    """The same."""
    rows = connection.execute(
        "SELECT CAST(table_name AS TEXT), CAST(column_name AS TEXT), upper(CAST(data_type AS TEXT)), is_nullable = 'YES'"
        " FROM information_schema.columns WHERE table_schema = 'item' ORDER BY table_name, ordinal_position"
    )
    found: Columns = {}
    for table, name, kind, nullable in rows:
        found.setdefault(table, set()).add((name, kind, bool(nullable)))
    return found

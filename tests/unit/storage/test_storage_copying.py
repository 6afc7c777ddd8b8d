"""Moving from SQLite to PostgreSQL: everything or nothing, verified; refusals; numbers go on where they stopped."""

from __future__ import annotations

import contextlib
from pathlib import Path

import apsw
import psycopg
import pytest

from benchmarks.services.reserves import open_account, orders, write_orders
from services.payment.service import MIGRATIONS
from services.payment.verification.command import verify
from services.storage import Database, PostgresPlace, append_event, newest_sequence, sweep
from services.storage.copy_command import main
from services.storage.copying import CopyRefusedError, copy_database, digest
from services.storage.sql import Connection
from support.ledger_rows import open_payment_database
from support.postgresql import schema_at

ACCOUNT = "customer:01890000-0000-7000-8000-000000000000"
WEEKS_MS = 2_000_000_000_000_000


@pytest.fixture
def target(postgresql_url: str) -> PostgresPlace:
    return schema_at(postgresql_url, "payment")


@pytest.fixture
async def file(tmp_path: Path) -> Path:
    """A used database of the payment service: events came and went, accounts of the house have events."""
    path = tmp_path / "payment.sqlite3"
    open_payment_database(str(path)).close()
    async with await Database.open(path, migrations=MIGRATIONS) as database:
        for subject in ("ä'\"\\\n\t", "", "\x7f😀"):
            await database.write(lambda c: append_event(c, kind="k", subject=subject, payload=bytes(range(256))))  # noqa: B023
        await sweep(database, now_ms=WEEKS_MS)
        await database.write(lambda c: append_event(c, kind="k", subject="last", payload=b""))
    return path


async def test_all_rows_arrive_and_numbers_go_on(file: Path, target: PostgresPlace) -> None:
    with contextlib.closing(apsw.Connection(str(file))) as source:
        count = {str(row[0]) for row in source.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
        accounts = source.execute("SELECT * FROM account ORDER BY number").fetchall()
        newest = newest_sequence(source)
    tables = copy_database(file, target)
    assert {table.name for table in tables} == count - {"storage_migration", "sqlite_sequence"}
    async with await Database.open(target, migrations=MIGRATIONS) as database:
        assert await database.read(lambda c: c.execute("SELECT * FROM account ORDER BY number").fetchall()) == accounts
        assert await database.read(newest_sequence) == newest
        number = await database.write(add_account)
        assert number == max(row[0] for row in accounts) + 1
        assert await database.write(lambda c: append_event(c, kind="k", subject="new", payload=b"")) == newest + 1


async def test_a_copied_ledger_verifies_and_goes_on(file: Path, target: PostgresPlace) -> None:
    async with await Database.open(file, migrations=MIGRATIONS) as database:
        await database.write(lambda connection: open_account(connection, ACCOUNT))
        await write_orders(database, orders(ACCOUNT, "me", 50), 8)
        before = await database.read(verify)
    copy_database(file, target)
    async with await Database.open(target, migrations=MIGRATIONS) as database:
        after = await database.read(verify)
        assert (after.violations, after.head, after.checked) == ([], before.head, before.checked)
        await write_orders(database, orders(ACCOUNT, "me", 50), 8)
        again = await database.read(verify)
    assert (again.violations, again.checked["transfers"]) == ([], before.checked["transfers"] + 50), again.checked


def add_account(connection: Connection) -> int:
    """The number that a new row gets."""
    sql = "INSERT INTO account (account_id, owner, state, must_cover, create_time_ms) VALUES (?, '', 1, 0, 0) RETURNING number"
    (number,) = connection.execute(sql, ("customer:x",)).fetchone() or (None,)
    assert isinstance(number, int)
    return number


async def test_a_file_in_use_is_refused(file: Path, target: PostgresPlace) -> None:
    async with await Database.open(file, migrations=MIGRATIONS):
        with pytest.raises(CopyRefusedError, match="in use"):
            copy_database(file, target)
    copy_database(file, target)


async def test_a_schema_that_is_not_empty_is_refused(file: Path, target: PostgresPlace) -> None:
    copy_database(file, target)
    with pytest.raises(CopyRefusedError, match="not empty"):
        copy_database(file, target)


@pytest.mark.parametrize(
    "change", ["DELETE FROM storage_migration WHERE number = 2", "UPDATE storage_migration SET sha256 = 'x'"]
)
def test_another_version_is_refused(file: Path, target: PostgresPlace, change: str) -> None:
    with contextlib.closing(apsw.Connection(str(file))) as source:
        source.execute(change)
    with pytest.raises(CopyRefusedError, match="another version"):
        copy_database(file, target)


def test_what_postgresql_cannot_keep_undoes_all(file: Path, target: PostgresPlace, postgresql_url: str) -> None:
    with contextlib.closing(apsw.Connection(str(file))) as source:
        source.execute("INSERT INTO memory (name, value) VALUES ('a', ?)", ("x\0y",))
    with pytest.raises(CopyRefusedError, match=r"memory\.value"):
        copy_database(file, target)
    with psycopg.connect(postgresql_url) as connection:
        assert connection.execute("SELECT 1 FROM pg_namespace WHERE nspname = 'payment'").fetchone() is None


def test_a_table_of_nobody_is_refused(file: Path, target: PostgresPlace) -> None:
    with contextlib.closing(apsw.Connection(str(file))) as source:
        source.execute("CREATE TABLE odd (a INTEGER) STRICT")
    with pytest.raises(CopyRefusedError, match="no table for odd"):
        copy_database(file, target)


def test_the_hash_tells_rows_apart_and_not_their_order() -> None:
    assert digest([(1, "a", b"b", None)]) != digest([(1, "a", "b", None)])
    assert digest([(1,), (2,)]) == digest([(2,), (1,)]) != digest([(12,)])
    assert digest([("a", "bc")]) != digest([("ab", "c")])


def test_the_command(
    file: Path, postgresql_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(file)]) == 2, "no URL"
    secret = tmp_path / "url"
    secret.write_text(postgresql_url + "\n")
    secret.chmod(0o600)
    monkeypatch.setenv("NIPMESH_DATABASE_URL_FILE", str(secret))
    assert main([str(tmp_path / "missing.sqlite3")]) == 2
    (tmp_path / "text.sqlite3").write_text("no database, though as long as a header" * 9)
    assert main([str(tmp_path / "text.sqlite3")]) == 2
    assert main([str(file)]) == 0
    said = capsys.readouterr()
    assert "payment.account: 4 rows, sha256 " in said.out
    assert "is no SQLite file" in said.err
    assert main([str(file)]) == 2, "a second time"
    monkeypatch.delenv("NIPMESH_DATABASE_URL_FILE")
    monkeypatch.setenv("NIPMESH_DATABASE_URL", "postgresql://me:hunter2@127.0.0.1:1/x")
    assert main([str(file)]) == 1
    assert "hunter2" not in capsys.readouterr().err

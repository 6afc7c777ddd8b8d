"""A batch has no savepoints until one of its writes raises: then it runs again, and whatever raised undoes itself alone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import apsw
import pytest

from services.storage import Database
from services.storage.batches import CAREFUL_BATCHES, BatchRunner
from services.storage.places import Place
from services.storage.sets import find_rows, insert_rows
from services.storage.sql import Connection
from services.storage.sqlite.connection import connect, prepare_file
from services.storage.sqlite.writer import run_batch
from services.storage.writing import BatchKind, BatchWrite
from support.items import SQLITE_SCHEMA, insert, names, pending


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[apsw.Connection]:
    prepare_file(tmp_path / "a.db")
    opened = connect(tmp_path / "a.db")
    opened.execute(SQLITE_SCHEMA)
    yield opened
    opened.close()


def refused(connection: Connection) -> None:
    connection.execute("INSERT INTO item (name) VALUES ('half done')")
    raise ValueError("no")


def savepoints(connection: apsw.Connection, runner: BatchRunner, works: list[Any]) -> int:
    """Run a batch; how many savepoints it set."""
    seen: list[str] = []
    connection.trace_v2(apsw.SQLITE_TRACE_STMT, lambda event: seen.append(event["sql"]))
    try:
        run_batch(connection, [pending(work) for work in works], runner)
    finally:
        connection.trace_v2(0)
    return sum(sql.startswith("SAVEPOINT") for sql in seen)


async def test_savepoints_are_set_for_a_while_after_a_write_raised(connection: apsw.Connection) -> None:
    runner = BatchRunner()
    assert savepoints(connection, runner, [insert("a"), insert("b")]) == 0
    assert savepoints(connection, runner, [insert("c"), refused, insert("d")]) == 3
    for number in range(CAREFUL_BATCHES - 1):
        assert savepoints(connection, runner, [insert(f"careful {number}")]) == 1
    assert savepoints(connection, runner, [insert("e")]) == 0
    assert set(names(connection)) >= {"a", "b", "c", "d", "e"}
    assert "half done" not in names(connection)


async def test_what_ran_twice_happened_once(place: Place, migrations: Path) -> None:
    ran: list[str] = []

    def counted(name: str) -> Any:
        def work(connection: Connection) -> str:
            ran.append(name)
            connection.execute("INSERT INTO item (name) VALUES (?)", (name,))
            return name

        return work

    async with await Database.open(place, migrations=migrations) as database:
        blocker = asyncio.ensure_future(database.write(lambda _: _pause()))
        await asyncio.sleep(0.05)
        works = [counted("first"), refused, counted("last")]
        results = await asyncio.gather(*(database.write(work) for work in works), return_exceptions=True)
        await blocker
        assert (results[0], type(results[1]), results[2]) == ("first", ValueError, "last")
        assert await database.read(names) == ["first", "last"]
    assert ran[-2:] == ["first", "last"]
    assert ran.count("first") == 2, "it ran before the one that raised, and again"


async def test_a_hopeful_set_is_given_up_for_a_while(place: Place, migrations: Path) -> None:
    """What is there already is found by a unique index: all that the batch did is undone, and it looks first for a while."""
    ran: list[str] = []

    def hopeful(connection: Connection, items: Sequence[str]) -> list[None]:
        ran.append("hopeful")
        insert_rows(connection, "item", "name", [(item,) for item in items])
        return [None for _ in items]

    def many(connection: Connection, items: Sequence[str]) -> list[Exception | None]:
        ran.append("many")
        known = {row[0] for row in find_rows(connection, "SELECT name FROM item WHERE name", list(items))}
        insert_rows(connection, "item", "name", [(item,) for item in items if item not in known])
        return [ValueError("known") if item in known else None for item in items]

    kind = BatchKind(name="items", run_one=_never, run_many=many, run_hopeful=hopeful)
    async with await Database.open(place, migrations=migrations) as database:
        await database.write(BatchWrite(kind, "a"))
        assert ran == ["hopeful"]
        blocker = asyncio.ensure_future(database.write(lambda _: _pause()))
        await asyncio.sleep(0.05)
        writes = [database.write(BatchWrite(kind, name)) for name in "bacd"]
        results = await asyncio.gather(*writes, return_exceptions=True)
        await blocker
        assert [type(result) for result in results] == [type(None), ValueError, type(None), type(None)]
        assert ran == ["hopeful", "hopeful", "many"]
        for number in range(CAREFUL_BATCHES):
            await database.write(BatchWrite(kind, f"later {number}"))
        assert ran == ["hopeful", "hopeful", *["many"] * CAREFUL_BATCHES, "hopeful"]
        assert await database.read(names) == ["a", *"bcd", *(f"later {number}" for number in range(CAREFUL_BATCHES))]


def _never(_: Connection, item: str) -> None:
    raise AssertionError(item)


def _pause() -> None:
    """Long enough for the others to be queued behind it."""
    time.sleep(0.3)

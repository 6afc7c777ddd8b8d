"""Many rows with few statements, on both engines."""

from __future__ import annotations

import psycopg
import pytest

from services.storage import Database
from services.storage.sets import ROWS_MAX, find_rows, insert_rows, update_rows
from services.storage.sql import Connection
from support.items import names


@pytest.mark.parametrize("count", [0, 1, 2, 3, ROWS_MAX - 1, ROWS_MAX, 2 * ROWS_MAX + 5])
async def test_rows_are_inserted_in_their_order(database: Database, count: int) -> None:
    wanted = [f"{number}-ä\"'\\,{{}}" for number in range(count)]
    await database.write(lambda c: insert_rows(c, "item", "name", [(name,) for name in wanted]))
    assert await database.read(names) == wanted


async def test_columns_that_are_the_same_for_all(database: Database) -> None:
    await database.write(lambda c: insert_rows(c, "item", "id", [(7,)], "name = 'seven'"))
    assert await database.read(lambda c: c.execute("SELECT id, name FROM item").fetchall()) == [(7, "seven")]


async def test_rows_are_found_and_changed(database: Database) -> None:
    def work(connection: Connection) -> list[tuple[int, str]]:
        insert_rows(connection, "item", "id, name", [(number, f"item {number}") for number in range(9)])
        update_rows(connection, "item", ("id", "name"), [(3, "three"), (5, "five")])
        found = find_rows(connection, "SELECT id, name FROM item WHERE name", ["five", "item 4", "item 5", "three"])
        return sorted(found)

    assert await database.write(work) == [(3, "three"), (4, "item 4"), (5, "five")]


async def test_a_row_that_is_not_there_fails_the_write(database: Database) -> None:
    """On PostgreSQL nobody awaits the answer: the server refuses."""

    def work(connection: Connection) -> None:
        insert_rows(connection, "item", "id, name", [(1, "one")])
        update_rows(connection, "item", ("id", "name"), [(1, "two"), (2, "three")])

    with pytest.raises((AssertionError, psycopg.errors.DivisionByZero)):
        await database.write(work)
    assert await database.read(names) == []

"""Many rows with few statements, for `BatchKind.run_many`.

On PostgreSQL rows are inserted as VALUES with a parameter for each value: that takes the server half of what arrays and `unnest` take.
The statements have 1, 2, 4, … rows, so that each is prepared once. On SQLite it is executemany, and json_each to find.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import Any, Final

import apsw

from services.storage.sql import Connection, Rows

ROWS_MAX: Final = 64
"""Rows per statement on PostgreSQL: with more, preparing it costs more than it saves."""
INSERTS_CACHED_MAX: Final = 200
"""Texts of statements that are kept: seven for each table that sets are inserted into."""


def columns_of(rows: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """The rows turned: one list for each column, as `unnest` takes them. One that holds nothing but None is of texts."""
    return [list(column) for column in zip(*rows, strict=True)]


def insert_rows(
    connection: Connection, table: str, columns: str, rows: Sequence[Sequence[Any]], fixed: str = ""
) -> None:
    """Insert rows with these columns, in their order. `fixed`: more columns, the same for all, as `name = literal, …`."""
    if not rows:
        return
    if isinstance(connection, apsw.Connection):
        connection.executemany(_insert(table, columns, fixed, len(rows[0]), 1), rows)
        return
    done = 0
    while done < len(rows):
        size = min(ROWS_MAX, 1 << (len(rows) - done).bit_length() - 1)
        values = list(chain.from_iterable(rows[done : done + size]))
        connection.execute(_insert(table, columns, fixed, len(rows[0]), size), values)
        done += size


@lru_cache(maxsize=INSERTS_CACHED_MAX)
def _insert(table: str, columns: str, fixed: str, width: int, rows: int) -> str:
    """The statement that inserts so many rows."""
    pairs = [pair.split(" = ") for pair in fixed.split(", ") if pair]
    names = ", ".join([columns, *(name for name, _ in pairs)])
    row = ", ".join(["?"] * width + [literal for _, literal in pairs])
    return f"INSERT INTO {table} ({names}) VALUES {', '.join([f'({row})'] * rows)}"  # noqa: S608  # our names and literals


def update_rows(connection: Connection, table: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Set `columns[1:]` of the rows whose `columns[0]` is that. There is one row for each, or else the write fails."""
    if not rows:
        return
    key, *changing = columns
    if isinstance(connection, apsw.Connection):
        before = connection.total_changes()
        sql = f"UPDATE {table} SET {', '.join(f'{name} = ?' for name in changing)} WHERE {key} = ?"  # noqa: S608
        connection.executemany(sql, [(*row[1:], row[0]) for row in rows])
        changed = connection.total_changes() - before
        assert changed == len(rows), f"{table}: a row went away inside our own transaction"
        return
    new = ", ".join(f"{name} = after.{name}" for name in changing)
    marks = ", ".join("?" * len(columns))
    update = f"UPDATE {table} SET {new} FROM unnest({marks}) AS after ({', '.join(columns)}) WHERE {table}.{key} = after.{key}"  # noqa: S608
    # The server checks, by a division by zero: to do it here, the answer would have to be awaited before COMMIT is sent.
    sql = f"WITH changed AS ({update} RETURNING 1) SELECT 1 / CAST(count(*) = ? AS INTEGER) FROM changed"  # noqa: S608
    connection.execute(sql, [*columns_of(rows), len(rows)])


def find_rows(connection: Connection, sql: str, texts: Sequence[str]) -> Rows:
    """Run a query that ends in a column of its condition, for the rows that have one of these values there."""
    if isinstance(connection, apsw.Connection):
        return connection.execute(f"{sql} IN (SELECT value FROM json_each(?))", (json.dumps(texts),))  # noqa: S608  # ours
    return connection.execute(f"{sql} = ANY (?)", (list(texts),))


def find_keys(connection: Connection, table: str, columns: Sequence[str], keys: Sequence[Sequence[str]]) -> Rows:
    """Those of these keys, each of as many texts as there are columns, that the table has a row of."""
    if isinstance(connection, apsw.Connection):
        same = " AND ".join(f"{name} = asked.value ->> {at}" for at, name in enumerate(columns))
        values: Sequence[Any] = (json.dumps(keys),)
        asked = "json_each(?) AS asked CROSS"  # in this order: each is looked up by the index
    else:
        same = " AND ".join(f"{table}.{name} = asked.{name}" for name in columns)
        values = columns_of(keys)
        asked = f"unnest({', '.join('?' * len(columns))}) AS asked ({', '.join(columns)})"
    found = ", ".join(f"{table}.{name}" for name in columns)
    return connection.execute(f"SELECT {found} FROM {asked} JOIN {table} ON {same}", values)  # noqa: S608  # our names

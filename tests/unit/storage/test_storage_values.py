"""SQL and values on their way to PostgreSQL: placeholders, types, lists; by a real server."""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.storage.postgresql.connection import PostgresConnection
from services.storage.postgresql.statements import translate
from services.storage.postgresql.values import BIGINT_MAX, dump
from services.storage.sql import Connection
from support.postgresql import Server, schema_connection


@pytest.fixture(scope="module")
def connection(postgresql: Server) -> Iterator[Connection]:
    with schema_connection(postgresql.url(), "public") as opened:
        yield opened


@pytest.mark.parametrize(
    ("sql", "text", "names"),
    [
        ("SELECT ?, ?", "SELECT $1, $2", None),
        ("SELECT :b, :a, :b", "SELECT $1, $2, $1", ("b", "a")),
        ("SELECT '?', ':a', 'it''s ?', \"odd?\" , ?", "SELECT '?', ':a', 'it''s ?', \"odd?\" , $1", None),
        ("SELECT :a::text -- ? :b\n, 1 /* ? */", "SELECT $1::text -- ? :b\n, 1 /* ? */", ("a",)),
        ("SELECT 1", "SELECT 1", None),
    ],
)
def test_placeholders(sql: str, text: str, names: tuple[str, ...] | None) -> None:
    statement = translate(sql)
    assert (statement.text.decode(), statement.names) == (text, names)


def test_values_must_fit_the_placeholders() -> None:
    with pytest.raises(ValueError, match="2 placeholders, given are 1"):
        translate("SELECT ?, ?").arrange((1,))
    with pytest.raises(KeyError):
        translate("SELECT :a").arrange({"b": 1})
    with pytest.raises(AssertionError):
        translate("SELECT ?, :a")


TEXTS = st.text(st.characters(blacklist_characters="\0", blacklist_categories=("Cs",)))
INTEGERS = st.integers(-BIGINT_MAX - 1, BIGINT_MAX)
QUICK = settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])


@given(TEXTS, INTEGERS, st.binary())
@QUICK
def test_values_come_back(connection: Connection, text: str, number: int, octets: bytes) -> None:
    row = connection.execute("SELECT ?, ?, ?, CAST(? AS TEXT), ? = ?", (text, number, octets, None, number, number))
    assert row.fetchall() == [(text, number, octets, None, 1)]


@given(st.data())
@QUICK
def test_lists_come_back(connection: Connection, data: st.DataObject) -> None:
    kind: st.SearchStrategy[Any] = data.draw(st.sampled_from([TEXTS, INTEGERS, st.binary()]))
    values = data.draw(st.lists(kind, min_size=1))
    some = data.draw(st.lists(st.one_of(st.none(), kind))) + values
    for asked in (values, some):
        assert [row[0] for row in connection.execute("SELECT * FROM unnest(?)", (asked,))] == asked


class State(IntEnum):
    OPEN = 1


def test_what_is_no_value_is_refused(connection: Connection) -> None:
    assert dump(State.OPEN) == dump(True) == dump(1)
    assert dump([State.OPEN, 2])[1] == b"{1,2}"
    wrong: list[tuple[object, type[Exception]]] = [
        ("a\0b", ValueError),
        (["a\0b"], ValueError),
        (2**63, OverflowError),
        ([1, 2**63], OverflowError),
        (1.5, TypeError),
        ([1, "a"], TypeError),
    ]
    for value, error in wrong:
        with pytest.raises(error):
            connection.execute("SELECT ?", (value,))
    assert connection.execute("SELECT CAST(? AS BIGINT)", (7,)).fetchone() == (7,), "nothing was sent"


def test_sums_are_integers_and_a_statement_is_prepared_once(connection: Connection) -> None:
    assert isinstance(connection, PostgresConnection)
    for _ in range(3):
        rows = connection.execute("SELECT sum(n), count(*) FROM generate_series(CAST(1 AS BIGINT), ?) AS t (n)", (10,))
        assert rows.fetchone() == (55, 10)
    prepared = connection.execute("SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE 'SELECT sum(n)%'")
    assert prepared.fetchone() == (1,)

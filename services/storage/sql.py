"""What a store may do with an open transaction, on SQLite and on PostgreSQL alike.

The stores' functions take a `Connection` and run statements whose SQL both engines understand: placeholders `?` or `:name`,
`ON CONFLICT`, `RETURNING`; no scalar min() or max(), no boolean columns. What differs (the types of columns, triggers) stands in the
migrations, which come as twins.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

Parameters = Sequence[Any] | Mapping[str, Any]
"""Values for `?`, or for `:name`."""


class Rows(Protocol):
    """What a statement returned; each row is a tuple. To be read before the connection's next statement."""

    def fetchone(self) -> tuple[Any, ...] | None:
        """The next row, None when there is none left."""

    def fetchall(self) -> list[tuple[Any, ...]]:
        """All rows that are left."""

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        """The rows that are left."""


class Connection(Protocol):
    """A connection inside a transaction that its owner begins and ends."""

    def execute(self, sql: str, parameters: Parameters = (), /) -> Rows:
        """Run one statement."""

    def changes(self) -> int:
        """How many rows the last INSERT, UPDATE or DELETE touched."""


def value_of(rows: Rows) -> Any:
    """The first column of the first row; None when there is no row."""
    row = rows.fetchone()
    return None if row is None else row[0]

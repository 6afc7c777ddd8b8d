"""How far a database is: the sequence of its newest event."""

from __future__ import annotations

from services.storage.sql import Connection, Rows

_NEWEST = """
SELECT coalesce((SELECT max(sequence) FROM storage_event), 0), value FROM storage_fact WHERE name = 'events_removed_to'
"""


def newest_sequence(connection: Connection) -> int:
    """The highest sequence that was committed, also when its event is gone meanwhile; 0 when none was."""
    return newest_of(ask_newest(connection))


def ask_newest(connection: Connection) -> Rows:
    """The question alone: what a writer asks besides then shares a round trip with it."""
    return connection.execute(_NEWEST)


def newest_of(rows: Rows) -> int:
    """The answer."""
    row = rows.fetchone()
    assert row is not None, "the fact is made with the database"
    return max(int(row[0]), int(row[1]))

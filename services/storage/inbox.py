"""The inbox: which events a consumer has received, written in the transaction of their effect."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from services.storage.sets import find_keys, insert_rows
from services.storage.sql import Connection, value_of

INBOX_KEPT_MS: Final = 15 * 24 * 3_600_000
"""15 days: an event can be published again from the outbox for 7 days, and lies in the stream for 7 more."""

Receivings = Sequence[tuple[str, int]]
"""Event ids with their places in the stream."""


def receive(connection: Connection, consumer: str, events: Receivings, now_ms: int) -> list[str]:
    """Record events as received; return the ids of those that were not before, in their order.

    Writers take turns, so that nobody else records the same ones meanwhile.
    """
    positions = dict(events)
    keys = [(consumer, event_id) for event_id in positions]
    known = {row[1] for row in find_keys(connection, "storage_inbox", ("consumer", "event_id"), keys)}
    fresh = [event_id for event_id in positions if event_id not in known]
    rows = [(consumer, event_id, positions[event_id], now_ms) for event_id in fresh]
    insert_rows(connection, "storage_inbox", "consumer, event_id, position, create_time_ms", rows)
    return fresh


def forget(connection: Connection, consumer: str, *, from_position: int = 0, from_time_ms: int = 0) -> int:
    """Forget what a consumer has received from a place of the stream on, or since a time; how many events."""
    connection.execute(
        "DELETE FROM storage_inbox WHERE consumer = ? AND position >= ? AND create_time_ms >= ?",
        (consumer, from_position, from_time_ms),
    )
    return connection.changes()


def forget_old_events(connection: Connection, now_ms: int, *, limit: int) -> int:
    """Delete at most about `limit` rows older than the retention; how many."""
    before = value_of(
        connection.execute(
            "SELECT max(create_time_ms) FROM"
            " (SELECT create_time_ms FROM storage_inbox WHERE create_time_ms < ? ORDER BY create_time_ms LIMIT ?) AS old",
            (now_ms - INBOX_KEPT_MS, limit),
        )
    )
    if before is None:
        return 0
    connection.execute("DELETE FROM storage_inbox WHERE create_time_ms <= ?", (before,))
    return connection.changes()

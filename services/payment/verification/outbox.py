"""The outbox: no event is missing below the newest, and payments point at their own."""

from __future__ import annotations

from typing import Final

from services.payment.verification.report import Report
from services.storage.sequence import newest_sequence
from services.storage.sql import Connection, value_of

HOLES_MAX: Final = 100
"""Holes that are shown."""
_HOLES = """
SELECT event.sequence FROM storage_event AS event LEFT JOIN storage_event AS next ON next.sequence = event.sequence + 1
WHERE next.sequence IS NULL AND event.sequence < ? ORDER BY event.sequence LIMIT ?
"""
_MISPLACED = """
SELECT payment.payment_id, payment.sequence FROM payment LEFT JOIN storage_event ON storage_event.sequence = payment.sequence
WHERE payment.sequence > ? AND (storage_event.subject IS NULL OR storage_event.subject <> payment.payment_id)
ORDER BY payment.number LIMIT ?
"""


def check_outbox(connection: Connection, report: Report) -> None:
    """Numbers from the oldest that is kept to the newest that was given out."""
    removed = int(value_of(connection.execute("SELECT value FROM storage_fact WHERE name = 'events_removed_to'")))
    row = connection.execute("SELECT count(*), min(sequence), max(sequence) FROM storage_event").fetchone()
    assert row is not None, "an aggregate has a row"
    count, oldest, newest = int(row[0]), row[1], row[2]
    report.checked["events"] += count
    given = newest_sequence(connection)
    if count == 0:
        report.expect(given <= removed, "events.kept", f"events {removed + 1} to {given} are missing", "outbox")
    else:
        report.expect(
            oldest <= removed + 1, "events.kept", f"events {removed + 1} to {oldest - 1} are missing", "outbox"
        )
        report.expect(newest == given, "events.kept", f"events {newest + 1} to {given} are missing", "outbox")
        for (before,) in connection.execute(_HOLES, (newest, HOLES_MAX)).fetchall():
            report.violate("events.kept", "the event is missing", f"event {before + 1}")
    for payment_id, sequence in connection.execute(_MISPLACED, (removed, HOLES_MAX)).fetchall():
        report.violate("events.of_payment", f"its newest change is not event {sequence}", payment_id)

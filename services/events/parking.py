"""Events that were received and not handled: they wait for another try, or, as dead letters, for an operator.

They lie in the consumer's own database. So a bus needs no redelivery of its own, what fails holds nothing else up, and each event has its
effect once also when it is tried again: the row goes in the transaction of the effect.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from services.events.cloud_event import CloudEvent
from services.storage.sql import Connection, value_of

OUTBOX: Final = "outbox"
"""As a consumer's name: the events of this service that the bus would not take."""
ERROR_CHARACTERS_MAX: Final = 500
"""Of an error's text: enough to know it, and no log."""
_COLUMNS: Final = (
    "number, consumer, event_id, kind, source, subject, message, payload, traceparent, extensions, event_time_ms, position, attempts,"
    " next_time_ms, reason, error, create_time_ms, update_time_ms"
)


class ParkReason(StrEnum):
    """Why an event was not handled."""

    HANDLER_FAILED = "HANDLER_FAILED"
    """The handler raised; the event is tried again, for a while."""
    HANDLER_REFUSED = "HANDLER_REFUSED"
    """The handler said that trying again is useless."""
    SCHEMA_UNKNOWN = "SCHEMA_UNKNOWN"
    """The payload is of a message, or of a version, that this program does not know."""
    PAYLOAD_INVALID = "PAYLOAD_INVALID"
    """The payload is not the message that it says it is."""
    NO_CLOUD_EVENT = "NO_CLOUD_EVENT"
    """The message lacks an event's attributes: somebody else publishes to our stream."""
    NEVER_ANSWERED = "NEVER_ANSWERED"
    """It was delivered again and again and the process ended each time before it was handled."""
    WAITS_ITS_TURN = "WAITS_ITS_TURN"
    """An earlier event of the same subject waits for another try (ordered consumers)."""
    BUS_REFUSED = "BUS_REFUSED"
    """The bus will never take it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parked:
    """A row. `next_time_ms` None: a dead letter."""

    number: int
    consumer: str
    event: CloudEvent
    position: int
    attempts: int
    next_time_ms: int | None
    reason: ParkReason
    error: str
    create_time_ms: int
    update_time_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """What came of an attempt. `next_time_ms` None: no other follows by itself."""

    reason: ParkReason
    error: str
    attempts: int
    next_time_ms: int | None


def park(
    connection: Connection, consumer: str, event: CloudEvent, position: int, failure: Failure, now_ms: int
) -> None:
    """Put an event aside, or note what came of another attempt."""
    connection.execute(
        "INSERT INTO storage_parked_event (consumer, event_id, kind, source, subject, message, payload, traceparent, extensions,"
        " event_time_ms, position, attempts, next_time_ms, reason, error, create_time_ms, update_time_ms)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (consumer, event_id) DO UPDATE SET attempts = excluded.attempts, next_time_ms = excluded.next_time_ms,"
        " reason = excluded.reason, error = excluded.error, update_time_ms = excluded.update_time_ms",
        (
            consumer,
            event.event_id,
            event.type,
            event.source,
            event.subject,
            event.schema,
            event.data,
            event.traceparent,
            json.dumps(event.extensions),
            event.time_ms,
            position,
            failure.attempts,
            failure.next_time_ms,
            failure.reason,
            _storable(failure.error),
            now_ms,
            now_ms,
        ),
    )


_HEAD: Final = """
 AND NOT EXISTS (SELECT 1 FROM storage_parked_event AS earlier WHERE earlier.consumer = parked.consumer AND earlier.subject = parked.subject
 AND earlier.subject <> '' AND earlier.number < parked.number AND earlier.next_time_ms IS NOT NULL)
"""
"""Only the first of each subject that waits."""


def due(connection: Connection, consumer: str, now_ms: int, *, ordered: bool) -> Parked | None:
    """What is to be tried again now; `ordered`: never before an earlier one of its subject."""
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM storage_parked_event AS parked WHERE consumer = ? AND next_time_ms <= ?"  # noqa: S608  # ours
        f"{_HEAD if ordered else ''} ORDER BY number LIMIT 1",
        (consumer, now_ms),
    )
    row = rows.fetchone()
    return None if row is None else _parked_of(row)


def next_due_ms(connection: Connection, consumer: str, *, ordered: bool) -> int | None:
    """When the next one is due; None when none waits."""
    query = f"SELECT min(next_time_ms) FROM storage_parked_event AS parked WHERE consumer = ?{_HEAD if ordered else ''}"  # noqa: S608
    found = value_of(connection.execute(query, (consumer,)))
    return None if found is None else int(found)


def queued(now_ms: int) -> Failure:
    """What an event is parked with that nobody has tried yet: one of its subject comes first."""
    return Failure(reason=ParkReason.WAITS_ITS_TURN, error="", attempts=0, next_time_ms=now_ms)


def note_attempt(connection: Connection, parked: Parked, failure: Failure, now_ms: int) -> bool:
    """What came of another attempt; False when another replica was faster. It keeps its number, and so its place."""
    connection.execute(
        "UPDATE storage_parked_event SET attempts = ?, next_time_ms = ?, reason = ?, error = ?, update_time_ms = ?"
        " WHERE number = ? AND attempts = ? AND next_time_ms IS NOT NULL",
        (
            failure.attempts,
            failure.next_time_ms,
            failure.reason,
            _storable(failure.error),
            now_ms,
            parked.number,
            parked.attempts,
        ),
    )
    return connection.changes() == 1


def unpark(connection: Connection, parked: Parked) -> bool:
    """Take a row away, in the transaction of its effect; False when somebody was faster."""
    connection.execute(
        "DELETE FROM storage_parked_event WHERE number = ? AND attempts = ? AND next_time_ms IS NOT NULL",
        (parked.number, parked.attempts),
    )
    return connection.changes() == 1


def waiting_subjects(connection: Connection, consumer: str) -> set[str]:
    """Subjects of which an event waits for another try."""
    query = "SELECT DISTINCT subject FROM storage_parked_event WHERE consumer = ? AND next_time_ms IS NOT NULL"
    return {str(row[0]) for row in connection.execute(query, (consumer,))}


def list_dead(connection: Connection, consumer: str, after_number: int, limit: int) -> list[Parked]:
    """Dead letters by number; of all consumers when none is named."""
    whose, values = ("consumer = ? AND", [consumer]) if consumer else ("", [])
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM storage_parked_event WHERE {whose} next_time_ms IS NULL AND number > ? ORDER BY number LIMIT ?",  # noqa: S608
        [*values, after_number, limit],
    )
    return [_parked_of(row) for row in rows]


def revive(connection: Connection, consumer: str, numbers: Sequence[int] | None, now_ms: int) -> int:
    """Have dead letters tried again, with all attempts before them; how many."""
    return _change_dead(
        connection, "UPDATE storage_parked_event SET attempts = 0, next_time_ms = ?", [now_ms], consumer, numbers
    )


def discard(connection: Connection, consumer: str, numbers: Sequence[int] | None) -> int:
    """Delete dead letters; how many."""
    return _change_dead(connection, "DELETE FROM storage_parked_event", [], consumer, numbers)


def _change_dead(
    connection: Connection, change: str, values: list[Any], consumer: str, numbers: Sequence[int] | None
) -> int:
    condition = "WHERE consumer = ? AND next_time_ms IS NULL"
    if numbers is None:
        connection.execute(f"{change} {condition}", [*values, consumer])
        return connection.changes()
    changed = 0
    for number in numbers:
        connection.execute(f"{change} {condition} AND number = ?", [*values, consumer, number])
        changed += connection.changes()
    return changed


def _storable(error: str) -> str:
    """PostgreSQL keeps no text with U+0000."""
    return error.replace("\0", "�")[:ERROR_CHARACTERS_MAX]


def _parked_of(row: Sequence[Any]) -> Parked:
    return Parked(
        number=int(row[0]),
        consumer=row[1],
        event=CloudEvent(
            event_id=row[2],
            type=row[3],
            source=row[4],
            subject=row[5],
            schema=row[6],
            data=bytes(row[7]),
            traceparent=row[8],
            extensions=tuple((name, value) for name, value in json.loads(row[9])),
            time_ms=int(row[10]),
        ),
        position=int(row[11]),
        attempts=int(row[12]),
        next_time_ms=None if row[13] is None else int(row[13]),
        reason=ParkReason(row[14]),
        error=row[15],
        create_time_ms=int(row[16]),
        update_time_ms=int(row[17]),
    )

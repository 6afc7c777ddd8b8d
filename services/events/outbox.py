"""The outbox as its relay sees it: how far it is published, what was published last, and what is to be published again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from services.chassis.errors import Reason, ServiceError
from services.events.catalogue import message_name
from services.events.cloud_event import CloudEvent
from services.events.leases import Lease, keep
from services.storage.events import Event
from services.storage.sequence import newest_sequence
from services.storage.sql import Connection, value_of

LEASE_NAME: Final = "outbox"
_STATE: Final = """
SELECT outbox_id, published_sequence, tail_sequence, tail_position, replay_sequence, replay_to_sequence FROM storage_outbox
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxState:
    """The row. `tail_sequence` and `tail_position`: the event that was published last, also in a replay, and its place in the stream."""

    outbox_id: str
    published_sequence: int
    tail_sequence: int
    tail_position: int
    replay_sequence: int | None
    replay_to_sequence: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What one write stores: positions that changed; None: as it was."""

    published_sequence: int | None = None
    replay_sequence: int | None = None
    tail_sequence: int | None = None
    tail_position: int | None = None


def read_state(connection: Connection) -> OutboxState:
    """How far it is."""
    row = connection.execute(_STATE).fetchone()
    assert row is not None, "the row is made with the table"
    return OutboxState(
        outbox_id=str(row[0]),
        published_sequence=int(row[1]),
        tail_sequence=int(row[2]),
        tail_position=int(row[3]),
        replay_sequence=None if row[4] is None else int(row[4]),
        replay_to_sequence=None if row[5] is None else int(row[5]),
    )


def store_progress(connection: Connection, lease: Lease, progress: Progress, lease_until_ms: int) -> None:
    """Store how far it is, and keep the lease with it. Raises LeaseLostError: then another relay goes on from its own position."""
    keep(connection, lease, lease_until_ms)
    connection.execute(
        "UPDATE storage_outbox SET published_sequence = coalesce(:published, published_sequence),"
        " tail_sequence = coalesce(:tail, tail_sequence), tail_position = coalesce(:position, tail_position)",
        {
            "published": progress.published_sequence,
            "tail": progress.tail_sequence,
            "position": progress.tail_position,
        },
    )
    if progress.replay_sequence is not None:
        _store_replay(connection, progress.replay_sequence)


def _store_replay(connection: Connection, sequence: int) -> None:
    """How far a replay is; it is over at its end. One that was asked for meanwhile and begins earlier stays."""
    connection.execute(
        "UPDATE storage_outbox SET"
        " replay_sequence = CASE WHEN replay_to_sequence <= :sequence THEN NULL ELSE :sequence END,"
        " replay_to_sequence = CASE WHEN replay_to_sequence <= :sequence THEN NULL ELSE replay_to_sequence END"
        " WHERE replay_sequence <= :sequence",
        {"sequence": sequence},
    )


def request_replay(connection: Connection, after_sequence: int | None, from_time_ms: int | None) -> tuple[int, int]:
    """Have events published again that were published already: (after, to]. Raises RESUME_POINT_EXPIRED."""
    removed = int(value_of(connection.execute("SELECT value FROM storage_fact WHERE name = 'events_removed_to'")))
    after = removed if after_sequence is None else after_sequence
    if from_time_ms is not None:
        older = "SELECT max(sequence) FROM storage_event WHERE create_time_ms < ?"
        after = max(after, int(value_of(connection.execute(older, (from_time_ms,))) or 0))
    if after < removed or after > newest_sequence(connection):
        raise ServiceError(Reason.RESUME_POINT_EXPIRED, f"events up to {removed} are gone")
    state = read_state(connection)
    to = state.published_sequence
    if after < to:
        connection.execute("UPDATE storage_outbox SET replay_sequence = ?, replay_to_sequence = ?", (after, to))
    return after, max(after, to)


def event_id_of(service: str, outbox_id: str, sequence: int, create_time_ms: int) -> str:
    """The same whenever the event is published; another one for any other event.

    A database that is made anew has another `outbox_id`; one that was restored from a backup gives sequences out again, to events of
    other times.
    """
    return f"{service}-{outbox_id}-{sequence}-{create_time_ms:x}"


def sequence_of(event_id: str, service: str, outbox_id: str) -> tuple[int, int] | None:
    """The sequence and time in an id; None when it is no event of this outbox."""
    prefix = f"{service}-{outbox_id}-"
    sequence, dash, time_text = event_id.removeprefix(prefix).partition("-")
    if not event_id.startswith(prefix) or not dash or not sequence.isdecimal():
        return None
    try:
        return int(sequence), int(time_text, 16)
    except ValueError:
        return None


def cloud_event_of(event: Event, service: str, source: str, outbox_id: str) -> CloudEvent:
    """A row of the outbox as what travels."""
    return CloudEvent(
        event_id=event_id_of(service, outbox_id, event.sequence, event.create_time_ms),
        type=event.kind,
        source=source,
        subject=event.subject,
        time_ms=event.create_time_ms,
        data=event.payload,
        schema=message_name(event.kind),
        traceparent=event.traceparent,
    )


def holds(connection: Connection, sequence: int, create_time_ms: int) -> bool:
    """Whether the event with this sequence is the one of that time."""
    row = connection.execute("SELECT create_time_ms FROM storage_event WHERE sequence = ?", (sequence,)).fetchone()
    return row is not None and int(row[0]) == create_time_ms

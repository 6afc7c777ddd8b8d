"""The outbox: what changed, numbered in the order of the commits. The same rows feed the Watch methods.

    sequence = append_event(connection, kind="nipmesh.invoice.v1.settled", subject=invoice_id, payload=event.SerializeToString())

`watch` turns them into a server stream that resumes, beats, and ends when the replica drains.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Final

from opentelemetry import trace

from services.chassis.draining import Draining
from services.chassis.errors import Reason, ServiceError
from services.storage.changes import Changes
from services.storage.database import Database
from services.storage.sequence import newest_sequence
from services.storage.sql import Connection, value_of

KEPT_MS: Final = 7 * 24 * 3_600_000
"""Events are kept for 7 days: that long can a watcher be away and still resume."""
UNPUBLISHED_KEPT_MS: Final = 30 * 24 * 3_600_000
"""Events that the outbox relay has not published yet are kept for longer: a bus that is away so long is not coming back."""
EVENTS_READ_MAX: Final = 500
"""Events per read of a watcher."""
HEARTBEAT_S: Final = 15.0
"""A stream without changes says this often that it lives, and how far it has looked; below the idle timeouts on the way."""


_SELECT: Final = "SELECT sequence, kind, subject, payload, traceparent, create_time_ms FROM storage_event"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One change. `payload` is a serialized message of nipmesh.events.v1."""

    sequence: int
    kind: str
    subject: str
    payload: bytes
    traceparent: str
    create_time_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """Nothing to tell: the watcher has looked at all events up to `sequence`."""

    sequence: int
    time_ms: int


def append_event(connection: Connection, *, kind: str, subject: str, payload: bytes) -> int:
    """Record a change in the transaction of its effect; return its sequence, which strictly rises with every commit."""
    rows = connection.execute(
        "INSERT INTO storage_event (kind, subject, payload, traceparent, create_time_ms) VALUES (?, ?, ?, ?, ?)"
        " RETURNING sequence",
        (kind, subject, payload, current_traceparent(), time.time_ns() // 1_000_000),
    )
    return int(value_of(rows))


def current_traceparent() -> str:
    """The W3C traceparent of the running context; empty outside a trace."""
    span = trace.get_current_span().get_span_context()
    return f"00-{span.trace_id:032x}-{span.span_id:016x}-{span.trace_flags:02x}" if span.is_valid else ""


def events_after(
    connection: Connection, sequence: int, *, subject: str | None = None, limit: int = EVENTS_READ_MAX
) -> list[Event]:
    """At most `limit` events after `sequence`, in order; with `subject` only those about it."""
    about = "" if subject is None else "AND subject = ? "
    values = (sequence, limit) if subject is None else (sequence, subject, limit)
    rows = connection.execute(f"{_SELECT} WHERE sequence > ? {about}ORDER BY sequence LIMIT ?", values)
    return [
        Event(sequence=row[0], kind=row[1], subject=row[2], payload=row[3], traceparent=row[4], create_time_ms=row[5])
        for row in rows
    ]


def check_resume_point(connection: Connection, sequence: int) -> None:
    """Raise RESUME_POINT_EXPIRED when events after `sequence` are gone already, or `sequence` was never given out."""
    removed = value_of(connection.execute("SELECT value FROM storage_fact WHERE name = 'events_removed_to'"))
    if sequence > newest_sequence(connection) or 0 < sequence < int(removed):
        raise ServiceError(Reason.RESUME_POINT_EXPIRED, "the stream cannot resume there; list, then watch anew")


def _start(connection: Connection, resume_after_sequence: int | None) -> int:
    """Where a watch begins: where it left off, or now."""
    if resume_after_sequence is None:
        return newest_sequence(connection)
    check_resume_point(connection, resume_after_sequence)
    return resume_after_sequence


async def watch(
    database: Database,
    *,
    draining: Draining,
    resume_after_sequence: int | None = None,
    matches: Callable[[Event], bool] = lambda _: True,
    heartbeat_s: float = HEARTBEAT_S,
) -> AsyncIterator[Event | Heartbeat]:
    """Yield each matching event once, in order, from any process, and heartbeats in between; endless.

    None: from now; 0: from the oldest that is kept. The first item is a heartbeat that says where the watch begins.
    Raises RESUME_POINT_EXPIRED at the start and SERVICE_DRAINING when the replica shuts down: resume after the last sequence.
    """
    changes = database.changes()
    position = await database.read(lambda connection: _start(connection, resume_after_sequence))
    yield Heartbeat(sequence=position, time_ms=time.time_ns() // 1_000_000)
    while True:
        after = position
        events = await database.read(lambda connection: events_after(connection, after))  # noqa: B023  # awaited here
        for event in events:
            position = event.sequence
            if matches(event):
                draining.check()
                yield event
        draining.check()
        if len(events) < EVENTS_READ_MAX and not await _changed(changes, draining, heartbeat_s):
            draining.check()
            yield Heartbeat(sequence=position, time_ms=time.time_ns() // 1_000_000)


async def _changed(changes: Changes, draining: Draining, timeout_s: float) -> bool:
    """Wait for a commit, the drain or the timeout; True for a commit."""
    waiting = asyncio.ensure_future(changes.wait(timeout_s=timeout_s))
    drain = asyncio.ensure_future(draining.wait())
    try:
        await asyncio.wait((waiting, drain), return_when=asyncio.FIRST_COMPLETED)
        return waiting.done() and waiting.result()
    finally:
        for task in (waiting, drain):
            task.cancel()
        await asyncio.gather(waiting, drain, return_exceptions=True)


def remove_old_events(connection: Connection, now_ms: int, *, limit: int) -> int:
    """Delete at most `limit` events older than the retention and remember how far; return how many.

    Where a relay runs, or ran within the retention, what it has not published stays, for a longer one.
    """
    oldest = connection.execute(
        "SELECT max(sequence) FROM (SELECT sequence FROM storage_event WHERE create_time_ms < :old"
        " AND (create_time_ms < :very_old OR sequence <= (SELECT published_sequence FROM storage_outbox)"
        " OR NOT EXISTS (SELECT 1 FROM storage_lease WHERE name = 'outbox' AND expire_time_ms >= :old))"
        " ORDER BY sequence LIMIT :limit) AS old",
        {"old": now_ms - KEPT_MS, "very_old": now_ms - UNPUBLISHED_KEPT_MS, "limit": limit},
    )
    last = value_of(oldest)
    if last is None:
        return 0
    connection.execute("DELETE FROM storage_event WHERE sequence <= ?", (last,))
    removed = int(connection.changes())
    connection.execute("UPDATE storage_fact SET value = ? WHERE name = 'events_removed_to'", (str(last).encode(),))
    return removed

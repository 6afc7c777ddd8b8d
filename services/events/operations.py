"""What an operator asks about events and does to them, for EventService and `nipmesh events`.

All works while the bus is away, but for `replay_consumer` and `consumer_pending`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from services.events import parking
from services.events.bus import EventBus, RewindError, Start, Subscription
from services.events.outbox import LEASE_NAME, read_state, request_replay
from services.events.parking import OUTBOX, Parked
from services.storage.database import Database
from services.storage.inbox import forget
from services.storage.sequence import newest_sequence
from services.storage.sql import Connection

LETTERS_MAX: Final = 1_000
"""Dead letters per list."""


class UnknownConsumerError(Exception):
    """No consumer of that name ever ran on this database."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxStatus:
    """How far the relay is. Times in milliseconds since 1970; `behind` counts events that are not published yet.

    `leader` is empty while no replica publishes. `rejected` counts the dead letters of the consumer "outbox".
    """

    oldest_sequence: int
    newest_sequence: int
    published_sequence: int
    behind: int
    behind_since_ms: int | None
    leader: str
    lease_until_ms: int
    replay_after_sequence: int | None
    replay_to_sequence: int | None
    rejected: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerStatus:
    """How one consumer is. `retrying` events wait for another try, `dead` ones for an operator."""

    name: str
    types: tuple[str, ...]
    handled: int
    handled_time_ms: int | None
    retrying: int
    dead: int


DeadLetter = Parked
"""An event that a consumer could not handle (or, for the consumer "outbox", that the bus refused)."""


async def outbox_status(database: Database) -> OutboxStatus:
    """The outbox and its relay."""
    return await database.read(_outbox_status)


async def replay_outbox(
    database: Database, *, after_sequence: int | None = None, from_time_ms: int | None = None
) -> tuple[int, int]:
    """Have the relay publish again what lies after a sequence, or is as young as a time; return the range (after, to].

    Neither: all that is kept. Raises RESUME_POINT_EXPIRED when that is gone. Duplicates are no harm: every inbox knows them.
    """
    return await database.write(lambda connection: request_replay(connection, after_sequence, from_time_ms))


async def list_consumers(database: Database) -> Sequence[ConsumerStatus]:
    """All consumers that ever ran on this database, by name."""
    return await database.read(_consumers)


async def consumer_pending(bus: EventBus, consumer: ConsumerStatus) -> int | None:
    """How many events wait in the stream for a consumer; None when the bus cannot tell. Raises BusUnavailableError."""
    async with bus.subscribe(Subscription(name=consumer.name, types=consumer.types)) as inflow:
        return await inflow.pending()


async def replay_consumer(database: Database, bus: EventBus, name: str, start: Start, *, again: bool = False) -> None:
    """Have a consumer read the stream again from a place, a time, or its beginning.

    Events that it has received are skipped, unless `again`: then they have their effect a second time. Raises UnknownConsumerError,
    RewindError (of a bus that has no past; nothing is forgotten then) and BusUnavailableError.
    """
    found = [each for each in await list_consumers(database) if each.name == name]
    if not found:
        raise UnknownConsumerError(name)
    if not bus.can_rewind:
        raise RewindError(
            "the event bus keeps no event that was acknowledged: replay the outbox of the service that published it"
        )
    if again:
        position, time_ms = start.sequence or 0, start.time_ms or 0
        await database.write(lambda connection: forget(connection, name, from_position=position, from_time_ms=time_ms))
    async with bus.subscribe(Subscription(name=name, types=found[0].types)) as inflow:
        await inflow.rewind(start)


async def list_dead_letters(
    database: Database, *, consumer: str = "", after_number: int = 0, limit: int = 100
) -> Sequence[DeadLetter]:
    """Dead letters by number, all consumers' when none is named."""
    rows = min(limit, LETTERS_MAX)
    return await database.read(lambda connection: parking.list_dead(connection, consumer, after_number, rows))


async def replay_dead_letters(database: Database, *, consumer: str, numbers: Sequence[int] | None = None) -> int:
    """Have a consumer try dead letters again (None: all of its), as if they had just arrived; how many.

    It does so within `consumer.LOOK_S`. Those of "outbox" are not published by it: mend what the bus refuses, and replay the outbox.
    """
    if consumer == OUTBOX:
        return 0
    now_ms = time.time_ns() // 1_000_000
    return await database.write(lambda connection: parking.revive(connection, consumer, numbers, now_ms))


async def discard_dead_letters(database: Database, *, consumer: str, numbers: Sequence[int] | None = None) -> int:
    """Delete dead letters (None: all of the consumer's); how many. The consumer does not get these events again."""
    return await database.write(lambda connection: parking.discard(connection, consumer, numbers))


def _outbox_status(connection: Connection) -> OutboxStatus:
    state = read_state(connection)
    oldest = connection.execute("SELECT min(sequence) FROM storage_event").fetchone()
    waiting = connection.execute(
        "SELECT count(*), min(create_time_ms) FROM storage_event WHERE sequence > ?", (state.published_sequence,)
    ).fetchone()
    lease = connection.execute(
        "SELECT owner, expire_time_ms FROM storage_lease WHERE name = ? AND expire_time_ms > ?",
        (LEASE_NAME, time.time_ns() // 1_000_000),
    ).fetchone() or ("", 0)
    dead = connection.execute("SELECT count(*) FROM storage_parked_event WHERE consumer = ?", (OUTBOX,)).fetchone()
    assert oldest is not None, "an aggregate has a row"
    assert waiting is not None, "an aggregate has a row"
    assert dead is not None, "an aggregate has a row"
    return OutboxStatus(
        oldest_sequence=int(oldest[0] or 0),
        newest_sequence=newest_sequence(connection),
        published_sequence=state.published_sequence,
        behind=int(waiting[0]),
        behind_since_ms=None if waiting[1] is None else int(waiting[1]),
        leader=str(lease[0]),
        lease_until_ms=int(lease[1]),
        replay_after_sequence=state.replay_sequence,
        replay_to_sequence=state.replay_to_sequence,
        rejected=int(dead[0]),
    )


def _consumers(connection: Connection) -> list[ConsumerStatus]:
    parked = {
        str(row[0]): (int(row[1]), int(row[2]))
        for row in connection.execute(
            "SELECT consumer, count(next_time_ms), count(*) - count(next_time_ms) FROM storage_parked_event GROUP BY consumer"
        )
    }
    rows = connection.execute("SELECT name, types, handled, handled_time_ms FROM storage_consumer ORDER BY name")
    return [
        ConsumerStatus(
            name=str(name),
            types=tuple(str(types).split()),
            handled=int(handled),
            handled_time_ms=int(handled_time_ms) or None,
            retrying=parked.get(str(name), (0, 0))[0],
            dead=parked.get(str(name), (0, 0))[1],
        )
        for name, types, handled, handled_time_ms in rows.fetchall()
    ]

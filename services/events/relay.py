"""The outbox relay: publishes what the service's transactions left in `storage_event`, in their order, one relay per database at a time.

    app.spawn(run_outbox_relay(database, bus, service=..., source=...), name="outbox relay")

It publishes, and then stores how far it is. Killed in between, it (or the replica that takes over) publishes again, under the same ids:
the bus drops those as duplicates, and inboxes know them. On each new connection it asks for the stream's tail: a bus that was
restored, or made anew, may have lost what it had acknowledged; that is published again, from the rows that are kept for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Sequence
from typing import Final, NoReturn

from prometheus_client import CollectorRegistry

from services.chassis.errors import ServiceError
from services.chassis.logs import get_logger
from services.events.bus import BusUnavailableError, EventBus, Receipt
from services.events.leases import Lease, Leasing, while_leading
from services.events.metrics import RelayMetrics
from services.events.outbox import (
    LEASE_NAME,
    OutboxState,
    Progress,
    cloud_event_of,
    event_id_of,
    holds,
    read_state,
    sequence_of,
    store_progress,
)
from services.events.parking import OUTBOX, Failure, ParkReason, park
from services.events.pausing import rest_s
from services.storage.database import Database
from services.storage.events import Event, events_after
from services.storage.sequence import newest_sequence
from services.storage.sql import Connection

READ_EVENTS_MAX: Final = 1_024
"""Rows read at once, and published before the position is stored: it is one write for four batches."""
RETRY_S: Final = 0.1
"""Pause after the first failure of the bus; it doubles."""
RETRY_S_MAX: Final = 5.0
"""Longest pause."""
LOOK_S: Final = 5.0
"""With nothing to publish the relay looks this often whether the bus was connected anew."""

_log = get_logger("events")


async def run_outbox_relay(
    database: Database,
    bus: EventBus,
    *,
    service: str,
    source: str,
    registry: CollectorRegistry | None = None,
    leasing: Leasing | None = None,
) -> NoReturn:
    """Publish for ever: `app.spawn(run_outbox_relay(...), name="outbox relay")`.

    `service` is the name in the manifest, `source` the SPIFFE id. A bus that is away is tried again with backoff.
    """
    relay = OutboxRelay(database, bus, service, source, RelayMetrics(registry), leasing or Leasing())
    await while_leading(database, LEASE_NAME, relay.lead, relay.leasing)


class OutboxRelay:
    """The relay of one process."""

    def __init__(
        self, database: Database, bus: EventBus, service: str, source: str, metrics: RelayMetrics, leasing: Leasing
    ) -> None:
        self.database = database
        self.bus = bus
        self.service = service
        self.source = source
        self.metrics = metrics
        self.leasing = leasing

    async def lead(self, lease: Lease) -> None:
        """Publish while this replica has the lease. Raises LeaseLostError."""
        self.metrics.leading.set(1)
        try:
            await Leader(self, lease).run()
        finally:
            self.metrics.leading.set(0)
            self.metrics.now_behind(0, None)


class Leader:
    """One time at the head: from taking the lease to losing it."""

    def __init__(self, relay: OutboxRelay, lease: Lease) -> None:
        self._relay = relay
        self._lease = lease
        self._database, self._bus, self._metrics = relay.database, relay.bus, relay.metrics
        self._connections = -1
        self._error = ""

    async def run(self) -> None:
        """For ever. Raises LeaseLostError."""
        changes = self._database.changes()
        pause_s = RETRY_S
        while True:
            try:
                await self._check_tail()
                rest = await self._publish_some()
                pause_s, self._error = RETRY_S, ""
                if rest is None:
                    await changes.wait(timeout_s=LOOK_S)
                else:
                    await asyncio.sleep(rest)
            except (BusUnavailableError, ServiceError) as error:
                await self._failed(error)
                await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311  # jitter, not a secret
                pause_s = min(2 * pause_s, RETRY_S_MAX)

    async def _failed(self, error: Exception) -> None:
        """Say so once, and how far behind the relay is."""
        self._metrics.failures.inc()
        with contextlib.suppress(ServiceError):
            behind, since_ms = await self._database.read(_behind)
            self._metrics.now_behind(behind, since_ms)
            if str(error) != self._error:
                _log.warning("events wait in the outbox", error=str(error), behind=behind)
        self._error = str(error)

    async def _publish_some(self) -> float | None:
        """Publish all that is not yet, and a part of what is to be published again.

        Seconds to rest before the next time: as the new events took, for a replay is in full batches; None when there was nothing.
        """
        start_s = time.monotonic()
        state, events = await self._database.read(_unpublished)
        if events:
            await self._publish_new(events, state)
        rest = rest_s(time.monotonic() - start_s)
        self._metrics.now_behind(0, None)
        replayed = await self._replay(state)
        return rest if events or replayed else None

    async def _publish_new(self, events: list[Event], state: OutboxState) -> None:
        """Publish these and what follows them; while there is a lot, the next are read meanwhile."""
        storing: asyncio.Task[None] | None = None
        try:
            while events:
                full = len(events) == READ_EVENTS_MAX
                following = asyncio.create_task(self._read(events[-1].sequence)) if full else None
                try:
                    receipt = await self._publish(events, state)
                    if storing is not None:
                        await storing
                    storing = asyncio.create_task(self._store(events, receipt, state, replay=False))
                    events = await following if following is not None else []
                finally:
                    if following is not None:
                        following.cancel()
            if storing is not None:
                await storing
        finally:
            if storing is not None and not storing.done():
                await asyncio.gather(storing, return_exceptions=True)

    async def _replay(self, state: OutboxState) -> bool:
        """Publish a part of what is to be published again; False when there is nothing."""
        if state.replay_sequence is None or state.replay_to_sequence is None:
            return False
        last = state.replay_to_sequence
        events = [each for each in await self._read(state.replay_sequence) if each.sequence <= last]
        if events:
            receipt = await self._publish(events, state)
            await self._store(events, receipt, state, replay=True)
        if not events or events[-1].sequence >= last:
            await self._write(Progress(replay_sequence=last))
            _log.info("replay done", to_sequence=last)
        return True

    async def _read(self, after: int) -> list[Event]:
        return await self._database.read(lambda connection: events_after(connection, after, limit=READ_EVENTS_MAX))

    async def _publish(self, events: Sequence[Event], state: OutboxState) -> Receipt:
        relay = self._relay
        service, source = relay.service, relay.source
        receipt = await self._bus.publish_batch(
            [cloud_event_of(event, service, source, state.outbox_id) for event in events]
        )
        self._metrics.published.inc(len(events) - len(receipt.rejections))
        self._metrics.duplicates.inc(receipt.duplicates)
        self._metrics.rejected.inc(len(receipt.rejections))
        return receipt

    async def _store(self, events: Sequence[Event], receipt: Receipt, state: OutboxState, *, replay: bool) -> None:
        """Store how far it is, with what the bus refused: that is out of the way."""
        last = events[-1].sequence
        progress = Progress(
            published_sequence=None if replay else last,
            replay_sequence=last if replay else None,
            tail_sequence=last if receipt.position else None,
            tail_position=receipt.position or None,
        )
        await self._write(progress, self._refused(events, receipt, state))

    def _refused(self, events: Sequence[Event], receipt: Receipt, state: OutboxState) -> list[tuple[Event, str]]:
        reasons = {each.event_id: each.reason for each in receipt.rejections}
        if not reasons:
            return []
        service = self._relay.service
        ids = {event_id_of(service, state.outbox_id, each.sequence, each.create_time_ms): each for each in events}
        for event_id, reason in reasons.items():
            _log.error("the bus refuses an event", event_id=event_id, reason=reason)
        return [(ids[event_id], reason) for event_id, reason in reasons.items()]

    async def _write(self, progress: Progress, refused: Sequence[tuple[Event, str]] = ()) -> None:
        relay, now_ms = self._relay, time.time_ns() // 1_000_000
        service, source = relay.service, relay.source
        until_ms = now_ms + relay.leasing.lease_ms

        def store(connection: Connection) -> None:
            store_progress(connection, self._lease, progress, until_ms)
            outbox_id = read_state(connection).outbox_id if refused else ""
            for event, reason in refused:
                failure = Failure(reason=ParkReason.BUS_REFUSED, error=reason, attempts=1, next_time_ms=None)
                park(connection, OUTBOX, cloud_event_of(event, service, source, outbox_id), 0, failure, now_ms)

        await self._database.write(store)

    async def _check_tail(self) -> None:
        """On a new connection: whether the bus still has what it acknowledged, and perhaps more than was noted."""
        connections = self._bus.health().connections
        if connections == self._connections and connections:
            return
        state = await self._database.read(read_state)
        tail = await self._bus.tail(state.tail_position)
        self._connections = self._bus.health().connections
        if tail is None:
            return
        service = self._relay.service
        newest = sequence_of(tail.newest, service, state.outbox_id)
        if newest and newest[0] > state.published_sequence:
            if await self._database.read(lambda connection: holds(connection, *newest)):
                await self._write(Progress(published_sequence=newest[0]))  # published, and killed before it was noted
            return
        kept = sequence_of(tail.at_position, service, state.outbox_id)
        if state.tail_position and (kept is None or kept[0] != state.tail_sequence):
            await self._publish_again_after(newest[0] if newest else 0, state)

    async def _publish_again_after(self, sequence: int, state: OutboxState) -> None:
        """The bus lost its end: go back to what it has. What is not kept any more has also left the stream by its age."""
        after = await self._database.read(lambda connection: events_after(connection, sequence, limit=1))
        if not after or after[0].sequence > state.published_sequence:
            return
        _log.error(
            "the bus lost events that it had acknowledged; they are published again",
            after_sequence=sequence,
            to_sequence=state.published_sequence,
        )
        await self._write(Progress(published_sequence=min(sequence, state.published_sequence)))


def _unpublished(connection: Connection) -> tuple[OutboxState, list[Event]]:
    """How far it is, and the first events after that."""
    state = read_state(connection)
    return state, events_after(connection, state.published_sequence, limit=READ_EVENTS_MAX)


def _behind(connection: Connection) -> tuple[int, int | None]:
    """How many events are not published, and since when the oldest waits."""
    oldest = events_after(connection, read_state(connection).published_sequence, limit=1)
    if not oldest:
        return 0, None
    return newest_sequence(connection) - oldest[0].sequence + 1, oldest[0].create_time_ms

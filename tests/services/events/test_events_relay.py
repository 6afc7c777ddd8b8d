"""The outbox relay: every row published once and in order, whoever leads, whatever the bus does meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from services.chassis.errors import ServiceError
from services.events.bus import BusHealth, BusUnavailableError, EventBus, Receipt, Subscription, Tail, open_bus
from services.events.cloud_event import CloudEvent
from services.events.leases import Leasing
from services.events.operations import list_dead_letters, outbox_status, replay_outbox
from services.events.outbox import event_id_of, read_state, sequence_of
from services.events.relay import READ_EVENTS_MAX, run_outbox_relay
from services.storage.database import Database
from services.storage.events import KEPT_MS, UNPUBLISHED_KEPT_MS, append_event, remove_old_events
from services.storage.places import Place
from support.events import SETTLED, SOURCE, append, bus_settings, payload, until
from support.nats_server import NatsServer

QUICK = Leasing(owner="a", lease_ms=600)
MANY = 2_500
"""More than two reads of the relay."""


@contextlib.asynccontextmanager
async def relaying(database: Database, bus: EventBus, **values: Any) -> AsyncIterator[asyncio.Task[Any]]:
    """A relay that runs meanwhile; killed at the end if `kill()` was not called before."""
    task = asyncio.ensure_future(run_outbox_relay(database, bus, service="invoice", source=SOURCE, **values))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def published(database: Database) -> int:
    return (await outbox_status(database)).published_sequence


async def in_stream(bus: EventBus, count: int) -> list[CloudEvent]:
    """So many events from the beginning of the stream, and no more."""
    found: list[CloudEvent] = []
    async with bus.subscribe(Subscription(name="", types=(">",))) as inflow:
        while len(found) < count:
            deliveries = await inflow.fetch(1_000)
            assert deliveries, f"{len(found)} of {count}"
            await inflow.ack(deliveries)
            found += [each.event for each in deliveries]
        assert not await inflow.fetch(1, wait_s=0.05)
    return found


def numbers(events: Sequence[CloudEvent]) -> list[int]:
    return [int(event.event_id.split("-")[2]) for event in events]


async def test_every_row_is_published_once_in_order_and_as_what_it_is(database: Database, bus: EventBus) -> None:
    last = await database.write(lambda connection: append(connection, range(MANY)))
    registry = CollectorRegistry()
    async with relaying(database, bus, registry=registry):
        await until(lambda: _is(published(database), last))
        last = await database.write(lambda connection: append(connection, range(MANY, MANY + 10)))
        await until(lambda: _is(published(database), last))
        assert registry.get_sample_value("nipmesh_events_relay_leading") == 1
    found = await in_stream(bus, last)
    assert numbers(found) == list(range(1, last + 1))
    state = await database.read(read_state)
    row = await database.read(
        lambda connection: connection.execute("SELECT create_time_ms FROM storage_event").fetchone()
    )
    assert found[0] == CloudEvent(
        event_id=event_id_of("invoice", state.outbox_id, 1, row[0]) if row else "",
        type=SETTLED,
        source=SOURCE,
        subject="invoice-0",
        time_ms=row[0] if row else 0,
        data=payload(0),
        schema="nipmesh.events.v1.InvoiceChanged",
    )
    assert registry.get_sample_value("nipmesh_events_published_total") == last
    assert registry.get_sample_value("nipmesh_events_behind") == 0


async def _is(found: Any, expected: object) -> bool:
    return bool(await found == expected)


async def test_of_two_relays_one_leads_and_the_other_takes_over_at_once(
    place: Place, migrations: Path, bus: EventBus
) -> None:
    async with (
        await Database.open(place, migrations=migrations) as one,
        await Database.open(place, migrations=migrations) as other,
        relaying(other, bus, leasing=Leasing(owner="other")) as standby,
    ):
        await until(lambda: _leads(one, "other"))
        async with relaying(one, bus, leasing=Leasing(owner="one")):
            await one.write(lambda connection: append(connection, range(10)))
            await until(lambda: _is(published(one), 10))
            assert await _leads(one, "other")
            standby.cancel()
            await until(lambda: _leads(one, "one"), seconds=5)  # given back: nobody waits for its end
            await one.write(lambda connection: append(connection, range(10, 20)))
            await until(lambda: _is(published(one), 20))
        assert (await outbox_status(one)).leader == ""
    assert numbers(await in_stream(bus, 20)) == list(range(1, 21))


async def _leads(database: Database, owner: str) -> bool:
    return (await outbox_status(database)).leader == owner


async def test_a_relay_that_was_away_too_long_stores_nothing(place: Place, migrations: Path, bus: EventBus) -> None:
    """It held its breath for longer than its lease: what it publishes then are duplicates, and its position is refused."""
    breath = Breath(bus)
    async with (
        await Database.open(place, migrations=migrations) as one,
        await Database.open(place, migrations=migrations) as other,
        relaying(one, breath, leasing=Leasing(owner="one", lease_ms=600)),
    ):
        await until(lambda: _leads(one, "one"))
        renewals = one.write

        async def refused(work: Any) -> Any:
            if breath.held:
                raise ServiceError("BACKEND_UNAVAILABLE", "the network is cut")
            return await renewals(work)

        one.write = refused  # type: ignore[method-assign]  # cut off from its database
        breath.hold()
        await other.write(lambda connection: append(connection, range(300)))
        async with relaying(other, bus, leasing=Leasing(owner="other", lease_ms=600)):
            await until(lambda: _is(published(other), 300))
            breath.release()
            await other.write(lambda connection: append(connection, range(300, 310)))
            await until(lambda: _is(published(other), 310))
            assert await _leads(other, "other")
    assert numbers(await in_stream(bus, 310)) == list(range(1, 311))


class Breath:
    """A bus whose batches wait while it holds its breath."""

    def __init__(self, bus: EventBus) -> None:
        self._bus = bus
        self._free = asyncio.Event()
        self._free.set()

    @property
    def held(self) -> bool:
        return not self._free.is_set()

    def hold(self) -> None:
        self._free.clear()

    def release(self) -> None:
        self._free.set()

    async def publish_batch(self, events: Sequence[CloudEvent]) -> Receipt:
        await self._free.wait()
        return await self._bus.publish_batch(events)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bus, name)


async def test_a_bus_that_is_away_holds_nothing_up_and_gets_all_when_it_comes(
    sqlite: Database, own_nats: NatsServer, stream: str
) -> None:
    own_nats.stop()
    registry = CollectorRegistry()
    async with open_bus(bus_settings(own_nats.url, stream)) as bus:
        assert bus is not None
        async with relaying(sqlite, bus, registry=registry):
            await sqlite.write(lambda connection: append(connection, range(100)))
            await until(lambda: registry.get_sample_value("nipmesh_events_behind") == 100)
            assert (registry.get_sample_value("nipmesh_events_behind_seconds") or 0) > 0
            assert bus.health() == BusHealth(connected=False, server=own_nats.url, error="nobody listens there")
            status = await outbox_status(sqlite)
            assert (status.behind, status.published_sequence) == (100, 0)
            own_nats.start()
            await until(lambda: _is(published(sqlite), 100))
            own_nats.kill()
            await until(lambda: not bus.health().connected)
            await sqlite.write(lambda connection: append(connection, range(100, 200)))
            own_nats.start()
            await until(lambda: _is(published(sqlite), 200))
            assert registry.get_sample_value("nipmesh_events_behind") == 0
        assert numbers(await in_stream(bus, 200)) == list(range(1, 201))


async def test_what_the_bus_lost_is_published_again(
    sqlite: Database, own_nats: NatsServer, stream: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The server's disk is put back to an earlier state, and later lost as a whole."""
    async with open_bus(bus_settings(own_nats.url, stream)) as bus:
        assert bus is not None
        async with relaying(sqlite, bus):
            await sqlite.write(lambda connection: append(connection, range(100)))
            await until(lambda: _is(published(sqlite), 100))
            own_nats.stop()
            saved = own_nats.save()
            own_nats.start()
            await sqlite.write(lambda connection: append(connection, range(100, 300)))
            await until(lambda: _is(published(sqlite), 300))
            own_nats.stop()
            own_nats.restore(saved)
            own_nats.start()
            await until(lambda: _holds(bus, 300))
            assert numbers(await in_stream(bus, 300)) == list(range(1, 301))
            own_nats.stop()
            own_nats.lose_everything()
            own_nats.start()
            await until(lambda: _holds(bus, 300))
            assert numbers(await in_stream(bus, 300)) == list(range(1, 301))


async def _holds(bus: EventBus, count: int) -> bool:
    try:
        async with bus.subscribe(Subscription(name="", types=(">",))) as inflow:
            return await inflow.pending() == count
    except BusUnavailableError:
        return False


async def test_killed_between_publishing_and_noting_it_goes_on_behind_what_is_there(
    database: Database, bus: EventBus
) -> None:
    forgetful = Forgetful(bus)
    await database.write(lambda connection: append(connection, range(300)))
    async with relaying(database, forgetful):
        await until(lambda: forgetful.batches > 0)
    assert await published(database) == 0
    async with relaying(database, bus, registry=(registry := CollectorRegistry())):
        await until(lambda: _is(published(database), 300))
    assert registry.get_sample_value("nipmesh_events_published_total") == 0  # the stream's tail said it
    assert numbers(await in_stream(bus, 300)) == list(range(1, 301))


@pytest.mark.parametrize("count", [READ_EVENTS_MAX, READ_EVENTS_MAX + 1])
async def test_a_full_read_is_followed_by_another(database: Database, bus: EventBus, count: int) -> None:
    await database.write(lambda connection: append(connection, range(count)))
    async with relaying(database, bus):
        await until(lambda: _is(published(database), count))
    assert numbers(await in_stream(bus, count)) == list(range(1, count + 1))


class Forgetful(Breath):
    """A bus that takes a batch, and whose answer never comes."""

    batches = 0

    async def publish_batch(self, events: Sequence[CloudEvent]) -> Receipt:
        await self._bus.publish_batch(events)
        self.batches += 1
        await asyncio.Event().wait()
        raise AssertionError


async def test_where_the_bus_tells_no_tail_duplicates_are_dropped_by_their_ids(
    database: Database, bus: EventBus
) -> None:
    class Blind(Forgetful):
        async def tail(self, position: int) -> Tail | None:
            return None

    blind = Blind(bus)
    await database.write(lambda connection: append(connection, range(300)))
    async with relaying(database, blind):
        await until(lambda: blind.batches > 0)

    class Seeing(Breath):
        async def tail(self, position: int) -> Tail | None:
            return None

    async with relaying(database, Seeing(bus), registry=(registry := CollectorRegistry())):
        await until(lambda: _is(published(database), 300))
    assert registry.get_sample_value("nipmesh_events_duplicates_total") == 300
    assert numbers(await in_stream(bus, 300)) == list(range(1, 301))


async def test_a_restored_database_publishes_what_it_does_then_under_other_ids(sqlite: Database, bus: EventBus) -> None:
    """Sequences are given out again after a restore: the stream's tail names one that is not ours, and nothing is skipped."""
    async with relaying(sqlite, bus):
        await sqlite.write(lambda connection: append(connection, range(20)))
        await until(lambda: _is(published(sqlite), 20))
    await sqlite.write(_as_it_was_at_10)
    await asyncio.sleep(0.002)  # another millisecond
    await sqlite.write(lambda connection: append(connection, range(100, 110)))
    async with relaying(sqlite, bus):
        await until(lambda: _is(published(sqlite), 20))
    found = await in_stream(bus, 30)
    assert numbers(found) == [*range(1, 21), *range(11, 21)]
    assert len({event.event_id for event in found}) == 30


def _as_it_was_at_10(connection: Any) -> None:
    connection.execute("DELETE FROM storage_event WHERE sequence > 10")
    connection.execute("UPDATE sqlite_sequence SET seq = 10 WHERE name = 'storage_event'")
    connection.execute("UPDATE storage_outbox SET published_sequence = 10, tail_sequence = 10, tail_position = 10")


async def test_what_the_bus_refuses_is_a_dead_letter_and_holds_nothing_up(database: Database, bus: EventBus) -> None:
    def write(connection: Any) -> None:
        append(connection, range(3))
        append_event(connection, kind=SETTLED, subject="large", payload=b"x" * 1024**2)
        append(connection, range(3, 6))

    await database.write(write)
    async with relaying(database, bus, registry=(registry := CollectorRegistry())):
        await until(lambda: _is(published(database), 7))
    assert registry.get_sample_value("nipmesh_events_rejected_total") == 1
    assert numbers(await in_stream(bus, 6)) == [1, 2, 3, 5, 6, 7]
    (letter,) = await list_dead_letters(database)
    assert (letter.consumer, letter.event.subject, letter.reason) == ("outbox", "large", "BUS_REFUSED")
    assert (await outbox_status(database)).rejected == 1


async def test_a_replay_publishes_again_from_a_sequence_or_a_time(sqlite: Database, own_nats: NatsServer) -> None:
    """Into a stream that was made anew behind the relay's back, under another name: the old one's ids mean nothing there."""
    async with open_bus(bus_settings(own_nats.url, "first")) as bus:
        assert bus is not None
        async with relaying(sqlite, bus):
            await sqlite.write(lambda connection: append(connection, range(MANY)))
            await until(lambda: _is(published(sqlite), MANY))
    async with open_bus(bus_settings(own_nats.url, "second")) as bus:
        assert bus is not None
        blind = Breath(bus)
        blind.tail = _no_tail  # type: ignore[attr-defined]
        assert await replay_outbox(sqlite, after_sequence=1_000) == (1_000, MANY)
        async with relaying(sqlite, blind):
            await sqlite.write(lambda connection: append(connection, range(MANY, MANY + 5)))
            await until(lambda: _replayed(sqlite))
            await until(lambda: _is(published(sqlite), MANY + 5))
            found = numbers(await in_stream(bus, MANY - 1_000 + 5))
            assert sorted(found) == list(range(1_001, MANY + 6))
            replayed = [number for number in found if number <= MANY]
            assert replayed == sorted(replayed)
            middle = await sqlite.read(
                lambda connection: connection.execute(
                    "SELECT create_time_ms FROM storage_event WHERE sequence = ?", (MANY + 1,)
                ).fetchone()
            )
            assert await replay_outbox(sqlite, from_time_ms=middle[0] if middle else 0) == (MANY, MANY + 5)
            await until(lambda: _replayed(sqlite))
        assert await replay_outbox(sqlite) == (0, MANY + 5)
        with pytest.raises(ServiceError, match="RESUME_POINT_EXPIRED"):
            await replay_outbox(sqlite, after_sequence=MANY + 6)


async def _no_tail(position: int) -> Tail | None:
    return None


async def _replayed(database: Database) -> bool:
    return (await outbox_status(database)).replay_to_sequence is None


async def test_events_that_wait_for_the_relay_are_kept_for_longer(database: Database) -> None:
    def age(connection: Any, age_ms: int) -> None:
        connection.execute("UPDATE storage_event SET create_time_ms = ?", (10**12 - age_ms,))

    def left(connection: Any) -> int:
        row = connection.execute("SELECT count(*) FROM storage_event").fetchone()
        return int(row[0])

    def script(connection: Any) -> list[int]:
        append(connection, range(10))
        counts = []
        connection.execute("UPDATE storage_outbox SET published_sequence = 4")
        lease = "INSERT INTO storage_lease (name, owner, fence, expire_time_ms) VALUES ('outbox', 'a', 1, ?)"
        connection.execute(lease, (10**12,))
        for age_ms in (KEPT_MS - 1, KEPT_MS + 1, UNPUBLISHED_KEPT_MS + 1):
            age(connection, age_ms)
            remove_old_events(connection, 10**12, limit=500)
            counts.append(left(connection))
        append(connection, range(10))
        connection.execute("UPDATE storage_lease SET expire_time_ms = ?", (10**12 - KEPT_MS - 1,))
        age(connection, KEPT_MS + 1)
        remove_old_events(connection, 10**12, limit=500)
        counts.append(left(connection))
        return counts

    assert await database.write(script) == [10, 6, 0, 0]


def test_an_id_tells_its_sequence_to_its_own_outbox_alone() -> None:
    event_id = event_id_of("invoice", "1f2e3d4c", 77, 1_790_000_000_123)
    assert sequence_of(event_id, "invoice", "1f2e3d4c") == (77, 1_790_000_000_123)
    assert sequence_of(event_id, "invoice", "00000000") is None
    assert sequence_of(event_id, "payment", "1f2e3d4c") is None
    for wrong in ("", "invoice-1f2e3d4c-x-1", "invoice-1f2e3d4c-77", "invoice-1f2e3d4c-77-zz"):
        assert sequence_of(wrong, "invoice", "1f2e3d4c") is None

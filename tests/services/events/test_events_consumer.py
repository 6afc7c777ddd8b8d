"""Consumers: each event has its effect once; what fails is tried again, becomes a dead letter, and holds nothing up."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import nats as nats_client
import pytest
from opentelemetry import trace

from nipmesh.events.v1 import events_pb2
from services.chassis.errors import ServiceError
from services.events.bus import NEW, EventBus, Start, open_bus
from services.events.cloud_event import CloudEvent
from services.events.consumer import ConsumerTerms, run_consumer
from services.events.leases import Leasing
from services.events.operations import (
    UnknownConsumerError,
    consumer_pending,
    discard_dead_letters,
    list_consumers,
    list_dead_letters,
    replay_consumer,
    replay_dead_letters,
)
from services.events.verdicts import DeadLetterError
from services.storage.database import Database
from services.storage.inbox import INBOX_KEPT_MS, forget_old_events, receive
from services.storage.places import Place
from services.storage.sql import Connection
from support.events import SETTLED, bus_settings, event, events, until
from support.nats_server import NatsServer

QUICK = ConsumerTerms(retry_delays_s=(0.02, 0.02, 0.02), look_s=0.1)
ALL_TYPES = [">"]


def record(connection: Connection, event: CloudEvent) -> None:
    """The effect of every event."""
    connection.execute("INSERT INTO effect (event_id, subject) VALUES (?, ?)", (event.event_id, event.subject))


async def effects(database: Database) -> list[str]:
    return await database.read(
        lambda connection: [row[0] for row in connection.execute("SELECT event_id FROM effect ORDER BY number")]
    )


async def count(database: Database) -> int:
    return len(await effects(database))


@contextlib.asynccontextmanager
async def consuming(
    database: Database, bus: EventBus, handle: Callable[[Connection, CloudEvent], None] = record, **values: Any
) -> AsyncIterator[asyncio.Task[Any]]:
    given = {"name": "test", "types": ALL_TYPES, "terms": QUICK} | values
    task = asyncio.ensure_future(run_consumer(database, bus, handle=handle, **given))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def has(database: Database, number: int) -> None:
    """Wait for so many effects."""

    async def enough() -> bool:
        return await count(database) >= number

    await until(enough)
    assert await count(database) == number


async def dead(database: Database, number: int) -> list[Any]:
    """Wait for so many dead letters."""

    async def enough() -> bool:
        return len(await list_dead_letters(database)) >= number

    await until(enough)
    return list(await list_dead_letters(database))


async def test_each_event_has_its_effect_once_and_in_order(database: Database, bus: EventBus) -> None:
    await bus.publish_batch(events(range(600)))
    async with consuming(database, bus):
        await has(database, 600)
    assert await effects(database) == [f"event-{number}" for number in range(600)]
    (status,) = await list_consumers(database)
    assert (status.name, status.types, status.handled, status.dead) == ("test", (">",), 600, 0)
    assert await consumer_pending(bus, status) == 0


async def test_replicas_share_the_work_and_repeated_deliveries_have_no_effect(
    place: Place, migrations: Path, nats: NatsServer, stream: str
) -> None:
    """Acknowledgements get lost: all is delivered twice and more."""
    async with (
        await Database.open(place, migrations=migrations) as one,
        await Database.open(place, migrations=migrations) as other,
        open_bus(bus_settings(nats.url, stream)) as bus,
    ):
        assert bus is not None
        Deaf.deliveries = 0
        await bus.publish_batch(events(range(500)))
        terms = ConsumerTerms(answer_s_max=0.2, look_s=0.1)
        async with (
            consuming(one, Deaf(bus), terms=terms),
            consuming(other, Deaf(bus), terms=terms),
        ):
            await until(lambda: Deaf.deliveries > 1_200)
        await has(one, 500)
        assert max(Counter(await effects(one)).values()) == 1


class Deaf:
    """A bus that hears no acknowledgement."""

    deliveries = 0

    def __init__(self, bus: EventBus) -> None:
        self._bus = bus

    @contextlib.asynccontextmanager
    async def subscribe(self, subscription: Any) -> AsyncIterator[Any]:
        async with self._bus.subscribe(subscription) as inflow:
            fetch = inflow.fetch

            async def counted(events_max: int, *, wait_s: float = 5.0) -> Any:
                found = await fetch(events_max, wait_s=wait_s)
                Deaf.deliveries += len(found)
                return found

            async def lost(deliveries: Any) -> None:
                """Never heard."""

            inflow.fetch, inflow.ack = counted, lost  # type: ignore[method-assign]
            yield inflow

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bus, name)


async def test_what_fails_is_tried_again_and_holds_nothing_up(database: Database, bus: EventBus) -> None:
    failures: Counter[str] = Counter()

    def twice(connection: Connection, event: CloudEvent) -> None:
        record(connection, event)
        if event.event_id == "event-5" and failures["event-5"] < 4:
            failures["event-5"] += 1
            raise RuntimeError("not yet")

    await bus.publish_batch(events(range(20)))
    async with consuming(database, bus, twice):
        await has(database, 20)
    found = await effects(database)
    assert found == [*(f"event-{number}" for number in range(20) if number != 5), "event-5"]
    assert not await list_dead_letters(database)
    (status,) = await list_consumers(database)
    assert (status.handled, status.retrying) == (20, 0)


async def test_what_always_fails_is_a_dead_letter_that_can_be_tried_again_or_discarded(
    database: Database, bus: EventBus
) -> None:
    broken = True

    def handle(connection: Connection, event: CloudEvent) -> None:
        if broken and event.event_id in ("event-1", "event-3"):
            raise ValueError("the wallet is unknown\0")
        record(connection, event)

    await bus.publish_batch(events(range(6)))
    async with consuming(database, bus, handle):
        first, second = await dead(database, 2)
        await has(database, 4)
        assert (first.event, first.position) == (event(1), 2)
        assert (first.consumer, first.reason, first.attempts) == ("test", "HANDLER_FAILED", 4)
        assert first.error == "ValueError: the wallet is unknown�"
        assert [letter.number for letter in await list_dead_letters(database, after_number=first.number)] == [
            second.number
        ]
        assert not await list_dead_letters(database, consumer="another")
        (status,) = await list_consumers(database)
        assert (status.handled, status.dead, status.retrying) == (4, 2, 0)
        assert await replay_dead_letters(database, consumer="another") == 0
        assert await discard_dead_letters(database, consumer="test", numbers=[second.number, 99]) == 1
        broken = False
        assert await replay_dead_letters(database, consumer="test") == 1
        await has(database, 5)
        assert not await list_dead_letters(database)
        await bus.publish_batch([event(9)])
        await has(database, 6)
    assert "event-3" not in await effects(database)


async def test_a_handler_that_refuses_is_not_asked_again(sqlite: Database, bus: EventBus) -> None:
    asked = Counter[str]()

    def handle(connection: Connection, event: CloudEvent) -> None:
        asked[event.event_id] += 1
        raise DeadLetterError("it is of another currency")

    await bus.publish_batch(events(range(1)))
    async with consuming(sqlite, bus, handle):
        (letter,) = await dead(sqlite, 1)
    assert (letter.reason, letter.error, letter.attempts) == ("HANDLER_REFUSED", "it is of another currency", 1)
    assert asked["event-0"] <= 4  # in its batch and alone, and a write that raises runs twice


async def test_what_is_no_event_of_ours_or_of_another_version_is_a_dead_letter(
    sqlite: Database, bus: EventBus, nats: NatsServer, stream: str
) -> None:
    def unpacking(connection: Connection, event: CloudEvent) -> None:
        event.unpack(events_pb2.InvoiceChanged)
        record(connection, event)

    await bus.publish_batch(
        [
            event(1),
            event(2, type="nipmesh.invoice.v2.settled", schema="nipmesh.events.v2.InvoiceChanged"),
            event(3, schema="nipmesh.events.v1.PaymentChanged"),
            event(4, data=b"\xff\xff"),
            event(5),
        ]
    )
    client = await nats_client.connect(nats.url)
    await client.jetstream().publish(f"{stream}.invoice.hello", b"plain")
    await client.close()
    async with consuming(sqlite, bus, unpacking):
        letters = await dead(sqlite, 4)
        await has(sqlite, 2)
    assert {(letter.event.event_id, letter.reason) for letter in letters} == {
        ("event-2", "SCHEMA_UNKNOWN"),
        ("event-3", "SCHEMA_UNKNOWN"),
        ("event-4", "PAYLOAD_INVALID"),
        (f"{stream}-6", "NO_CLOUD_EVENT"),
    }
    by_id = {letter.event.event_id: letter.error for letter in letters}
    assert (
        by_id["event-2"]
        == "this program does not know nipmesh.events.v2.InvoiceChanged, the payload of nipmesh.invoice.v2.settled"
    )
    assert "known is nipmesh.events.v1.InvoiceChanged" in by_id["event-3"]


async def test_an_event_that_nobody_survives_is_a_dead_letter_and_its_neighbours_are_not(
    sqlite: Database, bus: EventBus
) -> None:
    """Delivered 21 times without an answer, as if each replica that took the batch had ended at the third."""
    await bus.publish_batch(events(range(5)))
    killed: list[str] = []

    class Deadly(Deaf):
        @contextlib.asynccontextmanager
        async def subscribe(self, subscription: Any) -> AsyncIterator[Any]:
            async with self._bus.subscribe(subscription) as inflow:
                fetch = inflow.fetch

                async def counted(events_max: int, *, wait_s: float = 5.0) -> Any:
                    return [_delivered(each, 21) for each in await fetch(events_max, wait_s=wait_s)]

                inflow.fetch = counted  # type: ignore[method-assign]
                yield inflow

    def deadly(connection: Connection, event: CloudEvent) -> None:
        killed.append(event.event_id)
        record(connection, event)

    def _delivered(delivery: Any, times: int) -> Any:
        deliveries = times if delivery.event.event_id == "event-2" else 4
        return dataclasses.replace(delivery, deliveries=deliveries)

    async with consuming(sqlite, Deadly(bus), deadly):
        (letter,) = await dead(sqlite, 1)
        await has(sqlite, 4)
    assert (letter.event.event_id, letter.reason) == ("event-2", "NEVER_ANSWERED")
    assert "event-2" not in killed


async def test_ordered_consumers_keep_the_order_of_each_subject_also_when_one_fails(
    database: Database, bus: EventBus
) -> None:
    fails = {"event-0": 2, "event-4": 9}

    def handle(connection: Connection, event: CloudEvent) -> None:
        if fails.get(event.event_id, 0) > 0:
            fails[event.event_id] -= 1
            raise RuntimeError("not yet")
        record(connection, event)

    await bus.publish_batch([event(number, subject=f"s{number % 3}") for number in range(9)])
    async with consuming(database, bus, handle, ordered=True):
        await has(database, 8)
        (letter,) = await dead(database, 1)
        await bus.publish_batch([event(10, subject="s1")])
        await has(database, 9)
    assert letter.event.event_id == "event-4"
    found = await effects(database)
    for subject in range(3):
        mine = [name for name in found if int(name[6:]) % 3 == subject]
        assert mine == sorted(mine, key=lambda name: int(name[6:]))


async def test_an_ordered_consumer_works_in_one_replica_and_the_other_takes_over(
    place: Place, migrations: Path, bus: EventBus
) -> None:
    seen: list[str] = []

    def by(name: str) -> Callable[[Connection, CloudEvent], None]:
        def handle(connection: Connection, event: CloudEvent) -> None:
            seen.append(name)
            record(connection, event)

        return handle

    quick = {owner: ConsumerTerms(leasing=Leasing(owner=owner, lease_ms=2_000)) for owner in ("one", "other")}
    async with (
        await Database.open(place, migrations=migrations) as one,
        await Database.open(place, migrations=migrations) as other,
        consuming(one, bus, by("one"), ordered=True, terms=quick["one"]) as first,
    ):
        await bus.publish_batch(events(range(10)))
        await has(one, 10)
        async with consuming(other, bus, by("other"), ordered=True, terms=quick["other"]):
            await bus.publish_batch(events(range(10, 20)))
            await has(one, 20)
            assert set(seen) == {"one"}
            first.cancel()
            await bus.publish_batch(events(range(20, 30)))
            await has(one, 30)
    assert seen[-10:] == ["other"] * 10


async def test_a_database_that_is_away_costs_no_event_and_makes_no_dead_letter(sqlite: Database, bus: EventBus) -> None:
    write, away = sqlite.write, True

    async def sometimes(work: Any) -> Any:
        if away:
            raise ServiceError("BACKEND_UNAVAILABLE", "the server restarts")
        return await write(work)

    sqlite.write = sometimes  # type: ignore[method-assign]
    await bus.publish_batch(events(range(50)))
    async with consuming(sqlite, bus):
        await asyncio.sleep(0.5)
        away = False
        await has(sqlite, 50)
    assert not await list_dead_letters(sqlite)


async def test_replays_skip_what_was_handled_unless_they_are_told_not_to(database: Database, bus: EventBus) -> None:
    await bus.publish_batch(events(range(10)))
    async with consuming(database, bus):
        await has(database, 10)
        await replay_consumer(database, bus, "test", Start(sequence=4))
        await bus.publish_batch([event(10)])
        await has(database, 11)
        await replay_consumer(database, bus, "test", Start(sequence=4), again=True)
        await has(database, 11 + 8)
        await bus.publish_batch([event(11)])
        await has(database, 20)
        await replay_consumer(database, bus, "test", Start(time_ms=0), again=True)
        await has(database, 32)
    with pytest.raises(UnknownConsumerError):
        await replay_consumer(database, bus, "nobody", NEW)


async def test_a_consumer_that_begins_now_hears_nothing_old(
    sqlite: Database, bus: EventBus, nats: NatsServer, stream: str
) -> None:
    await bus.publish_batch(events(range(10)))
    async with consuming(sqlite, bus, start=NEW):
        await until(lambda: _has_consumer(nats, stream))
        await bus.publish_batch(events(range(10, 12)))
        await has(sqlite, 2)
    assert await effects(sqlite) == ["event-10", "event-11"]


async def _has_consumer(nats: NatsServer, stream: str) -> bool:
    client = await nats_client.connect(nats.url)
    try:
        return bool(await client.jetstream().consumers_info(stream))
    finally:
        await client.close()


async def test_a_handler_works_in_the_trace_of_its_event(sqlite: Database, bus: EventBus) -> None:
    seen: list[str] = []

    def handle(connection: Connection, event: CloudEvent) -> None:
        seen.append(f"{trace.get_current_span().get_span_context().trace_id:032x}")

    traced = event(1, traceparent=f"00-{'ab' * 16}-{'cd' * 8}-01")
    await bus.publish_batch([traced, event(2)])
    async with consuming(sqlite, bus, handle):
        await until(lambda: len(seen) == 2)
    assert seen == ["ab" * 16, "0" * 32]


async def test_two_consumers_of_a_service_have_inboxes_of_their_own(sqlite: Database, bus: EventBus) -> None:
    await bus.publish_batch(events(range(5)))
    async with consuming(sqlite, bus), consuming(sqlite, bus, name="second", types=[SETTLED]):
        await has(sqlite, 10)


async def test_the_inbox_forgets_after_what_can_come_again(database: Database) -> None:
    def script(connection: Connection) -> list[Any]:
        old, new = 10**12 - INBOX_KEPT_MS - 1, 10**12
        receive(connection, "a", [("1", 1), ("2", 2)], old)
        receive(connection, "a", [("3", 3)], new)
        receive(connection, "b", [("1", 1)], new)
        forgotten = forget_old_events(connection, new, limit=500)
        return [
            forgotten,
            forget_old_events(connection, new, limit=500),
            receive(connection, "a", [("1", 1), ("3", 3)], new),
        ]

    assert await database.write(script) == [2, 0, ["1"]]


async def test_filters_that_no_bus_takes_end_the_start(sqlite: Database, bus: EventBus) -> None:
    with pytest.raises(ValueError, match="filter"):
        await run_consumer(sqlite, bus, name="a", types=["nipmesh invoice"], handle=record)

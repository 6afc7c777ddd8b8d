"""What is counted of events is what was done, no more and no less, on a real bus and database."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

from prometheus_client import CollectorRegistry

from services.events.bus import EventBus, Subscription, open_bus
from services.events.cloud_event import CloudEvent
from services.events.consumer import Consumer, ConsumerTerms, run_consumer
from services.events.metrics import ConsumerMetrics
from services.events.operations import list_consumers, list_dead_letters
from services.events.parking import Parked, due
from services.events.relay import run_outbox_relay
from services.storage.database import Database
from services.storage.sql import Connection
from support.events import SETTLED, SOURCE, append, bus_settings, event, events, until
from support.nats_server import NatsServer

QUICK = ConsumerTerms(retry_delays_s=(0.02, 0.02), look_s=0.1)
FAR_MS = 2**50


class Counted:
    """A registry, read in few words."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.consumers = ConsumerMetrics(self.registry)

    def __call__(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"nipmesh_events_{name}", labels) or 0.0

    def of(self, consumer: str) -> dict[str, float]:
        """What is counted of a consumer, as far as it moved."""
        names = ("handled", "repeated", "failed", "dead")
        values = {name: self(f"{name}_total", consumer=consumer) for name in names}
        return {name: value for name, value in values.items() if value}


def record(connection: Connection, each: CloudEvent) -> None:
    connection.execute("INSERT INTO effect (event_id, subject) VALUES (?, ?)", (each.event_id, each.subject))


def waiting(connection: Connection) -> Parked | None:
    """The next event that is to be tried again, however long from now."""
    return due(connection, "test", FAR_MS, ordered=False)


async def ended(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_the_relay_counts_what_the_bus_has_and_how_far_behind_it_is(
    sqlite: Database, own_nats: NatsServer, stream: str
) -> None:
    counted = Counted()
    async with open_bus(bus_settings(own_nats.url, stream)) as bus:
        assert bus is not None
        relay = run_outbox_relay(sqlite, bus, service="invoice", source=SOURCE, registry=counted.registry)
        relaying = asyncio.ensure_future(relay)
        await sqlite.write(lambda connection: append(connection, range(7)))
        await until(lambda: counted("published_total") == 7)
        assert (counted("relay_leading"), counted("behind"), counted("behind_seconds")) == (1, 0, 0)
        assert counted("publish_failures_total") == 0
        own_nats.kill()
        await sqlite.write(lambda connection: append(connection, range(7, 12)))
        await until(lambda: counted("behind") == 5)
        assert counted("behind_seconds") > 0
        assert counted("published_total") == 7
        assert counted("publish_failures_total") >= 1
        own_nats.start()
        await until(lambda: counted("published_total") - counted("duplicates_total") == 12)
        await until(lambda: counted("behind") == 0)
        assert counted("behind_seconds") == 0
        assert counted("rejected_total") == 0
        await ended(relaying)
    assert counted("relay_leading") == 0


async def test_a_consumer_counts_each_event_once_however_often_it_comes(sqlite: Database, bus: EventBus) -> None:
    counted, broken = Counted(), {"event-3", "event-4"}

    def handle(connection: Connection, each: CloudEvent) -> None:
        if each.event_id in broken:
            raise RuntimeError("not yet")
        record(connection, each)

    await bus.publish_batch(events(range(5)))
    consumer = Consumer(sqlite, bus, "test", (SETTLED,), handle, QUICK, counted.consumers)
    await consumer._register()
    for name in ("handled", "repeated", "failed", "dead"):
        assert counted.registry.get_sample_value(f"nipmesh_events_{name}_total", {"consumer": "test"}) == 0
    async with bus.subscribe(Subscription(name="", types=(SETTLED,))) as inflow:
        deliveries = await inflow.fetch(5)
    await consumer._take(deliveries)
    assert counted.of("test") == {"handled": 3, "failed": 2}
    broken.remove("event-3")
    while parked := await sqlite.read(waiting):
        await consumer._try_again(parked)
    assert counted.of("test") == {"handled": 4, "failed": 2 + 2, "dead": 1}
    await consumer._take(deliveries)
    assert counted.of("test") == {"handled": 4, "failed": 4, "dead": 1, "repeated": 5}
    (status,) = await list_consumers(sqlite)
    assert status.handled == 4


async def test_what_waits_behind_another_is_counted_when_it_has_its_effect(sqlite: Database, bus: EventBus) -> None:
    """It was counted when it was put aside, and then once more."""
    counted, broken = Counted(), True

    def handle(connection: Connection, each: CloudEvent) -> None:
        if broken and each.event_id == "event-0":
            raise RuntimeError("not yet")
        record(connection, each)

    terms = ConsumerTerms(retry_delays_s=(0.5, 0.5, 0.5, 0.5), look_s=0.1, ordered=True)
    run = run_consumer(
        sqlite, bus, name="test", types=[SETTLED], handle=handle, ordered=True, terms=terms, metrics=counted.consumers
    )
    consuming = asyncio.ensure_future(run)
    await bus.publish_batch([event(0, subject="one")])
    await until(lambda: counted("failed_total", consumer="test") == 1)
    await bus.publish_batch([event(1, subject="one"), event(2, subject="one"), event(3, subject="other")])
    await until(lambda: counted("handled_total", consumer="test") >= 1)
    assert counted.of("test")["handled"] == 1, "only the one of another subject"
    broken = False
    await until(lambda: counted("handled_total", consumer="test") == 4)
    await ended(consuming)
    (status,) = await list_consumers(sqlite)
    assert (status.handled, counted.of("test")["handled"]) == (4, 4)


async def test_what_was_handled_is_no_dead_letter_when_it_comes_too_often(sqlite: Database, bus: EventBus) -> None:
    """Its effect is there, and its acknowledgement was lost each time."""
    counted = Counted()
    await bus.publish_batch(events(range(1)))
    consumer = Consumer(sqlite, bus, "test", (SETTLED,), record, QUICK, counted.consumers)
    async with bus.subscribe(Subscription(name="", types=(SETTLED,))) as inflow:
        (delivery,) = await inflow.fetch(1)
    await consumer._take([delivery])
    await consumer._take_alone(dataclasses.replace(delivery, deliveries=21))
    assert counted.of("test") == {"handled": 1, "repeated": 1}
    assert await list_dead_letters(sqlite) == []


async def test_two_replicas_that_try_the_same_event_tell_of_one_attempt(sqlite: Database, bus: EventBus) -> None:
    counted = Counted()

    def handle(connection: Connection, each: CloudEvent) -> None:
        raise RuntimeError("never")

    await bus.publish_batch(events(range(1)))
    terms = ConsumerTerms(retry_delays_s=(0.0,))
    replicas = [Consumer(sqlite, bus, "test", (SETTLED,), handle, terms, counted.consumers) for _ in range(2)]
    async with bus.subscribe(Subscription(name="", types=(SETTLED,))) as inflow:
        await replicas[0]._take(await inflow.fetch(1))
    assert counted.of("test") == {"failed": 1}
    parked = await sqlite.read(waiting)
    assert parked is not None
    await asyncio.gather(*(one._try_again(parked) for one in replicas))
    assert counted.of("test") == {"failed": 2, "dead": 1}
    assert len(await list_dead_letters(sqlite)) == 1

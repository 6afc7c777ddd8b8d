"""What every broker behind the bus must do, against the real servers: NATS, RabbitMQ and Kafka, with TLS and a password."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from aio_pika import Message

from nipmesh.events.v1 import events_pb2
from services.events.bus import (
    ALL,
    NEW,
    BusSettingsError,
    BusUnavailableError,
    Delivery,
    EventBus,
    Inflow,
    RewindError,
    Start,
    Subscription,
    open_bus,
)
from services.events.cloud_event import CloudEvent
from services.events.consumer import ConsumerTerms, run_consumer
from services.events.metrics import ConsumerMetrics
from services.events.operations import outbox_status, replay_consumer, replay_outbox
from services.events.relay import run_outbox_relay
from services.events.requests import Answer, open_asker, run_answerer
from services.storage.database import Database
from services.storage.sql import Connection
from support.brokers import BROKERS, Broker, running_broker
from support.events import SETTLED, SOURCE, append, bus_settings, event, events, new_stream, until, write_secret
from support.nats_server import write_certificates

OPEN, FAILED = "nipmesh.invoice.v1.open", "nipmesh.payment.v1.failed"


@pytest.fixture(scope="module", params=list(BROKERS))
def broker(request: pytest.FixtureRequest) -> Iterator[Broker]:
    with running_broker(request.param) as running:
        yield running


@pytest.fixture
async def bus(broker: Broker, stream: str) -> AsyncIterator[EventBus]:
    async with connected(broker, stream) as opened:
        yield opened


@contextlib.asynccontextmanager
async def connected(broker: Broker, stream: str, **values: Any) -> AsyncIterator[EventBus]:
    async with open_bus(broker.settings(stream, **values)) as opened:
        assert opened is not None
        await until(lambda: opened.health().connected, "connected")
        yield opened


async def heard(inflow: Inflow, count: int) -> list[Delivery]:
    """So many different events, and no more for the moment."""
    found: dict[str, Delivery] = {}
    while len(found) < count:
        deliveries = await inflow.fetch(256, wait_s=20)
        assert deliveries, f"{len(found)} of {count} came"
        found |= {each.event.event_id: each for each in deliveries}
    assert len(found) == count
    assert not await inflow.fetch(1, wait_s=0.05)
    return list(found.values())


def ids(deliveries: Sequence[Delivery]) -> list[str]:
    return [each.event.event_id for each in deliveries]


def record(connection: Connection, event: CloudEvent) -> None:
    connection.execute("INSERT INTO effect (event_id, subject) VALUES (?, ?)", (event.event_id, event.subject))


async def effects(database: Database) -> list[str]:
    rows = await database.read(lambda connection: connection.execute("SELECT event_id FROM effect").fetchall())
    return [str(row[0]) for row in rows]


@contextlib.asynccontextmanager
async def background(*works: Any) -> AsyncIterator[None]:
    tasks = [asyncio.ensure_future(each) for each in works]
    try:
        yield
        for task in tasks:
            assert not task.done(), task
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_batch_arrives_whole_with_each_subject_in_order(bus: EventBus) -> None:
    sent = [
        event(
            number,
            subject=f"straße {number % 7}",
            traceparent=f"00-{number:032x}-{1:016x}-01",
            extensions=(("expirytime", "2026-11-26T00:00:00Z"),),
        )
        for number in range(1, 601)
    ]
    async with bus.subscribe(Subscription(name="all", types=(SETTLED,))) as inflow:
        assert await inflow.pending() == 0
        receipt = await bus.publish_batch(sent)
        assert (receipt.rejections, receipt.duplicates) == ((), 0)
        found = await heard(inflow, 600)
        await inflow.ack(found)
    assert {each.problem for each in found} == {""}
    arrived = [each.event for each in found]
    for subject in {each.subject for each in sent}:
        assert [each for each in arrived if each.subject == subject] == [
            each for each in sent if each.subject == subject
        ]


@pytest.mark.parametrize(
    ("types", "wanted"),
    [
        (("nipmesh.invoice.v1.*",), [1, 2]),
        (("nipmesh.>",), [1, 2, 3]),
        (("nipmesh.*.v1.settled", FAILED), [1, 3]),
        (("nipmesh.invoice.v2.*",), []),
    ],
)
async def test_filters(bus: EventBus, types: tuple[str, ...], wanted: list[int]) -> None:
    async with bus.subscribe(Subscription(name="some", types=types)) as inflow:
        await inflow.pending()
        await bus.publish_batch([event(number, type=kind) for number, kind in ((1, SETTLED), (2, OPEN), (3, FAILED))])
        assert sorted(ids(await heard(inflow, len(wanted)))) == [f"event-{number}" for number in wanted]


async def test_other_filters_of_a_new_version_take_effect(bus: EventBus) -> None:
    async with bus.subscribe(Subscription(name="some", types=(SETTLED, FAILED))) as inflow:
        await inflow.pending()
        await bus.publish_batch([event(1)])
        await inflow.ack(await heard(inflow, 1))
    async with bus.subscribe(Subscription(name="some", types=("nipmesh.invoice.v1.*",))) as inflow:
        await inflow.pending()
        await bus.publish_batch([event(3, type=OPEN), event(4, type=FAILED), event(5)])
        assert sorted(ids(await heard(inflow, 2))) == ["event-3", "event-5"]


async def test_what_a_consumer_did_not_acknowledge_another_gets(broker: Broker, stream: str) -> None:
    subscription = Subscription(name="shared", types=(SETTLED,), answer_s_max=1.0)
    async with connected(broker, stream) as other:
        async with connected(broker, stream) as one, one.subscribe(subscription) as first:
            await first.pending()
            await one.publish_batch(events(range(40)))
            taken = await heard(first, 40)
            await first.ack([each for each in taken if int(each.event.event_id[6:]) < 10])
        async with other.subscribe(subscription) as second:
            found = await second.fetch(256, wait_s=20)
            while not {f"event-{number}" for number in range(10, 40)} <= set(ids(found)):
                again = await second.fetch(256, wait_s=20)
                assert again, f"only {ids(found)} came"
                found = [*found, *again]
            await second.ack(found)


async def test_what_ends_the_process_each_time_is_counted(broker: Broker, stream: str) -> None:
    subscription = Subscription(name="deadly", types=(SETTLED,), answer_s_max=0.5)
    counts = []
    for number in range(4):
        async with connected(broker, stream) as bus, bus.subscribe(subscription) as inflow:
            if number == 0:
                await inflow.pending()
                await bus.publish_batch([event(1)])
            (delivery,) = await inflow.fetch(10, wait_s=20)
            counts.append(delivery.deliveries)
            if number == 3:
                await inflow.ack([delivery])
                await bus.publish_batch([event(2)])
                (following,) = await inflow.fetch(10, wait_s=20)
                assert (following.event.event_id, following.deliveries) == ("event-2", 1)
    assert counts == [1, 2, 3, 4]


async def test_what_is_released_comes_again(bus: EventBus) -> None:
    async with bus.subscribe(Subscription(name="some", types=(SETTLED,))) as inflow:
        await inflow.pending()
        await bus.publish_batch(events(range(5)))
        first = await heard(inflow, 5)
        await inflow.release(first)
        again = await heard(inflow, 5)
        assert {each.deliveries for each in first} == {1}
        assert {each.deliveries for each in again} == {2}
        await inflow.ack(again)
        await until(lambda: nothing_waits(inflow))


async def rows(database: Database, table: str) -> int:
    row = await database.read(lambda connection: connection.execute(f"SELECT count(*) FROM {table}").fetchone())
    assert row is not None
    return int(row[0])


async def all_effects(database: Database, count: int) -> bool:
    return len(await effects(database)) == count


async def nothing_waits(inflow: Inflow) -> bool:
    return await inflow.pending() == 0


async def test_what_is_published_twice_has_one_effect(bus: EventBus, sqlite: Database) -> None:
    metrics = ConsumerMetrics(None)
    types = ("nipmesh.invoice.v1.*",)
    consumer = run_consumer(sqlite, bus, name="test", types=types, handle=record, metrics=metrics)
    async with bus.subscribe(Subscription(name="test", types=types)) as same:
        await same.pending()
    receipts = [await bus.publish_batch(events(range(50))) for _ in range(3)]
    dropped = sum(each.duplicates for each in receipts)  # by a broker that knows ids itself
    async with background(consumer):
        await until(lambda: metrics.repeated.labels("test")._value.get() == 100 - dropped)
        await until(lambda: all_effects(sqlite, 50))
    assert sorted(await effects(sqlite)) == sorted(f"event-{number}" for number in range(50))


async def test_what_is_too_large_is_rejected_and_holds_nothing_up(bus: EventBus) -> None:
    async with bus.subscribe(Subscription(name="some", types=(SETTLED,))) as inflow:
        await inflow.pending()
        receipt = await bus.publish_batch(
            [event(1), event(2, data=b"x" * (1024**2 + 1)), event(3, type="no type"), event(4)]
        )
        assert [each.event_id for each in receipt.rejections] == ["event-2", "event-3"]
        assert sorted(ids(await heard(inflow, 2))) == ["event-1", "event-4"]


async def test_a_message_that_is_no_event_of_ours_says_so(broker: Broker, bus: Any, stream: str) -> None:
    if broker.name == "nats":
        pytest.skip("test_events_bus.py has it for NATS")
    async with bus.subscribe(Subscription(name="all", types=(">",))) as inflow:
        assert await inflow.pending() == 0
        link = await bus._keeper.link()
        if broker.name == "kafka":
            await link.producer.send_and_wait(stream, b"plain")
        else:
            await link.exchange.publish(Message(b"plain"), routing_key="somebody.hello")
        (found,) = await heard(inflow, 1)
    assert (found.problem, found.event.data) == ("the message is no CloudEvent 1.0 in binary mode", b"plain")


async def test_request_and_reply(bus: EventBus, sqlite: Database) -> None:
    def answer(connection: Connection, event: CloudEvent) -> Answer:
        return Answer(type="nipmesh.test.v1.answered", message=event.unpack(events_pb2.InvoiceChanged))

    asked = events_pb2.InvoiceChanged()
    asked.invoice.invoice_id = "invoice-1"
    works = (
        run_answerer(sqlite, bus, name="answers", types=["nipmesh.test.v1.asked"], handle=answer),
        run_outbox_relay(sqlite, bus, service="invoice", source=SOURCE),
    )
    async with bus.subscribe(Subscription(name="answers", types=("nipmesh.test.v1.asked",))) as same:
        await same.pending()  # it is there; a second member that stays would be given requests by Kafka, too
    async with (
        background(*works),
        open_asker(bus, source=SOURCE, answers=["nipmesh.test.v1.answered"]) as asker,
    ):
        found = await asker.ask(type="nipmesh.test.v1.asked", message=asked, timeout_s=20)
        assert found.unpack(events_pb2.InvoiceChanged) == asked


async def test_where_a_consumer_begins_and_begins_again(bus: EventBus, sqlite: Database) -> None:
    if not bus.can_rewind:
        await only_the_outbox_looks_back(bus, sqlite)
        return
    await bus.publish_batch(events(range(10)))
    async with (
        bus.subscribe(Subscription(name="old", types=(SETTLED,), start=ALL)) as old,
        bus.subscribe(
            Subscription(name="timely", types=(SETTLED,), start=Start(time_ms=now_ms() + 3_600_000))
        ) as timely,
        bus.subscribe(Subscription(name="new", types=(SETTLED,), start=NEW)) as new,
        bus.subscribe(Subscription(name="", types=(SETTLED,), start=NEW)) as own,
    ):
        assert [await each.pending() for each in (new, own)] == [0, 0]
        found = await heard(old, 10)
        await old.ack(found)
        await bus.publish_batch(events(range(10, 12)))
        await old.ack(await heard(old, 2))
        assert sorted(ids(await heard(new, 2))) == sorted(ids(await heard(own, 2))) == ["event-10", "event-11"]
        assert not await timely.fetch(1, wait_s=0.05)
        await old.rewind(ALL)
        assert len(await heard(old, 12)) == 12
        last = max(each.position for each in found)
        await old.rewind(Start(sequence=last))
        again = await old.fetch(256, wait_s=20)
        assert again
        assert min(each.position for each in again) >= last


def now_ms() -> int:
    return time.time_ns() // 1_000_000


async def only_the_outbox_looks_back(bus: EventBus, database: Database) -> None:
    """A queue has no past: who comes late has the outbox published again; nothing is forgotten for a rewinding that cannot be."""
    relay = run_outbox_relay(database, bus, service="invoice", source=SOURCE)
    consumer = run_consumer(database, bus, name="late", types=[SETTLED], handle=record)
    async with background(relay):
        await database.write(lambda connection: append(connection, range(10)))

        async def published() -> bool:
            return (await outbox_status(database)).published_sequence == 10

        await until(published)
        async with bus.subscribe(Subscription(name="late", types=(SETTLED,))) as same, background(consumer):
            assert await same.pending() == 0
            await until(lambda: rows(database, "storage_consumer"))
            await replay_outbox(database)
            await until(lambda: all_effects(database, 10))
            with pytest.raises(RewindError, match="replay the outbox"):
                await replay_consumer(database, bus, "late", ALL, again=True)
            with pytest.raises(RewindError, match="replay the outbox"):
                await same.rewind(ALL)
            await replay_outbox(database)
            await bus.publish_batch([event(77)])
            await until(lambda: all_effects(database, 11))
    assert len(await effects(database)) == 11


async def test_a_wrong_credential_is_told_and_mended_without_a_restart(
    broker: Broker, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    credentials = write_secret(tmp_path / "credentials", "invoice:t0tally-wrong")
    async with open_bus(broker.settings(new_stream(), events_credentials_file=credentials)) as bus:
        assert bus is not None
        await until(lambda: "refuses the credential" in bus.health().error)
        with pytest.raises(BusUnavailableError, match="refuses the credential"):
            await bus.publish_batch([event(1)])
        write_secret(credentials, "invoice:s3cret-of-invoice")
        await until(lambda: bus.health().connected)
        await bus.publish_batch([event(1)])
    said = capfd.readouterr()
    assert "s3cret" not in said.out + said.err
    assert "t0tally" not in said.out + said.err
    assert said.out.count("refuses the credential") == 1


async def test_a_certificate_of_somebody_else_is_not_trusted(broker: Broker, tmp_path: Path) -> None:
    another = write_certificates(tmp_path)[0]
    async with open_bus(broker.settings(new_stream(), events_ca_file=another)) as bus:
        assert bus is not None
        await until(lambda: "certificate is not trusted" in bus.health().error, bus.health().error)


@pytest.mark.timeout(180)
async def test_a_broker_that_is_killed_loses_nothing_and_is_awaited(
    broker: Broker, stream: str, sqlite: Database
) -> None:
    terms = ConsumerTerms(answer_s_max=1.0)
    settings = broker.settings(stream)
    async with connected(broker, stream) as bus:
        relay = run_outbox_relay(sqlite, bus, service="invoice", source=SOURCE)
        consumer = run_consumer(sqlite, bus, name="test", types=["nipmesh.invoice.v1.*"], handle=record, terms=terms)
        async with (
            bus.subscribe(Subscription(name="test", types=("nipmesh.invoice.v1.*",), answer_s_max=1.0)) as queue,
            bus.subscribe(Subscription(name="later", types=("nipmesh.invoice.v1.*",), answer_s_max=1.0)) as later,
        ):
            assert await queue.pending() == await later.pending() == 0
            await asyncio.sleep(broker.settles_s)
        await sqlite.write(lambda connection: append(connection, range(1_500)))
        async with background(relay, consumer):

            async def reached(number: int) -> bool:
                return len(await effects(sqlite)) >= number

            await until(lambda: reached(300))
            broker.server.kill()
            await sqlite.write(lambda connection: append(connection, range(1_500, 2_000)))
            async with open_bus(settings) as away_at_start:
                assert away_at_start is not None
                await until(lambda: "nobody listens" in away_at_start.health().error)
                with pytest.raises(BusUnavailableError, match="nobody listens"):
                    await away_at_start.publish_batch([event(1)])
                await asyncio.to_thread(broker.server.start)
                await until(lambda: away_at_start.health().connected, "connected anew")
            await until(lambda: reached(2_000), "all effects", 60)
        found = await effects(sqlite)
        assert len(found) == len(set(found)) == 2_000
        async with bus.subscribe(
            Subscription(name="later", types=("nipmesh.invoice.v1.*",), answer_s_max=1.0)
        ) as later:
            came: set[str] = set()
            while len(came) < 2_000:
                deliveries = await later.fetch(256, wait_s=20)
                assert deliveries, f"{len(came)} came"
                came |= {each.event.subject for each in deliveries}
                await later.ack(deliveries)
            assert came == {f"invoice-{number}" for number in range(2_000)}


@pytest.mark.parametrize(
    ("url", "client", "extra"),
    [("amqp://127.0.0.1", "aio_pika", "rabbitmq"), ("kafka://127.0.0.1", "aiokafka", "kafka")],
)
async def test_an_extra_that_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, url: str, client: str, extra: str
) -> None:
    for name in [each for each in sys.modules if each.startswith((f"services.events.{extra}", client))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, client, None)
    with pytest.raises(BusSettingsError, match=rf"pip install 'nipmesh\[{extra}\]'"):
        async with open_bus(bus_settings(url, "nip")):
            pass


@pytest.mark.parametrize("scheme", ["amqp", "kafka"])
async def test_settings_that_cannot_be_right_stop_the_start(tmp_path: Path, scheme: str) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    secure = {"amqp": "amqps", "kafka": "kafka+tls"}[scheme]
    for url, values, message in (
        (f"{scheme}://127.0.0.1:http", {}, "is not a host and a port"),
        (f"{scheme}://a:1,:2", {}, "is not a host and a port"),
        (f"{secure}://127.0.0.1", {"events_ca_file": tmp_path / "ca.pem"}, "cannot read the certificates"),
        (
            f"{scheme}://127.0.0.1",
            {"events_credentials_file": write_secret(tmp_path / "c", "t0ken")},
            "no user:password",
        ),
    ):
        with pytest.raises(BusSettingsError, match=message) as caught:
            async with open_bus(bus_settings(url, "nip", **values)):
                pass
        assert "t0ken" not in str(caught.value)

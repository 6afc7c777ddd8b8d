"""The NATS adapter against the real server: batches, duplicates, filters, starts, redelivery, and what goes wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import nats as nats_client
import pytest
from nats.aio.msg import Msg
from nats.errors import ConnectionClosedError

from services.events.bus import (
    ALL,
    BusUnavailableError,
    Delivery,
    EventBus,
    Inflow,
    Start,
    Subscription,
    Tail,
    open_bus,
)
from services.events.cloud_event import headers_of
from services.events.nats.publishing import message_of
from services.events.nats.sending import BatchClient, header_block
from support.events import SETTLED, bus_settings, event, events
from support.nats_server import NatsServer


async def ids(inflow: Inflow, count: int, *, ack: bool = True) -> list[str]:
    """The next events' ids; asserts that there are no more of them for the moment."""
    found: list[Delivery] = []
    while len(found) < count:
        deliveries = await inflow.fetch(256, wait_s=5)
        assert deliveries, f"{len(found)} of {count} came"
        found += deliveries
    assert len(found) == count
    assert not await inflow.fetch(1, wait_s=0.05)
    if ack:
        await inflow.ack(found)
    return [each.event.event_id for each in found]


def names(numbers: Sequence[int]) -> list[str]:
    return [f"event-{number}" for number in numbers]


async def test_a_batch_arrives_whole_and_in_order(bus: EventBus) -> None:
    sent = [
        event(number, traceparent=f"00-{number:032x}-{1:016x}-01", extensions=(("expirytime", "2026-11-26T00:00:00Z"),))
        for number in range(1, 601)
    ]
    receipt = await bus.publish_batch(sent)
    assert (receipt.rejections, receipt.duplicates, receipt.position) == ((), 0, 600)
    found: list[Delivery] = []
    async with bus.subscribe(Subscription(name="all", types=(SETTLED,))) as inflow:
        while len(found) < 600:
            found += await inflow.fetch(256)
    assert [each.event for each in found] == sent
    assert [each.position for each in found] == list(range(1, 601))


async def test_what_is_there_already_is_no_error_and_not_there_twice(bus: EventBus) -> None:
    await bus.publish_batch(events(range(100)))
    receipt = await bus.publish_batch(events(range(50, 300)))
    assert (receipt.duplicates, receipt.rejections, receipt.position) == (50, (), 300)
    async with bus.subscribe(Subscription(name="all", types=(SETTLED,))) as inflow:
        assert await ids(inflow, 300) == names(range(300))


async def test_an_id_twice_in_one_batch_is_published_once(bus: EventBus) -> None:
    receipt = await bus.publish_batch([event(1), event(2), event(1), event(3)])
    assert receipt.duplicates == 1
    async with bus.subscribe(Subscription(name="all", types=(SETTLED,))) as inflow:
        assert await ids(inflow, 3) == names([1, 2, 3])


async def test_what_is_too_large_is_rejected_and_holds_nothing_up(bus: EventBus) -> None:
    batch = [event(1), event(2, data=b"x" * 1024**2), event(3, type="no type"), event(4)]
    receipt = await bus.publish_batch(batch)
    assert [each.event_id for each in receipt.rejections] == names([2, 3])
    assert "larger" in receipt.rejections[0].reason
    async with bus.subscribe(Subscription(name="all", types=(SETTLED,))) as inflow:
        assert await ids(inflow, 2) == names([1, 4])


async def test_a_stream_that_an_operator_made_is_used_as_it_is(nats: NatsServer, stream: str) -> None:
    client = await nats_client.connect(nats.url)
    await client.jetstream().add_stream(name=stream, subjects=[f"{stream}.>"], max_msg_size=2_000)
    async with open_bus(bus_settings(nats.url, stream)) as bus:
        assert bus is not None
        receipt = await bus.publish_batch([event(1), event(2, data=b"x" * 3_000), event(3)])
        assert [each.event_id for each in receipt.rejections] == ["event-2"]
    info = await client.jetstream().stream_info(stream)
    assert (info.state.messages, info.config.allow_atomic) == (2, None)
    await client.close()


@pytest.mark.parametrize(
    ("types", "wanted"),
    [
        (("nipmesh.invoice.v1.*",), [1, 2]),
        (("nipmesh.>",), [1, 2, 3]),
        ((">",), [1, 2, 3]),
        (("nipmesh.*.v1.settled", "nipmesh.payment.v1.failed"), [1, 3]),
        (("nipmesh.invoice.v1.settled", "nipmesh.invoice.v1.*"), [1, 2]),
        (("nipmesh.invoice.v2.*",), []),
    ],
)
async def test_filters(bus: EventBus, types: tuple[str, ...], wanted: list[int]) -> None:
    kinds = {1: SETTLED, 2: "nipmesh.invoice.v1.open", 3: "nipmesh.payment.v1.failed"}
    await bus.publish_batch([event(number, type=kind) for number, kind in kinds.items()])
    async with bus.subscribe(Subscription(name="some", types=types)) as inflow:
        assert await ids(inflow, len(wanted)) == names(wanted)


async def test_where_a_consumer_begins(bus: EventBus) -> None:
    await bus.publish_batch(events(range(10)))
    async with (
        bus.subscribe(Subscription(name="old", types=(SETTLED,), start=ALL)) as old,
        bus.subscribe(Subscription(name="late", types=(SETTLED,), start=Start(sequence=8))) as late,
        bus.subscribe(Subscription(name="", types=(SETTLED,), start=Start(new=True))) as new,
    ):
        assert await new.pending() == 0
        await bus.publish_batch(events(range(10, 12)))
        assert await ids(old, 12) == names(range(12))
        assert await ids(late, 5) == names(range(7, 12))
        assert await ids(new, 2) == names(range(10, 12))


async def test_a_durable_consumer_goes_on_where_it_stopped_whoever_asks(nats: NatsServer, stream: str) -> None:
    subscription = Subscription(name="shared", types=(SETTLED,))
    async with open_bus(bus_settings(nats.url, stream)) as one, open_bus(bus_settings(nats.url, stream)) as other:
        assert one is not None
        assert other is not None
        await one.publish_batch(events(range(100)))
        async with one.subscribe(subscription) as first, other.subscribe(subscription) as second:
            mine, theirs = await first.fetch(40), await second.fetch(40)
            assert not {each.position for each in mine} & {each.position for each in theirs}
            await first.ack(mine)
            await second.release(theirs)
            while await first.pending() != 60:  # the server takes acknowledgements without an answer
                await asyncio.sleep(0.01)
            found: dict[str, int] = {}
            while len(found) < 60:
                found |= {each.event.event_id: each.deliveries for each in await first.fetch(100)}
        assert len(found) == 60
        assert sorted(found.values()) == [1] * 20 + [2] * 40


async def test_what_is_not_acknowledged_comes_again(bus: EventBus) -> None:
    await bus.publish_batch(events(range(3)))
    async with bus.subscribe(Subscription(name="slow", types=(SETTLED,), answer_s_max=0.3)) as inflow:
        first = await inflow.fetch(10)
        await inflow.ack(first[:1])
        for _ in range(4):
            await asyncio.sleep(0.1)
            await inflow.working(first[1:])
        assert not await inflow.fetch(10, wait_s=0.05)
        again = await inflow.fetch(10, wait_s=5)
        again = [*again, *(await inflow.fetch(10, wait_s=0.1))]
        assert [(each.position, each.deliveries) for each in again] == [(2, 2), (3, 2)]


async def test_a_consumer_is_rewound_for_all_of_its_replicas(nats: NatsServer, stream: str) -> None:
    subscription = Subscription(name="shared", types=(SETTLED,), start=Start(new=True))
    async with open_bus(bus_settings(nats.url, stream)) as one, open_bus(bus_settings(nats.url, stream)) as other:
        assert one is not None
        assert other is not None
        await one.publish_batch(events(range(5)))
        async with one.subscribe(subscription) as first, other.subscribe(subscription) as second:
            assert await first.pending() == 0
            waiting = asyncio.create_task(first.fetch(10))
            await asyncio.sleep(0.1)
            await second.rewind(ALL)
            with pytest.raises(BusUnavailableError, match="ended"):
                await waiting  # its consumer was made anew
            assert await ids(first, 5, ack=False) == names(range(5))
            await second.rewind(Start(sequence=4))
            assert await ids(second, 2) == names([3, 4])


async def test_other_filters_of_a_new_version_take_effect(bus: EventBus) -> None:
    await bus.publish_batch([event(1), event(2, type="nipmesh.invoice.v1.open")])
    async with bus.subscribe(Subscription(name="some", types=(SETTLED,))) as inflow:
        assert await ids(inflow, 1) == names([1])
    await bus.publish_batch([event(3, type="nipmesh.invoice.v1.open"), event(4)])
    async with bus.subscribe(Subscription(name="some", types=("nipmesh.invoice.v1.*",))) as inflow:
        assert await ids(inflow, 2) == names([3, 4])


async def test_a_message_that_is_no_event_of_ours_says_so(bus: EventBus, nats: NatsServer, stream: str) -> None:
    async with bus.subscribe(Subscription(name="all", types=(">",))) as inflow:
        assert await inflow.pending() == 0
        client = await nats_client.connect(nats.url)
        js = client.jetstream()
        subject = f"{stream}.somebody.hello"
        await js.publish(subject, b"plain")
        await js.publish(subject, b"x", headers={**headers_of(event(1)), "ce-specversion": "0.3"})
        await js.publish(subject, b"x", headers={**headers_of(event(1)), "ce-id": ""})
        await js.publish(subject, b"x", headers={**headers_of(event(1)), "ce-time": "yesterday"})
        await client.close()
        found = [delivery for _ in range(2) for delivery in await inflow.fetch(10, wait_s=0.5)]
    assert [each.problem for each in found] == [
        "the message is no CloudEvent 1.0 in binary mode",
        "the message is no CloudEvent 1.0 in binary mode",
        "the event has no ce-id",
        "ce-time is no RFC 3339 time",
    ]
    assert [each.event.event_id for each in found] == [f"{stream}-{number}" for number in range(1, 5)]
    assert found[0].event.data == b"plain"


async def test_the_tail_tells_the_newest_of_this_service_alone(nats: NatsServer, stream: str) -> None:
    async with (
        open_bus(bus_settings(nats.url, stream)) as invoice,
        open_bus(bus_settings(nats.url, stream, service="payment")) as payment,
    ):
        assert invoice is not None
        assert payment is not None
        tail = await invoice.tail(0)
        assert (tail.at_position, tail.newest) == ("", "") if tail else False
        await invoice.publish_batch(events(range(3)))
        await payment.publish_batch([event(9)])
        tail = await invoice.tail(2)
        assert (tail.at_position, tail.newest) == ("event-1", "event-2") if tail else False
        tail = await payment.tail(77)
        assert (tail.at_position, tail.newest) == ("", "event-9") if tail else False


async def test_messages_of_a_batch_go_over_the_wire_as_the_client_would_send_them() -> None:
    """What `BatchClient.send` does itself, against nats-py's own way."""
    sent = event(1, subject="straße", traceparent=f"00-{'ab' * 16}-{'cd' * 8}-01")
    message = message_of(sent, "nip", "invoice")

    class Recording(BatchClient):
        def __init__(self) -> None:
            super().__init__()
            self.commands: list[bytes] = []
            self._status = BatchClient.CONNECTED
            self._max_payload = 1024**2

        async def _send_command(self, cmd: bytes, priority: bool = False) -> None:
            self.commands.append(bytes(cmd))

        async def _flush_pending(self, force_flush: bool = False) -> None:
            """Nothing is connected."""

    client = Recording()
    await client.send([(message.subject, header_block(message.headers), message.data)])
    await client.publish(message.subject, message.data, headers=message.headers)
    assert client.commands[0] == client.commands[1]
    assert client.stats["out_msgs"] == 2
    client._status = BatchClient.CLOSED
    with pytest.raises(ConnectionClosedError):
        await client.send([])
    for wrong in ("a\r\nb: c", "a\nb", "a\rb"):
        with pytest.raises(ValueError, match="line ends"):
            header_block({"x": wrong})


@pytest.mark.parametrize(
    ("held", "found"),
    [
        ([3, 5], Tail(at_position="event-5", newest="event-5")),
        ([3, 3, 3], Tail(at_position="", newest="event-3")),
        ([6], Tail(at_position="", newest="event-6")),
    ],
)
async def test_a_copy_that_is_behind_is_no_loss(nats: NatsServer, stream: str, held: list[int], found: Tail) -> None:
    """One of a cluster's servers answers, each with what it holds."""
    answers = iter(held)

    async def answer(message: Msg) -> None:
        number = next(answers)
        headers = {"ce-id": f"event-{number}", "Nats-Sequence": str(number)}
        await client.publish(message.reply, b"", headers=headers)

    async with await nats_client.connect(nats.url) as client:
        await client.subscribe(f"$JS.API.DIRECT.GET.{stream}.{stream}.invoice.>", cb=answer)
        await client.flush()
        async with open_bus(bus_settings(nats.url, stream, events_inbox=f"{stream}_invoice")) as bus:
            assert bus is not None
            assert await bus.tail(5) == found
    assert list(answers) == [], "it was asked as often as needed"

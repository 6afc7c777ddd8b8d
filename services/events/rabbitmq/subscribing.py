"""Subscriptions: a durable quorum queue for each consumer, which all replicas of a service share, bound by the consumer's filters.

RabbitMQ can tell nobody what a queue is bound by, so bindings are added and never taken away. What an earlier version asked for and this
one does not is kept back for a while, for replicas of another version that may still want it, and then dropped.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, TypeVar

from aio_pika.abc import AbstractChannel, AbstractIncomingMessage, AbstractQueue
from aiormq.exceptions import ChannelPreconditionFailed

from services.chassis.logs import get_logger
from services.events.bus import BusUnavailableError, Delivery, RewindError, Start, Subscription
from services.events.cloud_event import CloudEvent, PayloadError, event_of_attributes
from services.events.connecting import CLOSE_S_MAX, LOST, Keeper, answer_of
from services.events.filters import checked, matches
from services.events.rabbitmq.connection import ERRORS, Link, explained
from services.events.rabbitmq.publishing import PREFIX

AGE_MS_MAX: Final = 7 * 24 * 3_600_000
"""What nobody fetched for so long leaves the queue, as it leaves the streams of other brokers."""
DELIVERIES_MAX: Final = 1_000_000
"""Never reached. RabbitMQ 4 would drop an event after 20 deliveries; here the consumer decides, and makes it a dead letter."""
IN_FLIGHT_MAX: Final = 1_000
"""Most events that one replica holds unacknowledged: RabbitMQ pushes them, and they lie in this process's memory."""
HELD_S_MAX: Final = 600.0
"""So long events of types that only another version asks for are kept back; a rolling update takes minutes."""
HELD_MAX: Final = 100
"""And so many of them, so that they leave room for what is wanted."""

T = TypeVar("T")

_log = get_logger("events")


class Feed:
    """What RabbitMQ pushes through one channel."""

    def __init__(self, channel: AbstractChannel, queue: AbstractQueue) -> None:
        self.channel = channel
        self.queue = queue
        self.closed = asyncio.Event()
        self.held: deque[tuple[float, AbstractIncomingMessage]] = deque()
        self._messages: deque[AbstractIncomingMessage] = deque()
        self._changed = asyncio.Event()
        channel.close_callbacks.add(self._on_close)
        queue.close_callbacks.add(self._on_close)

    def _on_close(self, *_: Any) -> None:
        self.closed.set()
        self._changed.set()

    async def take(self, message: AbstractIncomingMessage) -> None:
        """For the client: another one."""
        self._messages.append(message)
        self._changed.set()

    async def wait(self, wait_s: float) -> None:
        """Until there is something, or the channel is gone."""
        if self._messages or self.closed.is_set():
            return
        self._changed.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._changed.wait()

    def pop(self, count_max: int) -> list[AbstractIncomingMessage]:
        """What is there."""
        return [self._messages.popleft() for _ in range(min(count_max, len(self._messages)))]


class RabbitInflow:
    """An open subscription. It finds its queue again on each new connection."""

    def __init__(self, keeper: Keeper[Link], stream: str, service: str, subscription: Subscription) -> None:
        """Raises ValueError for filters that no bus would take."""
        self._keeper = keeper
        self._subscription = subscription
        self._types = checked(subscription.types)
        self._durable = bool(subscription.name)
        self._queue_name = f"{stream}.{service}.{subscription.name or uuid.uuid4().hex}"
        self._feed: Feed | None = None
        self._opening = asyncio.Lock()
        self._prepared: Link | None = None

    async def fetch(self, events_max: int, *, wait_s: float = 5.0) -> Sequence[Delivery]:
        """What is there, at most `events_max`; after `wait_s` nothing. Raises BusUnavailableError."""
        until_s = time.monotonic() + wait_s
        feed = await self._ready()
        while True:
            await feed.wait(max(0.0, until_s - time.monotonic()))
            if feed.closed.is_set():
                raise BusUnavailableError(LOST)
            messages = feed.pop(events_max)
            deliveries = await self._wanted(feed, messages)
            if deliveries or not messages:
                return deliveries

    async def _wanted(self, feed: Feed, messages: Sequence[AbstractIncomingMessage]) -> list[Delivery]:
        """Without what only an earlier version asked for."""
        found = []
        now_s = time.monotonic()
        for message in messages:
            delivery = delivery_of(message)
            if delivery.problem or any(matches(each, delivery.event.type) for each in self._types):
                found.append(delivery)
            else:
                feed.held.append((now_s, message))
        while feed.held and (len(feed.held) > HELD_MAX or feed.held[0][0] < now_s - HELD_S_MAX):
            _, message = feed.held.popleft()
            with suppress(*ERRORS):
                await message.ack()
        return found

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        """These are done with."""
        with suppress(*ERRORS):
            for delivery in deliveries:
                await delivery.handle.ack()

    async def release(self, deliveries: Sequence[Delivery]) -> None:
        """Whoever asks next may have these."""
        with suppress(*ERRORS):
            for delivery in deliveries:
                await delivery.handle.nack(requeue=True)

    async def working(self, deliveries: Sequence[Delivery]) -> None:
        """Nothing to say: what a living connection has not answered nobody else gets."""

    async def pending(self) -> int | None:
        """How many events wait that no replica has taken yet; it takes none. Raises BusUnavailableError."""
        link = await self._keeper.link()
        async with self._opening:
            return await self._of_server(link, self._waiting(link))

    async def rewind(self, start: Start) -> None:
        """Raises RewindError: a queue has no past."""
        raise RewindError(
            "RabbitMQ keeps no event that was acknowledged: replay the outbox of the service that published it"
        )

    async def close(self) -> None:
        """Leave the durable queue; one that is ours alone goes with its channel. What was not acknowledged is everybody's again."""
        feed, self._feed = self._feed, None
        if feed is not None:
            with suppress(*ERRORS):
                async with asyncio.timeout(CLOSE_S_MAX):
                    await feed.channel.close()

    async def _ready(self) -> Feed:
        link = await self._keeper.link()
        async with self._opening:
            if self._feed is None or self._feed.closed.is_set() or link.closed.is_set():
                self._feed = await self._of_server(link, self._opened(link))
            return self._feed

    async def _of_server(self, link: Link, asked: Awaitable[T]) -> T:
        """What the server answers. Raises BusUnavailableError."""
        try:
            return await answer_of(asked, link.closed)
        except ERRORS as error:
            raise BusUnavailableError(f"the queue {self._queue_name} cannot be used: {explained(error)}") from error

    async def _waiting(self, link: Link) -> int:
        await self._prepare(link)
        async with link.connection.channel() as channel:
            queue = await channel.declare_queue(self._queue_name, passive=True)
            return queue.declaration_result.message_count or 0

    async def _opened(self, link: Link) -> Feed:
        """A channel of its own, and RabbitMQ told to push."""
        await self._prepare(link)
        channel = await link.connection.channel(publisher_confirms=False)
        await channel.set_qos(prefetch_count=min(self._subscription.in_flight_max, IN_FLIGHT_MAX))
        queue = await channel.get_queue(self._queue_name)
        feed = Feed(channel, queue)
        await queue.consume(feed.take)
        return feed

    async def _prepare(self, link: Link) -> None:
        """The queue with its bindings, once for each connection."""
        if self._prepared is link:
            return
        await self._declare(link)
        async with link.connection.channel() as channel:
            queue = await channel.get_queue(self._queue_name, ensure=False)
            for each in self._types:
                await queue.bind(link.exchange.name, routing_key=binding_of(each))
        self._prepared = link

    async def _declare(self, link: Link) -> None:
        """The durable queue; one that an operator made otherwise is used as it is. One of this process alone goes with its connection."""
        if not self._durable:
            async with link.connection.channel() as channel:
                await channel.declare_queue(self._queue_name, exclusive=True, auto_delete=True)
            return
        arguments: dict[str, Any] = {
            "x-queue-type": "quorum",
            "x-message-ttl": AGE_MS_MAX,
            "x-delivery-limit": DELIVERIES_MAX,
        }
        try:
            async with link.connection.channel() as channel:
                await channel.declare_queue(self._queue_name, durable=True, arguments=arguments)
        except ChannelPreconditionFailed:
            _log.warning("the queue was made otherwise, and is used as it is", queue=self._queue_name)


def binding_of(pattern: str) -> str:
    """The binding for a filter on types, of whatever service: RabbitMQ's `#` is no word or more, the filter's `>` one or more."""
    words = f"*.{pattern}".split(".")
    return ".".join([*words[:-1], "*", "#"] if words[-1] == ">" else words)


def delivery_of(message: AbstractIncomingMessage) -> Delivery:
    """The event of a message; one that is none gets an id, so that it can be put away. RabbitMQ tells no place."""
    headers = {str(name): _text(value) for name, value in (message.headers or {}).items()}
    found = {name.removeprefix(PREFIX): value for name, value in headers.items() if name.startswith(PREFIX)}
    counted = headers.get("x-delivery-count", "")
    deliveries = int(counted) if counted.isdigit() else int(bool(message.redelivered))
    problem = ""
    try:
        event = event_of_attributes(found, headers.get("traceparent", ""), message.body)
    except PayloadError as error:
        problem = str(error)
        event = CloudEvent(
            event_id=message.message_id or uuid.uuid4().hex,
            type=(message.routing_key or "").partition(".")[2],
            source="",
            subject="",
            time_ms=time.time_ns() // 1_000_000,
            data=message.body,
        )
    return Delivery(event=event, position=0, deliveries=deliveries + 1, handle=message, problem=problem)


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


@asynccontextmanager
async def open_inflow(
    keeper: Keeper[Link], stream: str, service: str, subscription: Subscription
) -> AsyncIterator[RabbitInflow]:
    """A subscription that is closed at the end."""
    inflow = RabbitInflow(keeper, stream, service, subscription)
    try:
        yield inflow
    finally:
        await inflow.close()

"""Subscriptions: pull consumers of JetStream, durable ones shared by all replicas of a service.

A fetch asks for what is there at once (`no_wait`); when that is nothing, it waits for one event and then asks for the rest.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import uuid
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import nats.errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription as Inbox
from nats.js.api import AckPolicy, ConsumerConfig, ConsumerInfo, DeliverPolicy
from nats.js.errors import APIError, NotFoundError

from services.chassis.logs import get_logger
from services.events.bus import BusUnavailableError, Delivery, Start, Subscription
from services.events.cloud_event import CloudEvent, PayloadError, event_of
from services.events.filters import checked
from services.events.nats.connection import ANSWER_S_MAX, QUESTION_S, Connection, Link, SilentError, explained

IDLE_S_MAX: Final = 60.0
"""A consumer of one process is deleted by the server when nobody asked it for so long."""
ANSWER_SPARE_S: Final = 2.0
"""The server ends a fetch by itself; it is given so much more time to say so."""
REWIND_ATTEMPTS_MAX: Final = 10
"""Another replica may make the consumer anew while it is changed."""
HEARTBEAT, NO_MESSAGES, TIMED_OUT = "100", "404", "408"
"""Status headers: still there; nothing there; nothing came in time."""

_log = get_logger("events")


@dataclass(slots=True, eq=False)
class Fetched:
    """What one request to the consumer has brought so far."""

    number: str
    wanted: int
    messages: list[Msg] = field(default_factory=list)
    status: str = ""
    problem: str = ""
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def done(self) -> bool:
        """Whether nothing more comes."""
        return bool(self.status) or len(self.messages) >= self.wanted

    def take(self, message: Msg) -> None:
        """An event."""
        self.messages.append(message)
        if self.done:
            self.changed.set()

    def end(self, status: str, problem: str) -> None:
        """The server's last word."""
        self.status, self.problem = status, problem
        self.changed.set()


class NatsInflow:
    """An open subscription. It finds its consumer again on each new connection."""

    def __init__(self, connection: Connection, service: str, subscription: Subscription) -> None:
        """Raises ValueError for filters that no server would take."""
        self._connection = connection
        self._subscription = subscription
        self._types = checked(subscription.types)
        self._service = service
        self._consumer = f"{service}-{subscription.name or uuid.uuid4().hex}"
        self._start = subscription.start
        """Where the consumer begins when it is made: one of this process alone goes on after what was fetched."""
        self._link: Link | None = None
        self._finding = asyncio.Lock()
        self._stale = False
        """The server's last word was no usual one: the consumer may be gone."""
        self._inbox: Inbox | None = None
        self._prefix = ""
        self._numbers = itertools.count(1)
        self._fetched: Fetched | None = None
        self._late: deque[Msg] = deque()

    async def fetch(self, events_max: int, *, wait_s: float = 5.0) -> Sequence[Delivery]:
        """What is there, at most `events_max`; after `wait_s` nothing. Raises BusUnavailableError."""
        link = await self._ready()
        late = [self._late.popleft() for _ in range(min(events_max, len(self._late)))]
        if late:
            return self._deliveries(late)
        messages = await self._ask(link, events_max, None)
        if not messages:
            messages = await self._ask(link, 1, wait_s)
            if messages and events_max > 1:
                messages += await self._ask(link, events_max - 1, None)
        return self._deliveries(messages)

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        """These are done with."""
        await self._say(deliveries, b"+ACK")

    async def release(self, deliveries: Sequence[Delivery]) -> None:
        """Whoever asks next may have these."""
        await self._say(deliveries, b"-NAK")

    async def working(self, deliveries: Sequence[Delivery]) -> None:
        """These take longer."""
        await self._say(deliveries, b"+WPI")

    async def pending(self) -> int | None:
        """How many events wait, those included that somebody works on."""
        link = await self._ready()
        info = await self._of_server(link, lambda: link.js.consumer_info(link.stream.heard, self._consumer))
        return (info.num_pending or 0) + (info.num_ack_pending or 0)

    async def rewind(self, start: Start) -> None:
        """Make the durable consumer anew, so that it begins there; the others find the new one. Raises BusUnavailableError."""
        link = await self._ready()
        wanted = self._config(link, start)
        for _ in range(REWIND_ATTEMPTS_MAX):
            with suppress(NotFoundError):
                await self._of_server(link, lambda: link.js.delete_consumer(link.stream.heard, self._consumer))
            try:
                info = await link.asked(lambda: link.js.add_consumer(link.stream.heard, wanted))
            except APIError:
                continue  # another replica has made it, with the start of its own
            if _begins_alike(info, wanted):
                return
        raise BusUnavailableError("another replica makes the consumer anew all the time")

    async def close(self) -> None:
        """Leave the durable consumer, delete one that is ours alone."""
        link, self._link = self._link, None
        if link is None or link.closed.is_set():
            return
        with suppress(BusUnavailableError, APIError, nats.errors.Error):
            if self._inbox is not None:
                await self._inbox.unsubscribe()
            if not self._subscription.name:
                await self._of_server(link, lambda: link.js.delete_consumer(link.stream.heard, self._consumer))

    def _deliveries(self, messages: Sequence[Msg]) -> list[Delivery]:
        found = [_delivery(message) for message in messages]
        if found and not self._subscription.name:
            self._start = Start(sequence=max(each.position for each in found) + 1)
        return found

    async def _ready(self) -> Link:
        """The connection, with the consumer and an inbox on it."""
        link = await self._connection.link()
        async with self._finding:
            await self._find(link)
        return link

    async def _find(self, link: Link) -> None:
        if self._link is not link:
            self._late.clear()
            await self._ensure_consumer(link)
            prefix = link.client.new_inbox()
            self._inbox = await link.answered(link.client.subscribe(f"{prefix}.*", cb=self._arrived))
            self._prefix, self._link = prefix, link
        elif self._stale:
            await self._ensure_consumer(link)
        self._stale = False

    async def _ensure_consumer(self, link: Link) -> None:
        """The consumer as it should be. Where it began stays as it was."""
        info = await self._info(link)
        config = self._config(link, self._start) if info is None else self._adapted(link, info)
        if config is None:
            return
        try:
            made = await link.asked(lambda: link.js.add_consumer(link.stream.heard, config))
        except APIError as error:
            raise BusUnavailableError(f"the consumer {self._consumer} cannot be made: {explained(error)}") from error
        if not self._subscription.name and made.delivered is not None:
            self._start = Start(sequence=made.delivered.stream_seq + 1)

    async def _info(self, link: Link) -> ConsumerInfo | None:
        """The consumer as it is; None when it has to be made. Raises BusUnavailableError."""
        durable = bool(self._subscription.name)
        wait_s = ANSWER_S_MAX if durable else QUESTION_S
        try:
            found: ConsumerInfo = await self._of_server(
                link, lambda: link.js.consumer_info(link.stream.heard, self._consumer), wait_s=wait_s
            )
        except NotFoundError:
            return None
        except SilentError:
            if durable:
                raise
            # It is on one server of a cluster only, which may be away; left alone, it is deleted once that is back.
            self._consumer = f"{self._service}-{uuid.uuid4().hex}"
            return None
        return found

    def _adapted(self, link: Link, info: ConsumerInfo) -> ConsumerConfig | None:
        """The configuration with our filters and limits; None when it has them."""
        is_now, wanted = info.config, self._config(link, self._subscription.start)
        assert is_now is not None, "a consumer has a configuration"
        now_filters = is_now.filter_subjects or [is_now.filter_subject or ""]
        same = (
            sorted(now_filters) == sorted(wanted.filter_subjects or [])
            and is_now.max_ack_pending == wanted.max_ack_pending
            and is_now.ack_wait == wanted.ack_wait
        )
        if same:
            return None
        return wanted.evolve(
            deliver_policy=is_now.deliver_policy,
            opt_start_seq=is_now.opt_start_seq,
            opt_start_time=is_now.opt_start_time,
        )

    def _config(self, link: Link, start: Start) -> ConsumerConfig:
        durable = bool(self._subscription.name)
        policy, values = _policy(start)
        return ConsumerConfig(
            name=self._consumer,
            durable_name=self._consumer if durable else None,
            filter_subjects=[f"{link.stream.name}.*.{each}" for each in self._types],
            deliver_policy=policy,
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=self._subscription.answer_s_max,
            max_ack_pending=self._subscription.in_flight_max,
            inactive_threshold=None if durable else IDLE_S_MAX,
            num_replicas=None if durable else 1,
            **values,
        )

    async def _ask(self, link: Link, events_max: int, wait_s: float | None) -> list[Msg]:
        """One request: what is there (None), or what comes within `wait_s`."""
        request: dict[str, Any] = {"batch": events_max}
        if wait_s is None:
            request["no_wait"] = True
        else:
            request["expires"] = int(wait_s * 1_000_000_000)
        fetched = self._fetched = Fetched(str(next(self._numbers)), events_max)
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{link.stream.heard}.{self._consumer}"
        try:
            await link.client.publish(subject, json.dumps(request).encode(), reply=f"{self._prefix}.{fetched.number}")
            async with asyncio.timeout((wait_s or 0.0) + ANSWER_SPARE_S):
                await link.answered(fetched.changed.wait())
        except TimeoutError:
            pass  # what came so far
        except asyncio.CancelledError:
            await self._say([_delivery(message) for message in fetched.messages], b"-NAK")
            raise
        except nats.errors.Error as error:
            raise BusUnavailableError(explained(error)) from error
        finally:
            self._fetched = None
        self._stale = not fetched.done or fetched.status not in ("", NO_MESSAGES, TIMED_OUT)
        if fetched.status not in ("", NO_MESSAGES, TIMED_OUT) and not fetched.messages:
            raise BusUnavailableError(f"the consumer {self._consumer} ended: {fetched.problem or fetched.status}")
        return fetched.messages

    async def _arrived(self, message: Msg) -> None:
        """An event, which bears its own subject, or a word about the request whose number stands in the subject."""
        fetched = self._fetched
        if message.reply and message.reply.startswith("$JS.ACK."):
            if fetched is None or fetched.done:
                self._late.append(
                    message
                )  # asked for by a request that was given up: it is ours, the next fetch has it
            else:
                fetched.take(message)
        elif fetched is not None and message.subject.rpartition(".")[2] == fetched.number:
            headers = message.headers or {}
            if headers.get("Status") != HEARTBEAT:
                fetched.end(headers.get("Status", ""), headers.get("Description", ""))

    async def _say(self, deliveries: Sequence[Delivery], word: bytes) -> None:
        """Tell the server; what it does not hear leads to another delivery."""
        link = self._link
        if link is None:
            return
        with suppress(nats.errors.Error, OSError):
            for delivery in deliveries:
                await link.client.publish(delivery.handle, word)

    async def _of_server(
        self, link: Link, question: Callable[[], Awaitable[Any]], *, wait_s: float = ANSWER_S_MAX
    ) -> Any:
        """What the server answers about the consumer. Raises NotFoundError when there is none, and BusUnavailableError."""
        try:
            return await link.asked(question, wait_s=wait_s)
        except NotFoundError:
            raise
        except APIError as error:
            raise BusUnavailableError(f"the consumer {self._consumer} cannot be used: {explained(error)}") from error


def _policy(start: Start) -> tuple[DeliverPolicy, dict[str, Any]]:
    if start.sequence is not None:
        return DeliverPolicy.BY_START_SEQUENCE, {"opt_start_seq": max(start.sequence, 1)}
    if start.time_ms is not None:
        return DeliverPolicy.BY_START_TIME, {"opt_start_time": datetime.fromtimestamp(start.time_ms / 1_000, tz=UTC)}
    return (DeliverPolicy.NEW if start.new else DeliverPolicy.ALL), {}


def _begins_alike(info: ConsumerInfo, wanted: ConsumerConfig) -> bool:
    config = info.config
    return config is not None and (config.deliver_policy, config.opt_start_seq) == (
        wanted.deliver_policy,
        wanted.opt_start_seq,
    )


def _delivery(message: Msg) -> Delivery:
    """The event of a message; one that is none gets an id by its place in the stream, so that it can be put away."""
    metadata = message.metadata
    position, deliveries = metadata.sequence.stream, metadata.num_delivered
    problem = ""
    try:
        event = event_of(message.headers or {}, message.data)
    except PayloadError as error:
        problem = str(error)
        event = CloudEvent(
            event_id=f"{metadata.stream}-{position}",
            type=message.subject,
            source="",
            subject="",
            time_ms=int(metadata.timestamp.timestamp() * 1_000),
            data=message.data,
        )
    return Delivery(event=event, position=position, deliveries=deliveries, handle=message.reply, problem=problem)


@asynccontextmanager
async def open_inflow(connection: Connection, service: str, subscription: Subscription) -> AsyncIterator[NatsInflow]:
    """A subscription that is closed at the end."""
    inflow = NatsInflow(connection, service, subscription)
    try:
        yield inflow
    finally:
        await inflow.close()

"""Subscriptions: a consumer group for each consumer, which all replicas of a service share. Types are filtered here: Kafka cannot.

A group's positions are committed after the transaction, never by time. Kafka does not count deliveries: that
events after the committed position were handed out is noted beside it (the commit's metadata), so that what ends the process each time
is found out.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, ConsumerRecord, OffsetAndMetadata, TopicPartition
from aiokafka.errors import GroupCoordinatorNotAvailableError, IllegalStateError

from services.events.bus import BusUnavailableError, Delivery, Start, Subscription
from services.events.cloud_event import CloudEvent, PayloadError, event_of_attributes
from services.events.connecting import ANSWER_S_MAX, LOST, Keeper, answer_of
from services.events.filters import checked, matches
from services.events.kafka.connection import ERRORS, Link, explained
from services.events.kafka.groups import Rewinding, Sharing
from services.events.kafka.offsets import Progress
from services.events.kafka.publishing import PREFIX

SESSION_S_MAX: Final = 10.0
"""A replica that is silent for so long is dead to Kafka, and its partitions go to others."""
HANDLING_MS_MAX: Final = 24 * 3_600_000
"""A batch may take as long as the database is away: another replica would find it away, too."""
READ_MAX: Final = 1_000
"""Events read at once from what the client has fetched; most may be of other types."""
LEAVE_S_MAX: Final = 2.0
"""A server that is there answers sooner."""
REWIND_S_MAX: Final = 30.0
"""Until all replicas have given up their partitions."""


@dataclass(frozen=True, slots=True, eq=False)
class Handle:
    """Where a delivery came from. `progress` is the partition's while it is ours: afterwards nothing is said about it any more."""

    partition: TopicPartition
    offset: int
    progress: Progress


class Reader(ConsumerRebalanceListener):  # type: ignore[misc]  # the client carries no types
    """One client of the group, and what it has been given."""

    def __init__(self, link: Link, consumer: AIOKafkaConsumer, group: str, start: Start) -> None:
        self.link = link
        self._group = group
        self.consumer = consumer
        self.progress: dict[TopicPartition, Progress] = {}
        self.began = asyncio.Event()
        self.problem = ""
        self.committing = asyncio.Lock()
        self._start = start

    def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """For the client: what is with handlers is somebody else's now."""
        self.progress = {}

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """For the client, which would only log what is raised here."""
        try:
            self.progress = await self._begin(list(assigned))
        except Exception as error:  # noqa: BLE001  # whatever it is, the next fetch begins anew
            self.problem = explained(error)
        self.began.set()

    async def _begin(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, Progress]:
        """Where to go on; a new group's beginning is committed, so that it stays the same."""
        known = await self.link.admin.list_consumer_group_offsets(self._group, partitions=list(partitions))
        found: dict[TopicPartition, Progress] = {}
        for each, committed in known.items():
            if committed.offset >= 0:  # -1: nothing is committed
                attempts = int(committed.metadata) if committed.metadata.isdigit() else 0
                found[each] = Progress(committed.offset, attempts)
        begins = await offsets_of(self.consumer, [each for each in partitions if each not in found], self._start)
        if begins:
            await self.consumer.commit(begins)
        found |= {each: Progress(offset) for each, offset in begins.items()}
        for each, progress in found.items():
            self.consumer.seek(each, progress.committed)
        return found

    async def note_attempts(self) -> None:
        """Before the first events of a partition are handled: should the process end, whoever is next counts on."""
        fresh = {each: state for each, state in self.progress.items() if state.in_flight and not state.is_noted}
        if fresh:
            await self.consumer.commit(
                {
                    each: OffsetAndMetadata(state.committed, str(state.attempts_before + 1))
                    for each, state in fresh.items()
                }
            )
        for state in fresh.values():
            state.is_noted = True


class KafkaInflow:
    """An open subscription. It joins its group again on each new connection."""

    def __init__(self, keeper: Keeper[Link], topic: str, service: str, subscription: Subscription) -> None:
        """Raises ValueError for filters that no bus would take."""
        self._keeper = keeper
        self._group = f"{topic}.{service}.{subscription.name}"
        self._subscription = subscription
        self._types = checked(subscription.types)
        self._reader: Reader | None = None
        self._opening = asyncio.Lock()

    async def fetch(self, events_max: int, *, wait_s: float = 5.0) -> Sequence[Delivery]:
        """What is there, at most `events_max`; after `wait_s` nothing. Raises BusUnavailableError."""
        reader = await self._ready()
        loop = asyncio.get_running_loop()
        until_s = loop.time() + wait_s
        while True:
            left_s = max(0.0, until_s - loop.time())
            records = await self._read(reader, min(events_max, READ_MAX), left_s)
            deliveries = [each for record in records if (each := self._delivery(reader, record))]
            await self._commit(reader)
            if deliveries or (not records and left_s == 0.0):
                return deliveries

    async def _read(self, reader: Reader, events_max: int, wait_s: float) -> list[ConsumerRecord[Any, Any]]:
        if reader.link.closed.is_set() or reader.problem:
            await self.close()
            raise BusUnavailableError(reader.problem or LOST)
        try:
            found = await reader.consumer.getmany(timeout_ms=int(wait_s * 1_000), max_records=events_max)
        except ERRORS as error:
            await self.close()
            raise BusUnavailableError(explained(error)) from error
        return [record for records in found.values() for record in records]

    def _delivery(self, reader: Reader, record: ConsumerRecord[Any, Any]) -> Delivery | None:
        """None for what is of other types, or not ours any more."""
        partition = TopicPartition(record.topic, record.partition)
        progress = reader.progress.get(partition)
        if progress is None:
            return None
        event, problem = read_event(record)
        if not problem and not any(matches(each, event.type) for each in self._types):
            progress.skipped(record.offset)
            return None
        deliveries = progress.delivered(record.offset)
        handle = Handle(partition, record.offset, progress)
        return Delivery(event=event, position=record.offset + 1, deliveries=deliveries, handle=handle, problem=problem)

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        """These are done with."""
        for delivery in deliveries:
            delivery.handle.progress.done(delivery.handle.offset)
        if self._reader is not None:
            await self._commit(self._reader)

    async def release(self, deliveries: Sequence[Delivery]) -> None:
        """Read again from the first of them on in each partition; others of it may then come twice."""
        reader = self._reader
        first: dict[TopicPartition, Handle] = {}
        for handle in (each.handle for each in deliveries):
            if handle.partition not in first or handle.offset < first[handle.partition].offset:
                first[handle.partition] = handle
        for partition, handle in first.items():
            if reader is not None and reader.progress.get(partition) is handle.progress:
                handle.progress.back_to(handle.offset)
                with suppress(IllegalStateError, *ERRORS):
                    reader.consumer.seek(partition, handle.offset)

    async def working(self, deliveries: Sequence[Delivery]) -> None:
        """Nothing to say: the client tells Kafka that it lives, and what a living replica has nobody else gets."""

    async def pending(self) -> int | None:
        """How many events lie behind the group's positions, those of other types included. Raises BusUnavailableError."""
        link = await self._keeper.link()
        if not self._subscription.name:
            return await self._own_pending(await self._ready())
        committed = await link.answered(self._committed(link))
        if committed is None:
            await self._ready()
            committed = await link.answered(self._committed(link))
        ends = await link.answered(self._ends(link))
        return sum(max(0, end - (committed or {}).get(each, 0)) for each, end in ends.items())

    async def _own_pending(self, reader: Reader) -> int:
        ends = await reader.link.answered(reader.consumer.end_offsets(list(reader.progress)))
        return sum(
            max(0, end - reader.progress[each].position) for each, end in ends.items() if each in reader.progress
        )

    async def _committed(self, link: Link) -> dict[TopicPartition, int] | None:
        """The group's positions; None while it has none."""
        try:
            found = await link.admin.list_consumer_group_offsets(self._group)
        except GroupCoordinatorNotAvailableError:  # the first group of a new server
            return None
        return {each: offset.offset for each, offset in found.items()} or None

    async def _ends(self, link: Link) -> dict[TopicPartition, int]:
        async with client(link) as consumer:
            ends: dict[TopicPartition, int] = await consumer.end_offsets(await partitions_of(link))
            return ends

    async def rewind(self, start: Start) -> None:
        """Take all partitions from the replicas, commit the new positions, and give them back. Raises BusUnavailableError."""
        link = await self._keeper.link()
        await self.close()
        try:
            await answer_of(self._rewind(link, start), link.closed, wait_s=REWIND_S_MAX)
        except ERRORS as error:
            raise BusUnavailableError(explained(error)) from error

    async def _rewind(self, link: Link, start: Start) -> None:
        consumer = self._consumer(link, Rewinding)
        reader = Reader(link, consumer, self._group, start)
        consumer.subscribe([link.server.topic], listener=reader)
        try:
            await consumer.start()
            wanted = await partitions_of(link)
            while set(reader.progress) != set(wanted):  # the others are asked to let go
                reader.began.clear()
                await reader.began.wait()
            await consumer.commit(await offsets_of(consumer, wanted, start))
        finally:
            await leave(consumer)

    async def close(self) -> None:
        """Leave the group: others get the partitions at once."""
        reader, self._reader = self._reader, None
        if reader is not None:
            await leave(reader.consumer)

    async def _ready(self) -> Reader:
        link = await self._keeper.link()
        async with self._opening:
            if self._reader is None or self._reader.link is not link:
                await self.close()
                try:
                    self._reader = await answer_of(self._open(link), link.closed)
                except ERRORS as error:
                    raise BusUnavailableError(
                        f"the topic {link.server.topic} cannot be read: {explained(error)}"
                    ) from error
            return self._reader

    async def _open(self, link: Link) -> Reader:
        consumer = self._consumer(link, Sharing)
        reader = Reader(link, consumer, self._group, self._subscription.start)
        try:
            if self._subscription.name:
                consumer.subscribe([link.server.topic], listener=reader)
                await consumer.start()
                await reader.began.wait()
            else:
                partitions = await partitions_of(link)
                consumer.assign(partitions)
                await consumer.start()
                for each, offset in (await offsets_of(consumer, partitions, self._subscription.start)).items():
                    consumer.seek(each, offset)
                    reader.progress[each] = Progress(offset)
        except BaseException:
            await leave(consumer)
            raise
        return reader

    def _consumer(self, link: Link, sharing: type[Sharing]) -> AIOKafkaConsumer:
        session_ms = int(min(self._subscription.answer_s_max, SESSION_S_MAX) * 1_000)
        return AIOKafkaConsumer(
            **link.server.client(),
            group_id=self._group if self._subscription.name else None,
            request_timeout_ms=int(ANSWER_S_MAX * 1_000),
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            partition_assignment_strategy=(sharing,),
            session_timeout_ms=session_ms,
            heartbeat_interval_ms=session_ms // 4,
            max_poll_interval_ms=HANDLING_MS_MAX,
            rebalance_timeout_ms=session_ms,
        )

    async def _commit(self, reader: Reader) -> None:
        """Tell Kafka how far all partitions are done with. What it does not hear leads to another delivery."""
        if not self._subscription.name:
            return
        async with reader.committing:
            with suppress(IllegalStateError, BusUnavailableError, *ERRORS):
                await answer_of(reader.note_attempts(), reader.link.closed)
            moved = {
                each: progress for each, progress in reader.progress.items() if progress.position > progress.committed
            }
            positions = {each: progress.position for each, progress in moved.items()}
            if not positions:
                return
            with suppress(IllegalStateError, BusUnavailableError, *ERRORS):
                await answer_of(reader.consumer.commit(positions), reader.link.closed)
                for each, progress in moved.items():
                    progress.committed = positions[each]


_leaving: set[asyncio.Task[None]] = set()
"""Kept, so that they come to their end."""


async def leave(consumer: AIOKafkaConsumer) -> None:
    """Stop it, and wait a moment. It is not cut short: half stopped, it would stay in its group, and keep partitions from others."""
    stopping = asyncio.create_task(consumer.stop(), name="consumer leaves")
    _leaving.add(stopping)
    stopping.add_done_callback(_left)
    await asyncio.wait((stopping,), timeout=LEAVE_S_MAX)


def _left(stopping: asyncio.Task[None]) -> None:
    _leaving.discard(stopping)
    if not stopping.cancelled():
        stopping.exception()  # a server that is away: the group does without this member soon


@asynccontextmanager
async def client(link: Link) -> AsyncIterator[AIOKafkaConsumer]:
    """One that belongs to no group, for a question."""
    consumer = AIOKafkaConsumer(**link.server.client(), enable_auto_commit=False)
    try:
        await consumer.start()
        yield consumer
    finally:
        await consumer.stop()


async def partitions_of(link: Link) -> list[TopicPartition]:
    """All of the mesh's topic."""
    topic = link.server.topic
    return [TopicPartition(topic, number) for number in sorted(await link.producer.partitions_for(topic))]


async def offsets_of(
    consumer: AIOKafkaConsumer, partitions: Sequence[TopicPartition], start: Start
) -> dict[TopicPartition, int]:
    """Where to begin. `sequence` is a place in each partition alike: they have no common one."""
    if not partitions:
        return {}
    begins: dict[TopicPartition, int] = await consumer.beginning_offsets(partitions)
    ends: dict[TopicPartition, int] = await consumer.end_offsets(partitions)
    if start.sequence is not None:
        return {each: min(max(start.sequence - 1, begins[each]), ends[each]) for each in partitions}
    if start.time_ms is not None:
        found = await consumer.offsets_for_times(dict.fromkeys(partitions, start.time_ms))
        return {each: found[each].offset if found.get(each) else ends[each] for each in partitions}
    return ends if start.new else begins


def read_event(record: ConsumerRecord[Any, Any]) -> tuple[CloudEvent, str]:
    """The event of a record; what is none gets an id by its place, so that it can be put away, and the reason."""
    headers = {str(name): bytes(value or b"").decode(errors="replace") for name, value in record.headers}
    attributes = {name.removeprefix(PREFIX): value for name, value in headers.items() if name.startswith(PREFIX)}
    data = record.value or b""
    try:
        return event_of_attributes(attributes, headers.get("traceparent", ""), data), ""
    except PayloadError as error:
        event = CloudEvent(
            event_id=f"{record.topic}-{record.partition}-{record.offset}",
            type=attributes.get("type", ""),
            source="",
            subject="",
            time_ms=record.timestamp,
            data=data,
        )
        return event, str(error)


@asynccontextmanager
async def open_inflow(
    keeper: Keeper[Link], topic: str, service: str, subscription: Subscription
) -> AsyncIterator[KafkaInflow]:
    """A subscription that is closed at the end."""
    inflow = KafkaInflow(keeper, topic, service, subscription)
    try:
        yield inflow
    finally:
        await inflow.close()

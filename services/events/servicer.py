"""EventService: what operators see of a service's events, and do about them.

    add_event_service(app, events, await PageTokens.open(database))

A service's access table has `**EVENT_ACCESS`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import grpc.aio
from google.protobuf.timestamp_pb2 import Timestamp

from nipmesh.operations.v1 import event_service_pb2 as pb
from nipmesh.operations.v1.event_service_pb2_grpc import EventServiceServicer, add_EventServiceServicer_to_server
from services.chassis.caller import Access, require_operator
from services.chassis.errors import Reason, not_found, precondition_failed, unavailable
from services.chassis.service import Application
from services.events.bus import BusUnavailableError, EventBus, RewindError, Start
from services.events.operations import (
    ConsumerStatus,
    DeadLetter,
    OutboxStatus,
    UnknownConsumerError,
    consumer_pending,
    discard_dead_letters,
    list_consumers,
    list_dead_letters,
    outbox_status,
    replay_consumer,
    replay_outbox,
)
from services.events.runtime import Events
from services.storage.pages import PageTokens

_PREFIX: Final = "/nipmesh.operations.v1.EventService/"
_METHODS: Final = (
    *("GetEventStatus", "ListDeadLetters", "ReplayDeadLetters", "DiscardDeadLetters"),
    *("ReplayOutbox", "ReplayConsumer"),
)
EVENT_ACCESS: Final[Mapping[str, Access]] = {_PREFIX + method: Access.OPERATOR for method in _METHODS}
"""Who may call what."""
MS_PER_S: Final = 1_000
NANOS_PER_MS: Final = 1_000_000

Context = grpc.aio.ServicerContext[Any, Any]


class EventServicer(EventServiceServicer):
    """Reads, renders, hands on."""

    def __init__(self, events: Events, tokens: PageTokens) -> None:
        self._events = events
        self._database = events.database
        self._tokens = tokens

    async def GetEventStatus(self, request: pb.GetEventStatusRequest, context: Context) -> pb.GetEventStatusResponse:
        """The outbox, the bus and the consumers."""
        require_operator()
        bus = self._events.bus
        consumers = await list_consumers(self._database)
        pending = {each.name: await _pending(bus, each) for each in consumers}
        return pb.GetEventStatusResponse(
            outbox=outbox_message(await outbox_status(self._database)),
            bus=bus_message(bus),
            consumers=[consumer_message(each, pending[each.name]) for each in consumers],
        )

    async def ListDeadLetters(self, request: pb.ListDeadLettersRequest, context: Context) -> pb.ListDeadLettersResponse:
        """Events that could not be handled."""
        require_operator()
        page = self._tokens.page(request)
        after = int(page.after[0]) if page.after else 0
        letters = await list_dead_letters(
            self._database, consumer=request.consumer, after_number=after, limit=page.size + 1
        )
        shown = letters[: page.size]
        response = pb.ListDeadLettersResponse(dead_letters=[letter_message(each) for each in shown])
        if len(letters) > len(shown):
            response.next_page_token = self._tokens.next(request, (shown[-1].number,))
        return response

    async def ReplayDeadLetters(
        self, request: pb.ReplayDeadLettersRequest, context: Context
    ) -> pb.ReplayDeadLettersResponse:
        """Have them tried again."""
        require_operator()
        numbers = _numbers(request.numbers)
        count = await self._events.replay_dead_letters(consumer=request.consumer, numbers=numbers)
        return pb.ReplayDeadLettersResponse(count=count)

    async def DiscardDeadLetters(
        self, request: pb.DiscardDeadLettersRequest, context: Context
    ) -> pb.DiscardDeadLettersResponse:
        """Delete them."""
        require_operator()
        numbers = _numbers(request.numbers)
        count = await discard_dead_letters(self._database, consumer=request.consumer, numbers=numbers)
        return pb.DiscardDeadLettersResponse(count=count)

    async def ReplayOutbox(self, request: pb.ReplayOutboxRequest, context: Context) -> pb.ReplayOutboxResponse:
        """Publish again."""
        require_operator()
        after, to = await replay_outbox(
            self._database,
            after_sequence=request.after_sequence if request.HasField("after_sequence") else None,
            from_time_ms=_milliseconds(request.time) if request.HasField("time") else None,
        )
        return pb.ReplayOutboxResponse(after_sequence=after, to_sequence=to)

    async def ReplayConsumer(self, request: pb.ReplayConsumerRequest, context: Context) -> pb.ReplayConsumerResponse:
        """Read again."""
        require_operator()
        bus = self._events.bus
        if bus is None:
            message = "the service has no event bus (NIPMESH_EVENTS_URL)"
            raise precondition_failed(Reason.CONSUMER_CANNOT_REWIND, message, subject="consumer")
        start = Start(
            sequence=request.position if request.HasField("position") else None,
            time_ms=_milliseconds(request.time) if request.HasField("time") else None,
        )
        try:
            await replay_consumer(self._database, bus, request.consumer, start, again=request.again)
        except UnknownConsumerError as error:
            raise not_found(Reason.CONSUMER_NOT_FOUND, "consumer") from error
        except RewindError as error:
            raise precondition_failed(Reason.CONSUMER_CANNOT_REWIND, str(error), subject="consumer") from error
        except BusUnavailableError as error:
            raise unavailable("the event bus does not answer") from error
        return pb.ReplayConsumerResponse()


def add_event_service(app: Application[Any], events: Events, tokens: PageTokens) -> None:
    """Serve it."""
    descriptor = pb.DESCRIPTOR.services_by_name["EventService"]
    app.add(add_EventServiceServicer_to_server, EventServicer(events, tokens), descriptor)


def outbox_message(status: OutboxStatus) -> pb.Outbox:
    """The outbox on the wire."""
    return pb.Outbox(
        oldest_sequence=status.oldest_sequence,
        newest_sequence=status.newest_sequence,
        published_sequence=status.published_sequence,
        behind=status.behind,
        behind_since_time=_timestamp(status.behind_since_ms),
        leader=status.leader,
        replay_after_sequence=status.replay_after_sequence,
        replay_to_sequence=status.replay_to_sequence,
        rejected=status.rejected,
    )


def bus_message(bus: EventBus | None) -> pb.Bus:
    """The bus as this replica sees it."""
    if bus is None:
        return pb.Bus()
    health = bus.health()
    return pb.Bus(connected=health.connected, server=health.server, error=health.error)


def consumer_message(status: ConsumerStatus, pending: int | None) -> pb.Consumer:
    """One consumer on the wire."""
    return pb.Consumer(
        name=status.name,
        types=status.types,
        handled=status.handled,
        handled_time=_timestamp(status.handled_time_ms),
        pending=pending,
        retrying=status.retrying,
        dead=status.dead,
    )


def letter_message(letter: DeadLetter) -> pb.DeadLetter:
    """One dead letter on the wire."""
    event = letter.event
    return pb.DeadLetter(
        number=letter.number,
        consumer=letter.consumer,
        event_id=event.event_id,
        type=event.type,
        source=event.source,
        subject=event.subject,
        schema=event.schema,
        data=event.data,
        time=_timestamp(event.time_ms),
        position=letter.position,
        attempts=letter.attempts,
        reason=letter.reason.value,
        error=letter.error,
        create_time=_timestamp(letter.create_time_ms),
        update_time=_timestamp(letter.update_time_ms),
    )


async def _pending(bus: EventBus | None, consumer: ConsumerStatus) -> int | None:
    """How many events wait for it; None while the bus does not tell."""
    if bus is None or not bus.health().connected:
        return None
    try:
        return await consumer_pending(bus, consumer)
    except BusUnavailableError:
        return None


def _numbers(numbers: Sequence[int]) -> list[int] | None:
    return list(numbers) or None


def _milliseconds(time: Timestamp) -> int:
    return time.seconds * MS_PER_S + time.nanos // NANOS_PER_MS


def _timestamp(time_ms: int | None) -> Timestamp | None:
    if time_ms is None:
        return None
    return Timestamp(seconds=time_ms // MS_PER_S, nanos=time_ms % MS_PER_S * NANOS_PER_MS)

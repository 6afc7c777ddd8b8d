"""Request and reply over events, with a time limit.

    async with open_asker(bus, source=settings.spiffe_id, answers=["nipmesh.nip.v1.signed"]) as asker:
        answer = await asker.ask(type="nipmesh.nip.v1.signature_requested", message=..., timeout_s=5.0)

    app.spawn(run_answerer(database, bus, name="sign", types=["nipmesh.nip.v1.signature_requested"], handle=sign), name="sign")
    def sign(connection: Connection, event: CloudEvent) -> Answer: ...

A request is an event with the attribute `expirytime`; its answer is one whose subject is the request's id. The answer goes to the outbox
in the transaction that records the request as received: each is answered once, and none twice. An answer that comes too late is for
nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn

from google.protobuf.message import Message

from services.events.bus import NEW, BusUnavailableError, EventBus, Inflow, Subscription
from services.events.cloud_event import CloudEvent, PayloadError, time_ms_of, time_text
from services.events.consumer import ConsumerTerms, Handle, run_consumer
from services.events.metrics import ConsumerMetrics
from services.storage.database import Database
from services.storage.events import append_event, current_traceparent
from services.storage.sql import Connection

EXPIRY: Final = "expirytime"
"""CloudEvents' documented extension of that name."""
ASKED_MAX: Final = 4_096
"""Requests that may wait for their answers at once; more are refused."""
TIMEOUT_S_MAX: Final = 3_600.0
"""Who waits longer than an hour wants two events, and no answer."""
PAUSE_S: Final = 0.2
"""Pause before the subscription is tried again."""


class AnswerTimeoutError(Exception):
    """No answer came in time. Whether the request had an effect is not known; a late answer is discarded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a handler answers: goes to the outbox in the transaction of its effect."""

    type: str
    message: Message


class Asker:
    """Asks, and waits. Each process has its own subscription to the answers."""

    def __init__(self, bus: EventBus, source: str, inflow: Inflow) -> None:
        """For `open_asker`."""
        self._bus = bus
        self._source = source
        self._inflow = inflow
        self._waiting: dict[str, asyncio.Future[CloudEvent]] = {}

    async def ask(self, *, type: str, message: Message, timeout_s: float, subject: str = "") -> CloudEvent:  # noqa: A002
        """Publish a request and return its answer. Raises AnswerTimeoutError, and BusUnavailableError: it may have been sent then, too."""
        if not 0.0 < timeout_s <= TIMEOUT_S_MAX:
            raise ValueError(f"a request waits for 0 to {TIMEOUT_S_MAX:g} s")
        if len(self._waiting) >= ASKED_MAX:
            raise BusUnavailableError("too many requests wait for their answers")
        event = self._request(type, message, timeout_s, subject)
        answer: asyncio.Future[CloudEvent] = asyncio.get_running_loop().create_future()
        self._waiting[event.event_id] = answer
        try:
            async with asyncio.timeout(timeout_s):
                await self._inflow.pending()  # whoever asks must hear the answer: the subscription is there
                await self._bus.publish_batch([event])
                return await answer
        except TimeoutError:
            raise AnswerTimeoutError(f"{type}: no answer within {timeout_s:g} s") from None
        finally:
            del self._waiting[event.event_id]

    def _request(self, kind: str, message: Message, timeout_s: float, subject: str) -> CloudEvent:
        now_ms = time.time_ns() // 1_000_000
        return CloudEvent(
            event_id=str(uuid.uuid4()),
            type=kind,
            source=self._source,
            subject=subject,
            time_ms=now_ms,
            data=message.SerializeToString(),
            schema=message.DESCRIPTOR.full_name,
            traceparent=current_traceparent(),
            extensions=((EXPIRY, time_text(now_ms + int(timeout_s * 1_000))),),
        )

    async def listen(self) -> NoReturn:
        """Hand answers to whoever waits, for ever; all others are other processes', or late."""
        while True:
            try:
                deliveries = await self._inflow.fetch(256)
            except BusUnavailableError:
                await asyncio.sleep(PAUSE_S)
                continue
            for delivery in deliveries:
                answer = self._waiting.get(delivery.event.subject)
                if answer is not None and not answer.done():
                    answer.set_result(delivery.event)
            await self._inflow.ack(deliveries)


@contextlib.asynccontextmanager
async def open_asker(bus: EventBus, *, source: str, answers: Sequence[str]) -> AsyncIterator[Asker]:
    """An asker that hears answers of these types. `source` is the SPIFFE id of this service."""
    async with bus.subscribe(Subscription(name="", types=tuple(answers), start=NEW)) as inflow:
        asker = Asker(bus, source, inflow)
        listening = asyncio.create_task(asker.listen(), name="answers")
        try:
            yield asker
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)


async def run_answerer(
    database: Database,
    bus: EventBus,
    *,
    name: str,
    types: Sequence[str],
    handle: Callable[[Connection, CloudEvent], Answer],
    terms: ConsumerTerms | None = None,
    metrics: ConsumerMetrics | None = None,
) -> NoReturn:
    """Answer each request once, for ever: `app.spawn(run_answerer(...), name=name)`. One whose time is over is not answered.

    The outbox relay of this service must run: it publishes the answers.
    """
    await run_consumer(database, bus, name=name, types=types, handle=answering(handle), terms=terms, metrics=metrics)


def answering(handle: Callable[[Connection, CloudEvent], Answer]) -> Handle:
    """A consumer's handler that records the answer of `handle` in the outbox."""

    def answer(connection: Connection, event: CloudEvent) -> None:
        if not is_expired(event):
            found = handle(connection, event)
            append_event(connection, kind=found.type, subject=event.event_id, payload=found.message.SerializeToString())

    return answer


def is_expired(event: CloudEvent) -> bool:
    """Whether nobody waits for the answer any more. Raises PayloadError for a request without a time limit."""
    limit = event.extension(EXPIRY)
    if not limit:
        raise PayloadError("the request says no expirytime")
    return time_ms_of(limit) <= time.time_ns() // 1_000_000

"""Publishing to RabbitMQ with publisher confirms: an event is confirmed once every queue that wants it has it on disk.

CloudEvents over AMQP: https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/amqp-protocol-binding.md
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from aio_pika import DeliveryMode, Message

from services.events.bus import BusUnavailableError, Receipt, Rejection
from services.events.cloud_event import CONTENT_TYPE, CloudEvent, attributes_of
from services.events.filters import is_type
from services.events.rabbitmq.connection import ERRORS, Link, explained

PREFIX: Final = "cloudEvents:"
"""Before the name of each attribute among the headers; the content type is a property of the message."""
BATCH_EVENTS_MAX: Final = 256
"""Events on their way at once; the next are sent when all of them are confirmed."""
MESSAGE_BYTES_MAX: Final = 1024**2
"""The same as with the other brokers, so that an event that one takes all take; RabbitMQ's own limit is 16 MiB or more."""


def message_of(event: CloudEvent) -> Message:
    """`message_id` is the event's id, for whoever looks at a queue."""
    headers = {f"{PREFIX}{name}": value for name, value in attributes_of(event).items()}
    if event.traceparent:
        headers["traceparent"] = event.traceparent
    return Message(
        event.data,
        headers=dict(headers),
        content_type=CONTENT_TYPE,
        delivery_mode=DeliveryMode.PERSISTENT,
        message_id=event.event_id,
        type=event.type,
        timestamp=datetime.fromtimestamp(event.time_ms / 1_000, tz=UTC),
    )


async def publish(link: Link, service: str, events: Sequence[CloudEvent]) -> Receipt:
    """All of them, in order, on disk in every queue. Raises BusUnavailableError."""
    rejections = []
    fit = []
    for event in events:
        reason = _refusal(event)
        if reason:
            rejections.append(Rejection(event_id=event.event_id, reason=reason))
        else:
            fit.append(event)
    for start in range(0, len(fit), BATCH_EVENTS_MAX):
        await link.answered(_send(link, service, fit[start : start + BATCH_EVENTS_MAX]))
    return Receipt(rejections=tuple(rejections))


def _refusal(event: CloudEvent) -> str:
    """Why the bus will never take it; empty as a rule."""
    if not is_type(event.type):
        return "its type cannot be part of a routing key"
    if len(event.data) > MESSAGE_BYTES_MAX:
        return f"it is larger than {MESSAGE_BYTES_MAX} bytes"
    return ""


async def _send(link: Link, service: str, events: Sequence[CloudEvent]) -> None:
    """Sent in order (tasks start in the order in which they were made, and wait in a fair queue); all confirmed at the end."""
    sending = [
        asyncio.create_task(
            link.exchange.publish(message_of(event), routing_key=f"{service}.{event.type}", mandatory=False)
        )
        for event in events
    ]
    try:
        await asyncio.gather(*sending)
    except ERRORS as error:
        raise BusUnavailableError(explained(error)) from error
    finally:
        for each in sending:
            each.cancel()
        await asyncio.gather(*sending, return_exceptions=True)

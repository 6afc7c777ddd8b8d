"""Publishing to Kafka: an idempotent producer, acknowledged by all replicas in sync; events of one subject share a partition.

CloudEvents over Kafka: https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/kafka-protocol-binding.md
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from services.events.bus import BusUnavailableError, Receipt, Rejection
from services.events.cloud_event import CONTENT_TYPE, CloudEvent, attributes_of
from services.events.filters import is_type
from services.events.kafka.connection import ERRORS, HEADER_BYTES_MAX, MESSAGE_BYTES_MAX, Link, explained

PREFIX: Final = "ce_"
"""Before the name of each attribute among the headers; the content type is a header of its own."""


def record_headers(event: CloudEvent) -> list[tuple[str, bytes]]:
    """The attributes as Kafka has them: UTF-8, nothing percent-encoded."""
    headers = [(f"{PREFIX}{name}", value.encode()) for name, value in attributes_of(event).items()]
    headers.append(("content-type", CONTENT_TYPE.encode()))
    if event.traceparent:
        headers.append(("traceparent", event.traceparent.encode()))
    return headers


async def publish(link: Link, events: Sequence[CloudEvent]) -> Receipt:
    """All of them, each subject in order, on disk. Raises BusUnavailableError; the link is over then.

    What the client still holds when one of them fails must not come before it: so the client is given up, and all are sent again.
    """
    rejections = [
        Rejection(event_id=event.event_id, reason=reason) for event in events for reason in [_refusal(event)] if reason
    ]
    refused = {each.event_id for each in rejections}
    try:
        await link.answered(_send(link, [each for each in events if each.event_id not in refused]))
    except BusUnavailableError:
        link.closed.set()
        raise
    return Receipt(rejections=tuple(rejections))


def _refusal(event: CloudEvent) -> str:
    """Why the bus will never take it; empty as a rule."""
    if not is_type(event.type):
        return "its type cannot be part of a subject"
    if len(event.data) > MESSAGE_BYTES_MAX:
        return f"it is larger than {MESSAGE_BYTES_MAX} bytes"
    if sum(len(name) + len(value) for name, value in record_headers(event)) > HEADER_BYTES_MAX // 2:
        return f"its attributes are larger than {HEADER_BYTES_MAX // 2} bytes"
    return ""


async def _send(link: Link, events: Sequence[CloudEvent]) -> None:
    topic = link.server.topic
    sent: list[asyncio.Future[object]] = []
    try:
        for event in events:
            key = (event.subject or event.event_id).encode()
            sent.append(await link.producer.send(topic, event.data, key=key, headers=record_headers(event)))
        await asyncio.gather(*sent)
    except ERRORS as error:
        raise BusUnavailableError(explained(error)) from error
    finally:
        await asyncio.gather(*(each for each in sent if each.done()), return_exceptions=True)

"""Publishing to JetStream: atomic batches, one acknowledgement each; event by event where the server refuses a batch.

A batch is told by headers: https://github.com/nats-io/nats-architecture-and-design/blob/main/adr/ADR-50.md
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import nats.errors
from nats.js.api import PubAck
from nats.js.errors import APIError

from services.events.bus import BusUnavailableError, Receipt, Rejection
from services.events.cloud_event import CloudEvent, headers_of
from services.events.filters import is_type
from services.events.nats.connection import Link, explained
from services.events.nats.sending import header_block

BATCH_EVENTS_MAX: Final = 256
"""Events of an atomic batch: they share one sync of the server; it takes 1,000 at most and holds them in memory."""
BATCH_BYTES_MAX: Final = 4 * 1024**2
"""And so many bytes."""
MESSAGE_TOO_LARGE: Final = 10054
"""The server's code for a message above the stream's max_msg_size: it will never take that one."""
HEADERS_USUAL: Final = 8_192
"""More than the headers of any event take, but for its subject."""
HEADER_BYTES_SPARE: Final = 128
"""What the batch's own headers add to a message."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """An event as a message."""

    event_id: str
    subject: str
    data: bytes
    headers: dict[str, str]

    def may_exceed(self, bytes_max: int) -> bool:
        """False for nearly all, at little cost."""
        return len(self.data) + len(self.subject) + len(self.headers.get("ce-subject", "")) + HEADERS_USUAL > bytes_max

    @property
    def bytes_count(self) -> int:
        """Of the message, headers included, as the server counts it."""
        headers = sum(len(name) + len(value) + 4 for name, value in self.headers.items())
        return len(self.data) + headers + HEADER_BYTES_SPARE


def message_of(event: CloudEvent, stream: str, service: str) -> Outgoing:
    """`Nats-Msg-Id` is the event's id: the server drops what comes again."""
    headers = headers_of(event)
    headers["Nats-Msg-Id"] = headers["ce-id"]
    return Outgoing(event.event_id, f"{stream}.{service}.{event.type}", event.data, headers)


async def publish(link: Link, service: str, events: Sequence[CloudEvent]) -> Receipt:
    """All of them, in order, on disk. Raises BusUnavailableError.

    While the server writes one batch the next is sent, but for its last message, which commits it: that waits for the answer to the one
    before, so that the order holds.
    """
    rejections: list[Rejection] = []
    position = duplicates = 0
    committing: asyncio.Task[Receipt] | None = None
    try:
        for batch in _batches(_acceptable(link, service, events, rejections)):
            staged = await _stage(link, batch)
            if committing is not None:
                done = await committing
                position, duplicates = max(position, done.position), duplicates + done.duplicates
                rejections += done.rejections
            committing = asyncio.create_task(_commit(link, batch, staged))
        if committing is not None:
            done = await committing
            position, duplicates = max(position, done.position), duplicates + done.duplicates
            rejections += done.rejections
    finally:
        if committing is not None and not committing.done():
            committing.cancel()
            await asyncio.gather(committing, return_exceptions=True)
    return Receipt(rejections=tuple(rejections), duplicates=duplicates, position=position)


def _acceptable(
    link: Link, service: str, events: Sequence[CloudEvent], rejections: list[Rejection]
) -> Iterator[Outgoing]:
    """What can be sent; what no server would take (it would end the connection instead) is added to `rejections`."""
    bytes_max = min(link.client.max_payload, link.stream.message_bytes_max)
    for event in events:
        message = message_of(event, link.stream.name, service)
        if not is_type(event.type):
            rejections.append(Rejection(event_id=event.event_id, reason="its type cannot be part of a subject"))
        elif message.may_exceed(bytes_max) and message.bytes_count > bytes_max:
            rejections.append(Rejection(event_id=event.event_id, reason=f"it is larger than {bytes_max} bytes"))
        else:
            yield message


def _batches(messages: Iterable[Outgoing]) -> Iterator[list[Outgoing]]:
    batch: list[Outgoing] = []
    size = 0
    for message in messages:
        if batch and (len(batch) == BATCH_EVENTS_MAX or size + len(message.data) > BATCH_BYTES_MAX):
            yield batch
            batch, size = [], 0
        batch.append(message)
        size += len(message.data)
    if batch:
        yield batch


async def _stage(link: Link, batch: Sequence[Outgoing]) -> str:
    """Send all of a batch but the last message; its id. Empty when it cannot be one. Raises BusUnavailableError."""
    if not link.stream.atomic or len(batch) == 1:
        return ""
    batch_id = uuid.uuid4().hex
    try:
        await link.client.send(_staged(batch[:-1], batch_id))
    except (nats.errors.Error, OSError) as error:
        raise BusUnavailableError(explained(error)) from error
    return batch_id


def _staged(messages: Sequence[Outgoing], batch_id: str) -> Iterator[tuple[str, bytes, bytes]]:
    for number, message in enumerate(messages, start=1):
        message.headers["Nats-Batch-Id"] = batch_id
        message.headers["Nats-Batch-Sequence"] = str(number)
        yield message.subject, header_block(message.headers), message.data


async def _commit(link: Link, batch: Sequence[Outgoing], batch_id: str) -> Receipt:
    """The last message of a batch, whose answer comes once all are on disk.

    Event by event where the stream takes no batches, or refuses this one: for a duplicate in it, as a rule.
    """
    if batch_id:
        last = batch[-1]
        headers = {
            **last.headers,
            "Nats-Batch-Id": batch_id,
            "Nats-Batch-Sequence": str(len(batch)),
            "Nats-Batch-Commit": "1",
        }
        request = link.client.request(last.subject, last.data, timeout=_LONG_S, headers=headers)
        answer: dict[str, Any] = json.loads((await link.answered(request)).data)
        if "error" not in answer:
            return Receipt(position=int(answer["seq"]))
    for message in batch:
        message.headers.pop("Nats-Batch-Id", None)
        message.headers.pop("Nats-Batch-Sequence", None)
    return await _publish_singly(link, batch)


_LONG_S: Final = 60.0
"""Longer than `Link.answered` waits: that decides."""


async def _publish_singly(link: Link, batch: Sequence[Outgoing]) -> Receipt:
    """In order, each with an answer of its own; all are sent before the first answer is awaited."""
    outcomes = await link.answered(_send_singly(link, batch))
    position = duplicates = 0
    rejections = []
    for message, outcome in zip(batch, outcomes, strict=True):
        if isinstance(outcome, PubAck):
            position = max(position, outcome.seq)
            duplicates += bool(outcome.duplicate)
        elif isinstance(outcome, APIError) and outcome.err_code == MESSAGE_TOO_LARGE:
            rejections.append(Rejection(event_id=message.event_id, reason="it is larger than the stream takes"))
        else:
            raise BusUnavailableError(explained(outcome)) from outcome
    return Receipt(rejections=tuple(rejections), duplicates=duplicates, position=position)


async def _send_singly(link: Link, batch: Sequence[Outgoing]) -> list[PubAck | BaseException]:
    answers = [await link.js.publish_async(each.subject, each.data, headers=each.headers) for each in batch]
    return await asyncio.gather(*answers, return_exceptions=True)

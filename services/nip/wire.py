"""Between the messages of nipmesh.nip.v1 and the domain; nothing is decided here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from nipmesh.nip.v1 import nip_pb2, nip_service_pb2
from services.nip.domain.event import Event, Tags, Template, Verdict
from services.nip.domain.key import Key
from services.nip.domain.nip19 import npub

MICROSECONDS_PER_SECOND: Final = 1_000_000

_Result = nip_service_pb2.VerifyEventsResponse.Result
RESULTS: Final = {
    Verdict.VALID: _Result.RESULT_VALID,
    Verdict.BAD_ID: _Result.RESULT_BAD_ID,
    Verdict.BAD_SIGNATURE: _Result.RESULT_BAD_SIGNATURE,
    Verdict.MALFORMED: _Result.RESULT_MALFORMED,
}
"""How each verdict is said to the caller."""


def event_of(message: nip_pb2.Event) -> Event:
    """Return the event of a message."""
    return Event(
        id=message.id,
        pubkey=message.pubkey,
        created_at=message.created_at,
        kind=message.kind,
        tags=_tags_of(message.tags),
        content=message.content,
        sig=message.sig,
    )


def event_message(event: Event) -> nip_pb2.Event:
    """Return the message of an event."""
    return nip_pb2.Event(
        id=event.id,
        pubkey=event.pubkey,
        created_at=event.created_at,
        kind=event.kind,
        tags=[nip_pb2.Tag(values=tag) for tag in event.tags],
        content=event.content,
        sig=event.sig,
    )


def template_of(message: nip_pb2.EventTemplate) -> Template:
    """Return the template of a message."""
    return Template(
        kind=message.kind,
        tags=_tags_of(message.tags),
        content=message.content,
        created_at=message.created_at if message.HasField("created_at") else None,
    )


def key_message(key: Key) -> nip_pb2.Key:
    """Return the message of a key; nothing private is in it."""
    return nip_pb2.Key(
        key_id=key.key_id,
        owner=key.owner,
        pubkey=key.pubkey,
        npub=npub(bytes.fromhex(key.pubkey)),
        state=nip_pb2.Key.STATE_ACTIVE,
        display_name=key.display_name,
        create_time=timestamp_of_us(key.create_time_us),
    )


def key_of(message: nip_pb2.Key) -> Key:
    """Return the key of a message that key_message made."""
    return Key(
        key_id=message.key_id,
        owner=message.owner,
        pubkey=message.pubkey,
        display_name=message.display_name,
        create_time_us=message.create_time.ToMicroseconds(),
    )


def timestamp_of_us(time_us: int) -> Timestamp:
    """Return a Timestamp of microseconds since 1970."""
    seconds, microseconds = divmod(time_us, MICROSECONDS_PER_SECOND)
    return Timestamp(seconds=seconds, nanos=microseconds * 1_000)


def _tags_of(tags: Iterable[nip_pb2.Tag]) -> Tags:
    return tuple(tuple(tag.values) for tag in tags)

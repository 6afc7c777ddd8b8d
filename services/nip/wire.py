"""Between the messages of nipmesh.nip.v1 and the domain; nothing is decided here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from nipmesh.nip.v1 import nip_pb2, nip_service_pb2
from services.nip.domain.ciphers import Cipher
from services.nip.domain.key import Key
from services.nip.domain.life import State
from services.nip.domain.nip19 import npub
from services.nip.domain.nip49 import KeySecurity
from services.nip.domain.relays import Relay
from services.nostr.event import Event, Tags, Template, Verdict

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


_STATES: Final = {
    State.ACTIVE: nip_pb2.Key.STATE_ACTIVE,
    State.LOCKED: nip_pb2.Key.STATE_LOCKED,
    State.UNLOCKED: nip_pb2.Key.STATE_UNLOCKED,
    State.DISABLED: nip_pb2.Key.STATE_DISABLED,
    State.DISABLED_LOCKED: nip_pb2.Key.STATE_DISABLED,
    State.DELETED: nip_pb2.Key.STATE_DELETED,
}
_WITH_PASSWORD: Final = frozenset({State.LOCKED, State.UNLOCKED, State.DISABLED_LOCKED})
_SECURITIES: Final = {
    KeySecurity.EXPOSED: nip_pb2.KEY_SECURITY_EXPOSED,
    KeySecurity.SAFE: nip_pb2.KEY_SECURITY_SAFE,
    KeySecurity.UNKNOWN: nip_pb2.KEY_SECURITY_UNKNOWN,
}
CIPHERS: Final = {nip_pb2.CIPHER_NIP44: Cipher.NIP44, nip_pb2.CIPHER_NIP04: Cipher.NIP04}
"""What each cipher on the wire is in the domain."""


def key_message(key: Key, now_us: int) -> nip_pb2.Key:
    """Return the message of a key as of this moment; nothing private is in it."""
    state = key.state(now_us)
    message = nip_pb2.Key(
        key_id=key.key_id,
        owner=key.owner,
        pubkey=key.pubkey,
        npub=npub(bytes.fromhex(key.pubkey)),
        state=_STATES[state],
        display_name=key.display_name,
        create_time=timestamp_of_us(key.create_time_us),
        password_protected=state in _WITH_PASSWORD,
        security=_SECURITIES[key.security],
    )
    if state is State.UNLOCKED and key.unlock_expire_time_us is not None:
        message.unlock_expire_time.CopyFrom(timestamp_of_us(key.unlock_expire_time_us))
    if key.delete_time_us is not None:
        message.delete_time.CopyFrom(timestamp_of_us(key.delete_time_us))
    return message


def relays_of(messages: Iterable[nip_pb2.Relay]) -> tuple[Relay, ...]:
    """Return the relays of messages."""
    return tuple(Relay(url=message.url, read=message.read, write=message.write) for message in messages)


def relay_messages(relays: Iterable[Relay]) -> list[nip_pb2.Relay]:
    """Return the messages of relays."""
    return [nip_pb2.Relay(url=relay.url, read=relay.read, write=relay.write) for relay in relays]


def timestamp_of_us(time_us: int) -> Timestamp:
    """Return a Timestamp of microseconds since 1970."""
    seconds, microseconds = divmod(time_us, MICROSECONDS_PER_SECOND)
    return Timestamp(seconds=seconds, nanos=microseconds * 1_000)


def _tags_of(tags: Iterable[nip_pb2.Tag]) -> Tags:
    return tuple(tuple(tag.values) for tag in tags)

"""NIP-01 events: the canonical serialization, the id, what an event must look like, and whether it is genuine.

Specification: https://github.com/nostr-protocol/nips/blob/master/01.md
"""

from __future__ import annotations

import enum
import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from services.nostr import bip340

KIND_MAX: Final = 65_535
"""NIP-01: "integer between 0 and 65535"."""

CREATED_AT_SECONDS_MAX: Final = 2**53 - 1
"""The largest integer that every JSON implementation keeps exact; beyond it two readers compute two ids."""

EVENT_BYTES_MAX: Final = 65_536
"""Serialized size: what relays accept by default (strfry's maxEventSize)."""

TAGS_MAX: Final = 2_000
"""Tags of one event: strfry's maxNumTags."""

TAG_VALUES_MAX: Final = 256
"""Values of one tag: above anything the NIPs define."""

_HEX_32 = re.compile(r"[0-9a-f]{64}")
_HEX_64 = re.compile(r"[0-9a-f]{128}")

Tags = tuple[tuple[str, ...], ...]
"""Tags as on the wire: each a name and its values."""

SignatureCheck = tuple[bytes, bytes, bytes]
"""Public key (32 bytes), digest (32) and signature (64): the arguments of bip340.verify."""


class MalformedEventError(ValueError):
    """The event breaks a rule of NIP-01 or a limit of this service; the text is for the caller."""


class Verdict(enum.Enum):
    """What the check of one event found; the first that applies, in this order."""

    MALFORMED = "malformed"
    BAD_ID = "bad_id"
    BAD_SIGNATURE = "bad_signature"
    VALID = "valid"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A signed event; `id`, `pubkey` and `sig` are lower-case hex, `created_at` is in seconds."""

    id: str
    pubkey: str
    created_at: int
    kind: int
    tags: Tags
    content: str
    sig: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """What the caller wants signed; `created_at` in seconds, None for the time of signing."""

    kind: int
    tags: Tags
    content: str
    created_at: int | None


def values_of(event: Event, name: str) -> list[str]:
    """Return the first value of each tag called `name`; a tag without one counts as empty."""
    return [tag[1] if len(tag) > 1 else "" for tag in event.tags if tag and tag[0] == name]


def serialize(*, pubkey: str, created_at: int, kind: int, tags: Iterable[Iterable[str]], content: str) -> bytes:
    r"""Return the bytes whose SHA-256 is the id.

    NIP-01 names seven characters to escape and wants "all other characters ... verbatim". The remaining control
    characters cannot stand verbatim in JSON: like every implementation in use they become `\u00xx`, lower-case.
    Raises MalformedEventError on text that is not valid Unicode (a lone surrogate).
    """
    document = [0, pubkey, created_at, kind, [list(tag) for tag in tags], content]
    try:
        return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError as error:
        raise MalformedEventError("text is not valid Unicode") from error


def event_digest(serialized: bytes) -> bytes:
    """Return the id of an event as 32 bytes, from its serialization."""
    return hashlib.sha256(serialized).digest()


def check_content(*, created_at: int, kind: int, tags: Tags) -> None:
    """Check what an event says, apart from its size and signature. Raises MalformedEventError."""
    if not 0 <= kind <= KIND_MAX:
        raise MalformedEventError(f"kind must be between 0 and {KIND_MAX}")
    if not 0 <= created_at <= CREATED_AT_SECONDS_MAX:
        raise MalformedEventError(f"created_at must be between 0 and {CREATED_AT_SECONDS_MAX} seconds")
    if len(tags) > TAGS_MAX:
        raise MalformedEventError(f"at most {TAGS_MAX} tags")
    if any(not tag for tag in tags):
        raise MalformedEventError("a tag needs at least one value, its name")
    if any(len(tag) > TAG_VALUES_MAX for tag in tags):
        raise MalformedEventError(f"at most {TAG_VALUES_MAX} values in a tag")


def checked_serialization(*, pubkey: str, created_at: int, kind: int, tags: Tags, content: str) -> bytes:
    """Return the serialization, after all checks that need no signature. Raises MalformedEventError."""
    check_content(created_at=created_at, kind=kind, tags=tags)
    serialized = serialize(pubkey=pubkey, created_at=created_at, kind=kind, tags=tags, content=content)
    if len(serialized) > EVENT_BYTES_MAX:
        raise MalformedEventError(f"the event is larger than {EVENT_BYTES_MAX} bytes")
    return serialized


def prepare(event: Event) -> SignatureCheck | Verdict:
    """Check all but the signature: return what is left to check, or MALFORMED or BAD_ID."""
    if not (_HEX_32.fullmatch(event.id) and _HEX_32.fullmatch(event.pubkey) and _HEX_64.fullmatch(event.sig)):
        return Verdict.MALFORMED
    try:
        serialized = checked_serialization(
            pubkey=event.pubkey,
            created_at=event.created_at,
            kind=event.kind,
            tags=event.tags,
            content=event.content,
        )
    except MalformedEventError:
        return Verdict.MALFORMED
    digest = event_digest(serialized)
    if digest.hex() != event.id:
        return Verdict.BAD_ID
    return bytes.fromhex(event.pubkey), digest, bytes.fromhex(event.sig)


def conclude(prepared: SignatureCheck | Verdict) -> Verdict:
    """Check the signature, if it is still to be checked."""
    if isinstance(prepared, Verdict):
        return prepared
    return Verdict.VALID if bip340.verify(*prepared) else Verdict.BAD_SIGNATURE


def verify_event(event: Event) -> Verdict:
    """Tell whether the event is well formed, bears its id and its author's signature; at most one signature check."""
    return conclude(prepare(event))


def sign_event(signer: bip340.Signer, template: Template, *, created_at: int, auxiliary_key: bytes) -> Event:
    """Sign what `template` says at `created_at` seconds.

    The signature's auxiliary data is a keyed hash of the id, so the same content always gives the same bytes, on any
    replica, and an outsider still cannot predict the data. Raises MalformedEventError.
    """
    pubkey = signer.public_key.hex()
    serialized = checked_serialization(
        pubkey=pubkey, created_at=created_at, kind=template.kind, tags=template.tags, content=template.content
    )
    digest = event_digest(serialized)
    auxiliary = hashlib.blake2b(signer.public_key + digest, key=auxiliary_key, digest_size=32).digest()
    return Event(
        id=digest.hex(),
        pubkey=pubkey,
        created_at=created_at,
        kind=template.kind,
        tags=template.tags,
        content=template.content,
        sig=signer.sign(digest, auxiliary).hex(),
    )

"""The outside of the events: whom a request is for, how it is encrypted, until when it counts; and the templates of what is answered."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from services.nip.domain.nip47.words import (
    INFO_KIND,
    NOTIFICATION_KIND,
    NOTIFICATION_NIP04_KIND,
    REQUEST_KIND,
    RESPONSE_KIND,
    Cipher,
    Method,
    Topic,
)
from services.nostr.event import Event, Template

AGE_S_MAX: Final = 600
"""An older request is ignored: whoever asked has long given up, and must not be surprised by a payment. Far below the time for which
handled requests are remembered, so that none is ever handled twice."""
AHEAD_S_MAX: Final = 600
"""How far the clock of an app may be ahead."""
_HEX: Final = frozenset("0123456789abcdef")


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """The outside of a request; `cipher` None: one that is not known here. Times in seconds since 1970."""

    event_id: str
    client_pubkey: str
    service_pubkey: str
    created_at: int
    expires_at: int | None
    cipher: Cipher | None
    content: str


def envelope_of(event: Event) -> Envelope | None:
    """Return the outside of a request; None for an event that is none, or that names no wallet or several."""
    pubkeys = _values(event, "p")
    if event.kind != REQUEST_KIND or len(pubkeys) != 1 or len(pubkeys[0]) != 64 or not set(pubkeys[0]) <= _HEX:
        return None
    expiration = next(iter(_values(event, "expiration")), None)
    if expiration is not None and not _is_time(expiration):
        return None
    return Envelope(
        event_id=event.id,
        client_pubkey=event.pubkey,
        service_pubkey=pubkeys[0],
        created_at=event.created_at,
        expires_at=None if expiration is None else int(expiration),
        cipher=_cipher(_values(event, "encryption")),
        content=event.content,
    )


def is_timely(envelope: Envelope, now_s: int) -> bool:
    """Whether a request still counts: "If the request is received after this timestamp, it should be ignored"."""
    if envelope.expires_at is not None and now_s > envelope.expires_at:
        return False
    return now_s - AGE_S_MAX <= envelope.created_at <= now_s + AHEAD_S_MAX


def info_template(methods: Iterable[Method], topics: Iterable[Topic], created_at: int) -> Template:
    """Return the info event of a connection: what its app may ask for and will be told of; of an ended connection, nothing."""
    words, told = [str(method) for method in methods], [str(topic) for topic in topics]
    tags = [("encryption", " ".join(Cipher))]
    if told:
        words.append("notifications")
        tags.append(("notifications", " ".join(told)))
    return Template(kind=INFO_KIND, tags=tuple(tags), content=" ".join(words), created_at=created_at)


def response_template(envelope: Envelope, content: str, created_at: int) -> Template:
    """Return the event that answers a request; `content` is encrypted."""
    tags = (("p", envelope.client_pubkey), ("e", envelope.event_id))
    return Template(kind=RESPONSE_KIND, tags=tags, content=content, created_at=created_at)


def notification_template(client_pubkey: str, cipher: Cipher, content: str, created_at: int) -> Template:
    """Return the event that tells an app of something; there is one for each cipher, in a kind of its own."""
    kind = NOTIFICATION_KIND if cipher is Cipher.NIP44 else NOTIFICATION_NIP04_KIND
    return Template(kind=kind, tags=(("p", client_pubkey),), content=content, created_at=created_at)


def answer_cipher(envelope: Envelope) -> Cipher:
    """Return what a response is encrypted with: "using the scheme requested by the client", else what is required of everybody."""
    return envelope.cipher or Cipher.NIP44


def _values(event: Event, name: str) -> list[str]:
    return [tag[1] for tag in event.tags if tag[0] == name and len(tag) > 1]


def _is_time(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 12


def _cipher(values: list[str]) -> Cipher | None:
    """The cipher of a request: "Absence of the `encryption` tag indicates use of nip04 for encryption"."""
    if not values:
        return Cipher.NIP04
    return Cipher(values[0]) if values[0] in set(Cipher) else None

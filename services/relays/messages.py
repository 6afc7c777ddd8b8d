"""The messages between a client and a relay (NIP-01, NIP-42): what a relay says, read; what a client says, written.

What a relay sends is a stranger's: anything that is not exactly a known message is `Unreadable`, never an exception.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from services.nostr.event import Event, MalformedEventError
from services.nostr.event_json import event_of_members, members_of_event
from services.relays.filter import Filter

TEXT_CHARACTERS_MAX: Final = 256
"""Of a relay's reasons and notices so much is kept."""
CHALLENGE_CHARACTERS_MAX: Final = 1_024
"""A longer challenge is not signed: relays' have some dozens."""


@dataclass(frozen=True, slots=True)
class EventMessage:
    """`["EVENT", <subscription>, <event>]`: not verified yet."""

    subscription: str
    event: Event


@dataclass(frozen=True, slots=True)
class OkMessage:
    """`["OK", <event id>, <accepted>, <reason>]`."""

    event_id: str
    accepted: bool
    reason: str


@dataclass(frozen=True, slots=True)
class EoseMessage:
    """`["EOSE", <subscription>]`: from here on events are new."""

    subscription: str


@dataclass(frozen=True, slots=True)
class ClosedMessage:
    """`["CLOSED", <subscription>, <reason>]`: the relay ended the subscription."""

    subscription: str
    reason: str


@dataclass(frozen=True, slots=True)
class NoticeMessage:
    """`["NOTICE", <text>]`."""

    text: str


@dataclass(frozen=True, slots=True)
class AuthMessage:
    """`["AUTH", <challenge>]`."""

    challenge: str


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Anything else."""

    problem: str


RelayMessage = EventMessage | OkMessage | EoseMessage | ClosedMessage | NoticeMessage | AuthMessage | Unreadable


def relay_message(text: str | bytes) -> RelayMessage:
    """Read one message of a relay."""
    if isinstance(text, bytes):
        return Unreadable("a binary message")
    try:
        parts = json.loads(text)
    except (ValueError, RecursionError):
        return Unreadable("not JSON")
    if not isinstance(parts, list) or not parts or not isinstance(parts[0], str):
        return Unreadable("not a message")
    reader = _READERS.get(parts[0])
    return (reader(parts) if reader else None) or Unreadable("not a known message")


def event_message(event: Event) -> str:
    """Publish an event."""
    return _message("EVENT", members_of_event(event))


def request_message(subscription: str, filters: Sequence[Filter]) -> str:
    """Open a subscription, or replace the one with this name."""
    return _message("REQ", subscription, *(one.members() for one in filters))


def close_message(subscription: str) -> str:
    """End a subscription."""
    return _message("CLOSE", subscription)


def auth_message(event: Event) -> str:
    """Answer a challenge."""
    return _message("AUTH", members_of_event(event))


def _message(*parts: Any) -> str:
    return json.dumps(parts, ensure_ascii=False, separators=(",", ":"))


def _event(parts: list[Any]) -> RelayMessage | None:
    if len(parts) != 3 or not isinstance(parts[1], str):
        return None
    try:
        return EventMessage(parts[1], event_of_members(parts[2]))
    except MalformedEventError:
        return Unreadable("an event of a wrong form")


def _ok(parts: list[Any]) -> RelayMessage | None:
    """The reason may be missing: older relays leave it out."""
    if len(parts) not in (3, 4) or not isinstance(parts[1], str) or not isinstance(parts[2], bool):
        return None
    return OkMessage(parts[1], parts[2], _text(parts, 3))


def _eose(parts: list[Any]) -> RelayMessage | None:
    return EoseMessage(parts[1]) if len(parts) == 2 and isinstance(parts[1], str) else None


def _closed(parts: list[Any]) -> RelayMessage | None:
    if len(parts) not in (2, 3) or not isinstance(parts[1], str):
        return None
    return ClosedMessage(parts[1], _text(parts, 2))


def _notice(parts: list[Any]) -> RelayMessage | None:
    return NoticeMessage(_text(parts, 1)) if len(parts) == 2 else None


def _auth(parts: list[Any]) -> RelayMessage | None:
    if len(parts) != 2 or not isinstance(parts[1], str) or not 0 < len(parts[1]) <= CHALLENGE_CHARACTERS_MAX:
        return None
    return AuthMessage(parts[1])


def _text(parts: list[Any], at: int) -> str:
    """A relay's text, cut, on one line."""
    text = parts[at] if len(parts) > at and isinstance(parts[at], str) else ""
    return " ".join(text[:TEXT_CHARACTERS_MAX].split())


_READERS: Final[dict[str, Callable[[list[Any]], RelayMessage | None]]] = {
    "EVENT": _event,
    "OK": _ok,
    "EOSE": _eose,
    "CLOSED": _closed,
    "NOTICE": _notice,
    "AUTH": _auth,
}

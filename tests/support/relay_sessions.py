"""What a test of the conversation with a relay says: events by number, and what goes out in few words."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from services.nostr.event import Event
from services.relays import Filter
from services.relays.protocol import Action, Send

HEARD_AT = 1_700_000_000
NOTES = (Filter(kinds=(1,)),)
AUTH = "auth-required: who are you?"


def event(number: int, kind: int = 1, created_at: int = HEARD_AT) -> Event:
    return Event(
        id=f"{number:064x}", pubkey="ab" * 32, created_at=created_at, kind=kind, tags=(), content="", sig="cd" * 64
    )


NOTE, PROOF = event(1), event(9, kind=22242)


def sent(actions: Iterable[Action]) -> list[list[Any]]:
    """The messages that go out: name, subscription or event id, and the filters of a REQ."""
    messages = [json.loads(action.text) for action in actions if isinstance(action, Send)]
    return [[name, *((what["id"],) if isinstance(what, dict) else (what, *more))] for name, what, *more in messages]

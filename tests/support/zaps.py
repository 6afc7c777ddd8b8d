"""Zap requests and what belongs to them, signed by keys that only tests know."""

from __future__ import annotations

import time
from typing import Any

from services.chassis.secret import SecretBytes
from services.nostr.bip340 import Signer
from services.nostr.event import Event, Template, sign_event
from services.nostr.event_json import json_of_event

SENDER = Signer(SecretBytes(b"\x09" * 32))
RECIPIENT = "ab" * 32
ZAPPED = "cd" * 32


def signed(signer: Signer = SENDER, *, kind: int, tags: Any, content: str = "", created_at: int | None = None) -> Event:
    """A signed event."""
    moment = int(time.time()) if created_at is None else created_at
    template = Template(kind=kind, tags=tuple(tuple(tag) for tag in tags), content=content, created_at=moment)
    return sign_event(signer, template, created_at=moment, auxiliary_key=b"\x01" * 32)


def zap_event(
    *tags: tuple[str, ...], relays: tuple[str, ...] = ("wss://relay.example.com",), kind: int = 9_734
) -> Event:
    """A signed zap request for RECIPIENT; the time stands still, so that the same is made again."""
    all_tags = [("relays", *relays), ("p", RECIPIENT), *tags]
    return signed(kind=kind, tags=all_tags, content="Zap!", created_at=1_700_000_000)


def zap_text(*tags: tuple[str, ...], relays: tuple[str, ...] = ("wss://relay.example.com",)) -> str:
    """The JSON of `zap_event`."""
    return json_of_event(zap_event(*tags, relays=relays))

"""What a pool of relays is told: limits, times, whom it trusts, and who signs for it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from services.nostr.event import Event

MESSAGE_BYTES_MAX: Final = 1_048_576
"""A larger message of a relay ends the connection: events have at most 64 KiB, JSON's escapes may make six times as much of it."""
RELAYS_MAX: Final = 256
"""Relays that a pool is connected to at once; each costs a socket and about 200 KiB."""
SUBSCRIPTIONS_MAX: Final = 20
"""Subscriptions at one relay: what strfry allows for each connection."""
PUBLISHES_MAX: Final = 1_024
"""Events that wait at one relay for its OK."""
QUEUE_EVENTS_MAX: Final = 2_048
"""Events that wait for one subscriber; beyond that they are dropped, and stored ones asked for again when the queue is empty."""

Authenticator = Callable[[str, str], Awaitable[Event | None]]
"""(the relay's URL, its challenge) -> a signed event of kind 22242, or None to stay a stranger. NIP-42."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayOptions:
    """How a pool behaves; times in seconds.

    A relay outside `trusted_relays` (URLs in normal form) may be a stranger's choice: its host must not have an address that only this host
    or network reaches, unless `private_allowed`. `ca_file` replaces the system's CAs for wss://.
    """

    open_timeout_s: float = 10.0
    publish_timeout_s: float = 10.0
    ping_s: float = 20.0
    idle_s: float = 60.0
    backoff_s_min: float = 0.5
    backoff_s_max: float = 60.0
    message_bytes_max: int = MESSAGE_BYTES_MAX
    relays_max: int = RELAYS_MAX
    subscriptions_max: int = SUBSCRIPTIONS_MAX
    publishes_max: int = PUBLISHES_MAX
    queue_events_max: int = QUEUE_EVENTS_MAX
    private_allowed: bool = False
    trusted_relays: frozenset[str] = frozenset()
    ca_file: Path | None = None
    authenticator: Authenticator | None = None

    def private_allowed_for(self, url: str) -> bool:
        """Whether this relay may be at a private address."""
        return self.private_allowed or url in self.trusted_relays

"""One attempt to bring an event to one relay, through the pool of connections that a replica has for that.

Strangers name these relays: the pool looks at the address of each, and limits what one may say and how long it takes.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

from services.nip.domain.nip42 import KIND_CLIENT_AUTHENTICATION
from services.nip.zaps.publishing import Answer, Attempt
from services.nip.zaps.receipts import ZapKey
from services.nostr.event import Event, Template
from services.relays import Outcome, OutcomeKind, RelayOptions, RelayPool

PUBLISH_S: Final = 10.0
"""All of an attempt: name, connection, handshake, answer. Less than a lease."""
IDLE_S: Final = 10.0
"""A connection to a stranger's relay is kept this long after its last receipt: several zaps of one moment share it."""
MESSAGE_BYTES_MAX: Final = 65_536
"""Nothing is asked of these relays: whatever they say is an OK, a challenge or a notice."""

FINAL_PREFIXES: Final = frozenset({"blocked", "invalid", "pow", "restricted", "mute"})
"""NIP-01's and NIP-42's words for a no that stays one; any other is tried again."""


def relay_options(key: ZapKey, *, private: bool, ca_file: Path | None = None) -> RelayOptions:
    """What the pool for receipts is told; `private`: whether addresses that are not of the public internet may be called.

    A relay that wants to know who publishes (NIP-42) is answered with the key of the receipts.
    """

    async def authenticate(url: str, challenge: str) -> Event:
        tags = (("relay", url), ("challenge", challenge))
        return key.sign(Template(kind=KIND_CLIENT_AUTHENTICATION, tags=tags, content="", created_at=int(time.time())))

    return RelayOptions(
        publish_timeout_s=PUBLISH_S,
        idle_s=IDLE_S,
        message_bytes_max=MESSAGE_BYTES_MAX,
        private_allowed=private,
        ca_file=ca_file,
        authenticator=authenticate,
    )


class RelayCaller:
    """Publishes, see the module."""

    def __init__(self, pool: RelayPool) -> None:
        """`pool` with relay_options."""
        self._pool = pool

    async def publish(self, event: Event, relay_url: str) -> Attempt:
        """Bring an event to a relay; whatever is wrong is told, not raised."""
        outcomes = await self._pool.publish(event, [relay_url])
        return attempt_of(outcomes[relay_url])


def attempt_of(outcome: Outcome) -> Attempt:
    """What an outcome means for the next attempt."""
    if outcome.arrived:
        return Attempt(answer=Answer.ACCEPTED)
    final = outcome.kind is OutcomeKind.REJECTED and outcome.reason.partition(":")[0] in FINAL_PREFIXES
    return Attempt(answer=Answer.REFUSED if final else Answer.LATER, problem=outcome.reason or outcome.kind.value)

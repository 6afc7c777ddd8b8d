"""Which connections live, by the relays where they are listened for: kept up with the database, so that all replicas know."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from services.nip.domain.remote_signer.connection import Connection
from services.nip.remote_signer.signer_keys import KIND_REMOTE_SIGNING
from services.relays import Filter

PUBKEYS_PER_FILTER: Final = 1_000
"""Public keys in one filter: 70 KB of it."""
FILTERS_PER_RELAY: Final = 10
"""Filters of a subscription that relays take."""


class Directory:
    """The living connections of all owners, in memory: about 2 KB each. Used from one event loop."""

    def __init__(self) -> None:
        self._by_pubkey: dict[str, Connection] = {}
        self._by_relay: dict[str, dict[str, None]] = {}

    def put(self, connection: Connection, now_us: int) -> frozenset[str]:
        """Take note of a connection as it is now; return the relays where others are to be listened for than before."""
        known = connection.signer_pubkey in self._by_pubkey
        if connection.lives(now_us):
            self._by_pubkey[connection.signer_pubkey] = connection
            for relay in connection.relays if not known else ():
                self._by_relay.setdefault(relay, {})[connection.signer_pubkey] = None
            return frozenset() if known else frozenset(connection.relays)
        return self._remove(connection) if known else frozenset()

    def expire(self, now_us: int) -> frozenset[str]:
        """Forget connections whose time is over; return the relays of `put`."""
        over = [one for one in self._by_pubkey.values() if not one.lives(now_us)]
        return frozenset(relay for one in over for relay in self._remove(one))

    def find(self, signer_pubkeys: Iterable[str]) -> Connection | None:
        """The connection that an event is for: by the first of the keys that is one's."""
        return next((found for one in signer_pubkeys if (found := self._by_pubkey.get(one)) is not None), None)

    def any_at(self, relay: str) -> Connection | None:
        """Some connection that is listened for at a relay."""
        pubkeys = self._by_relay.get(relay)
        return self._by_pubkey[next(iter(pubkeys))] if pubkeys else None

    def filters(self, relay: str, since: int) -> tuple[list[Filter], int]:
        """What to ask a relay for; and how many connections there are too many for one subscription, the oldest of which are left out."""
        pubkeys = list(self._by_relay.get(relay, {}))
        most = PUBKEYS_PER_FILTER * FILTERS_PER_RELAY
        served = pubkeys[-most:]
        parts: Sequence[Sequence[str]] = [
            served[at : at + PUBKEYS_PER_FILTER] for at in range(0, len(served), PUBKEYS_PER_FILTER)
        ]
        filters = [Filter(kinds=(KIND_REMOTE_SIGNING,), tags={"p": tuple(part)}, since=since) for part in parts]
        return filters, len(pubkeys) - len(served)

    def __len__(self) -> int:
        """How many connections live."""
        return len(self._by_pubkey)

    def _remove(self, connection: Connection) -> frozenset[str]:
        del self._by_pubkey[connection.signer_pubkey]
        for relay in connection.relays:
            pubkeys = self._by_relay.get(relay, {})
            pubkeys.pop(connection.signer_pubkey, None)
            if not pubkeys:
                self._by_relay.pop(relay, None)
        return frozenset(connection.relays)

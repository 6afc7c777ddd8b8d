"""How often requests are looked at, before anything is decrypted.

Counted by each replica, in memory: all of them see every event of a relay, so that the limit holds for all together, and a flood costs no
transaction. After a restart an app's bucket is full again. An app that asks too often over a relay gets no answer: its own time limit tells
it.
"""

from __future__ import annotations

import time
from typing import Final

from services.nip.domain.remote_signer.connection import Connection, ConnectionState
from services.nip.domain.remote_signer.limits import Buckets

STRANGERS_PER_SECOND: Final = 1.0
"""For all who are not a connection's app together: attempts to connect, and nothing else, come from them."""
STRANGERS_BURST: Final = 20
BURST_SECONDS: Final = 3
"""An app may be so many seconds ahead of its rate: opening a page decrypts a screen full of messages."""


class Limits:
    """The buckets of one replica."""

    def __init__(self, requests_per_second: int) -> None:
        """So many requests a second has each connected app."""
        self._apps = Buckets(per_second=requests_per_second, burst=requests_per_second * BURST_SECONDS)
        self._strangers = Buckets(per_second=STRANGERS_PER_SECOND, burst=STRANGERS_BURST)

    def allow(self, connection: Connection, client_pubkey: str) -> bool:
        """Whether a request is looked at."""
        known = connection.state is ConnectionState.CONNECTED and client_pubkey == connection.client_pubkey
        buckets = self._apps if known else self._strangers
        return buckets.take(connection.connection_id, time.monotonic())

"""The connection URI: what the user carries to the app. It holds the app's secret key."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlencode

from services.chassis.secret import SecretBytes

SCHEME = "nostr+walletconnect"


def connection_uri(service_pubkey: str, relays: Sequence[str], secret: SecretBytes) -> str:
    """Return `nostr+walletconnect://<wallet's key>?relay=…&secret=…`, everything percent-encoded."""
    query = urlencode([*(("relay", relay) for relay in relays), ("secret", secret.reveal().hex())])
    return f"{SCHEME}://{service_pubkey}?{query}"

"""The two URIs by which an app and a signer meet: bunker:// from the signer, nostrconnect:// from the app."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qs, urlencode, urlsplit

from services.chassis.secret import SecretBytes
from services.nip.domain.remote_signer.message import Client, shown
from services.nostr.relay_url import RelayUrlError, normal_relay_url

RELAYS_MAX: Final = 8
"""Relays of one connection."""
SECRET_CHARACTERS_MAX: Final = 256
FIELDS_MAX: Final = 64
"""Parameters of a URI."""
_PUBKEY: Final = re.compile(r"[0-9a-f]{64}")


class NostrConnectUriError(ValueError):
    """Not a nostrconnect:// URI that can be answered; the text says why and repeats nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NostrConnect:
    """What an app wants: `secret` proves the answer to it."""

    client_pubkey: str
    relays: tuple[str, ...]
    secret: SecretBytes
    client: Client


def bunker_uri(signer_pubkey: str, relays: Sequence[str], secret: str) -> str:
    """Write the URI that an app is given."""
    return f"bunker://{signer_pubkey}?" + urlencode([*(("relay", relay) for relay in relays), ("secret", secret)])


def nostr_connect_of(uri: str) -> NostrConnect:
    """Read an app's URI. Raises NostrConnectUriError."""
    try:
        parts = urlsplit(uri)
        fields = parse_qs(parts.query, max_num_fields=FIELDS_MAX, errors="strict")
    except ValueError as error:
        raise NostrConnectUriError("not a URI") from error
    if parts.scheme != "nostrconnect" or _PUBKEY.fullmatch(parts.netloc.lower()) is None:
        raise NostrConnectUriError("not nostrconnect:// and a public key in hex")
    secret = _first(fields, "secret")
    if not 0 < len(secret) <= SECRET_CHARACTERS_MAX:
        raise NostrConnectUriError("the URI has no secret, or too long a one")
    return NostrConnect(
        client_pubkey=parts.netloc.lower(),
        relays=_relays(fields.get("relay", [])),
        secret=SecretBytes(secret.encode()),
        client=Client(
            display_name=shown(_first(fields, "name")),
            url=shown(_first(fields, "url")),
            image_url=shown(_first(fields, "image")),
            requested_permissions=shown(_first(fields, "perms")),
        ),
    )


def _relays(texts: Sequence[str]) -> tuple[str, ...]:
    try:
        relays = tuple(dict.fromkeys(normal_relay_url(text) for text in texts))
    except RelayUrlError as error:
        raise NostrConnectUriError("a relay's URL is wrong") from error
    if not 0 < len(relays) <= RELAYS_MAX:
        raise NostrConnectUriError(f"the URI names no relay, or more than {RELAYS_MAX}")
    return relays


def _first(fields: dict[str, list[str]], name: str) -> str:
    return fields.get(name, [""])[0]

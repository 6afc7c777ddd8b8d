"""The relays that belong to a key, in the manner of NIP-65: URLs in one spelling, each for reading, writing or both.

https://github.com/nostr-protocol/nips/blob/master/65.md
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from services.nostr.relay_url import RelayUrlError, normal_relay_url

URL_CHARACTERS_MAX: Final = 255
"""What fits into NIP-19's items, too."""


class RelayError(ValueError):
    """A URL is no relay's, or stands there twice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Relay:
    """A relay, and what for: neither is the same as both."""

    url: str
    read: bool
    write: bool


def normalized(relays: Iterable[Relay]) -> tuple[Relay, ...]:
    """Return the relays with their URLs in one spelling, in the same order. Raises RelayError."""
    found: dict[str, Relay] = {}
    for relay in relays:
        url = normalized_url(relay.url)
        if url in found:
            raise RelayError(f"{url} stands there twice")
        both = relay.read == relay.write
        found[url] = Relay(url=url, read=both or relay.read, write=both or relay.write)
    return tuple(found.values())


def normalized_url(url: str) -> str:
    """Return the URL in the one form in which relays are compared. Raises RelayError."""
    try:
        found = normal_relay_url(url)
    except RelayUrlError as error:
        raise RelayError(str(error)) from error
    if len(found) > URL_CHARACTERS_MAX:
        raise RelayError(f"a relay's URL has at most {URL_CHARACTERS_MAX} characters here")
    return found

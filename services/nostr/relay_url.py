"""URLs of relays: what is one, and the one form in which two of them are compared.

Specifications: NIP-42 ("URL normalization techniques can be applied"), RFC 3986, section 6.2.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final
from urllib.parse import SplitResult, urlsplit

RELAY_URL_CHARACTERS_MAX: Final = 512
"""Longer than any relay's; each of them is stored with what is published there."""

_DEFAULT_PORTS: Final = {"ws": 80, "wss": 443}
_HOST: Final = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)(\.(?!-)[a-z0-9_-]{1,63}(?<!-))*\.?")
_VISIBLE = re.compile(r"[\x21-\x7e]+")


class RelayUrlError(ValueError):
    """The text is no URL of a relay; it is not repeated."""


def normal_relay_url(text: str) -> str:
    """Return the URL with scheme and host in lower case, without default port, without a slash at its end. Raises RelayUrlError.

    Only ASCII: a host in another script comes as punycode. No user, no password and no fragment: none of them names a relay.
    """
    if len(text) > RELAY_URL_CHARACTERS_MAX or _VISIBLE.fullmatch(text) is None:
        raise RelayUrlError(f"a relay's URL has at most {RELAY_URL_CHARACTERS_MAX} visible ASCII characters")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise RelayUrlError("not a URL") from error
    if parts.scheme not in _DEFAULT_PORTS or "@" in parts.netloc or "#" in text or port == 0:
        raise RelayUrlError("a relay's URL is ws:// or wss://, a host, perhaps a port, a path and a query")
    shown_port = "" if port in (None, _DEFAULT_PORTS[parts.scheme]) else f":{port}"
    query = f"?{parts.query}" if parts.query else ""
    return f"{parts.scheme}://{_host_of(parts)}{shown_port}{parts.path.rstrip('/')}{query}"


def _host_of(parts: SplitResult) -> str:
    """The host in lower case; an IPv6 address in its shortest form, in brackets."""
    host = (parts.hostname or "").lower()
    if ":" in host and "%" not in host:  # a zone names an interface of one machine
        try:
            return f"[{ipaddress.IPv6Address(host).compressed}]"
        except ValueError as error:
            raise RelayUrlError("not an address") from error
    if _HOST.fullmatch(host) is None:
        raise RelayUrlError("not a host")
    return host.rstrip(".")

"""NIP-19: keys as people copy them, `npub1...` and `nsec1...`.

Specification: https://github.com/nostr-protocol/nips/blob/master/19.md
"""

from __future__ import annotations

from typing import Final

from services.chassis.secret import SecretBytes
from services.encoding import bech32

PUBLIC_PREFIX: Final = "npub"
SECRET_PREFIX: Final = "nsec"  # noqa: S105  # the prefix's name
KEY_BYTES: Final = 32
CHARACTERS_MAX: Final = 63
"""Four for the prefix, one between, 52 for the key, 6 for the checksum."""


class Nip19Error(ValueError):
    """The text is no key in NIP-19 form; it says nothing of the text itself, which may be a mistyped secret."""


def npub(public_key: bytes) -> str:
    """Return the public key (32 bytes) as `npub1...`."""
    return _encoded(PUBLIC_PREFIX, public_key)


def nsec(secret_key: SecretBytes) -> str:
    """Return the private key as `nsec1...`: a secret in plain text, for its owner alone."""
    return _encoded(SECRET_PREFIX, secret_key.reveal())


def public_key_of_npub(text: str) -> bytes:
    """Return the public key (32 bytes) of `npub1...`. Raises Nip19Error."""
    return _decoded(PUBLIC_PREFIX, text)


def secret_key_of_nsec(text: str) -> SecretBytes:
    """Return the private key of `nsec1...`; whether it is on the curve is not checked here. Raises Nip19Error."""
    return SecretBytes(_decoded(SECRET_PREFIX, text))


def _encoded(prefix: str, key: bytes) -> str:
    assert len(key) == KEY_BYTES, "a Nostr key has 32 bytes"
    return bech32.encode(prefix, bech32.words_of_bytes(key))


def _decoded(prefix: str, text: str) -> bytes:
    try:
        found, words = bech32.decode(text, characters_max=CHARACTERS_MAX)
        key = bech32.bytes_of_words(words)
    except bech32.Bech32Error as error:
        raise Nip19Error("not a key in NIP-19 form") from error
    if found != prefix or len(key) != KEY_BYTES:
        raise Nip19Error(f"not a key that begins with {prefix}1")
    return key

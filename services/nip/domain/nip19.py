"""NIP-19: keys, events and addresses as people copy them, `npub1...`; and as URIs (NIP-21), `nostr:npub1...`.

Specifications: https://github.com/nostr-protocol/nips/blob/master/19.md and .../21.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from services.chassis.secret import SecretBytes
from services.encoding import bech32

PUBLIC_PREFIX: Final = "npub"
SECRET_PREFIX: Final = "nsec"  # noqa: S105  # the prefix's name
URI_SCHEME: Final = "nostr:"
KEY_BYTES: Final = 32
KIND_BYTES: Final = 4
VALUE_BYTES_MAX: Final = 255
"""A value's length is one byte."""
KEY_CHARACTERS_MAX: Final = 63
"""Four for the prefix, one between, 52 for the key, 6 for the checksum."""
CHARACTERS_MAX: Final = 5_000
"""NIP-19: "Bech32-formatted strings SHOULD be limited in size to 5000 characters"."""

_SPECIAL, _RELAY, _AUTHOR, _KIND = range(4)
"""NIP-19's types of TLV items."""
_HEX: Final = re.compile(r"[0-9a-f]{64}\Z")


class Nip19Error(ValueError):
    """The text is not in NIP-19 form, or a value does not fit into it; it says nothing of the text itself, which may be a secret."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicKey:
    """`npub`; 64 hex digits."""

    pubkey: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """`note`: an event id, 64 hex digits."""

    event_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """`nprofile`: a public key (64 hex digits), and where its owner's events are."""

    pubkey: str
    relays: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EventPointer:
    """`nevent`: an event id (64 hex digits), where the event is, and, when it is told, by whom and of what kind."""

    event_id: str
    relays: tuple[str, ...] = ()
    author: str = ""
    kind: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """`naddr`: the coordinate of an addressable event; `identifier` is its tag `d`, empty for a replaceable one."""

    identifier: str
    author: str
    kind: int
    relays: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayAddress:
    """`nrelay`, which is deprecated: it is read and not written."""

    url: str


@dataclass(frozen=True, slots=True)
class PrivateKey:
    """`nsec`; what is in it is not kept."""


Entity = PublicKey | Note | Profile | EventPointer | Address | RelayAddress | PrivateKey


def npub(public_key: bytes) -> str:
    """Return the public key (32 bytes) as `npub1...`."""
    return _encoded_key(PUBLIC_PREFIX, public_key)


def nsec(secret_key: SecretBytes) -> str:
    """Return the private key as `nsec1...`: a secret in plain text, for its owner alone."""
    return _encoded_key(SECRET_PREFIX, secret_key.reveal())


def public_key_of_npub(text: str) -> bytes:
    """Return the public key (32 bytes) of `npub1...`. Raises Nip19Error."""
    return _decoded_key(PUBLIC_PREFIX, text)


def secret_key_of_nsec(text: str) -> SecretBytes:
    """Return the private key of `nsec1...`; whether it is on the curve is not checked here. Raises Nip19Error."""
    return SecretBytes(_decoded_key(SECRET_PREFIX, text))


def pubkey_of(text: str) -> str:
    """Return the public key in hex of what people write for one: hex, npub or nprofile, or a URI of these. Raises Nip19Error."""
    if _HEX.match(text):
        return text
    entity = decode(text)
    if not isinstance(entity, PublicKey | Profile):
        raise Nip19Error("not a public key")
    return entity.pubkey


def encode(entity: Entity) -> str:
    """Return the entity's text. Raises Nip19Error: a relay or a private key, a value that does not fit, or too many of them."""
    match entity:
        case PublicKey():
            return _encoded_key(PUBLIC_PREFIX, _unhexed(entity.pubkey))
        case Note():
            return _encoded_key("note", _unhexed(entity.event_id))
        case Profile():
            return _encoded("nprofile", ((_SPECIAL, _unhexed(entity.pubkey)), *_relay_items(entity.relays)))
        case EventPointer():
            return _encoded("nevent", _event_items(entity))
        case Address():
            return _encoded("naddr", _address_items(entity))
    raise Nip19Error("neither relays nor private keys are written")


def decode(text: str) -> Entity:
    """Return what a text or a `nostr:` URI says. Raises Nip19Error."""
    is_uri = text[: len(URI_SCHEME)].lower() == URI_SCHEME
    prefix, data = _data_of(text[len(URI_SCHEME) :] if is_uri else text, CHARACTERS_MAX)
    read = _READERS.get(prefix)
    if read is None or (is_uri and prefix == SECRET_PREFIX):  # NIP-21: "except `nsec`"
        raise Nip19Error("not one of NIP-19's prefixes" if read is None else "a private key is no URI")
    return read(data)


# ---- bare keys and ids


def _encoded_key(prefix: str, key: bytes) -> str:
    assert len(key) == KEY_BYTES, "a Nostr key has 32 bytes"
    return bech32.encode(prefix, bech32.words_of_bytes(key))


def _decoded_key(prefix: str, text: str) -> bytes:
    found, key = _data_of(text, KEY_CHARACTERS_MAX)
    if found != prefix or len(key) != KEY_BYTES:
        raise Nip19Error(f"not a key that begins with {prefix}1")
    return key


def _data_of(text: str, characters_max: int) -> tuple[str, bytes]:
    try:
        prefix, words = bech32.decode(text, characters_max=characters_max)
        return prefix, bech32.bytes_of_words(words)
    except bech32.Bech32Error as error:
        raise Nip19Error("not in NIP-19 form") from error


def _unhexed(text: str) -> bytes:
    if _HEX.match(text) is None:
        raise Nip19Error("a key or id is 64 lower-case hex digits")
    return bytes.fromhex(text)


def _hexed(data: bytes) -> str:
    if len(data) != KEY_BYTES:
        raise Nip19Error("a key or id has not 32 bytes")
    return data.hex()


# ---- TLV: writing

Item = tuple[int, bytes]
"""Type and value."""


def _encoded(prefix: str, items: tuple[Item, ...]) -> str:
    data = b"".join(bytes((kind, len(value))) + value for kind, value in map(_fitting, items))
    text = bech32.encode(prefix, bech32.words_of_bytes(data))
    if len(text) > CHARACTERS_MAX:
        raise Nip19Error(f"the text would be longer than {CHARACTERS_MAX} characters")
    return text


def _fitting(item: Item) -> Item:
    if len(item[1]) > VALUE_BYTES_MAX:
        raise Nip19Error(f"a value is longer than {VALUE_BYTES_MAX} bytes")
    return item


def _relay_items(relays: tuple[str, ...]) -> tuple[Item, ...]:
    if not all(relay and relay.isascii() for relay in relays):
        raise Nip19Error("a relay is a text in ASCII")
    return tuple((_RELAY, relay.encode("ascii")) for relay in relays)


def _event_items(event: EventPointer) -> tuple[Item, ...]:
    author = ((_AUTHOR, _unhexed(event.author)),) if event.author else ()
    kind = () if event.kind is None else ((_KIND, _kind_bytes(event.kind)),)
    return ((_SPECIAL, _unhexed(event.event_id)), *_relay_items(event.relays), *author, *kind)


def _address_items(address: Address) -> tuple[Item, ...]:
    try:
        identifier = address.identifier.encode()
    except UnicodeEncodeError as error:
        raise Nip19Error("the identifier has a lone surrogate") from error
    owner = ((_AUTHOR, _unhexed(address.author)), (_KIND, _kind_bytes(address.kind)))
    return ((_SPECIAL, identifier), *_relay_items(address.relays), *owner)


def _kind_bytes(kind: int) -> bytes:
    if not 0 <= kind < 1 << KIND_BYTES * 8:
        raise Nip19Error("a kind has 32 bits")
    return kind.to_bytes(KIND_BYTES, "big")


# ---- TLV: reading


def _items(data: bytes) -> Iterator[Item]:
    """The TLV items in their order. Raises Nip19Error for one that is cut off."""
    position = 0
    while position < len(data):
        value = data[position + 2 : position + 2 + data[position + 1]] if position + 1 < len(data) else b""
        if position + 1 >= len(data) or len(value) != data[position + 1]:
            raise Nip19Error("an item is cut off")
        yield data[position], value
        position += 2 + len(value)


def _read(data: bytes) -> tuple[dict[int, bytes], tuple[str, ...]]:
    """The first item of each type, and all relays. Types that NIP-19 does not know are left out, as it demands."""
    found: dict[int, bytes] = {}
    relays: list[str] = []
    for kind, value in _items(data):
        found.setdefault(kind, value)
        if kind == _RELAY and value:
            relays.append(_ascii(value))
    return found, tuple(relays)


def _ascii(value: bytes) -> str:
    if not value.isascii():
        raise Nip19Error("a relay is not in ASCII")
    return value.decode("ascii")


def _special(found: Mapping[int, bytes]) -> bytes:
    if _SPECIAL not in found:
        raise Nip19Error("what it is about is missing")
    return found[_SPECIAL]


def _kind(value: bytes) -> int:
    if len(value) != KIND_BYTES:
        raise Nip19Error("a kind has not 4 bytes")
    return int.from_bytes(value, "big")


def _profile(data: bytes) -> Profile:
    found, relays = _read(data)
    return Profile(pubkey=_hexed(_special(found)), relays=relays)


def _event(data: bytes) -> EventPointer:
    found, relays = _read(data)
    author = _hexed(found[_AUTHOR]) if _AUTHOR in found else ""
    kind = _kind(found[_KIND]) if _KIND in found else None
    return EventPointer(event_id=_hexed(_special(found)), relays=relays, author=author, kind=kind)


def _address(data: bytes) -> Address:
    found, relays = _read(data)
    if _AUTHOR not in found or _KIND not in found:
        raise Nip19Error("an address needs an author and a kind")
    try:
        identifier = _special(found).decode()
    except UnicodeDecodeError as error:
        raise Nip19Error("the identifier is no UTF-8") from error
    return Address(identifier=identifier, author=_hexed(found[_AUTHOR]), kind=_kind(found[_KIND]), relays=relays)


def _relay(data: bytes) -> RelayAddress:
    return RelayAddress(url=_ascii(_special(_read(data)[0])))


def _private_key(data: bytes) -> PrivateKey:
    _hexed(data)
    return PrivateKey()


_READERS: Final[Mapping[str, Callable[[bytes], Entity]]] = {
    PUBLIC_PREFIX: lambda data: PublicKey(pubkey=_hexed(data)),
    SECRET_PREFIX: _private_key,
    "note": lambda data: Note(event_id=_hexed(data)),
    "nprofile": _profile,
    "nevent": _event,
    "naddr": _address,
    "nrelay": _relay,
}

"""NIP-19: the specification's examples, nostr-sdk as a second opinion, and everything that is no key."""

from __future__ import annotations

import re
from pathlib import Path

import nostr_sdk
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.chassis.secret import SecretBytes
from services.encoding import bech32
from services.nip.domain import nip19
from services.nip.domain.nip19 import (
    Address,
    EventPointer,
    Nip19Error,
    Note,
    PrivateKey,
    Profile,
    PublicKey,
    RelayAddress,
    npub,
    nsec,
    public_key_of_npub,
    secret_key_of_nsec,
)
from services.nostr.bip340 import InvalidSecretKeyError, Signer

SPECIFICATION = Path(__file__).resolve().parents[4] / "shared" / "vectors" / "nips" / "19.md"
needs_vectors = pytest.mark.skipif(
    not SPECIFICATION.exists(), reason="the NIPs are not beside the checkout (../shared/vectors)"
)

NPUB = "npub10elfcs4fr0l0r8af98jlmgdh9c8tcxjvz9qkw038js35mp4dma8qzvjptg"
PUBLIC_KEY = bytes.fromhex("7e7e9c42a91bfef19fa929e5fda1b72e0ebc1a4c1141673e2794234d86addf4e")
NSEC = "nsec1vl029mgpspedva04g90vltkh6fvh240zqtv9k0t9af8935ke9laqsnlfe5"
SECRET_KEY = SecretBytes(bytes.fromhex("67dea2ed018072d675f5415ecfaed7d2597555e202d85b3d65ea4e58d2d92ffa"))


def test_the_examples_of_the_specification() -> None:
    assert (npub(PUBLIC_KEY), nsec(SECRET_KEY)) == (NPUB, NSEC)
    assert (public_key_of_npub(NPUB), secret_key_of_nsec(NSEC)) == (PUBLIC_KEY, SECRET_KEY)
    assert len(NSEC) == len(NPUB) == nip19.KEY_CHARACTERS_MAX


@given(secret=st.binary(min_size=32, max_size=32))
def test_nostr_sdk_agrees(secret: bytes) -> None:
    try:
        signer = Signer(SecretBytes(secret))
    except InvalidSecretKeyError:
        return
    keys = nostr_sdk.Keys.parse(nsec(SecretBytes(secret)))
    assert keys.public_key().to_bech32() == npub(signer.public_key)
    assert secret_key_of_nsec(keys.secret_key().to_bech32()).reveal() == secret


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nsec1",
        NPUB,
        NSEC[:-1],
        NSEC + "q",
        NSEC[:-1] + ("q" if NSEC[-1] != "q" else "p"),
        NSEC[:20] + NSEC[21] + NSEC[20] + NSEC[22:],
        NSEC[:10] + NSEC[10:].upper(),
        SECRET_KEY.reveal().hex(),
        "nsec1" + "é" * 58,
        bech32.encode("nsec", bech32.words_of_bytes(bytes(31))),
        bech32.encode("nsec", bech32.words_of_bytes(bytes(33))),
        bech32.encode("nsec", bech32.words_of_bytes(bytes(32))[:-1] + b"\x01"),
    ],
)
def test_what_is_no_nsec_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(Nip19Error) as refused:
        secret_key_of_nsec(text)
    assert not text or text not in str(refused.value)


def test_a_private_key_is_no_public_key() -> None:
    with pytest.raises(Nip19Error):
        public_key_of_npub(NSEC)


@given(text=st.text(max_size=80))
def test_noise_is_refused_and_nothing_else(text: str) -> None:
    with pytest.raises(Nip19Error):
        secret_key_of_nsec(text)


# Entities

RELAYS = ("wss://r.x.com", "wss://djbas.sadkb.com")
PROFILE = (
    "nprofile1qqsrhuxx8l9ex335q7he0f09aej04zpazpl0ne2cgukyawd24mayt8gpp4mhxue69uhhytnc9e3k7mgpz4mhxue69uhkg6nzv9ejuumpv34kytnrd"
    "aksjlyr9p"
)
PROFILE_PUBKEY = "3bf0c63fcb93463407af97a5e5ee64fa883d107ef9e558472c4eb9aaaefa459d"
pubkeys = st.integers(1, 2**200).map(lambda number: Signer(SecretBytes(number.to_bytes(32, "big"))).public_key.hex())
hex_ids = st.binary(min_size=32, max_size=32).map(bytes.hex)
relays = st.lists(
    st.sampled_from(["wss://a.example", "wss://relay.example:7777/x", "ws://127.0.0.1:8080"]), max_size=4, unique=True
).map(tuple)
kinds = st.integers(0, 65_535)
identifiers = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
entities = st.one_of(
    st.builds(PublicKey, pubkey=hex_ids),
    st.builds(Note, event_id=hex_ids),
    st.builds(Profile, pubkey=hex_ids, relays=relays),
    st.builds(
        EventPointer,
        event_id=hex_ids,
        relays=relays,
        author=st.just("") | hex_ids,
        kind=st.none() | st.integers(0, 2**32 - 1),
    ),
    st.builds(Address, identifier=identifiers, author=hex_ids, kind=st.integers(0, 2**32 - 1), relays=relays),
)


def _tlv(prefix: str, *items: tuple[int, bytes]) -> str:
    data = b"".join(bytes((kind, len(value))) + value for kind, value in items)
    return bech32.encode(prefix, bech32.words_of_bytes(data))


def test_the_profile_of_the_specification() -> None:
    profile = Profile(pubkey=PROFILE_PUBKEY, relays=RELAYS)
    assert nip19.decode(PROFILE) == profile
    assert nip19.encode(profile) == PROFILE
    assert nip19.decode(NPUB) == PublicKey(pubkey=PUBLIC_KEY.hex())


@needs_vectors
def test_what_the_specification_prints_is_what_was_tested() -> None:
    text = SPECIFICATION.read_text()
    printed = re.findall(r"`((?:npub|nsec|nprofile)1[02-9ac-hj-np-z]{20,})`", text)
    assert {PROFILE, NPUB, NSEC} <= set(printed)
    assert len({type(nip19.decode(each)) for each in printed}) == 3


@given(entity=entities)
def test_what_is_written_is_read_again(entity: nip19.Entity) -> None:
    text = nip19.encode(entity)
    assert nip19.decode(text) == entity
    assert nip19.decode(text.upper()) == entity
    assert nip19.decode("nostr:" + text) == entity


@given(pubkey=pubkeys, relays=relays)
def test_nostr_sdk_agrees_about_profiles(pubkey: str, relays: tuple[str, ...]) -> None:
    theirs = nostr_sdk.Nip19Profile(
        nostr_sdk.PublicKey.parse(pubkey), [nostr_sdk.RelayUrl.parse(relay) for relay in relays]
    )
    assert nip19.decode(theirs.to_bech32()) == Profile(pubkey=pubkey, relays=relays)
    read = nostr_sdk.Nip19Profile.from_bech32(nip19.encode(Profile(pubkey=pubkey, relays=relays)))
    assert (read.public_key().to_hex(), [str(relay) for relay in read.relays()]) == (pubkey, list(relays))


@given(event_id=hex_ids, author=st.just("") | pubkeys, kind=st.none() | kinds, relays=relays)
def test_nostr_sdk_agrees_about_events(event_id: str, author: str, kind: int | None, relays: tuple[str, ...]) -> None:
    theirs = nostr_sdk.Nip19Event(
        nostr_sdk.EventId.parse(event_id),
        nostr_sdk.PublicKey.parse(author) if author else None,
        None if kind is None else nostr_sdk.Kind(kind),
        [nostr_sdk.RelayUrl.parse(relay) for relay in relays],
    )
    ours = EventPointer(event_id=event_id, relays=relays, author=author, kind=kind)
    assert nip19.decode(theirs.to_bech32()) == ours
    read = nostr_sdk.Nip19Event.from_bech32(nip19.encode(ours))
    assert (read.event_id().to_hex(), [str(relay) for relay in read.relays()]) == (event_id, list(relays))
    assert ("" if (by := read.author()) is None else by.to_hex()) == author
    assert (None if (of := read.kind()) is None else of.as_u16()) == kind


@given(author=pubkeys, kind=st.sampled_from([30_000, 30_023, 39_999]), identifier=identifiers, relays=relays)
def test_nostr_sdk_agrees_about_addresses(author: str, kind: int, identifier: str, relays: tuple[str, ...]) -> None:
    coordinate = nostr_sdk.Coordinate(nostr_sdk.Kind(kind), nostr_sdk.PublicKey.parse(author), identifier)
    theirs = nostr_sdk.Nip19Coordinate(coordinate, [nostr_sdk.RelayUrl.parse(relay) for relay in relays])
    ours = Address(identifier=identifier, author=author, kind=kind, relays=relays)
    assert nip19.decode(theirs.to_bech32()) == ours
    read = nostr_sdk.Nip19Coordinate.from_bech32(nip19.encode(ours)).coordinate()
    assert (read.identifier(), read.kind().as_u16(), read.public_key().to_hex()) == (identifier, kind, author)


def test_unknown_items_and_later_ones_of_a_kind_are_left_out() -> None:
    key, other = bytes(range(32)), bytes(32)
    text = _tlv("nprofile", (77, b"x"), (0, key), (1, b"wss://a"), (1, b""), (0, other), (255, b""), (2, b"short"))
    assert nip19.decode(text) == Profile(pubkey=key.hex(), relays=("wss://a",))


def test_a_relay_is_read_and_not_written() -> None:
    assert nip19.decode(_tlv("nrelay", (0, b"wss://r.x.com"))) == RelayAddress(url="wss://r.x.com")
    for entity in (RelayAddress(url="wss://r.x.com"), PrivateKey()):
        with pytest.raises(Nip19Error):
            nip19.encode(entity)


def test_of_a_private_key_only_that_it_is_one_is_told() -> None:
    assert nip19.decode(NSEC) == PrivateKey()
    assert repr(nip19.decode(NSEC)) == "PrivateKey()"
    with pytest.raises(Nip19Error):
        nip19.decode("nostr:" + NSEC)


def test_what_names_a_public_key() -> None:
    for text in (PUBLIC_KEY.hex(), NPUB, "nostr:" + NPUB, NPUB.upper(), "NOSTR:" + NPUB.upper()):
        assert nip19.pubkey_of(text) == PUBLIC_KEY.hex()
    assert nip19.pubkey_of("nostr:" + PROFILE) == PROFILE_PUBKEY
    for text in (NSEC, PUBLIC_KEY.hex().upper(), PUBLIC_KEY.hex()[:-1], nip19.encode(Note(event_id="00" * 32)), ""):
        with pytest.raises(Nip19Error):
            nip19.pubkey_of(text)


ID = (0, bytes(32))


@pytest.mark.parametrize(
    "text",
    [
        "nostr:",
        "nostr:nostr:" + NPUB,
        "web+nostr:" + NPUB,
        bech32.encode("ncryptsec", bech32.words_of_bytes(bytes(91))),
        bech32.encode("note", bech32.words_of_bytes(bytes(31))),
        bech32.encode("nsec", bech32.words_of_bytes(bytes(33))),
        bech32.encode("nevent", b""),
        _tlv("nprofile", (0, bytes(31))),
        _tlv("nprofile", (1, b"wss://a")),
        _tlv("nprofile", ID, (1, "wss://é".encode())),
        _tlv("nevent", ID, (2, bytes(33))),
        _tlv("nevent", ID, (3, bytes(3))),
        _tlv("naddr", (0, b"d"), (2, bytes(32))),
        _tlv("naddr", (0, b"d"), (3, bytes(4))),
        _tlv("naddr", (2, bytes(32)), (3, bytes(4))),
        _tlv("naddr", (0, b"\xff"), (2, bytes(32)), (3, bytes(4))),
        bech32.encode("nprofile", bech32.words_of_bytes(b"\x00\x20" + bytes(31))),
        bech32.encode("nprofile", bech32.words_of_bytes(b"\x00\x20" + bytes(32) + b"\x01")),
        _tlv("nprofile", ID, *[(1, b"a" * 255)] * 13),
    ],
)
def test_what_is_not_in_the_form_is_refused(text: str) -> None:
    with pytest.raises(Nip19Error):
        nip19.decode(text)


@pytest.mark.parametrize(
    "entity",
    [
        PublicKey(pubkey="AB" * 32),
        Note(event_id="00" * 31),
        Profile(pubkey="00" * 32, relays=("wss://é",)),
        Profile(pubkey="00" * 32, relays=("",)),
        Profile(pubkey="00" * 32, relays=("a" * 256,)),
        Profile(pubkey="00" * 32, relays=("a" * 255,) * 13),
        EventPointer(event_id="00" * 32, kind=2**32),
        EventPointer(event_id="00" * 32, kind=-1),
        EventPointer(event_id="00" * 32, author="x"),
        Address(identifier="é" * 128, author="00" * 32, kind=1),
        Address(identifier="\ud800", author="00" * 32, kind=1),
    ],
)
def test_what_does_not_fit_is_not_written(entity: nip19.Entity) -> None:
    with pytest.raises(Nip19Error):
        nip19.encode(entity)


def test_the_longest_text_that_is_written_is_read() -> None:
    profile = Profile(pubkey="00" * 32, relays=("a" * 255,) * 11)
    assert len(nip19.encode(profile)) <= nip19.CHARACTERS_MAX
    assert nip19.decode(nip19.encode(profile)) == profile


prefixes = st.sampled_from(["npub", "nsec", "note", "nprofile", "nevent", "naddr", "nrelay"])


@given(
    text=st.text(max_size=200)
    | st.builds(
        lambda prefix, data: bech32.encode(prefix, bech32.words_of_bytes(data)), prefixes, st.binary(max_size=120)
    )
)
def test_noise_is_refused_or_read(text: str) -> None:
    try:
        entity = nip19.decode(text)
    except Nip19Error:
        return
    if not isinstance(entity, PrivateKey | RelayAddress):
        assert nip19.decode(nip19.encode(entity)) == entity

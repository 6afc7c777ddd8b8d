"""NIP-44: the specification's vectors, nostr-sdk as a second opinion in both directions, and everything that must not open."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import nostr_sdk
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from services.chassis.secret import SecretBytes
from services.nip.domain import nip44
from services.nip.domain.encryption import (
    PLAINTEXT_BYTES_MAX,
    DecryptionError,
    InvalidPeerError,
    PlaintextError,
    UnsupportedVersionError,
)
from services.nostr.bip340 import InvalidSecretKeyError, Signer

SHARED = Path(__file__).resolve().parents[4] / "shared" / "vectors"
VECTORS = SHARED / "nip44" / "nip44.vectors.json"
needs_vectors = pytest.mark.skipif(
    not VECTORS.exists(), reason="the NIP-44 vectors are not beside the checkout (../shared/vectors)"
)
ALICE = SecretBytes(b"\x01" * 32)
BOB = SecretBytes(b"\x02" * 32)


def _of(*path: str) -> list[Any]:
    if not VECTORS.exists():
        return []
    found: Any = json.loads(VECTORS.read_text())["v2"]
    for name in path:
        found = found[name]
    return list(found)


def _secret(text: str) -> SecretBytes:
    return SecretBytes(bytes.fromhex(text))


def _pubkey(secret: SecretBytes) -> str:
    return Signer(secret).public_key.hex()


KEY = nip44.conversation_key(ALICE, _pubkey(BOB))


@needs_vectors
def test_the_vectors_are_those_that_the_specification_names() -> None:
    named = re.search(r"([0-9a-f]{64})  nip44\.vectors\.json", (SHARED / "nips" / "44.md").read_text())
    assert named is not None
    assert hashlib.sha256(VECTORS.read_bytes()).hexdigest() == named[1]


@needs_vectors
@pytest.mark.parametrize("row", _of("valid", "get_conversation_key"), ids=lambda row: row["conversation_key"][:8])
def test_conversation_keys(row: dict[str, str]) -> None:
    key = nip44.conversation_key(_secret(row["sec1"]), row["pub2"])
    assert key.reveal().hex() == row["conversation_key"]


@needs_vectors
def test_message_keys() -> None:
    vectors = json.loads(VECTORS.read_text())["v2"]["valid"]["get_message_keys"]
    assert len(vectors["keys"]) == 32
    for row in vectors["keys"]:
        keys = nip44.message_keys(_secret(vectors["conversation_key"]), bytes.fromhex(row["nonce"]))
        assert [part.hex() for part in keys] == [row["chacha_key"], row["chacha_nonce"], row["hmac_key"]]


@needs_vectors
def test_padded_lengths() -> None:
    rows = _of("valid", "calc_padded_len")
    assert len(rows) == 24
    assert [nip44.padded_length(row[0]) for row in rows] == [row[1] for row in rows]


@needs_vectors
@pytest.mark.parametrize("row", _of("valid", "encrypt_decrypt"), ids=lambda row: row["nonce"][-8:])
def test_payloads(row: dict[str, str]) -> None:
    sender, receiver = _secret(row["sec1"]), _secret(row["sec2"])
    key = nip44.conversation_key(sender, _pubkey(receiver))
    assert key.reveal().hex() == row["conversation_key"]
    assert nip44.encrypt(row["plaintext"], key, nonce=bytes.fromhex(row["nonce"])) == row["payload"]
    assert nip44.decrypt(row["payload"], nip44.conversation_key(receiver, _pubkey(sender))) == row["plaintext"]


@needs_vectors
@pytest.mark.parametrize("row", _of("valid", "encrypt_decrypt_long_msg"), ids=lambda row: row["nonce"][-8:])
def test_long_payloads(row: dict[str, Any]) -> None:
    text = row["pattern"] * row["repeat"]
    payload = nip44.encrypt(text, _secret(row["conversation_key"]), nonce=bytes.fromhex(row["nonce"]))
    assert hashlib.sha256(text.encode()).hexdigest() == row["plaintext_sha256"]
    assert hashlib.sha256(payload.encode()).hexdigest() == row["payload_sha256"]
    assert nip44.decrypt(payload, _secret(row["conversation_key"])) == text


@needs_vectors
def test_lengths_around_the_long_form() -> None:
    specification = (SHARED / "nips" / "44.md").read_text()
    rows = re.findall(r"^\| (\d+) \| (?:u16|extended).*\| (\d+) \| `(\w+)` \| `(\w+)` \|$", specification, re.MULTILINE)
    key = re.search(r"^conversation_key: (\w+)$", specification, re.MULTILINE)
    nonce = re.search(r"^nonce: +(\w+)$", specification, re.MULTILINE)
    assert len(rows) == 3
    assert key is not None
    assert nonce is not None
    for length, padded, plaintext_sha256, payload_sha256 in rows:
        text = "a" * int(length)
        payload = nip44.encrypt(text, _secret(key[1]), nonce=bytes.fromhex(nonce[1]))
        assert nip44.padded_length(int(length)) == int(padded)
        assert hashlib.sha256(text.encode()).hexdigest() == plaintext_sha256
        assert hashlib.sha256(payload.encode()).hexdigest() == payload_sha256
        assert nip44.decrypt(payload, _secret(key[1])) == text


@needs_vectors
@pytest.mark.parametrize("row", _of("invalid", "get_conversation_key"), ids=lambda row: row["note"])
def test_what_is_no_key_is_refused(row: dict[str, str]) -> None:
    """Where the vector means the private key, its public key is none either: which is said first is not laid down."""
    with pytest.raises((InvalidSecretKeyError, InvalidPeerError)):
        nip44.conversation_key(_secret(row["sec1"]), row["pub2"])
    if not row["note"].startswith("sec1"):
        with pytest.raises(InvalidPeerError):
            nip44.conversation_key(ALICE, row["pub2"])


@needs_vectors
@pytest.mark.parametrize("row", _of("invalid", "decrypt"), ids=lambda row: row["note"])
def test_what_does_not_open(row: dict[str, str]) -> None:
    version_told = row["note"].startswith("unknown encryption version")
    with pytest.raises(DecryptionError) as refused:
        nip44.decrypt(row["payload"], _secret(row["conversation_key"]))
    assert type(refused.value) is (UnsupportedVersionError if version_told else DecryptionError)
    if not version_told:
        assert str(refused.value) == str(DecryptionError())


@pytest.mark.parametrize("pubkey", ["", "02" * 33, "g" * 64, "AB" * 32, "é" * 64, "0" * 64, "f" * 64, "1" * 63])
def test_a_peer_is_a_point_of_the_curve_in_lower_case(pubkey: str) -> None:
    with pytest.raises(InvalidPeerError):
        nip44.conversation_key(ALICE, pubkey)


ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141


@pytest.mark.parametrize(
    "secret", [b"", b"\x01" * 31, b"\x01" * 33, bytes(32), ORDER.to_bytes(32, "big"), b"\xff" * 32]
)
def test_what_is_no_private_key_is_refused(secret: bytes) -> None:
    with pytest.raises(InvalidSecretKeyError):
        nip44.conversation_key(SecretBytes(secret), _pubkey(BOB))


@pytest.mark.parametrize("text", ["", "a" * (PLAINTEXT_BYTES_MAX + 1), "\ud800"])
def test_what_cannot_be_encrypted(text: str) -> None:
    with pytest.raises(PlaintextError) as refused:
        nip44.encrypt(text, KEY)
    assert not text or text not in str(refused.value)


def test_the_longest_text_and_its_payload() -> None:
    text = "é" * (PLAINTEXT_BYTES_MAX // 2)
    payload = nip44.encrypt(text, KEY)
    assert len(payload) == nip44.PAYLOAD_CHARACTERS_MAX
    assert nip44.decrypt(payload, KEY) == text
    with pytest.raises(DecryptionError):
        nip44.decrypt(payload + "AAAA", KEY)


def test_two_payloads_of_one_text_differ() -> None:
    assert nip44.encrypt("same", KEY) != nip44.encrypt("same", KEY)


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=600)
secrets = st.integers(1, ORDER - 1).map(lambda number: SecretBytes(number.to_bytes(32, "big")))


@given(ours=secrets, theirs=secrets, text=texts, repeat=st.sampled_from([1, 1, 1, 80]))
def test_nostr_sdk_opens_ours_and_we_open_its(ours: SecretBytes, theirs: SecretBytes, text: str, repeat: int) -> None:
    text = text * repeat
    ours_sdk, theirs_sdk = (nostr_sdk.Keys.parse(each.reveal().hex()) for each in (ours, theirs))
    key = nip44.conversation_key(ours, _pubkey(theirs))
    version = nostr_sdk.Nip44Version.V2
    assert nostr_sdk.nip44_decrypt(theirs_sdk.secret_key(), ours_sdk.public_key(), nip44.encrypt(text, key)) == text
    payload = nostr_sdk.nip44_encrypt(theirs_sdk.secret_key(), ours_sdk.public_key(), text, version)
    assert nip44.decrypt(payload, key) == text


@given(length=st.integers(1, 200_000))
@example(length=65_535)
@example(length=65_536)
def test_padding_hides_the_length_and_costs_at_most_a_quarter(length: int) -> None:
    padded = nip44.padded_length(length)
    assert length <= padded <= max(32, length * 5 // 4 + 31)
    assert nip44.padded_length(padded) == padded


@given(
    payload=st.text(max_size=200)
    | st.binary(min_size=99, max_size=200).map(lambda data: base64.b64encode(data).decode())
)
def test_noise_does_not_open(payload: str) -> None:
    with pytest.raises(DecryptionError):
        nip44.decrypt(payload, KEY)


@given(text=texts, at=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_a_changed_bit_anywhere_does_not_open(text: str, at: int, bit: int) -> None:
    data = bytearray(base64.b64decode(nip44.encrypt(text, KEY)))
    data[at % len(data)] ^= 1 << bit
    with pytest.raises(DecryptionError):
        nip44.decrypt(base64.b64encode(data).decode(), KEY)


def test_other_spellings_of_the_base64_do_not_open() -> None:
    """One payload has one spelling: an event id could otherwise be made to differ without the text's differing."""
    payload = nip44.encrypt("ab" * 40, KEY)
    assert payload.endswith("=")
    last = payload.rstrip("=")[-1]
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    other = payload.rstrip("=")[:-1] + alphabet[alphabet.index(last) ^ 1] + "=" * payload.count("=")
    assert base64.b64decode(other) == base64.b64decode(payload)
    for spelling in (
        other,
        payload + "=",
        payload[:50] + "\n" + payload[50:],
        payload.replace("=", ""),
        payload + "====",
    ):
        with pytest.raises(DecryptionError):
            nip44.decrypt(spelling, KEY)


@pytest.mark.parametrize(
    "padded",
    [
        bytes(2) + bytes(32),
        b"\0\0" + (65_535).to_bytes(4, "big") + b"a" * 65_536,
        b"\0\0" + (40).to_bytes(4, "big") + b"a" * 64,
        b"\0\x21" + b"a" * 32,
        b"\0\x01" + b"a" * 64,
        b"\0\x01" + b"\xff" + bytes(31),
        b"\xff\xff" + b"a" * 32,
    ],
    ids=[
        "empty",
        "long form of a short text",
        "long form of 40",
        "beyond the end",
        "too much padding",
        "no UTF-8",
        "beyond",
    ],
)
def test_padding_that_nobody_makes_does_not_open(padded: bytes) -> None:
    nonce = bytes(32)
    keys = nip44.message_keys(KEY, nonce)
    ciphertext = nip44._chacha20(keys, padded)
    payload = base64.b64encode(b"\x02" + nonce + ciphertext + nip44._mac(keys, nonce, ciphertext)).decode()
    with pytest.raises(DecryptionError) as refused:
        nip44.decrypt(payload, KEY)
    assert str(refused.value) == str(DecryptionError())

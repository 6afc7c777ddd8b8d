"""NIP-49: the specification's vectors, nostr-sdk as a second opinion in both directions, and what is refused before it costs anything."""

from __future__ import annotations

import re
from pathlib import Path

import nostr_sdk
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.chassis.secret import SecretBytes
from services.encoding import bech32
from services.nip.domain import nip49
from services.nip.domain.nip49 import KeySecurity, NcryptsecError, PasswordWrongError, TooCostlyError
from services.nostr.bip340 import InvalidSecretKeyError, Signer

SPECIFICATION = Path(__file__).resolve().parents[4] / "shared" / "vectors" / "nips" / "49.md"
needs_vectors = pytest.mark.skipif(
    not SPECIFICATION.exists(), reason="the NIPs are not beside the checkout (../shared/vectors)"
)
SECRET_KEY = SecretBytes(bytes(range(1, 33)))
PASSWORD = nip49.normalized("correct horse")
ENCRYPTED = nip49.encrypt(SECRET_KEY, PASSWORD, KeySecurity.SAFE, log_n=1)
SECURITIES = {
    KeySecurity.EXPOSED: nostr_sdk.KeySecurity.WEAK,
    KeySecurity.SAFE: nostr_sdk.KeySecurity.MEDIUM,
    KeySecurity.UNKNOWN: nostr_sdk.KeySecurity.UNKNOWN,
}


@needs_vectors
def test_the_vector_of_the_specification() -> None:
    specification = SPECIFICATION.read_text()
    text = re.search(r"`(ncryptsec1[a-z0-9]+)`", specification)
    secret = re.search(r"`([0-9a-f]{64})`", specification)
    assert text is not None
    assert secret is not None
    assert len(text[1]) == nip49.CHARACTERS
    decrypted = nip49.decrypt(nip49.bytes_of(text[1]), nip49.normalized("nostr"))
    assert decrypted.secret_key.reveal().hex() == secret[1]


def test_a_password_is_the_same_on_every_keyboard() -> None:
    typed = "\u212b\u2126\u1e9b\u0323"
    assert typed.encode() == bytes([0xE2, 0x84, 0xAB, 0xE2, 0x84, 0xA6, 0xE1, 0xBA, 0x9B, 0xCC, 0xA3])
    assert nip49.normalized(typed).reveal() == bytes([0xC3, 0x85, 0xCE, 0xA9, 0xE1, 0xB9, 0xA9])
    encrypted = nip49.encrypt(SECRET_KEY, nip49.normalized(typed), KeySecurity.SAFE, log_n=1)
    assert nip49.decrypt(encrypted, nip49.normalized("\u00c5\u03a9\u1e69")).secret_key == SECRET_KEY
    with pytest.raises(NcryptsecError):
        nip49.normalized("\ud800")


passwords = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)


@settings(max_examples=20)
@given(secret=st.binary(min_size=32, max_size=32), password=passwords, security=st.sampled_from(KeySecurity))
def test_nostr_sdk_opens_ours_and_we_open_its(secret: bytes, password: str, security: KeySecurity) -> None:
    try:
        Signer(SecretBytes(secret))
    except InvalidSecretKeyError:
        return
    ours = nip49.text_of(nip49.encrypt(SecretBytes(secret), nip49.normalized(password), security, log_n=4))
    read = nostr_sdk.EncryptedSecretKey.from_bech32(ours)
    assert read.decrypt(password).to_hex() == secret.hex()
    assert read.key_security() is SECURITIES[security]
    theirs = nostr_sdk.EncryptedSecretKey(nostr_sdk.SecretKey.parse(secret.hex()), password, 4, SECURITIES[security])
    decrypted = nip49.decrypt(nip49.bytes_of(theirs.to_bech32()), nip49.normalized(password))
    assert (decrypted.secret_key.reveal(), decrypted.security) == (secret, security)


def test_two_encryptions_differ_and_drawn_ones_do_not() -> None:
    assert nip49.encrypt(SECRET_KEY, PASSWORD, KeySecurity.SAFE, log_n=1) != ENCRYPTED
    drawn = [nip49.encrypt(SECRET_KEY, PASSWORD, KeySecurity.SAFE, log_n=1, random=bytes(40)) for _ in range(2)]
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("password", ["correct hors", "Correct horse", "", "correct horse "])
def test_another_password_does_not_open_it(password: str) -> None:
    with pytest.raises(PasswordWrongError) as refused:
        nip49.decrypt(ENCRYPTED, nip49.normalized(password))
    assert not password or password not in str(refused.value)


@given(position=st.integers(18, nip49.ENCRYPTED_BYTES - 1), flip=st.integers(1, 255))
def test_a_changed_byte_does_not_open(position: int, flip: int) -> None:
    data = bytearray(ENCRYPTED)
    data[position] ^= flip
    with pytest.raises((PasswordWrongError, NcryptsecError)):
        nip49.decrypt(bytes(data), PASSWORD)


@pytest.mark.parametrize("log_n", [19, 22, 64, 255])
def test_what_costs_too_much_is_refused_before_it_costs_anything(log_n: int) -> None:
    data = ENCRYPTED[:1] + bytes((log_n,)) + ENCRYPTED[2:]
    with pytest.raises(TooCostlyError):
        nip49.bytes_of(bech32.encode("ncryptsec", bech32.words_of_bytes(data)))
    with pytest.raises(TooCostlyError):
        nip49.decrypt(data, PASSWORD)


def _text(data: bytes, prefix: str = "ncryptsec") -> str:
    return bech32.encode(prefix, bech32.words_of_bytes(data))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ncryptsec1",
        nip49.text_of(ENCRYPTED)[:-1],
        _text(ENCRYPTED, "nsec"),
        _text(ENCRYPTED[:-1]),
        _text(ENCRYPTED + b"\0"),
        _text(b"\1" + ENCRYPTED[1:]),
        _text(ENCRYPTED[:1] + b"\0" + ENCRYPTED[2:]),
        _text(ENCRYPTED[:42] + b"\3" + ENCRYPTED[43:]),
        "é" * 162,
    ],
)
def test_what_has_not_the_form_is_refused(text: str) -> None:
    with pytest.raises(NcryptsecError) as refused:
        nip49.bytes_of(text)
    assert not text or text not in str(refused.value)


@given(text=st.text(max_size=200) | st.binary(min_size=85, max_size=95).map(_text))
def test_noise_is_refused_and_nothing_else(text: str) -> None:
    try:
        data = nip49.bytes_of(text)
    except (NcryptsecError, TooCostlyError):
        return
    assert nip49.text_of(data) == text.lower()

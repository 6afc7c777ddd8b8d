"""NIP-04: nostr-sdk as a second opinion in both directions, and one error for everything that does not open."""

from __future__ import annotations

import base64
import os

import nostr_sdk
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.chassis.secret import SecretBytes
from services.nip.domain import nip04
from services.nip.domain.encryption import PLAINTEXT_BYTES_MAX, DecryptionError, PlaintextError
from services.nostr.bip340 import Signer

ALICE, BOB = SecretBytes(b"\x01" * 32), SecretBytes(b"\x02" * 32)
ALICE_SDK, BOB_SDK = (nostr_sdk.Keys.parse(secret.reveal().hex()) for secret in (ALICE, BOB))
KEY = nip04.shared_secret(ALICE, Signer(BOB).public_key.hex())
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)


def test_both_sides_get_the_same_secret() -> None:
    assert nip04.shared_secret(BOB, Signer(ALICE).public_key.hex()) == KEY


@given(text=texts)
def test_nostr_sdk_opens_ours_and_we_open_its(text: str) -> None:
    assert nostr_sdk.nip04_decrypt(BOB_SDK.secret_key(), ALICE_SDK.public_key(), nip04.encrypt(text, KEY)) == text
    assert nip04.decrypt(nostr_sdk.nip04_encrypt(BOB_SDK.secret_key(), ALICE_SDK.public_key(), text), KEY) == text


def test_the_longest_text_and_its_payload() -> None:
    payload = nip04.encrypt("a" * PLAINTEXT_BYTES_MAX, KEY)
    assert len(payload) == nip04.PAYLOAD_CHARACTERS_MAX
    assert nip04.decrypt(payload, KEY) == "a" * PLAINTEXT_BYTES_MAX
    for text in ("a" * (PLAINTEXT_BYTES_MAX + 1), "\udfff"):
        with pytest.raises(PlaintextError):
            nip04.encrypt(text, KEY)


def _payload(ciphertext: bytes, vector: bytes) -> str:
    return f"{base64.b64encode(ciphertext).decode()}?iv={base64.b64encode(vector).decode()}"


@pytest.mark.parametrize(
    "payload",
    [
        "",
        "?iv=",
        "?iv=" + "A" * 22 + "==",
        "A" * 22 + "==",
        "A" * 22 + "==?iv=",
        _payload(bytes(16), bytes(15)),
        _payload(bytes(16), bytes(17)),
        _payload(bytes(17), bytes(16)),
        _payload(bytes(16), bytes(16)) + "?iv=",
        " " + _payload(bytes(16), bytes(16)),
        _payload(bytes(16), bytes(16)).replace("==?", "?"),
        "é" * 40 + "?iv=" + "A" * 22 + "==",
        "A" * (nip04.PAYLOAD_CHARACTERS_MAX + 1),
    ],
)
def test_what_has_not_the_form_does_not_open(payload: str) -> None:
    with pytest.raises(DecryptionError) as refused:
        nip04.decrypt(payload, KEY)
    assert str(refused.value) == str(DecryptionError())


def test_wrong_padding_and_wrong_text_are_the_same_error() -> None:
    """The outcome says only whether the payload opened: with different errors, each byte could be asked for."""
    not_utf8 = nip04._cipher(KEY, bytes(16)).encryptor().update(b"\xff" * 15 + b"\x01")
    wrong_padding = nip04._cipher(KEY, bytes(16)).encryptor().update(b"a" * 15 + b"\x00")
    messages = set()
    for ciphertext in (not_utf8, wrong_padding):
        with pytest.raises(DecryptionError) as refused:
            nip04.decrypt(_payload(ciphertext, bytes(16)), KEY)
        assert refused.value.__suppress_context__
        messages.add(str(refused.value))
    assert messages == {str(DecryptionError())}


@given(payload=st.text(max_size=120) | st.binary(max_size=64).map(lambda data: _payload(data, os.urandom(16))))
def test_noise_opens_by_chance_or_raises_the_one_error(payload: str) -> None:
    message = ""
    try:
        nip04.decrypt(payload, KEY)
    except DecryptionError as error:
        message = str(error)
    assert message in ("", str(DecryptionError()))

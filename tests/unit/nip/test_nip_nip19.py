"""NIP-19: the specification's examples, nostr-sdk as a second opinion, and everything that is no key."""

from __future__ import annotations

import nostr_sdk
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.chassis.secret import SecretBytes
from services.encoding import bech32
from services.nip.domain import nip19
from services.nip.domain.bip340 import InvalidSecretKeyError, Signer
from services.nip.domain.nip19 import Nip19Error, npub, nsec, public_key_of_npub, secret_key_of_nsec

NPUB = "npub10elfcs4fr0l0r8af98jlmgdh9c8tcxjvz9qkw038js35mp4dma8qzvjptg"
PUBLIC_KEY = bytes.fromhex("7e7e9c42a91bfef19fa929e5fda1b72e0ebc1a4c1141673e2794234d86addf4e")
NSEC = "nsec1vl029mgpspedva04g90vltkh6fvh240zqtv9k0t9af8935ke9laqsnlfe5"
SECRET_KEY = SecretBytes(bytes.fromhex("67dea2ed018072d675f5415ecfaed7d2597555e202d85b3d65ea4e58d2d92ffa"))


def test_the_examples_of_the_specification() -> None:
    assert (npub(PUBLIC_KEY), nsec(SECRET_KEY)) == (NPUB, NSEC)
    assert (public_key_of_npub(NPUB), secret_key_of_nsec(NSEC)) == (PUBLIC_KEY, SECRET_KEY)
    assert len(NSEC) == len(NPUB) == nip19.CHARACTERS_MAX


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

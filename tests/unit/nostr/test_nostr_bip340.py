"""BIP-340 against the specification's own vectors, and the properties that signing here adds."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.chassis.secret import SecretBytes
from services.nostr import bip340
from services.nostr.bip340 import InvalidSecretKeyError, Signer

VECTORS = Path(__file__).resolve().parents[4] / "shared" / "vectors" / "bip340" / "test-vectors.csv"
ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141

needs_vectors = pytest.mark.skipif(
    not VECTORS.exists(), reason="the BIP-340 vectors are not beside the checkout (../shared/vectors)"
)


def _rows() -> Iterator[dict[str, str]]:
    if VECTORS.exists():
        with VECTORS.open(newline="") as file:
            yield from csv.DictReader(file)


@needs_vectors
def test_vectors_are_complete() -> None:
    assert len(list(_rows())) == 19


@needs_vectors
@pytest.mark.parametrize("row", [pytest.param(row, id=row["index"]) for row in _rows()])
def test_verification_agrees_with_the_vector(row: dict[str, str]) -> None:
    verified = bip340.verify(*(bytes.fromhex(row[name]) for name in ("public key", "message", "signature")))
    assert verified is (row["verification result"] == "TRUE"), row["comment"]


@needs_vectors
@pytest.mark.parametrize(
    "row", [pytest.param(row, id=row["index"]) for row in _rows() if len(row["message"]) == 64 and row["secret key"]]
)
def test_signature_is_the_one_of_the_vector(row: dict[str, str]) -> None:
    signer = Signer(SecretBytes(bytes.fromhex(row["secret key"])))
    assert signer.public_key.hex().upper() == row["public key"]
    signature = signer.sign(bytes.fromhex(row["message"]), bytes.fromhex(row["aux_rand"]))
    assert signature.hex().upper() == row["signature"]


@pytest.mark.parametrize("secret", [b"", bytes(32), bytes(31), bytes(33), ORDER.to_bytes(32, "big"), b"\xff" * 32])
def test_what_is_no_private_key_is_refused(secret: bytes) -> None:
    with pytest.raises(InvalidSecretKeyError) as refused:
        Signer(SecretBytes(secret))
    assert secret.hex() not in str(refused.value) or not secret


@pytest.mark.parametrize("secret", [1, 2, ORDER - 1])
def test_the_edges_of_the_range_are_keys(secret: int) -> None:
    signer = Signer(SecretBytes(secret.to_bytes(32, "big")))
    assert bip340.verify(signer.public_key, bytes(32), signer.sign(bytes(32), bytes(32)))


@given(
    digest=st.binary(min_size=32, max_size=32), auxiliary=st.binary(min_size=32, max_size=32), bit=st.integers(0, 511)
)
def test_a_flipped_bit_breaks_the_signature(digest: bytes, auxiliary: bytes, bit: int) -> None:
    signer = Signer(SecretBytes(b"\x07" * 32))
    signature = signer.sign(digest, auxiliary)
    assert bip340.verify(signer.public_key, digest, signature)
    flipped = (int.from_bytes(signature, "big") ^ (1 << bit)).to_bytes(64, "big")
    assert not bip340.verify(signer.public_key, digest, flipped)


@pytest.mark.parametrize(("public_key", "signature"), [(31, 64), (33, 64), (32, 63), (32, 65), (0, 0)])
def test_wrong_lengths_do_not_verify(public_key: int, signature: int) -> None:
    assert not bip340.verify(bytes(public_key), bytes(32), bytes(signature))


def test_a_wiped_signer_signs_nothing() -> None:
    signer = Signer(SecretBytes(b"\x07" * 32))
    signer.wipe()
    with pytest.raises(bip340.SigningFaultError):
        signer.sign(bytes(32), bytes(32))


def test_no_text_form_shows_the_secret() -> None:
    secret = SecretBytes(b"\x07" * 32)
    signer = Signer(secret)
    shown = f"{secret!r} {secret} {secret:>10} {signer!r} {signer}"
    assert "0707" not in shown
    assert "\\x07" not in shown
    assert shown.startswith("[redacted] [redacted] [redacted]")

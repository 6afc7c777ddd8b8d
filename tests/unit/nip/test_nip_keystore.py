"""Sealed keys: they open only with the right master key and in their own row."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.chassis.secret import SecretBytes
from services.nip.domain.keystore import SEALED_BYTES, Keystore, SealBrokenError

MASTER_KEY = SecretBytes(b"\x05" * 32)
SECRET_KEY = SecretBytes(bytes(range(32)))
ROW = {"key_id": "key", "pubkey": "ab" * 32, "owner": "cd" * 32}


def test_a_sealed_key_opens_again() -> None:
    sealed = Keystore(MASTER_KEY).seal(SECRET_KEY, **ROW)
    assert len(sealed) == SEALED_BYTES
    assert SECRET_KEY.reveal() not in sealed
    assert Keystore(MASTER_KEY).open(sealed, **ROW) == SECRET_KEY


def test_two_seals_of_one_key_differ() -> None:
    keystore = Keystore(MASTER_KEY)
    assert keystore.seal(SECRET_KEY, **ROW) != keystore.seal(SECRET_KEY, **ROW)


@pytest.mark.parametrize("name", ["key_id", "pubkey", "owner"])
def test_a_sealed_key_in_another_row_does_not_open(name: str) -> None:
    keystore = Keystore(MASTER_KEY)
    with pytest.raises(SealBrokenError):
        keystore.open(keystore.seal(SECRET_KEY, **ROW), **{**ROW, name: "other"})


def test_fields_cannot_flow_into_each_other() -> None:
    keystore = Keystore(MASTER_KEY)
    sealed = keystore.seal(SECRET_KEY, key_id="a", pubkey="bc", owner="d")
    with pytest.raises(SealBrokenError):
        keystore.open(sealed, key_id="ab", pubkey="c", owner="d")
    assert keystore.fingerprint(b"ab", b"c") != keystore.fingerprint(b"a", b"bc")


@given(position=st.integers(0, SEALED_BYTES - 1), flip=st.integers(1, 255))
def test_a_changed_byte_does_not_open(position: int, flip: int) -> None:
    keystore = Keystore(MASTER_KEY)
    sealed = bytearray(keystore.seal(SECRET_KEY, **ROW))
    sealed[position] ^= flip
    with pytest.raises(SealBrokenError):
        keystore.open(bytes(sealed), **ROW)


@given(sealed=st.binary(max_size=80))
def test_any_other_bytes_do_not_open(sealed: bytes) -> None:
    with pytest.raises(SealBrokenError):
        Keystore(MASTER_KEY).open(sealed, **ROW)


def test_another_master_key_opens_nothing_and_shows_in_the_check_value() -> None:
    other = Keystore(SecretBytes(b"\x06" * 32))
    with pytest.raises(SealBrokenError):
        other.open(Keystore(MASTER_KEY).seal(SECRET_KEY, **ROW), **ROW)
    assert other.check_value != Keystore(MASTER_KEY).check_value


def test_derived_keys_differ_from_each_other_and_from_the_master_key() -> None:
    keystore = Keystore(MASTER_KEY)
    assert len({keystore.check_value, keystore.auxiliary_key, keystore.fingerprint(), MASTER_KEY.reveal()}) == 4


def test_no_text_form_shows_a_key() -> None:
    assert repr(Keystore(MASTER_KEY)) == "Keystore([redacted])"

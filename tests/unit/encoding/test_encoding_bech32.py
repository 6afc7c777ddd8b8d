"""Bech32 against BIP-173's own examples, a second implementation, and hostile text."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from services.encoding import bech32
from services.encoding.bech32 import Bech32Error

VALID = [
    "A12UEL5L",
    "a12uel5l",
    "an83characterlonghumanreadablepartthatcontainsthenumber1andtheexcludedcharactersbio1tt5tgs",
    "abcdef1qpzry9x8gf2tvdw0s3jn54khce6mua7lmqqqxw",
    "11qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqc8247j",
    "split1checkupstagehandshakeupstreamerranterredcaperred2y9e3w",
    "?1ezyfcl",
]
INVALID = {
    "\x201nwldj5": "printable",
    "\x7f1axkwrx": "printable",
    "\x801eym55h": "ASCII",
    "pzry9x0s0muk": "separator",
    "1pzry9x0s0muk": "prefix",
    "x1b4n0q5v": "none of bech32's at position 2",
    "li1dgmt3": "too short",
    "de1lg7wt\xff": "ASCII",
    "A1G7SGD8": "checksum",
    "10a06t8": "prefix",
    "1qzzfhee": "prefix",
    "A12uEL5L": "mixed",
    "bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t5": "checksum",
}

words = st.binary(max_size=700).map(lambda data: bytes(byte & 31 for byte in data))
prefixes = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=83).map(str.lower)


def _polymod_of_the_bip(values: list[int]) -> int:
    """The reference code printed in BIP-173."""
    register = 1
    for value in values:
        top = register >> 25
        register = (register & 0x1FFFFFF) << 5 ^ value
        for bit, generator in enumerate((0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)):
            register ^= generator if (top >> bit) & 1 else 0
    return register


@pytest.mark.parametrize("text", VALID)
def test_valid_examples_decode_and_encode_to_themselves(text: str) -> None:
    assert bech32.encode(*bech32.decode(text)) == text.lower()


@pytest.mark.parametrize("text", INVALID)
def test_invalid_examples_are_refused_with_the_cause(text: str) -> None:
    with pytest.raises(Bech32Error, match=INVALID[text]):
        bech32.decode(text)


@given(prefixes, words)
def test_what_was_encoded_decodes_in_both_cases(prefix: str, data: bytes) -> None:
    text = bech32.encode(prefix, data)
    assert bech32.decode(text) == (prefix, data)
    assert bech32.decode(text.upper()) == (prefix, data)


@given(words)
def test_the_checksum_is_that_of_the_reference_code(data: bytes) -> None:
    assert bech32._polymod(data) == _polymod_of_the_bip(list(data))


@given(prefixes, words.filter(bool), st.data())
def test_one_changed_character_is_noticed(prefix: str, data: bytes, draw: st.DataObject) -> None:
    text = bech32.encode(prefix, data)
    at = draw.draw(st.integers(len(prefix) + 1, len(text) - 1))
    other = draw.draw(st.sampled_from(bech32.CHARSET).filter(lambda character: character != text[at]))
    with pytest.raises(Bech32Error, match="checksum"):
        bech32.decode(text[:at] + other + text[at + 1 :])


@given(st.text(max_size=200))
@example("ẞ1" + "q" * 6)
@example("K1" + "q" * 6)  # the Kelvin sign lowers to an ASCII letter
@example("1" * 50)
def test_any_text_gives_words_or_a_bech32_error(text: str) -> None:
    try:
        decoded = bech32.decode(text)
    except Bech32Error:
        return
    assert bech32.encode(*decoded) == text.lower()


def test_the_length_limit_is_the_caller_s() -> None:
    text = bech32.encode("a", bytes(100))
    with pytest.raises(Bech32Error, match="longer than 90"):
        bech32.decode(text, characters_max=90)
    assert bech32.decode(text).words == bytes(100)


@given(st.binary(max_size=700))
def test_bytes_survive_as_words(data: bytes) -> None:
    regrouped = bech32.words_of_bytes(data)
    assert bech32.bytes_of_words(regrouped) == data
    assert not regrouped or max(regrouped) < 32


@given(st.integers(0, 2**600))
def test_numbers_survive_as_words_without_leading_zeros(value: int) -> None:
    regrouped = bech32.words_of_integer(value)
    assert bech32.integer_of_words(regrouped) == value
    assert not regrouped or regrouped[0] != 0
    assert bech32.words_of_integer(value, len(regrouped) + 2) == b"\0\0" + regrouped


def test_padding_is_strict() -> None:
    with pytest.raises(Bech32Error, match="padding bits"):
        bech32.bytes_of_words(bytes((0, 1)))
    for left_over in (1, 3, 6):
        with pytest.raises(Bech32Error, match="whole word"):
            bech32.bytes_of_words(bytes(left_over))
    assert bech32.padded_bytes_of_words(bytes((31, 31, 31))) == b"\xff\xfe"


def test_what_is_no_word_is_refused() -> None:
    with pytest.raises(Bech32Error, match="more than 5 bits at position 1"):
        bech32.encode("a", bytes((0, 32)))
    with pytest.raises(Bech32Error, match="more than 5 bits"):
        bech32.integer_of_words(bytes((0, 32)))
    with pytest.raises(Bech32Error, match="needs 2 words"):
        bech32.words_of_integer(32, 1)
    with pytest.raises(Bech32Error, match="negative"):
        bech32.words_of_integer(-1)
    with pytest.raises(Bech32Error, match="lower case"):
        bech32.encode("A", b"")

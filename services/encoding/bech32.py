"""Bech32 (BIP-173): text with a human-readable prefix and a checksum, of any length; and the 5-bit words inside it.

https://github.com/bitcoin/bips/blob/master/bip-0173.mediawiki

Words travel as `bytes` with values 0 to 31. Three tricks make this fast in Python: the checksum takes two words per step, bits
are regrouped by reading the words as one number in base 32, and bytes become words five at a time, with a table of pairs.
"""

from __future__ import annotations

import functools
from typing import Final, NamedTuple

CHARSET: Final = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
"""Word 0 is `q`, word 31 is `l`."""
CHARACTERS_MAX: Final = 7_089
"""Longest text that is read unless the caller says otherwise: what a QR code holds. BIP-173's 90 is for addresses."""
PREFIX_CHARACTERS_MAX: Final = 83
"""BIP-173: "The human-readable part ... MUST contain 1 to 83 US-ASCII characters"."""
PREFIXES_KEPT_MAX: Final = 1_024
"""Prefixes (currency and amount) whose part of the checksum is kept; less than 1 KiB each."""
CHECKSUM_WORDS: Final = 6
WORD_BITS: Final = 5

_INVALID: Final = 0xFF
_GENERATORS: Final = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)
_WORD_OF: Final = bytes(CHARSET.find(chr(byte)) & 0xFF for byte in range(256))
_CHARACTER_OF: Final = CHARSET.encode() + bytes(224)
_DIGIT_OF: Final = b"0123456789abcdefghijklmnopqrstuv" + b"!" * 224
"""Words to the digits that int() reads in base 32; anything else to a character that it refuses."""
_BYTE_ORDER: Final = "big"


class Bech32Error(ValueError):
    """The text is not bech32, or its words do not fit.

    `position` counts characters (or words) from 0; None when the whole is meant. The message never repeats what was
    given: it may be a private key.
    """

    def __init__(self, message: str, position: int | None = None) -> None:
        """Say what is wrong, and where."""
        super().__init__(message if position is None else f"{message} at position {position}")
        self.position = position


class Bech32(NamedTuple):
    """A decoded text: the prefix in lower case, and the words without the checksum."""

    prefix: str
    words: bytes


def _shifted(register: int) -> int:
    """Return the checksum's register after one word of 0."""
    top = register >> 25
    register = (register & 0x1FFFFFF) << 5
    for bit, generator in enumerate(_GENERATORS):
        register ^= generator if top >> bit & 1 else 0
    return register


_STEP_ONE: Final = tuple(_shifted(top << 25) for top in range(32))
"""What the 5 bits that leave the checksum's register put back into it, for one word."""
_STEP: Final = tuple(_shifted(_shifted(top << 20)) for top in range(1024))
"""The same of 10 bits, for two words at once."""
_PAIRS: Final = tuple(bytes((pair >> 5, pair & 31)) for pair in range(1024))
"""Two words, by the 10 bits that they are."""


def _polymod(words: bytes, register: int = 1) -> int:
    """BIP-173's checksum register after these words, from the one before them."""
    if len(words) % 2:
        register = ((register & 0x1FFFFFF) << 5 ^ words[0]) ^ _STEP_ONE[register >> 25]
        words = words[1:]
    for high, low in zip(words[::2], words[1::2], strict=True):
        register = ((register & 0xFFFFF) << 10 ^ high << 5 ^ low) ^ _STEP[register >> 20]
    return register


@functools.lru_cache(PREFIXES_KEPT_MAX)
def _after_prefix(prefix: str) -> int:
    """Return the register after a prefix as the checksum sees it: high bits, a zero, low bits."""
    characters = prefix.encode("ascii")
    return _polymod(bytes(byte >> 5 for byte in characters) + b"\0" + bytes(byte & 31 for byte in characters))


def encode(prefix: str, words: bytes) -> str:
    """Return the bech32 text, lower case, of 5-bit words. Raises Bech32Error for a bad prefix or a word above 31."""
    _check_prefix(prefix)
    if prefix != prefix.lower():
        raise Bech32Error("the prefix must be in lower case")
    if words and max(words) >= 1 << WORD_BITS:
        raise Bech32Error("a word has more than 5 bits", next(at for at, word in enumerate(words) if word > 31))
    register = _polymod(words + bytes(CHECKSUM_WORDS), _after_prefix(prefix)) ^ 1
    checksum = bytes(register >> WORD_BITS * shift & 31 for shift in range(CHECKSUM_WORDS - 1, -1, -1))
    return f"{prefix}1{(words + checksum).translate(_CHARACTER_OF).decode('ascii')}"


def decode(text: str, *, characters_max: int = CHARACTERS_MAX) -> Bech32:
    """Prefix and words of a bech32 text, in lower or upper case. Raises Bech32Error."""
    if len(text) > characters_max:
        raise Bech32Error(f"the text is longer than {characters_max} characters")
    if not text.isascii():
        raise Bech32Error("a character is not ASCII", next(at for at, one in enumerate(text) if ord(one) > 127))
    lowered = text.lower()
    if text not in (lowered, text.upper()):
        raise Bech32Error("upper and lower case are mixed")
    separator = lowered.rfind("1")
    if separator < 0:
        raise Bech32Error("there is no separator '1'")
    prefix = lowered[:separator]
    _check_prefix(prefix)
    words = lowered[separator + 1 :].encode("ascii").translate(_WORD_OF)
    if _INVALID in words:
        raise Bech32Error("a character is none of bech32's", separator + 1 + words.index(_INVALID))
    if len(words) < CHECKSUM_WORDS:
        raise Bech32Error("the text is too short for its checksum")
    if _polymod(words, _after_prefix(prefix)) != 1:
        raise Bech32Error("the checksum is wrong")
    return Bech32(prefix, words[:-CHECKSUM_WORDS])


def _check_prefix(prefix: str) -> None:
    """Refuse what BIP-173 does not allow as human-readable part."""
    if not 1 <= len(prefix) <= PREFIX_CHARACTERS_MAX:
        raise Bech32Error(f"the prefix must have 1 to {PREFIX_CHARACTERS_MAX} characters")
    for position, character in enumerate(prefix):
        if not 33 <= ord(character) <= 126:
            raise Bech32Error("the prefix has a character that is not printable ASCII", position)


def integer_of_words(words: bytes) -> int:
    """Return the words as one big-endian number; 0 when there are none. Raises Bech32Error for a word above 31."""
    try:
        return int(words.translate(_DIGIT_OF), 32) if words else 0
    except ValueError as error:
        raise Bech32Error("a word has more than 5 bits") from error


def words_of_integer(value: int, count: int | None = None) -> bytes:
    """Return the number as big-endian words: `count` of them, or as few as possible (none for 0).

    Raises Bech32Error when it does not fit.
    """
    if value < 0:
        raise Bech32Error("a negative number has no words")
    needed = -(-value.bit_length() // WORD_BITS)
    length = needed if count is None else count
    if length < needed:
        raise Bech32Error(f"the number needs {needed} words, there is room for {length}")
    return bytes(value >> WORD_BITS * shift & 31 for shift in range(length - 1, -1, -1))


def words_of_bytes(data: bytes) -> bytes:
    """Return bytes regrouped into words, padded with zero bits at the end."""
    padded = data + bytes(-len(data) % WORD_BITS)
    groups = [int.from_bytes(padded[at : at + WORD_BITS], _BYTE_ORDER) for at in range(0, len(padded), WORD_BITS)]
    words = b"".join([_PAIRS[group >> shift & 1023] for group in groups for shift in (30, 20, 10, 0)])
    return words[: -(-len(data) * 8 // WORD_BITS)]


def bytes_of_words(words: bytes) -> bytes:
    """Return words as bytes. Raises Bech32Error when more than 4 bits are left over, or they are not zero (BIP-173)."""
    spare = len(words) * WORD_BITS % 8
    value = integer_of_words(words)
    if spare >= WORD_BITS:
        raise Bech32Error("a whole word is left over after the last byte", len(words) - 1)
    if value & (1 << spare) - 1:
        raise Bech32Error("the padding bits after the last byte are not zero", len(words) - 1)
    return (value >> spare).to_bytes(len(words) * WORD_BITS // 8, _BYTE_ORDER)


def padded_bytes_of_words(words: bytes) -> bytes:
    """Return words as bytes, the last one filled with zero bits; what BOLT11's signature covers."""
    length = -(-len(words) * WORD_BITS // 8)
    return (integer_of_words(words) << length * 8 - len(words) * WORD_BITS).to_bytes(length, _BYTE_ORDER)

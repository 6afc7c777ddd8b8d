"""NIP-49: a private key encrypted with a password, `ncryptsec1...`; and what a locked key is sealed with.

Specification: https://github.com/nostr-protocol/nips/blob/master/49.md. The 91 bytes are
`version (1) | log_n (1) | salt (16) | nonce (24) | key security (1) | ciphertext and tag (48)`.

`encrypt` and `decrypt` take 2**log_n KiB of memory and as many rounds: 64 MiB and about 0.2 s for log_n 16. They block without the GIL.
"""

from __future__ import annotations

import enum
import hashlib
import os
import unicodedata
from dataclasses import dataclass
from typing import Final

from nacl.bindings import crypto_aead_xchacha20poly1305_ietf_decrypt, crypto_aead_xchacha20poly1305_ietf_encrypt
from nacl.exceptions import CryptoError

from services.chassis.secret import SecretBytes
from services.encoding import bech32

PREFIX: Final = "ncryptsec"
VERSION: Final = 2
LOG_N_MIN: Final = 16
"""The least that this service encrypts with; NIP-49: about 100 ms on a fast computer."""
LOG_N_MAX: Final = 18
"""The most that it spends on any: 256 MiB. Each step more doubles what a stranger can make a replica spend."""
SALT_BYTES: Final = 16
NONCE_BYTES: Final = 24
KEY_BYTES: Final = 32
TAG_BYTES: Final = 16
ENCRYPTED_BYTES: Final = 2 + SALT_BYTES + NONCE_BYTES + 1 + KEY_BYTES + TAG_BYTES
CHARACTERS: Final = len(PREFIX) + 1 + -(-ENCRYPTED_BYTES * 8 // 5) + bech32.CHECKSUM_WORDS

_BLOCK_SIZE: Final = 8
"""scrypt's r; its p is 1."""
_MEMORY_SPARE: Final = 1 << 20
"""OpenSSL's own limit stands this much above what scrypt needs."""


class KeySecurity(enum.IntEnum):
    """NIP-49's KEY_SECURITY_BYTE: how the private key was handled before."""

    EXPOSED = 0
    SAFE = 1
    UNKNOWN = 2


class NcryptsecError(ValueError):
    """The text or the bytes have not the form of NIP-49; nothing of them is repeated."""


class TooCostlyError(ValueError):
    """The password would cost more than LOG_N_MAX allows."""


class PasswordWrongError(ValueError):
    """The password does not open it, or it was changed: one cannot tell which."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decrypted:
    """What was in an encrypted key. Whether the private key is a number of the curve is not checked here."""

    secret_key: SecretBytes
    security: KeySecurity


def bytes_of(text: str) -> bytes:
    """Return the 91 bytes of `ncryptsec1...`, whose form is right. Raises NcryptsecError, TooCostlyError."""
    try:
        prefix, words = bech32.decode(text, characters_max=CHARACTERS)
        data = bech32.bytes_of_words(words)
    except bech32.Bech32Error as error:
        raise NcryptsecError("not an ncryptsec") from error
    if prefix != PREFIX:
        raise NcryptsecError("not an ncryptsec")
    _check(data)
    return data


def text_of(encrypted: bytes) -> str:
    """Return the 91 bytes as `ncryptsec1...`."""
    assert len(encrypted) == ENCRYPTED_BYTES, "made by encrypt"
    return bech32.encode(PREFIX, bech32.words_of_bytes(encrypted))


def encrypt(
    secret_key: SecretBytes, password: SecretBytes, security: KeySecurity, *, log_n: int, random: bytes | None = None
) -> bytes:
    """Return the 91 bytes. `password` is from `normalized`. `random` (40 bytes, salt and nonce) makes the result a function."""
    assert len(secret_key) == KEY_BYTES, "a private key has 32 bytes"
    drawn = os.urandom(SALT_BYTES + NONCE_BYTES) if random is None else random
    assert len(drawn) == SALT_BYTES + NONCE_BYTES, "salt and nonce"
    salt, nonce = drawn[:SALT_BYTES], drawn[SALT_BYTES:]
    associated = bytes((security,))
    key = _stretched(password, salt, log_n)
    ciphertext = crypto_aead_xchacha20poly1305_ietf_encrypt(secret_key.reveal(), associated, nonce, key.reveal())
    return bytes((VERSION, log_n)) + salt + nonce + associated + ciphertext


def decrypt(encrypted: bytes, password: SecretBytes) -> Decrypted:
    """Return what the 91 bytes hold. Raises NcryptsecError, TooCostlyError, PasswordWrongError."""
    _check(encrypted)
    salt, rest = encrypted[2 : 2 + SALT_BYTES], encrypted[2 + SALT_BYTES :]
    nonce, associated, ciphertext = rest[:NONCE_BYTES], rest[NONCE_BYTES : NONCE_BYTES + 1], rest[NONCE_BYTES + 1 :]
    key = _stretched(password, salt, encrypted[1])
    try:
        secret = crypto_aead_xchacha20poly1305_ietf_decrypt(ciphertext, associated, nonce, key.reveal())
    except CryptoError as error:
        raise PasswordWrongError("the password does not open the key") from error
    return Decrypted(secret_key=SecretBytes(secret), security=KeySecurity(associated[0]))


def normalized(password: str) -> SecretBytes:
    """Return the password's bytes in the form NFKC, so that it is the same on every keyboard. Raises NcryptsecError: no Unicode text."""
    try:
        return SecretBytes(unicodedata.normalize("NFKC", password).encode())
    except UnicodeEncodeError:
        raise NcryptsecError("the password has a lone surrogate") from None


def _check(encrypted: bytes) -> None:
    """Refuse what is not worth the price of its password."""
    if len(encrypted) != ENCRYPTED_BYTES or encrypted[0] != VERSION or encrypted[1] < 1:
        raise NcryptsecError("not an ncryptsec of version 2")
    if encrypted[2 + SALT_BYTES + NONCE_BYTES] not in KeySecurity.__members__.values():
        raise NcryptsecError("the key security byte is none of NIP-49's")
    if encrypted[1] > LOG_N_MAX:
        raise TooCostlyError(f"its password costs 2**{encrypted[1]} rounds, the service spends 2**{LOG_N_MAX} at most")


def _stretched(password: SecretBytes, salt: bytes, log_n: int) -> SecretBytes:
    """The key of a password, by scrypt."""
    assert 1 <= log_n <= LOG_N_MAX, "checked before"
    memory = (128 * _BLOCK_SIZE << log_n) + _MEMORY_SPARE
    key = hashlib.scrypt(password.reveal(), salt=salt, n=1 << log_n, r=_BLOCK_SIZE, p=1, dklen=KEY_BYTES, maxmem=memory)
    return SecretBytes(key)

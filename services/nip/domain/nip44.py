"""NIP-44 version 2: payloads that two keys can read, with the long form for texts of 65,536 bytes and more.

Specification: https://github.com/nostr-protocol/nips/blob/master/44.md. A payload is the base64 of
`version (1 byte) | nonce (32) | ciphertext | MAC (32)`; the padding hides the text's length among texts of about its size.

Before a payload from an event is decrypted, the event's signature must have been verified.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
from typing import Final, NamedTuple

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from services.chassis.secret import SecretBytes
from services.nip.domain.encryption import (
    PLAINTEXT_BYTES_MAX,
    DecryptionError,
    UnsupportedVersionError,
    base64_decoded,
    shared_x,
    text_of,
    utf8_of,
)

VERSION: Final = 2
KEY_BYTES: Final = 32
NONCE_BYTES: Final = 32
MAC_BYTES: Final = 32
PLAINTEXT_BYTES_MIN: Final = 1
EXTENDED_BYTES_MIN: Final = 65_536
"""From here on the length stands in four bytes, behind two that are zero."""
PADDED_BYTES_MIN: Final = 32
CHUNKS_PER_POWER: Final = 8
"""Long texts are padded to an eighth of the next power of two."""
POWER_BYTES_SMALL: Final = 256
"""Up to this power of two the steps are PADDED_BYTES_MIN."""
PAYLOAD_CHARACTERS_MIN: Final = 132
"""The payload of one byte; NIP-44: "it must be at least 132 chars"."""

_SALT: Final = b"nip44-v2"
_COUNTER: Final = bytes(4)
"""ChaCha20 as RFC 8439 has it, its block counter from 0."""
_NOT_BASE64: Final = "#"
_SHA256: Final = hashes.SHA256()


class MessageKeys(NamedTuple):
    """What a conversation key and a nonce give: the keys of one payload."""

    chacha_key: bytes
    chacha_nonce: bytes
    hmac_key: bytes


def conversation_key(secret_key: SecretBytes, peer_pubkey: str) -> SecretBytes:
    """Return the key (32 bytes) that both sides get; `peer_pubkey` in hex. Raises InvalidPeerError, InvalidSecretKeyError."""
    return SecretBytes(hmac.digest(_SALT, shared_x(secret_key, peer_pubkey).reveal(), hashlib.sha256))


def encrypt(plaintext: str, key: SecretBytes, *, nonce: bytes | None = None) -> str:
    """Return the payload. `nonce` (32 bytes) is for tests: a used one betrays both texts. Raises PlaintextError."""
    padded = _padded(utf8_of(plaintext, bytes_min=PLAINTEXT_BYTES_MIN))
    salt = os.urandom(NONCE_BYTES) if nonce is None else nonce
    keys = message_keys(key, salt)
    ciphertext = _chacha20(keys, padded)
    return base64.b64encode(b"".join((bytes((VERSION,)), salt, ciphertext, _mac(keys, salt, ciphertext)))).decode()


def decrypt(payload: str, key: SecretBytes) -> str:
    """Return the text of a payload. Raises DecryptionError, UnsupportedVersionError."""
    salt, ciphertext, mac = _parts(payload)
    keys = message_keys(key, salt)
    if not hmac.compare_digest(_mac(keys, salt, ciphertext), mac):
        raise DecryptionError
    return text_of(_unpadded(_chacha20(keys, ciphertext)))


def message_keys(key: SecretBytes, nonce: bytes) -> MessageKeys:
    """Return the keys of the payload with this nonce."""
    assert len(key) == KEY_BYTES, "a conversation key has 32 bytes"
    assert len(nonce) == NONCE_BYTES, "a nonce has 32 bytes"
    keys = HKDFExpand(algorithm=_SHA256, length=76, info=nonce).derive(key.reveal())
    return MessageKeys(keys[:32], keys[32:44], keys[44:])


def padded_length(length: int) -> int:
    """Return to how many bytes a text of `length` bytes is padded, without the bytes that hold its length."""
    if length <= PADDED_BYTES_MIN:
        return PADDED_BYTES_MIN
    next_power = 1 << (length - 1).bit_length()
    chunk = PADDED_BYTES_MIN if next_power <= POWER_BYTES_SMALL else next_power // CHUNKS_PER_POWER
    return chunk * ((length - 1) // chunk + 1)


def _padded(text: bytes) -> bytes:
    length = len(text)
    prefix = length.to_bytes(2, "big") if length < EXTENDED_BYTES_MIN else length.to_bytes(6, "big")
    return b"".join((prefix, text, bytes(padded_length(length) - length)))


def _unpadded(padded: bytes) -> bytes:
    """Return the text's bytes. Raises DecryptionError: whoever made the payload does not follow NIP-44."""
    length, start = int.from_bytes(padded[:2], "big"), 2
    if length == 0:
        length, start = int.from_bytes(padded[2:6], "big"), 6
        if length < EXTENDED_BYTES_MIN:
            raise DecryptionError
    text = padded[start : start + length]
    if len(text) != length or len(padded) != start + padded_length(length):
        raise DecryptionError
    return text


def _parts(payload: str) -> tuple[bytes, bytes, bytes]:
    """Nonce, ciphertext and MAC of a payload. Raises DecryptionError, UnsupportedVersionError."""
    if payload.startswith(_NOT_BASE64):
        raise UnsupportedVersionError
    if not PAYLOAD_CHARACTERS_MIN <= len(payload) <= PAYLOAD_CHARACTERS_MAX:
        raise DecryptionError
    data = base64_decoded(payload)
    if data[0] != VERSION:
        raise UnsupportedVersionError
    return data[1 : 1 + NONCE_BYTES], data[1 + NONCE_BYTES : -MAC_BYTES], data[-MAC_BYTES:]


def _chacha20(keys: MessageKeys, data: bytes) -> bytes:
    """Encrypt or decrypt, which is the same."""
    cipher = Cipher(algorithms.ChaCha20(keys.chacha_key, _COUNTER + keys.chacha_nonce), mode=None)
    return cipher.encryptor().update(data)


def _mac(keys: MessageKeys, nonce: bytes, ciphertext: bytes) -> bytes:
    return hmac.digest(keys.hmac_key, nonce + ciphertext, hashlib.sha256)


def _characters(length: int) -> int:
    """Characters of the payload of a text of `length` bytes in the long form."""
    return -(-(1 + NONCE_BYTES + 6 + padded_length(length) + MAC_BYTES) // 3) * 4


PAYLOAD_CHARACTERS_MAX: Final = _characters(PLAINTEXT_BYTES_MAX)
"""Longest payload that is looked at."""

"""NIP-04: the direct messages of old, `<base64>?iv=<base64>` by AES-256-CBC. For old peers alone: use NIP-44.

Specification: https://github.com/nostr-protocol/nips/blob/master/04.md. Nothing protects the payload against changes, so that a changed
one may open to another text; the length of the text shows.
"""

from __future__ import annotations

import base64
import os
from typing import Final

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.padding import PKCS7

from services.chassis.secret import SecretBytes
from services.nip.domain.encryption import (
    PLAINTEXT_BYTES_MAX,
    DecryptionError,
    base64_decoded,
    shared_x,
    text_of,
    utf8_of,
)

KEY_BYTES: Final = 32
BLOCK_BYTES: Final = 16
_SEPARATOR: Final = "?iv="
_PADDING: Final = PKCS7(BLOCK_BYTES * 8)


def _characters(length: int) -> int:
    """Characters of the base64 of `length` bytes."""
    return -(-length // 3) * 4


PAYLOAD_CHARACTERS_MAX: Final = (
    _characters(PLAINTEXT_BYTES_MAX + BLOCK_BYTES) + len(_SEPARATOR) + _characters(BLOCK_BYTES)
)
"""Longest payload that is looked at."""


def shared_secret(secret_key: SecretBytes, peer_pubkey: str) -> SecretBytes:
    """Return the key (32 bytes) that both sides get; `peer_pubkey` in hex. Raises InvalidPeerError, InvalidSecretKeyError."""
    return shared_x(secret_key, peer_pubkey)


def encrypt(plaintext: str, key: SecretBytes, *, nonce: bytes | None = None) -> str:
    """Return the payload. `nonce` (the initialization vector, 16 bytes) is for tests. Raises PlaintextError."""
    vector = os.urandom(BLOCK_BYTES) if nonce is None else nonce
    padder = _PADDING.padder()
    padded = padder.update(utf8_of(plaintext, bytes_min=0)) + padder.finalize()
    encryptor = _cipher(key, vector).encryptor()
    ciphertext = encryptor.update(padded) + encryptor.finalize()
    return f"{base64.b64encode(ciphertext).decode()}{_SEPARATOR}{base64.b64encode(vector).decode()}"


def decrypt(payload: str, key: SecretBytes) -> str:
    """Return the text of a payload. Raises DecryptionError."""
    ciphertext, vector = _parts(payload)
    decryptor = _cipher(key, vector).decryptor()
    padded = decryptor.update(ciphertext) + decryptor.finalize()
    unpadder = _PADDING.unpadder()
    try:
        return text_of(unpadder.update(padded) + unpadder.finalize())
    except ValueError:
        raise DecryptionError from None


def _parts(payload: str) -> tuple[bytes, bytes]:
    """Ciphertext and initialization vector of a payload. Raises DecryptionError."""
    if len(payload) > PAYLOAD_CHARACTERS_MAX:
        raise DecryptionError
    text, _, vector_text = payload.partition(_SEPARATOR)
    ciphertext, vector = base64_decoded(text), base64_decoded(vector_text)
    if len(vector) != BLOCK_BYTES or not ciphertext or len(ciphertext) % BLOCK_BYTES:
        raise DecryptionError
    return ciphertext, vector


def _cipher(key: SecretBytes, vector: bytes) -> Cipher[modes.CBC]:
    assert len(key) == KEY_BYTES, "a shared secret has 32 bytes"
    assert len(vector) == BLOCK_BYTES, "an initialization vector has 16 bytes"
    return Cipher(algorithms.AES(key.reveal()), modes.CBC(vector))

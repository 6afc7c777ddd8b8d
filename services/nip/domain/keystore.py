"""Private keys at rest: AES-256-GCM under a key that only the process's key file holds.

A sealed key is `version (1 byte) | nonce (12) | ciphertext (32) | tag (16)`. The associated data binds it to its row: a
sealed key that is moved to another id, public key or owner does not open.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from services.chassis.secret import SecretBytes

MASTER_KEY_BYTES: Final = 32
NONCE_BYTES: Final = 12
"""Random nonces of 96 bits are safe for 2**32 encryptions under one key; one is made per created key."""
SEAL_VERSION: Final = b"\x01"
SEALED_BYTES: Final = 1 + NONCE_BYTES + 32 + 16


class SealBrokenError(Exception):
    """A sealed key does not open: another master key, or its row was changed outside this service."""


class Keystore:
    """Seals and opens private keys; each purpose has its own key, derived from the master key by HKDF-SHA256."""

    __slots__ = ("_cipher", "_fingerprint_key", "auxiliary_key", "check_value")

    def __init__(self, master_key: SecretBytes) -> None:
        """`master_key` is 32 uniformly random bytes."""
        assert len(master_key.reveal()) == MASTER_KEY_BYTES, "checked where the key file is read"
        self._cipher = AESGCM(_derived(master_key, "encryption"))
        self._fingerprint_key = _derived(master_key, "fingerprint")
        self.auxiliary_key: Final = _derived(master_key, "auxiliary")
        """For the auxiliary data of signatures; says nothing about the other keys, but stays in the process."""
        self.check_value: Final[bytes] = _derived(master_key, "check")
        """Stored beside the sealed keys, so that a wrong master key is noticed at start; of no other use."""

    def seal(self, secret_key: SecretBytes, *, key_id: str, pubkey: str, owner: str) -> bytes:
        """Return the encrypted form of a private key; SEALED_BYTES long."""
        nonce = os.urandom(NONCE_BYTES)
        bound_to = _associated_data(key_id, pubkey, owner)
        return SEAL_VERSION + nonce + self._cipher.encrypt(nonce, secret_key.reveal(), bound_to)

    def open(self, sealed: bytes, *, key_id: str, pubkey: str, owner: str) -> SecretBytes:
        """Return the private key again. Raises SealBrokenError."""
        if len(sealed) != SEALED_BYTES or not sealed.startswith(SEAL_VERSION):
            raise SealBrokenError("a sealed key has an unknown form")
        nonce, ciphertext = sealed[1 : 1 + NONCE_BYTES], sealed[1 + NONCE_BYTES :]
        try:
            return SecretBytes(self._cipher.decrypt(nonce, ciphertext, _associated_data(key_id, pubkey, owner)))
        except InvalidTag as error:
            raise SealBrokenError("a sealed key does not open") from error

    def fingerprint(self, *fields: bytes) -> bytes:
        """Return a keyed hash (32 bytes) of fields, by which a repeated request is recognised without being kept."""
        return hmac.digest(self._fingerprint_key, _framed(*fields), hashlib.sha256)

    def __repr__(self) -> str:
        """Says nothing of what it holds."""
        return "Keystore([redacted])"


def _derived(master_key: SecretBytes, purpose: str) -> bytes:
    info = f"nipmesh/nip/keystore/v1/{purpose}".encode()
    return HKDFExpand(algorithm=hashes.SHA256(), length=32, info=info).derive(master_key.reveal())


def _associated_data(key_id: str, pubkey: str, owner: str) -> bytes:
    return _framed(b"nipmesh/nip/key/v1", key_id.encode(), pubkey.encode(), owner.encode())


def _framed(*fields: bytes) -> bytes:
    """Fields behind their lengths, so that no two lists of fields give the same bytes."""
    return b"".join(len(field).to_bytes(8, "big") + field for field in fields)

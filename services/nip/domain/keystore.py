"""Private keys at rest: AES-256-GCM under a key that only the process's key file holds.

A sealed key is `version (1 byte) | nonce (12) | ciphertext (32) | tag (16)`. The associated data binds it to its row: a
sealed key that is moved to another id, public key or owner does not open. A locked key is sealed likewise, with its ncryptsec (91 bytes)
in the place of the private key; an unlocked one has a second seal, which is bound to the time when the unlocking ends.

The lasting keys (of fingerprints and of signatures' auxiliary data) come from the first master key. When the master key is rotated
they stay what they were, sealed beside the check value: a request that is repeated after the rotation is recognised, and answered alike.
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
from services.nip.domain.nip49 import ENCRYPTED_BYTES

MASTER_KEY_BYTES: Final = 32
NONCE_BYTES: Final = 12
"""Random nonces of 96 bits are safe for 2**32 encryptions under one key; one is made per created key."""
SEAL_VERSION: Final = b"\x01"
TAG_BYTES: Final = 16
SEAL_BYTES: Final = 1 + NONCE_BYTES + TAG_BYTES
"""What a seal adds to its content."""
SEALED_BYTES: Final = SEAL_BYTES + 32
LOCKED_BYTES: Final = SEAL_BYTES + ENCRYPTED_BYTES
LASTING_BYTES: Final = 2 * 32
"""The key of the fingerprints, then that of the auxiliary data."""
_LASTING_BOUND: Final = b"nipmesh/nip/lasting/v1"


class SealBrokenError(Exception):
    """A sealed key does not open: another master key, or its row was changed outside this service."""


class Keystore:
    """Seals and opens private keys; each purpose has its own key, derived from the master key by HKDF-SHA256."""

    __slots__ = ("_cipher", "_lasting", "auxiliary_key", "check_value")

    def __init__(self, master_key: SecretBytes, sealed_lasting: bytes | None = None) -> None:
        """`master_key` is 32 uniformly random bytes; `sealed_lasting` what a rotation left. Raises SealBrokenError."""
        assert len(master_key.reveal()) == MASTER_KEY_BYTES, "checked where the key file is read"
        self._cipher = AESGCM(_derived(master_key, "encryption"))
        self._lasting = _first_lasting(master_key) if sealed_lasting is None else self._open_lasting(sealed_lasting)
        self.auxiliary_key: Final = self._lasting.reveal()[32:]
        """For the auxiliary data of signatures; says nothing about the other keys, but stays in the process."""
        self.check_value: Final[bytes] = check_value_of(master_key)
        """Stored beside the sealed keys, so that another master key is noticed; of no other use."""

    def seal(self, secret_key: SecretBytes, *, key_id: str, pubkey: str, owner: str) -> bytes:
        """Return the encrypted form of a private key; SEALED_BYTES long."""
        return self._seal(secret_key, _associated_data("key", key_id, pubkey, owner))

    def open(self, sealed: bytes, *, key_id: str, pubkey: str, owner: str) -> SecretBytes:
        """Return the private key again. Raises SealBrokenError."""
        return self._open_exactly(sealed, SEALED_BYTES, _associated_data("key", key_id, pubkey, owner))

    def seal_locked(self, encrypted: bytes, *, key_id: str, pubkey: str, owner: str) -> bytes:
        """Return the encrypted form of an ncryptsec; LOCKED_BYTES long."""
        return self._seal(SecretBytes(encrypted), _associated_data("locked", key_id, pubkey, owner))

    def open_locked(self, sealed: bytes, *, key_id: str, pubkey: str, owner: str) -> bytes:
        """Return the ncryptsec again, which its password opens. Raises SealBrokenError."""
        return self._open_exactly(sealed, LOCKED_BYTES, _associated_data("locked", key_id, pubkey, owner)).reveal()

    def seal_unlocked(
        self, secret_key: SecretBytes, expire_time_us: int, *, key_id: str, pubkey: str, owner: str
    ) -> bytes:
        """Return the encrypted form of an unlocked private key, which opens with its expire time alone; SEALED_BYTES long."""
        return self._seal(secret_key, _associated_data("unlocked", key_id, pubkey, owner, str(expire_time_us)))

    def open_unlocked(self, sealed: bytes, expire_time_us: int, *, key_id: str, pubkey: str, owner: str) -> SecretBytes:
        """Return the private key again. Whether the time is over is the caller's to look at. Raises SealBrokenError."""
        bound_to = _associated_data("unlocked", key_id, pubkey, owner, str(expire_time_us))
        return self._open_exactly(sealed, SEALED_BYTES, bound_to)

    def seal_lasting_keys_of(self, other: Keystore) -> bytes:
        """Return the encrypted form of the lasting keys of another keystore, for the one that takes its place."""
        return self._seal(other._lasting, _LASTING_BOUND)

    def _open_lasting(self, sealed: bytes) -> SecretBytes:
        return self._open_exactly(sealed, SEAL_BYTES + LASTING_BYTES, _LASTING_BOUND)

    def _open_exactly(self, sealed: bytes, length: int, bound_to: bytes) -> SecretBytes:
        if len(sealed) != length:
            raise SealBrokenError("a sealed key has an unknown form")
        return self._open(sealed, bound_to)

    def _seal(self, secret: SecretBytes, bound_to: bytes) -> bytes:
        nonce = os.urandom(NONCE_BYTES)
        return SEAL_VERSION + nonce + self._cipher.encrypt(nonce, secret.reveal(), bound_to)

    def _open(self, sealed: bytes, bound_to: bytes) -> SecretBytes:
        if not sealed.startswith(SEAL_VERSION):
            raise SealBrokenError("a sealed key has an unknown form")
        nonce, ciphertext = sealed[1 : 1 + NONCE_BYTES], sealed[1 + NONCE_BYTES :]
        try:
            return SecretBytes(self._cipher.decrypt(nonce, ciphertext, bound_to))
        except InvalidTag as error:
            raise SealBrokenError("a sealed key does not open") from error

    def fingerprint(self, *fields: bytes) -> bytes:
        """Return a keyed hash (32 bytes) of fields, by which a repeated request is recognised without being kept."""
        return hmac.digest(self._lasting.reveal()[:32], _framed(*fields), hashlib.sha256)

    def drawn(self, length: int, *fields: bytes) -> bytes:
        """Return bytes that nobody else can tell from random ones, the same for the same fields: what makes a repeated export alike."""
        info = _framed(b"nipmesh/nip/drawn/v1", *fields)
        return HKDFExpand(algorithm=hashes.SHA256(), length=length, info=info).derive(self._lasting.reveal()[:32])

    def __repr__(self) -> str:
        """Says nothing of what it holds."""
        return "Keystore([redacted])"


def check_value_of(master_key: SecretBytes) -> bytes:
    """Return what is stored to recognise a master key by: 32 bytes from which nothing can be opened."""
    return _derived(master_key, "check")


def _first_lasting(master_key: SecretBytes) -> SecretBytes:
    """The lasting keys before the first rotation."""
    return SecretBytes(_derived(master_key, "fingerprint") + _derived(master_key, "auxiliary"))


def _derived(master_key: SecretBytes, purpose: str) -> bytes:
    info = f"nipmesh/nip/keystore/v1/{purpose}".encode()
    return HKDFExpand(algorithm=hashes.SHA256(), length=32, info=info).derive(master_key.reveal())


def _associated_data(purpose: str, *fields: str) -> bytes:
    return _framed(f"nipmesh/nip/{purpose}/v1".encode(), *(field.encode() for field in fields))


def _framed(*fields: bytes) -> bytes:
    """Fields behind their lengths, so that no two lists of fields give the same bytes."""
    return b"".join(len(field).to_bytes(8, "big") + field for field in fields)

"""The two ways to encrypt for another key, by one name each."""

from __future__ import annotations

import enum

from services.chassis.secret import SecretBytes
from services.nip.domain import nip04, nip44


class Cipher(enum.Enum):
    """How a text is encrypted."""

    NIP44 = "nip44"
    NIP04 = "nip04"


def agreed_key(cipher: Cipher, secret_key: SecretBytes, peer_pubkey: str) -> SecretBytes:
    """Return the key that both sides get. Raises InvalidPeerError."""
    if cipher is Cipher.NIP44:
        return nip44.conversation_key(secret_key, peer_pubkey)
    return nip04.shared_secret(secret_key, peer_pubkey)


def encrypt(cipher: Cipher, plaintext: str, key: SecretBytes) -> str:
    """Return the payload. Raises PlaintextError."""
    return nip44.encrypt(plaintext, key) if cipher is Cipher.NIP44 else nip04.encrypt(plaintext, key)


def decrypt(cipher: Cipher, payload: str, key: SecretBytes) -> str:
    """Return the text. Raises DecryptionError, UnsupportedVersionError."""
    return nip44.decrypt(payload, key) if cipher is Cipher.NIP44 else nip04.decrypt(payload, key)

"""NATS' keys of users: Ed25519, as text with a check sum. The server knows public keys only; whoever has the seed is the user.

The form is that of https://github.com/nats-io/nkeys: base32 without padding of one or two prefix bytes, the key, and a CRC-16 (XMODEM),
low byte first.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from generator.pki.authority import DamagedFileError
from generator.pki.private import PrivateBytes, private_directory, write_private

PREFIX_SEED = 18 << 3
"""An `S` in base32."""
PREFIX_USER = 20 << 3
"""A `U` in base32."""
KEY_BYTES = 32
CHECK_BYTES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class UserKey:
    """One user's key pair."""

    private_key: Ed25519PrivateKey

    def __repr__(self) -> str:
        return f"UserKey(public={self.public}, private_key=[redacted])"

    @property
    def public(self) -> str:
        """What the server knows: `U` and 55 letters and digits."""
        return _encoded(bytes([PREFIX_USER]) + self.private_key.public_key().public_bytes_raw())

    @property
    def seed(self) -> PrivateBytes:
        """What the user proves itself with: `SU` and 56 letters and digits."""
        prefix = bytes([PREFIX_SEED | PREFIX_USER >> 5, (PREFIX_USER & 31) << 3])
        return PrivateBytes(_encoded(prefix + self.private_key.private_bytes_raw()).encode())

    def sign(self, nonce: bytes) -> bytes:
        """Answer a server's challenge: 64 bytes."""
        return self.private_key.sign(nonce)

    @classmethod
    def open(cls, path: Path) -> UserKey:
        """Load the seed from its file, or make it (0600) when there is none. Raises OSError and DamagedFileError."""
        private_directory(path.parent)
        if not path.exists():
            write_private(path, cls(private_key=Ed25519PrivateKey.generate()).seed)
        return cls.load(path)

    @classmethod
    def load(cls, path: Path) -> UserKey:
        """Read a seed. Raises OSError, and DamagedFileError when the file holds none."""
        try:
            return cls(
                private_key=Ed25519PrivateKey.from_private_bytes(_seed(path.read_text(encoding="ascii").strip()))
            )
        except ValueError as error:
            raise DamagedFileError(f"{path} holds no seed of a NATS user: {error}") from None


def _encoded(content: bytes) -> str:
    checked = content + binascii.crc_hqx(content, 0).to_bytes(CHECK_BYTES, "little")
    return base64.b32encode(checked).rstrip(b"=").decode()


def _seed(text: str) -> bytes:
    """The 32 bytes of a seed. Raises ValueError, whose message shows nothing of it."""
    try:
        raw = base64.b32decode(text + "=" * (-len(text) % 8))
    except binascii.Error:
        raise ValueError("it is not base32") from None
    content, check = raw[:-CHECK_BYTES], raw[-CHECK_BYTES:]
    if len(content) != 2 + KEY_BYTES or binascii.crc_hqx(content, 0).to_bytes(CHECK_BYTES, "little") != check:
        raise ValueError("its length or check sum is wrong")
    if content[:2] != bytes([PREFIX_SEED | PREFIX_USER >> 5, (PREFIX_USER & 31) << 3]):
        raise ValueError("it is not a user's")
    return content[2:]

"""The private key of a Lightning node: it signs the node's invoices."""

from __future__ import annotations

from typing import Final

import coincurve

from services.chassis.secret import SecretBytes

SECRET_BYTES: Final = 32
"""Length of a private key."""


class NodeKeyError(ValueError):
    """The secret is no private key of secp256k1: not 32 bytes, zero, or not below the order of the curve."""


class NodeKey:
    """A node's key pair. The private half is never shown."""

    __slots__ = ("_private_key", "public_key")

    def __init__(self, secret: SecretBytes) -> None:
        """Raise NodeKeyError when `secret` is no private key."""
        if len(secret) != SECRET_BYTES:
            raise NodeKeyError(f"the node key has {len(secret)} bytes, it must have {SECRET_BYTES}")
        try:
            self._private_key = coincurve.PrivateKey(secret.reveal())
        except ValueError:
            raise NodeKeyError("the node key is zero, or not below the order of secp256k1") from None
        self.public_key: str = self._private_key.public_key.format().hex()

    def sign(self, message: bytes) -> bytes:
        """ECDSA over SHA-256(message), deterministic (RFC 6979), low S: 64 bytes R and S, 1 byte recovery id."""
        signature: bytes = self._private_key.sign_recoverable(message)
        return signature

    def __repr__(self) -> str:
        """Return the public half only."""
        return f"NodeKey(public_key={self.public_key!r})"

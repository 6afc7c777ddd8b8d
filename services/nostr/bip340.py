"""BIP-340 Schnorr signatures over secp256k1, by libsecp256k1's functions on key pairs computed once.

Specification: https://github.com/bitcoin/bips/blob/master/bip-0340.mediawiki. Each call releases the GIL.
"""

from __future__ import annotations

from typing import Any, Final

from coincurve._libsecp256k1 import ffi, lib
from coincurve.context import GLOBAL_CONTEXT

from services.chassis.secret import SecretBytes

SECRET_KEY_BYTES: Final = 32
PUBLIC_KEY_BYTES: Final = 32
DIGEST_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
AUXILIARY_BYTES: Final = 32


class InvalidSecretKeyError(ValueError):
    """The bytes are no private key: not 32 of them, zero, or not below the order of the curve."""


class SigningFaultError(RuntimeError):
    """A fresh signature did not verify: the machine computed wrongly, and the signature must not leave it."""


class Signer:
    """One private key, ready to sign: the key pair is computed once and kept in the library's own form."""

    __slots__ = ("_keypair", "_public_key", "public_key")

    def __init__(self, secret_key: SecretBytes) -> None:
        """Compute the key pair. Raises InvalidSecretKeyError unless `secret_key` is in 1..n-1."""
        secret = secret_key.reveal()
        self._keypair: Any = ffi.new("secp256k1_keypair *")
        valid = len(secret) == SECRET_KEY_BYTES and lib.secp256k1_keypair_create(
            GLOBAL_CONTEXT.ctx, self._keypair, secret
        )
        if not valid:
            raise InvalidSecretKeyError("not a valid secp256k1 private key")
        self._public_key: Any = ffi.new("secp256k1_xonly_pubkey *")
        lib.secp256k1_keypair_xonly_pub(GLOBAL_CONTEXT.ctx, self._public_key, ffi.NULL, self._keypair)
        serialized = ffi.new("unsigned char[32]")
        lib.secp256k1_xonly_pubkey_serialize(GLOBAL_CONTEXT.ctx, serialized, self._public_key)
        self.public_key: Final[bytes] = bytes(ffi.buffer(serialized))

    def sign(self, digest: bytes, auxiliary: bytes) -> bytes:
        """Return the signature (64 bytes) of a 32-byte digest; `auxiliary` (32 bytes) decides which of the valid ones.

        It is verified before it is returned, as BIP-340 recommends: a faulty one could betray the key.
        Raises SigningFaultError.
        """
        if self._keypair is None:
            raise SigningFaultError("the key pair was wiped")
        assert len(digest) == DIGEST_BYTES, "BIP-340 for Nostr signs 32-byte digests"
        assert len(auxiliary) == AUXILIARY_BYTES, "auxiliary data is 32 bytes"
        context = GLOBAL_CONTEXT.ctx
        signature = ffi.new("unsigned char[64]")
        signed = lib.secp256k1_schnorrsig_sign32(context, signature, digest, self._keypair, auxiliary)
        if not signed or not lib.secp256k1_schnorrsig_verify(
            context, signature, digest, DIGEST_BYTES, self._public_key
        ):
            raise SigningFaultError("a fresh signature did not verify")
        return bytes(ffi.buffer(signature))

    def secret_key(self) -> SecretBytes:
        """Return the private key again, to agree on a key with a peer. Raises SigningFaultError once it was wiped."""
        if self._keypair is None:
            raise SigningFaultError("the key pair was wiped")
        secret = ffi.new("unsigned char[32]")
        lib.secp256k1_keypair_sec(GLOBAL_CONTEXT.ctx, secret, self._keypair)
        return SecretBytes(bytes(ffi.buffer(secret)))

    def __repr__(self) -> str:
        """Names the public key only."""
        return f"Signer(public_key={self.public_key.hex()})"

    def wipe(self) -> None:
        """Overwrite the key pair and let go of it: the library aborts the process that hands it an empty one."""
        if self._keypair is not None:
            size = ffi.sizeof("secp256k1_keypair")
            ffi.memmove(self._keypair, bytes(size), size)
            self._keypair = None


def verify(public_key: bytes, message: bytes, signature: bytes) -> bool:
    """Tell whether `signature` (64 bytes) of `message` is by `public_key` (32 bytes); wrong lengths are False."""
    if len(public_key) != PUBLIC_KEY_BYTES or len(signature) != SIGNATURE_BYTES:
        return False
    parsed = ffi.new("secp256k1_xonly_pubkey *")
    if not lib.secp256k1_xonly_pubkey_parse(GLOBAL_CONTEXT.ctx, parsed, public_key):
        return False
    return bool(lib.secp256k1_schnorrsig_verify(GLOBAL_CONTEXT.ctx, signature, message, len(message), parsed))

"""What NIP-04 and NIP-44 share: the point that two keys agree on, the limits, and the errors.

Specification: https://github.com/nostr-protocol/nips/blob/master/44.md ("secp256k1_ecdh"). The errors::

    ValueError
    ├── InvalidPeerError              the other side's public key is no point of the curve
    ├── PlaintextError                nothing to encrypt, too much of it, or no Unicode text
    └── DecryptionError               the payload does not open; why is not told
        └── UnsupportedVersionError   a version of NIP-44 other than 2: it stands in front of everything that is secret
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any, Final

from coincurve._libsecp256k1 import ffi, lib
from coincurve.context import GLOBAL_CONTEXT

from services.chassis.secret import SecretBytes
from services.nostr.bip340 import SECRET_KEY_BYTES, InvalidSecretKeyError

PLAINTEXT_BYTES_MAX: Final = 1_048_576
"""Longest text: far above what a relay takes, and its payload still fits into one message of the mesh (4 MiB)."""

_PUBKEY: Final = re.compile(r"[0-9a-f]{64}\Z")
_EVEN: Final = b"\x02"
"""A Nostr key is an x coordinate; the point with an even y is meant. The other one gives the same x."""
_BASE64_GROUP: Final = 4


class InvalidPeerError(ValueError):
    """The other side's public key is no point of the curve."""


class PlaintextError(ValueError):
    """The text cannot be encrypted; the message says why and does not repeat it."""


class DecryptionError(ValueError):
    """The payload does not open. One error for every reason, so that nobody learns from it what was wrong."""

    def __init__(self, message: str = "the payload does not open with these keys") -> None:
        """The message is the same for every cause."""
        super().__init__(message)


class UnsupportedVersionError(DecryptionError):
    """The payload says that it is of a version of NIP-44 other than 2."""

    def __init__(self) -> None:
        """NIP-44: implementations must indicate that the version is not supported."""
        super().__init__("the payload's version of NIP-44 is not supported")


@ffi.callback("int(unsigned char *, const unsigned char *, const unsigned char *, void *)")  # type: ignore[untyped-decorator]  # cffi has no types
def _x_of_point(output: Any, x: Any, _y: Any, _data: Any) -> int:
    """What libsecp256k1 calls with the agreed point: it would hash it, NIP-04 and NIP-44 want the bare x coordinate."""
    ffi.memmove(output, x, SECRET_KEY_BYTES)
    return 1


def shared_x(secret_key: SecretBytes, peer_pubkey: str) -> SecretBytes:
    """Return the x coordinate (32 bytes) of the point that the key and the peer's public key (hex) agree on.

    By libsecp256k1's multiplication that takes the same time for every private key. Raises InvalidPeerError, InvalidSecretKeyError.
    """
    context = GLOBAL_CONTEXT.ctx
    point = ffi.new("secp256k1_pubkey *")
    parsed = _PUBKEY.match(peer_pubkey) is not None and lib.secp256k1_ec_pubkey_parse(
        context, point, _EVEN + bytes.fromhex(peer_pubkey), 1 + SECRET_KEY_BYTES
    )
    if not parsed:
        raise InvalidPeerError("not a public key: 64 lower-case hex digits, the x coordinate of a point on the curve")
    secret = secret_key.reveal()
    output = ffi.new("unsigned char[32]")
    agreed = len(secret) == SECRET_KEY_BYTES and lib.secp256k1_ecdh(
        context, output, point, secret, _x_of_point, ffi.NULL
    )
    if not agreed:
        raise InvalidSecretKeyError("not a valid secp256k1 private key")
    return SecretBytes(bytes(ffi.buffer(output)))


def utf8_of(plaintext: str, *, bytes_min: int) -> bytes:
    """Return the text's bytes. Raises PlaintextError."""
    try:
        encoded = plaintext.encode()
    except UnicodeEncodeError as error:
        raise PlaintextError("the text has a lone surrogate") from error
    if not bytes_min <= len(encoded) <= PLAINTEXT_BYTES_MAX:
        raise PlaintextError(
            f"the text has {len(encoded)} bytes; {bytes_min} to {PLAINTEXT_BYTES_MAX} can be encrypted"
        )
    return encoded


def text_of(utf8: bytes) -> str:
    """Return decrypted bytes as text. Raises DecryptionError."""
    try:
        return utf8.decode()
    except UnicodeDecodeError:
        raise DecryptionError from None  # its message would show decrypted bytes


def base64_decoded(text: str) -> bytes:
    """Return the bytes of standard base64 with padding, in the one spelling that encoding gives. Raises DecryptionError."""
    try:
        data = binascii.a2b_base64(text, strict_mode=True)
    except ValueError as error:
        raise DecryptionError from error
    last_group = base64.b64encode(data[(len(data) - 1) // 3 * 3 :]).decode() if data else ""
    if len(text) % _BASE64_GROUP or text[-_BASE64_GROUP:] != last_group:
        raise DecryptionError
    return data

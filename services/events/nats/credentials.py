"""What a service proves itself with to NATS: `user:password`, a token, the seed of a user's key, or a .creds file (a JWT and a seed)."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from nacl.signing import SigningKey

from services.chassis.secret import SecretBytes, load_secret
from services.events.bus import BusSettingsError

_JWT: Final = re.compile(rb"-----BEGIN NATS USER JWT-----\s*(\S+)\s*-+END NATS USER JWT-+")
_SEED: Final = re.compile(rb"-----BEGIN USER NKEY SEED-----\s*(\S+)\s*-+END USER NKEY SEED-+")
_USER_SEED: Final = re.compile(rb"SU[A-Z2-7]{56}")
PREFIX_USER: Final = 20 << 3
"""Before a user's public key, in base32 a `U`."""
PUBLIC_KEY: Final = "public_key"
"""No argument of `connect`, which knows keys by their files only: `connection` hands it to the client."""
_SEED_BYTES: Final = 36
"""Two bytes of prefix, the 32 of the key, two of a checksum (CRC-16/XMODEM, low byte first): NATS's ADR-14."""


def load_credentials(path: Path | None) -> Mapping[str, Any]:
    """Arguments for the client's `connect`. Raises SecretFileError and BusSettingsError; neither shows what the file holds."""
    if path is None:
        return {}
    content = SecretBytes(load_secret(path).reveal().strip())
    if b"-----BEGIN" in content.reveal():
        return _of_creds(content, path)
    if _USER_SEED.fullmatch(content.reveal()):
        return _of_seed(content, path)
    user, colon, password = content.reveal().decode(errors="replace").partition(":")
    if not colon:
        return {"token": user}
    if not user or not password or "\n" in password:
        raise BusSettingsError(f"the credential file {path} holds no user:password")
    return {"user": user, "password": password}


def _of_seed(seed: SecretBytes, path: Path) -> Mapping[str, Any]:
    """A user whose public key the server knows: it sends a nonce, which the key signs."""
    key = signing_key(seed, path)
    prefixed = bytes([PREFIX_USER]) + key.verify_key.encode()
    public = base64.b32encode(prefixed + binascii.crc_hqx(prefixed, 0).to_bytes(2, "little")).rstrip(b"=").decode()

    def sign(nonce: str) -> bytes:
        return base64.b64encode(key.sign(nonce.encode()).signature)

    return {PUBLIC_KEY: public, "signature_cb": sign}


def _of_creds(content: SecretBytes, path: Path) -> Mapping[str, Any]:
    """A .creds file: the server sends a nonce, which the seed's key signs."""
    jwt, seed = _JWT.search(content.reveal()), _SEED.search(content.reveal())
    if jwt is None or seed is None:
        raise BusSettingsError(f"the credential file {path} holds no NATS user JWT with its seed")
    key = signing_key(SecretBytes(seed[1]), path)
    token = bytearray(jwt[1])

    def sign(nonce: str) -> bytes:
        return base64.b64encode(key.sign(nonce.encode()).signature)

    return {"user_jwt_cb": lambda: token, "signature_cb": sign, "user": ""}


def signing_key(seed: SecretBytes, path: Path) -> SigningKey:
    """The Ed25519 key of a seed ("SU…"). Raises BusSettingsError."""
    text = seed.reveal()
    try:
        raw = base64.b32decode(text + b"=" * (-len(text) % 8))
    except binascii.Error as error:
        raise BusSettingsError(f"the seed in {path} is not base32") from error
    if len(raw) != _SEED_BYTES or binascii.crc_hqx(raw[:-2], 0) != int.from_bytes(raw[-2:], "little"):
        raise BusSettingsError(f"the seed in {path} is damaged: its checksum is wrong")
    return SigningKey(raw[2:34])

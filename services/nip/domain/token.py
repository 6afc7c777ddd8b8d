"""The access tokens that Login gives: JWTs signed with ES256, in the form that the gateway checks."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from dataclasses import dataclass
from typing import Final

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from services.chassis.secret import SecretBytes

ALGORITHM: Final = "ES256"
COORDINATE_BYTES: Final = 32
TOKEN_ID_BYTES: Final = 16
"""128 random bits: no two tokens share an id."""


class TokenKeyError(ValueError):
    """The file does not hold an unencrypted P-256 private key in PEM."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessToken:
    """A signed token and the second at which it stops being valid."""

    token: SecretBytes
    expire_time_seconds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenTerms:
    """What each token says beside its subject: `issuer` (a SPIFFE id), `audience` (the mesh's name), its life."""

    issuer: str
    audience: str
    lifetime_seconds: int


class TokenIssuer:
    """Signs access tokens; `key_id` names the key in the JWKS by which the gateway checks them."""

    __slots__ = ("_private_key", "_terms", "key_id")

    def __init__(self, pem: SecretBytes, terms: TokenTerms) -> None:
        """Read the key. Raises TokenKeyError."""
        self._private_key = _p256_key(pem)
        self._terms = terms
        self.key_id: Final = thumbprint(self._private_key.public_key())

    def issue(self, pubkey: str, *, now_seconds: int) -> AccessToken:
        """Return a token whose subject is `pubkey` (64 hex digits), valid from now."""
        expire_time_seconds = now_seconds + self._terms.lifetime_seconds
        claims = {
            "iss": self._terms.issuer,
            "aud": self._terms.audience,
            "sub": pubkey,
            "iat": now_seconds,
            "nbf": now_seconds,
            "exp": expire_time_seconds,
            "jti": secrets.token_hex(TOKEN_ID_BYTES),
        }
        encoded = jwt.encode(claims, self._private_key, algorithm=ALGORITHM, headers={"kid": self.key_id})
        return AccessToken(token=SecretBytes(encoded.encode()), expire_time_seconds=expire_time_seconds)


def thumbprint(public_key: ec.EllipticCurvePublicKey) -> str:
    """Return the RFC 7638 thumbprint of a P-256 key: base64url of the SHA-256 of its members as JSON."""
    numbers = public_key.public_numbers()
    members = {"crv": "P-256", "kty": "EC", "x": _coordinate(numbers.x), "y": _coordinate(numbers.y)}
    document = json.dumps(members, sort_keys=True, separators=(",", ":")).encode()
    return _base64url(hashlib.sha256(document).digest())


def _p256_key(pem: SecretBytes) -> ec.EllipticCurvePrivateKey:
    try:
        key = load_pem_private_key(pem.reveal(), password=None)
    except (ValueError, TypeError) as error:
        raise TokenKeyError("no unencrypted private key in PEM") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise TokenKeyError("a private key of another kind than P-256")
    return key


def _coordinate(value: int) -> str:
    return _base64url(value.to_bytes(COORDINATE_BYTES, "big"))


def _base64url(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()

"""The key that signs users' tokens (ES256), its public half as a JWKS, and tokens for development."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import json
import secrets
from dataclasses import dataclass
from pathlib import Path

import jwt
from cryptography.hazmat.primitives.asymmetric import ec

from generator.pki.authority import DamagedFileError, load_private_key, private_key_pem
from generator.pki.private import private_directory, write_private

ALGORITHM = "ES256"
COORDINATE_BYTES = 32
"""Of P-256 (RFC 7518, section 6.2.1.2: full size, leading zeros kept)."""
TOKEN_ID_BYTES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenClaims:
    """What a token says: for whom, from whom, to whom, as what, for how long."""

    subject: str
    issuer: str
    audience: str
    lifetime: dt.timedelta
    role: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenKey:
    """An ES256 key pair; its id is the RFC 7638 thumbprint, so that every holder computes the same."""

    private_key: ec.EllipticCurvePrivateKey

    def __repr__(self) -> str:
        return f"TokenKey(key_id={self.key_id}, private_key=[redacted])"

    @classmethod
    def open(cls, path: Path) -> TokenKey:
        """Load the PEM file, or make it (0600) when there is none. Raises OSError and DamagedFileError."""
        private_directory(path.parent)
        if not path.exists():
            write_private(path, private_key_pem(ec.generate_private_key(ec.SECP256R1())))
        try:
            return cls(private_key=load_private_key(path))
        except DamagedFileError as error:
            mend = "remove it: the next start makes a new one, and tokens that the old one signed are refused"
            raise DamagedFileError(f"{error}; {mend}") from error

    @property
    def key_id(self) -> str:
        """RFC 7638: SHA-256 of the required members in lexicographic order."""
        canonical = json.dumps(self._public_members(), sort_keys=True, separators=(",", ":"))
        return _base64url(hashlib.sha256(canonical.encode()).digest())

    def key_set(self) -> str:
        """Give the JSON Web Key Set (RFC 7517) that a verifier needs; public members only."""
        key = self._public_members() | {"kid": self.key_id, "alg": ALGORITHM, "use": "sig"}
        return json.dumps({"keys": [key]}, sort_keys=True, separators=(",", ":"))

    def mint(self, claims: TokenClaims, now: dt.datetime) -> str:
        """Sign a token in compact form. It is a credential: print it to who asked, log it nowhere."""
        payload: dict[str, object] = {
            "iss": claims.issuer,
            "sub": claims.subject,
            "aud": claims.audience,
            "iat": int(now.timestamp()),
            "exp": int((now + claims.lifetime).timestamp()),
            "jti": secrets.token_hex(TOKEN_ID_BYTES),
        }
        if claims.role is not None:
            payload["role"] = claims.role
        return jwt.encode(payload, self.private_key, algorithm=ALGORITHM, headers={"kid": self.key_id})

    def _public_members(self) -> dict[str, str]:
        numbers = self.private_key.public_key().public_numbers()
        x, y = (_base64url(value.to_bytes(COORDINATE_BYTES, "big")) for value in (numbers.x, numbers.y))
        return {"crv": "P-256", "kty": "EC", "x": x, "y": y}


def _base64url(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()

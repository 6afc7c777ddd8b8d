"""Access tokens: what they say, who can check them, and the key id as RFC 7638 computes it."""

from __future__ import annotations

import base64
import json

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat

from services.chassis.secret import SecretBytes
from services.nip.domain.token import TokenIssuer, TokenKeyError, TokenTerms, thumbprint

TERMS = TokenTerms(issuer="spiffe://nip.mesh/service/nip", audience="nip", lifetime_seconds=900)
KEY = ec.generate_private_key(ec.SECP256R1())
SUBJECT = "ab" * 32
NOW = 1_700_000_000


def _pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, password: bytes | None = None) -> SecretBytes:
    encryption = BestAvailableEncryption(password) if password else NoEncryption()
    return SecretBytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))


def test_a_token_says_what_the_gateway_checks() -> None:
    issued = TokenIssuer(_pem(KEY), TERMS).issue(SUBJECT, now_seconds=NOW)
    claims = jwt.decode(
        issued.token.reveal().decode(),
        KEY.public_key(),
        algorithms=["ES256"],
        audience="nip",
        issuer=TERMS.issuer,
        options={"verify_exp": False, "verify_nbf": False, "verify_iat": False},
    )
    assert claims.pop("jti")
    assert claims == {"iss": TERMS.issuer, "aud": "nip", "sub": SUBJECT, "iat": NOW, "nbf": NOW, "exp": NOW + 900}
    assert issued.expire_time_seconds == NOW + 900


def test_the_header_names_the_key_by_its_thumbprint() -> None:
    issuer = TokenIssuer(_pem(KEY), TERMS)
    header = jwt.get_unverified_header(issuer.issue(SUBJECT, now_seconds=NOW).token.reveal())
    assert header == {"alg": "ES256", "kid": issuer.key_id, "typ": "JWT"}
    assert issuer.key_id == thumbprint(KEY.public_key())


def test_the_thumbprint_has_a_known_value() -> None:
    """The P-256 key of RFC 7517, appendix A.1; the hash was computed with `sha256sum` over the canonical text."""
    coordinates = ("MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4", "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM")
    x, y = (int.from_bytes(base64.urlsafe_b64decode(value + "="), "big") for value in coordinates)
    public_key = ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
    assert thumbprint(public_key) == "cn-I_WNMClehiVp51i_0VpOENW1upEerA8sEam5hn-s"


def test_short_coordinates_keep_their_zeros() -> None:
    scalar = next(n for n in range(1, 10_000) if _x(n).bit_length() <= 248)
    document = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(ec.derive_private_key(scalar, ec.SECP256R1()).public_key()))
    assert len(document["x"]) == 43
    assert len(thumbprint(ec.derive_private_key(scalar, ec.SECP256R1()).public_key())) == 43


def _x(scalar: int) -> int:
    return ec.derive_private_key(scalar, ec.SECP256R1()).public_key().public_numbers().x


def test_no_two_tokens_are_alike() -> None:
    issuer = TokenIssuer(_pem(KEY), TERMS)
    assert issuer.issue(SUBJECT, now_seconds=NOW).token != issuer.issue(SUBJECT, now_seconds=NOW).token


def test_no_text_form_shows_the_token() -> None:
    issued = TokenIssuer(_pem(KEY), TERMS).issue(SUBJECT, now_seconds=NOW)
    assert "eyJ" not in repr(issued)
    assert "[redacted]" in repr(issued)


@pytest.mark.parametrize(
    "pem",
    [
        SecretBytes(b""),
        SecretBytes(b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"),
        _pem(ec.generate_private_key(ec.SECP384R1())),
        _pem(ec.generate_private_key(ec.SECP256K1())),
        _pem(rsa.generate_private_key(65_537, 2_048)),
        _pem(KEY, b"password"),
    ],
)
def test_other_keys_are_refused(pem: SecretBytes) -> None:
    with pytest.raises(TokenKeyError):
        TokenIssuer(pem, TERMS)

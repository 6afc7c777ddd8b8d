"""Tokens for development and the key set that verifies them."""

import datetime as dt
import json
import stat
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from generator.pki import DamagedFileError, TokenClaims, TokenKey


def now() -> dt.datetime:
    """The time of the test, not of its import: a long run outlives a token."""
    return dt.datetime.now(dt.UTC).replace(microsecond=0)


CLAIMS = TokenClaims(
    subject="ab" * 32, issuer="spiffe://nip.mesh/service/nip", audience="nip", lifetime=dt.timedelta(minutes=15)
)


def test_the_key_is_made_once_and_is_private(tmp_path: Path) -> None:
    path = tmp_path / "pki" / "token.key"
    assert TokenKey.open(path).key_id == TokenKey.open(path).key_id
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "PRIVATE" not in repr(TokenKey.open(path))


def test_a_token_verifies_with_the_published_key_set(tmp_path: Path) -> None:
    key = TokenKey.open(tmp_path / "token.key")
    token = key.mint(CLAIMS, now())
    published = jwt.PyJWKSet.from_json(key.key_set())[key.key_id]
    claims = jwt.decode(token, published, algorithms=["ES256"], audience="nip", issuer=CLAIMS.issuer)
    assert claims["sub"] == CLAIMS.subject
    assert claims["exp"] - claims["iat"] == 900
    assert "role" not in claims
    assert jwt.get_unverified_header(token) == {"alg": "ES256", "typ": "JWT", "kid": key.key_id}


def test_a_role_is_carried_and_ids_differ(tmp_path: Path) -> None:
    key = TokenKey.open(tmp_path / "token.key")
    operator = TokenClaims(subject="cd" * 32, issuer="i", audience="a", lifetime=CLAIMS.lifetime, role="operator")
    published = jwt.PyJWKSet.from_json(key.key_set())[key.key_id]
    claims = [jwt.decode(key.mint(operator, now()), published, algorithms=["ES256"], audience="a") for _ in range(2)]
    assert claims[0]["role"] == "operator"
    assert claims[0]["jti"] != claims[1]["jti"]


def test_the_key_set_holds_no_private_member(tmp_path: Path) -> None:
    (key,) = json.loads(TokenKey.open(tmp_path / "token.key").key_set())["keys"]
    assert set(key) == {"alg", "crv", "kid", "kty", "use", "x", "y"}


def test_another_key_is_refused(tmp_path: Path) -> None:
    ours, other = TokenKey.open(tmp_path / "a.key"), TokenKey.open(tmp_path / "b.key")
    published = jwt.PyJWKSet.from_json(ours.key_set())[ours.key_id]
    with pytest.raises(jwt.InvalidSignatureError):
        jwt.decode(other.mint(CLAIMS, now()), published, algorithms=["ES256"], audience="nip")


def test_a_file_that_is_no_key_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "token.key"
    path.write_text("nonsense")
    with pytest.raises(DamagedFileError, match=rf"{path} holds no readable P-256 key; remove it"):
        TokenKey.open(path)
    path.unlink()
    assert TokenKey.open(path).key_id


def test_a_key_of_another_kind_or_behind_a_password_is_an_error(tmp_path: Path) -> None:
    path, key = tmp_path / "token.key", ec.generate_private_key(ec.SECP256R1())
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    locked = key.private_bytes(pem, pkcs8, serialization.BestAvailableEncryption(b"x"))
    other = ec.generate_private_key(ec.SECP384R1()).private_bytes(pem, pkcs8, serialization.NoEncryption())
    for content in (locked, other):
        path.write_bytes(content)
        with pytest.raises(DamagedFileError, match=str(path)):
            TokenKey.open(path)

"""What Envoy could not load of certificates and keys is a finding at the file's name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from generator.analysis import Analysis
from generator.analysis.certificates import PEM_BYTES_MAX
from support.pairs import write_pair

Checker = Callable[..., Analysis]
TLS = ("gateway:\n", "gateway:\n  tls: {certificate: a.crt, private_key: a.key}\n")
PEM, PKCS8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8


def pem(key: object, password: bytes | None = None) -> bytes:
    assert isinstance(key, (rsa.RSAPrivateKey, ec.EllipticCurvePrivateKey, ed25519.Ed25519PrivateKey))
    secret = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(PEM, PKCS8, secret)


KEYS = {
    "holds no private key": b"no key",
    "no private key in PEM form, or a broken one": b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
    "it is encrypted": pem(ec.generate_private_key(ec.SECP256R1()), b"password"),
    "has 1024 bits": pem(rsa.generate_private_key(65537, 1024)),  # noqa: S505  (that it is refused is the point)
    "neither RSA nor of the curves": pem(ed25519.Ed25519PrivateKey.generate()),
    "made for another key": pem(ec.generate_private_key(ec.SECP256R1())),
    "it is larger than": b"a" * (PEM_BYTES_MAX + 1),
}


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    write_pair(tmp_path, "a")
    return tmp_path


def only(analysis: Analysis) -> tuple[str, int, str]:
    (finding,) = analysis.findings
    assert analysis.mesh is None
    return finding.code, finding.column, finding.cause


def test_a_certificate_and_its_key_are_fine(check: Checker, pair: Path) -> None:
    assert check(TLS).findings == ()


@pytest.mark.parametrize("problem", KEYS)
def test_a_key_that_envoy_would_not_load(check: Checker, pair: Path, problem: str) -> None:
    (pair / "a.key").write_bytes(KEYS[problem])
    code, column, cause = only(check(TLS))
    assert (code, column) == ("NM606", TLS[1].splitlines()[1].index("a.key") + 1)
    assert problem in cause


def test_a_certificate_that_is_none(check: Checker, pair: Path) -> None:
    """Found by mutated manifests: Envoy refused what `check` had taken."""
    (pair / "a.crt").write_bytes(b"")
    code, column, cause = only(check(TLS))
    assert (code, column) == ("NM606", TLS[1].splitlines()[1].index("a.crt") + 1)
    assert "no certificate" in cause


def test_a_finding_shows_nothing_of_a_key(check: Checker, pair: Path) -> None:
    (pair / "a.key").write_bytes(b"-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n")
    assert "c2VjcmV0" not in str(check(TLS).findings[0])


TLS_OUTSIDE = "{ca: a.ca, certificate: a.crt, private_key: a.key}"
EXTERNAL = (
    "gateway:\n",
    f"external:\n  rates:\n    address: rates.example.org:443\n    tls: {TLS_OUTSIDE}\ngateway:\n",
)


def test_certificates_for_hosts_outside(check: Checker, pair: Path) -> None:
    assert "NM606" not in {finding.code for finding in check(EXTERNAL).findings}
    (pair / "a.ca").write_bytes(b"none")
    assert "NM606" in {finding.code for finding in check(EXTERNAL).findings}

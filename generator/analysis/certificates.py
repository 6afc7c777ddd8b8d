"""Checks of certificates and keys that the manifest names: what Envoy could not load is told here, with its line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from generator.analysis.files import check_file
from generator.manifest.finding import Reporter, quoted
from generator.manifest.values import Located

PEM_BYTES_MAX = 4 * 1024 * 1024
"""The authorities that a system trusts take about 200 KiB."""
FIX = "name a PEM file with `-----BEGIN ...-----` lines"
RSA_BITS_MIN = 2048
"""Envoy loads no shorter key: https://www.envoyproxy.io/docs/envoy/v1.40.0/intro/arch_overview/security/ssl"""
CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)
"""Envoy loads no key of another curve."""
CERTIFICATE, PRIVATE_KEY = "a certificate", "a private key without a password"
T = TypeVar("T")


class UnusableError(Exception):
    """A file cannot be what it is named for; `str()` says why, and never shows what is in it."""


def check_pair(
    certificate: Located[str] | None, private_key: Located[str] | None, base: Path, where: str, reporter: Reporter
) -> None:
    """A certificate chain and its private key: both are there, can be loaded, and belong together."""
    shown = own = None
    if check_file(certificate, base, f"{where}.certificate", reporter):
        shown = _loaded(certificate, base, f"{where}.certificate", reporter, leaf_key, CERTIFICATE)
    if check_file(private_key, base, f"{where}.private_key", reporter, private=True):
        own = _loaded(private_key, base, f"{where}.private_key", reporter, own_key, PRIVATE_KEY)
    if private_key is not None and shown is not None and own is not None and shown != own:
        cause = "the certificate was made for another key"
        message = f"{where}: {quoted(private_key.value)} is not the key of the certificate"
        reporter.report("NM606", private_key.position, message, cause=cause, fix="name the key that it was issued for")


def check_authorities(written: Located[str] | None, base: Path, where: str, reporter: Reporter) -> None:
    """A file of authorities: it is there and holds certificates."""
    if check_file(written, base, where, reporter):
        _loaded(written, base, where, reporter, certificates, CERTIFICATE)


def _loaded(
    written: Located[str] | None, base: Path, where: str, reporter: Reporter, load: Callable[[bytes], T], what: str
) -> T | None:
    """What `load` makes of the file; None after a finding."""
    assert written is not None
    try:
        with (base / written.value).open("rb") as file:
            return load(bounded(file.read(PEM_BYTES_MAX + 1)))
    except OSError as error:
        problem = f"reading it failed: {error.strerror}"
    except UnusableError as error:
        problem = str(error)
    message = f"{where}: {quoted(written.value)} is not {what}"
    reporter.report("NM606", written.position, message, cause=problem, fix=FIX)
    return None


def bounded(raw: bytes) -> bytes:
    """The bytes themselves. Raises UnusableError when they are too many."""
    if len(raw) > PEM_BYTES_MAX:
        raise UnusableError(f"it is larger than {PEM_BYTES_MAX} bytes")
    return raw


def certificates(raw: bytes) -> list[x509.Certificate]:
    """The certificates of a PEM file, at least one. Raises UnusableError."""
    try:
        return x509.load_pem_x509_certificates(raw)
    except ValueError as error:
        raise UnusableError("it holds no certificate in PEM form, or a broken one") from error


def leaf_key(raw: bytes) -> bytes:
    """The public key of the first certificate. Raises UnusableError."""
    leaf = certificates(raw)[0]
    try:
        return public_bytes(leaf.public_key())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UnusableError("its key is of a kind that Envoy does not load") from error


def own_key(raw: bytes) -> bytes:
    """The public key that belongs to a private one. Raises UnusableError."""
    try:
        return public_bytes(serialization.load_pem_private_key(raw, password=None).public_key())
    except TypeError as error:
        raise UnusableError("it is encrypted, and there is nobody to type a password") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UnusableError("it holds no private key in PEM form, or a broken one") from error


def public_bytes(key: object) -> bytes:
    """A public key in one form, to compare. Raises UnusableError for a key that Envoy does not load."""
    if isinstance(key, rsa.RSAPublicKey) and key.key_size < RSA_BITS_MIN:
        raise UnusableError(f"its RSA key has {key.key_size} bits; Envoy loads none of fewer than {RSA_BITS_MIN}")
    is_usable = isinstance(key, rsa.RSAPublicKey) or (
        isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, CURVES)
    )
    if not is_usable:
        raise UnusableError("its key is neither RSA nor of the curves P-256, P-384 and P-521; Envoy loads no other")
    assert isinstance(key, (rsa.RSAPublicKey, ec.EllipticCurvePublicKey))
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)

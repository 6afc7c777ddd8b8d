"""Checks of certificates and keys that the manifest names: that they are some, and belong together."""

from __future__ import annotations

from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from generator.analysis.files import check_file
from generator.manifest.finding import Reporter, quoted
from generator.manifest.values import Located

CERTIFICATE_BYTES_MAX = 4 * 1024 * 1024
"""The authorities that a system trusts take about 200 KiB."""
FIX = "name a PEM file with `-----BEGIN ...-----` lines"


def check_authorities(written: Located[str] | None, base: Path, where: str, reporter: Reporter) -> None:
    """The file holds at least one certificate, PEM."""
    if check_file(written, base, where, reporter) and written is not None:
        _certificates(written, base, where, reporter)


def check_pair(
    certificate: Located[str] | None, private_key: Located[str] | None, base: Path, where: str, reporter: Reporter
) -> None:
    """A certificate chain and its private key, PEM, which must be of each other."""
    has_certificate = check_file(certificate, base, f"{where}.certificate", reporter)
    has_key = check_file(private_key, base, f"{where}.private_key", reporter, private=True)
    chain: tuple[bytes, ...] = ()
    key = None
    if certificate is not None and has_certificate:
        chain = _certificates(certificate, base, f"{where}.certificate", reporter)
    if private_key is not None and has_key:
        key = _public_half(private_key, base, f"{where}.private_key", reporter)
    if private_key is not None and chain and key is not None and chain[0] != key:
        cause = "the first certificate of the file is for another key"
        message = f"{where}: {quoted(private_key.value)} is not the key of the certificate"
        reporter.report("NM606", private_key.position, message, cause=cause, fix="name the key that it was issued for")


def _certificates(written: Located[str], base: Path, where: str, reporter: Reporter) -> tuple[bytes, ...]:
    """The public keys of all certificates in a file; none after a finding."""
    try:
        found = x509.load_pem_x509_certificates(_content(base / written.value))
        return tuple(_spelled(certificate.public_key()) for certificate in found)
    except (ValueError, OSError) as error:
        _report(written, where, "a certificate", error, reporter)
        return ()


def _public_half(written: Located[str], base: Path, where: str, reporter: Reporter) -> bytes | None:
    try:
        return _spelled(serialization.load_pem_private_key(_content(base / written.value), None).public_key())
    except (ValueError, TypeError, OSError) as error:  # TypeError: it wants a password
        _report(written, where, "a private key without a password", error, reporter)
        return None


def _content(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(CERTIFICATE_BYTES_MAX + 1)
    if len(content) > CERTIFICATE_BYTES_MAX:
        raise ValueError(f"it has more than {CERTIFICATE_BYTES_MAX} bytes")
    return content


def _spelled(public_key: object) -> bytes:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    spelled: bytes = public_key.public_bytes(serialization.Encoding.DER, form)  # type: ignore[attr-defined]  # a union
    return spelled


def _report(written: Located[str], where: str, what: str, error: Exception, reporter: Reporter) -> None:
    cause = error.strerror if isinstance(error, OSError) and error.strerror else "it cannot be read as one"
    message = f"{where}: {quoted(written.value)} is not {what}"
    reporter.report("NM606", written.position, message, cause=cause, fix=FIX)

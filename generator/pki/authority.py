"""The local certificate authority. Its keys stay in one folder (0700), each in a file of its own (0600).

An authority outlives many leaves, but not for ever. Near its end a successor is made, and both are trusted while they
overlap: the successor signs only once every workload has had time to learn of it, which is one leaf lifetime, because
each leaf is renewed at half of that and a renewed leaf comes with the whole list of trusted authorities.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from generator.pki.private import PrivateBytes, private_directory, write_private

LIFETIME = dt.timedelta(days=365)
"""Of an authority: long enough that a development mesh never notices, short enough that rotation is not theory."""
RENEW_BEFORE_END = dt.timedelta(days=90)
"""When a successor is made; far longer than any leaf lives (see `LEAF_LIFETIME_MAX`)."""
LEAF_LIFETIME_MAX = dt.timedelta(days=30)
"""Longer leaves would outlive the overlap of two authorities."""
BACKDATE = dt.timedelta(seconds=30)
"""Clocks of one mesh may differ this much."""


class DamagedFileError(ValueError):
    """A file holds not what it should; the message names it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorityKey:
    """One authority: its certificate and the key that signs leaves."""

    certificate: x509.Certificate
    private_key: ec.EllipticCurvePrivateKey

    def __repr__(self) -> str:
        return f"AuthorityKey(serial={self.certificate.serial_number:x}, private_key=[redacted])"

    @property
    def certificate_pem(self) -> bytes:
        """The certificate as PEM."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)


@dataclass(frozen=True, slots=True, kw_only=True)
class Authority:
    """Every authority of the mesh that is still valid, oldest first, and the rules which of them signs."""

    trust_domain: str
    keys: tuple[AuthorityKey, ...]

    def signer(self, now: dt.datetime, *, leaf_lifetime: dt.timedelta) -> AuthorityKey:
        """Choose the newest authority that everybody knows by now; the oldest when there is none yet."""
        known = [key for key in self.keys if key.certificate.not_valid_before_utc + BACKDATE + leaf_lifetime <= now]
        return known[-1] if known else self.keys[0]

    @property
    def bundle_pem(self) -> bytes:
        """What peers trust: all valid authorities, PEM, newest first."""
        return b"".join(key.certificate_pem for key in reversed(self.keys))

    @classmethod
    def open(cls, directory: Path, trust_domain: str, now: dt.datetime) -> Authority:
        """Load the authorities from the folder; drop expired ones, make the first or the next one when it is time.

        Raises OSError when the folder cannot be used and ValueError when a file in it is not what it should be.
        """
        private_directory(directory)
        keys = _load_valid(directory, trust_domain, now)
        if not keys or keys[-1].certificate.not_valid_after_utc - now < RENEW_BEFORE_END:
            key = make_authority(trust_domain, now)
            _save(directory, key)
            keys = (*keys, key)
        return cls(trust_domain=trust_domain, keys=keys)


def make_authority(trust_domain: str, now: dt.datetime) -> AuthorityKey:
    """Make a self-signed P-256 authority; its URI name is the trust domain (SPIFFE X.509-SVID, section 4.1)."""
    private_key = ec.generate_private_key(ec.SECP256R1())
    serial = x509.random_serial_number()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"nipmesh authority {serial:x}"[:64])])
    identifier = x509.SubjectKeyIdentifier.from_public_key(private_key.public_key())
    builder = (
        x509.CertificateBuilder(subject_name=name, issuer_name=name)
        .public_key(private_key.public_key())
        .serial_number(serial)
        .not_valid_before(now - BACKDATE)
        .not_valid_after(now + LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(key_usage(signs_certificates=True), critical=True)
        .add_extension(identifier, critical=False)
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"spiffe://{trust_domain}")]), critical=False
        )
    )
    return AuthorityKey(certificate=builder.sign(private_key, hashes.SHA256()), private_key=private_key)


def key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    """Let an authority sign certificates and nothing else, and a leaf handshakes and nothing else."""
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def private_key_pem(private_key: ec.EllipticCurvePrivateKey) -> PrivateBytes:
    """Serialize a key as unencrypted PKCS 8 PEM; the file's mode is what protects it."""
    return PrivateBytes(
        private_key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )


def load_private_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Read a P-256 key from PEM. Raises OSError, and DamagedFileError when it is no such key."""
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:  # TypeError: it wants a password
        raise DamagedFileError(f"{path} holds no readable P-256 key") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise DamagedFileError(f"{path} holds no P-256 key")
    return key


def _save(directory: Path, key: AuthorityKey) -> None:
    """Write the key first: a certificate without its key would be trusted and useless."""
    stem = f"authority-{key.certificate.serial_number:x}"
    write_private(directory / f"{stem}.key", private_key_pem(key.private_key))
    write_private(directory / f"{stem}.crt", key.certificate_pem)


def _load_valid(directory: Path, trust_domain: str, now: dt.datetime) -> tuple[AuthorityKey, ...]:
    keys = []
    for path in sorted(directory.glob("authority-*.crt")):
        certificate = _load_certificate(path)
        if certificate.not_valid_after_utc <= now or not _is_of_domain(certificate, trust_domain):
            path.unlink()
            path.with_suffix(".key").unlink(missing_ok=True)
            continue
        keys.append(AuthorityKey(certificate=certificate, private_key=_load_key_of(path)))
    return tuple(sorted(keys, key=lambda key: key.certificate.not_valid_before_utc))


def _load_certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except ValueError as error:
        raise DamagedFileError(f"{path} holds no readable certificate; {_mend(path)}") from error


def _load_key_of(certificate: Path) -> ec.EllipticCurvePrivateKey:
    path = certificate.with_suffix(".key")
    try:
        return load_private_key(path)
    except FileNotFoundError as error:
        raise DamagedFileError(f"{path} is missing; {_mend(certificate)}") from error
    except DamagedFileError as error:
        raise DamagedFileError(f"{error}; {_mend(certificate)}") from error


def _mend(certificate: Path) -> str:
    pair = f"{certificate.name} and {certificate.with_suffix('.key').name}"
    return f"remove {pair} in that folder: `nipmesh up` then makes a new authority, and new certificates with it"


def _is_of_domain(certificate: x509.Certificate, trust_domain: str) -> bool:
    """Tell whether it is ours: a manifest whose trust domain was renamed starts over with a new authority."""
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return names.get_values_for_type(x509.UniformResourceIdentifier) == [f"spiffe://{trust_domain}"]

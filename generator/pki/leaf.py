"""Leaf certificates: one SPIFFE id per workload, P-256, valid for an hour or so (SPIFFE X.509-SVID, section 2)."""

from __future__ import annotations

import datetime as dt
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from generator.pki.authority import BACKDATE, LEAF_LIFETIME_MAX, Authority, key_usage, private_key_pem
from generator.pki.private import PrivateBytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """What one workload shows to its peers and what it believes of theirs."""

    certificate_pem: bytes
    private_key_pem: PrivateBytes
    authorities_pem: bytes
    issued: dt.datetime
    expires: dt.datetime

    @property
    def renew(self) -> dt.datetime:
        """When the next one is due: half of the lifetime leaves as much again for trouble."""
        return self.issued + (self.expires - self.issued) / 2


def issue_leaf(
    authority: Authority, *, identity: str, lifetime: dt.timedelta, now: dt.datetime, hosts: Sequence[str] = ()
) -> Leaf:
    """Sign a fresh key for `identity` (a SPIFFE id of the authority's trust domain), slightly backdated.

    `hosts` are DNS names and IP addresses of a server whose clients know no SPIFFE ids: no workload has any.
    """
    private_key = ec.generate_private_key(ec.SECP256R1())
    pem, expires = sign_leaf(
        authority, private_key.public_key(), identity=identity, lifetime=lifetime, now=now, hosts=hosts
    )
    return Leaf(
        certificate_pem=pem,
        private_key_pem=private_key_pem(private_key),
        authorities_pem=authority.bundle_pem,
        issued=now,
        expires=expires,
    )


def sign_leaf(
    authority: Authority,
    public_key: ec.EllipticCurvePublicKey,
    *,
    identity: str,
    lifetime: dt.timedelta,
    now: dt.datetime,
    hosts: Sequence[str] = (),
) -> tuple[bytes, dt.datetime]:
    """Certify somebody's key in the same way: the certificate as PEM, and when it ends."""
    assert identity.startswith(f"spiffe://{authority.trust_domain}/"), identity
    assert lifetime <= LEAF_LIFETIME_MAX, lifetime
    signer = authority.signer(now, leaf_lifetime=lifetime)
    expires = min(now + lifetime, signer.certificate.not_valid_after_utc)
    builder = _described(public_key, (identity, *hosts), signer.certificate)
    certificate = (
        builder.not_valid_before(now - BACKDATE).not_valid_after(expires).sign(signer.private_key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM), certificate.not_valid_after_utc


def _described(
    public_key: ec.EllipticCurvePublicKey, names: tuple[str, ...], issuer: x509.Certificate
) -> x509.CertificateBuilder:
    """Names (the identity first), usages and key identifiers of a leaf; both TLS roles, because a sidecar calls and is called."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0].rsplit("/", 1)[-1][:64])])
    issuer_identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return (
        x509.CertificateBuilder(subject_name=name, issuer_name=issuer.subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .add_extension(x509.SubjectAlternativeName([_name(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(key_usage(signs_certificates=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_identifier), critical=False
        )
    )


def _name(name: str) -> x509.GeneralName:
    if name.startswith("spiffe://"):
        return x509.UniformResourceIdentifier(name)
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)

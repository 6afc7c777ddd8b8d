"""Certificates for keys that stay where they were made: a machine asks with its public keys, whoever has the authority signs.

Both messages are JSON: the request `{workload: CSR}`, the answer `{"authorities": PEM, "certificates": {workload: PEM}}`. What a
certificate says comes from the plan of the one that signs; of the request only the public key counts (RFC 2986).
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from generator.pki.authority import Authority, private_key_pem
from generator.pki.leaf import Leaf, sign_leaf
from generator.pki.plan import CertificatePlan

REQUESTS_MAX = 10_000
REQUEST_BYTES_MAX = 16 * 1024 * 1024
"""A request is half a kilobyte, and a machine runs some hundred workloads."""


class RequestError(ValueError):
    """A request or an answer that is not what it should be; the text says what is wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """Fresh private keys by workload, in memory only."""

    keys: Mapping[str, ec.EllipticCurvePrivateKey]

    def __repr__(self) -> str:
        return f"Keys({', '.join(sorted(self.keys))}: [redacted])"

    @classmethod
    def make(cls, workloads: tuple[str, ...]) -> Keys:
        """One for each workload."""
        return cls(keys={name: ec.generate_private_key(ec.SECP256R1()) for name in workloads})

    def request(self) -> bytes:
        """What is sent to the one that signs: nothing secret."""
        return json.dumps({name: _csr(key) for name, key in self.keys.items()}).encode()

    def leaves(self, answer: bytes, now: dt.datetime) -> dict[str, Leaf]:
        """Put the certificates of an answer beside their keys. Raises RequestError when one is missing or of another key."""
        try:
            document = json.loads(answer)
            authorities = str(document["authorities"]).encode()
            certificates = {str(name): str(pem).encode() for name, pem in document["certificates"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RequestError("what came back is no answer of `nipmesh certificates sign`") from error
        return {name: self._leaf(name, certificates.get(name), authorities, now) for name in self.keys}

    def _leaf(self, name: str, pem: bytes | None, authorities: bytes, now: dt.datetime) -> Leaf:
        if pem is None:
            raise RequestError(f"no certificate for {name} came back")
        try:
            certificate = x509.load_pem_x509_certificate(pem)
            trusted = x509.load_pem_x509_certificates(authorities)
        except ValueError as error:
            raise RequestError(f"the certificate for {name} cannot be read") from error
        if certificate.public_key() != self.keys[name].public_key():
            raise RequestError(f"the certificate for {name} is of another key")
        if not any(_is_signed_by(certificate, authority) for authority in trusted):
            raise RequestError(f"the certificate for {name} is signed by none of the authorities that came with it")
        return Leaf(
            certificate_pem=pem,
            private_key_pem=private_key_pem(self.keys[name]),
            authorities_pem=authorities,
            issued=now,
            expires=certificate.not_valid_after_utc,
        )


def sign(request: bytes, plan: CertificatePlan, authority: Authority, now: dt.datetime) -> bytes:
    """Sign what the plan has; the answer. Raises RequestError, and signs nothing, when anything is asked that it has not."""
    certificates = {}
    for name, key in _requested(request).items():
        try:
            wanted = plan.of(name)
        except KeyError:
            known = ", ".join(sorted(each.workload for each in plan.wanted))
            raise RequestError(f"{name[:60]!r} is not among the workloads of this plan: {known}") from None
        pem, _ = sign_leaf(
            authority, key, identity=wanted.identity, lifetime=plan.lifetime, now=now, hosts=wanted.hosts
        )
        certificates[name] = pem.decode()
    document = {"authorities": authority.bundle_pem.decode(), "certificates": certificates}
    return json.dumps(document).encode()


def _requested(request: bytes) -> dict[str, ec.EllipticCurvePublicKey]:
    """The public keys of a request, each proved to be its sender's."""
    if len(request) > REQUEST_BYTES_MAX:
        raise RequestError(f"a request has at most {REQUEST_BYTES_MAX} bytes")
    try:
        document = json.loads(request)
        found = {str(name): x509.load_pem_x509_csr(str(pem).encode()) for name, pem in document.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise RequestError("this is no request of `nipmesh certificates renew`") from error
    if len(found) > REQUESTS_MAX:
        raise RequestError(f"a request has at most {REQUESTS_MAX} workloads")
    return {name: _public_key(name, csr) for name, csr in found.items()}


def _public_key(name: str, csr: x509.CertificateSigningRequest) -> ec.EllipticCurvePublicKey:
    key = csr.public_key()
    if not csr.is_signature_valid:
        raise RequestError(f"the request for {name[:60]!r} is not signed by its own key")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise RequestError(f"the request for {name[:60]!r} has no P-256 key")
    return key


def _csr(key: ec.EllipticCurvePrivateKey) -> str:
    builder = x509.CertificateSigningRequestBuilder(subject_name=x509.Name([]))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def _is_signed_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True

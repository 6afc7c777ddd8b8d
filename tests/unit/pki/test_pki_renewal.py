"""Certificates without a runner: plans, requests, renewal; the private key never leaves the machine that made it."""

from __future__ import annotations

import datetime as dt
import json
import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from generator.pki import Authority, DamagedFileError, installed_leaf
from generator.pki.authority import make_authority
from generator.pki.plan import CertificatePlan, Wanted
from generator.pki.renewal import kept, renew, write_trust
from generator.pki.request import Keys, RequestError, sign

NOW = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
HOUR = dt.timedelta(hours=1)
PLAN = CertificatePlan(
    trust_domain="shop.mesh",
    lifetime_ms=3_600_000,
    wanted=(
        Wanted(workload="orders-0", identity="spiffe://shop.mesh/service/orders", user="nipmesh-orders"),
        Wanted(workload="events", identity="spiffe://shop.mesh/events", hosts=("10.0.0.1", "localhost"), user="e"),
    ),
)
NAMES = tuple(wanted.workload for wanted in PLAN.wanted)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.open(tmp_path / "pki", PLAN.trust_domain, NOW)


def test_a_plan_survives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "certificates.json"
    path.write_bytes(PLAN.to_json())
    assert CertificatePlan.load(path) == PLAN
    assert PLAN.lifetime == HOUR
    assert replace(PLAN, lifetime_ms=10**12).lifetime == dt.timedelta(days=30)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff",
        b'{"trust_domain": "a.mesh", "lifetime_ms": 1, "workloads": []}',
        PLAN.to_json().replace(b"spiffe://shop.mesh/events", b"spiffe://other.mesh/events"),
    ],
)
def test_what_is_no_plan_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "certificates.json"
    path.write_bytes(content)
    with pytest.raises(DamagedFileError, match=r"certificates\.json is no plan"):
        CertificatePlan.load(path)


def test_a_request_holds_nothing_secret_and_its_answer_is_what_the_plan_says(authority: Authority) -> None:
    keys = Keys.make(NAMES)
    request = keys.request()
    assert b"PRIVATE" not in request
    assert "[redacted]" in repr(keys)
    leaves = keys.leaves(sign(request, PLAN, authority, NOW), NOW)
    for wanted in PLAN.wanted:
        leaf = leaves[wanted.workload]
        certificate = x509.load_pem_x509_certificate(leaf.certificate_pem)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert tuple(str(name.value) for name in names) == (wanted.identity, *wanted.hosts)
        assert certificate.not_valid_after_utc == NOW + HOUR == leaf.expires
        key = serialization.load_pem_private_key(leaf.private_key_pem.reveal(), None)
        assert key.public_key() == certificate.public_key()
        assert leaf.authorities_pem == authority.bundle_pem


def csr(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, identity: str = "") -> str:
    builder = x509.CertificateSigningRequestBuilder(subject_name=x509.Name([]))
    if identity:
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity)])
        builder = builder.add_extension(names, critical=False).add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        )
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def test_what_a_request_wants_to_be_does_not_count(authority: Authority) -> None:
    """Whoever holds the key of one machine gets the identities of that machine's plan, and never an authority's rights."""
    wish = csr(ec.generate_private_key(ec.SECP256R1()), "spiffe://shop.mesh/gateway")
    answer = json.loads(sign(json.dumps({"orders-0": wish}).encode(), PLAN, authority, NOW))
    certificate = x509.load_pem_x509_certificate(answer["certificates"]["orders-0"].encode())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [name.value for name in names] == ["spiffe://shop.mesh/service/orders"]
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def forged() -> str:
    """A request whose key is another's than the one that signed it."""
    lines = csr(ec.generate_private_key(ec.SECP256R1()))
    der = bytearray(x509.load_pem_x509_csr(lines.encode()).public_bytes(serialization.Encoding.DER))
    der[-1] ^= 1
    return x509.load_der_x509_csr(bytes(der)).public_bytes(serialization.Encoding.PEM).decode()


GOOD = csr(ec.generate_private_key(ec.SECP256R1()))
BAD: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "no request"),
    "a list": (b"[]", "no request"),
    "no PEM": (b'{"orders-0": "x"}', "no request"),
    "a number": (b'{"orders-0": 5}', "no request"),
    "another's workload": (json.dumps({"gateway": GOOD}).encode(), "'gateway' is not among the workloads of this plan"),
    "one of two": (json.dumps({"orders-0": GOOD, "gateway": GOOD}).encode(), "'gateway' is not among"),
    "another curve": (json.dumps({"orders-0": csr(ec.generate_private_key(ec.SECP384R1()))}).encode(), "no P-256 key"),
    "RSA": (json.dumps({"orders-0": csr(rsa.generate_private_key(65_537, 2_048))}).encode(), "no P-256 key"),
    "a broken signature": (json.dumps({"orders-0": forged()}).encode(), "not signed by its own key"),
    "too long": (b" " * (16 * 1024 * 1024 + 1), "at most"),
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_a_bad_request_is_refused_as_a_whole(authority: Authority, name: str) -> None:
    request, words = BAD[name]
    with pytest.raises(RequestError, match=words):
        sign(request, PLAN, authority, NOW)


def test_a_bad_answer_is_refused(authority: Authority) -> None:
    keys = Keys.make(("orders-0",))
    good = json.loads(sign(keys.request(), PLAN, authority, NOW))
    other = json.loads(sign(Keys.make(("orders-0",)).request(), PLAN, authority, NOW))
    stranger = make_authority(PLAN.trust_domain, NOW).certificate_pem.decode()
    for answer, words in (
        ("", "no answer"),
        ("[]", "no answer"),
        (json.dumps(good | {"certificates": {}}), "no certificate for orders-0"),
        (json.dumps(good | {"certificates": {"orders-0": "x"}}), "cannot be read"),
        (json.dumps(good | {"authorities": "x"}), "cannot be read"),
        (json.dumps(other), "another key"),
        (json.dumps(good | {"authorities": stranger}), "signed by none"),
    ):
        with pytest.raises(RequestError, match=words):
            keys.leaves(answer.encode(), NOW)


def test_renewal_is_due_at_half_of_the_life_or_when_something_is_wrong(tmp_path: Path, authority: Authority) -> None:
    folder = tmp_path / "certificates"
    assert [each.problem for each in kept(PLAN, folder)] == ["missing", "missing"]
    renew(PLAN, NAMES, folder, lambda request: sign(request, PLAN, authority, NOW), NOW)
    half = NOW + HOUR / 2
    for each in kept(PLAN, folder):
        assert (each.problem, each.expires, each.renew) == ("", NOW + HOUR, half)
        assert not each.is_due(half - dt.timedelta(seconds=1))
        assert each.is_due(half)
    other = replace(PLAN, wanted=(replace(PLAN.wanted[0], identity="spiffe://shop.mesh/service/x"), PLAN.wanted[1]))
    assert [each.problem for each in kept(other, folder)] == ["has other names", ""]
    (folder / "events/..data/tls.crt").write_text("nonsense")
    assert [each.problem for each in kept(PLAN, folder)] == ["", "damaged"]


def test_files_are_private_and_swapped_at_once(tmp_path: Path, authority: Authority) -> None:
    folder = tmp_path / "certificates"

    def once() -> None:
        me = (os.getuid(), os.getgid())
        renew(PLAN, NAMES, folder, lambda request: sign(request, PLAN, authority, NOW), NOW, lambda _: me)

    once()
    first, old = installed_leaf(folder / "orders-0"), (folder / "orders-0/..data").resolve()
    once()
    second = installed_leaf(folder / "orders-0")
    assert first is not None
    assert second is not None
    assert first.serial_number != second.serial_number
    assert (old / "tls.key").exists(), "whoever reads through the old link finds what belongs together"
    for path in (folder / "orders-0").rglob("*"):
        if not path.is_symlink():
            assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_a_failure_leaves_the_old_certificates_in_force(tmp_path: Path, authority: Authority) -> None:
    folder = tmp_path / "certificates"
    renew(PLAN, NAMES, folder, lambda request: sign(request, PLAN, authority, NOW), NOW)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def half(request: bytes) -> bytes:
        answer = json.loads(sign(request, PLAN, authority, NOW))
        del answer["certificates"]["events"]
        return json.dumps(answer).encode()

    def no_user(name: str) -> tuple[int, int]:
        raise ValueError(f"there is no user {name}")

    with pytest.raises(RequestError):
        renew(PLAN, NAMES, folder, half, NOW)
    with pytest.raises(ValueError, match="no user nipmesh-orders"):
        renew(PLAN, NAMES, folder, lambda request: sign(request, PLAN, authority, NOW), NOW, no_user)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_what_everybody_trusts_is_for_everybody_to_read(tmp_path: Path, authority: Authority) -> None:
    folder, trust = tmp_path / "certificates", tmp_path / "trust"
    assert not write_trust(trust, folder, PLAN)
    renew(PLAN, NAMES, folder, lambda request: sign(request, PLAN, authority, NOW), NOW)
    assert write_trust(trust, folder, PLAN)
    assert not write_trust(trust, folder, PLAN), "it is the same"
    assert (trust / "ca.crt").read_bytes() == authority.bundle_pem
    assert stat.S_IMODE((trust / "ca.crt").stat().st_mode) == 0o644
    assert stat.S_IMODE(trust.stat().st_mode) == 0o755

"""The authority, leaves and their folders."""

import datetime as dt
import pickle
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import PolicyBuilder, Store

from generator.pki import (
    Authority,
    DamagedFileError,
    PrivateBytes,
    installed_leaf,
    issue_leaf,
    publish_leaf,
    write_private,
)
from generator.pki.authority import BACKDATE, LIFETIME, RENEW_BEFORE_END

NOW = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
HOUR = dt.timedelta(hours=1)
IDENTITY = "spiffe://nip.mesh/service/payment"


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def verifies(leaf_pem: bytes, bundle_pem: bytes, at: dt.datetime) -> list[x509.GeneralName]:
    """The chain by an independent verifier: what `openssl verify` would do, both TLS roles."""
    store = Store(x509.load_pem_x509_certificates(bundle_pem))
    builder = PolicyBuilder().store(store).time(at)
    leaf = x509.load_pem_x509_certificate(leaf_pem)
    verified = builder.build_client_verifier().verify(leaf, [])
    return list(verified.subjects or [])


def test_a_leaf_verifies_against_the_bundle_and_carries_exactly_one_name(tmp_path: Path) -> None:
    authority = Authority.open(tmp_path, "nip.mesh", NOW)
    leaf = issue_leaf(authority, identity=IDENTITY, lifetime=HOUR, now=NOW)
    assert verifies(leaf.certificate_pem, leaf.authorities_pem, NOW) == [x509.UniformResourceIdentifier(IDENTITY)]
    certificate = x509.load_pem_x509_certificate(leaf.certificate_pem)
    assert certificate.not_valid_before_utc == NOW - BACKDATE
    assert certificate.not_valid_after_utc == NOW + HOUR == leaf.expires
    assert leaf.renew == NOW + HOUR / 2
    usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(usages) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    public = certificate.public_key()
    assert isinstance(public, ec.EllipticCurvePublicKey)
    assert isinstance(public.curve, ec.SECP256R1)
    key = serialization.load_pem_private_key(leaf.private_key_pem.reveal(), None)
    assert key.public_key() == public


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command")
def test_openssl_agrees(tmp_path: Path) -> None:
    now = dt.datetime.now(dt.UTC)
    authority = Authority.open(tmp_path / "pki", "nip.mesh", now)
    publish_leaf(tmp_path / "leaf", issue_leaf(authority, identity=IDENTITY, lifetime=HOUR, now=now))
    data = tmp_path / "leaf" / "..data"
    command = [
        "openssl",
        "verify",
        "-x509_strict",
        "-purpose",
        "sslserver",
        "-CAfile",
        data / "ca.crt",
        data / "tls.crt",
    ]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_serials_are_random_and_leaves_never_share_a_key(tmp_path: Path) -> None:
    authority = Authority.open(tmp_path, "nip.mesh", NOW)
    leaves = [issue_leaf(authority, identity=IDENTITY, lifetime=HOUR, now=NOW) for _ in range(4)]
    certificates = [x509.load_pem_x509_certificate(leaf.certificate_pem) for leaf in leaves]
    assert len({certificate.serial_number for certificate in certificates}) == len(leaves)
    assert len({leaf.private_key_pem.reveal() for leaf in leaves}) == len(leaves)


def test_the_authority_is_kept_and_its_files_are_private(tmp_path: Path) -> None:
    folder = tmp_path / "pki"
    first = Authority.open(folder, "nip.mesh", NOW)
    again = Authority.open(folder, "nip.mesh", NOW + HOUR)
    assert first.bundle_pem == again.bundle_pem
    assert mode_of(folder) == 0o700
    assert {mode_of(path) for path in folder.iterdir()} == {0o600}


def test_a_renamed_trust_domain_starts_over(tmp_path: Path) -> None:
    Authority.open(tmp_path, "old.mesh", NOW)
    fresh = Authority.open(tmp_path, "new.mesh", NOW)
    assert len(fresh.keys) == 1
    assert len(list(tmp_path.glob("*.key"))) == 1


def test_an_authority_near_its_end_is_followed_by_another_and_both_are_trusted(tmp_path: Path) -> None:
    old = Authority.open(tmp_path, "nip.mesh", NOW)
    before = issue_leaf(old, identity=IDENTITY, lifetime=HOUR, now=NOW + LIFETIME - RENEW_BEFORE_END - HOUR / 2)
    later = NOW + LIFETIME - RENEW_BEFORE_END + dt.timedelta(seconds=1)
    both = Authority.open(tmp_path, "nip.mesh", later)
    assert len(both.keys) == 2
    first = issue_leaf(both, identity=IDENTITY, lifetime=HOUR, now=later)
    assert first.authorities_pem.count(b"BEGIN CERTIFICATE") == 2
    # Peers that only know the old authority still accept it, and new peers accept what the old one signed.
    assert verifies(first.certificate_pem, old.bundle_pem, later)
    assert verifies(before.certificate_pem, both.bundle_pem, later)
    settled = later + HOUR
    second = issue_leaf(both, identity=IDENTITY, lifetime=HOUR, now=settled)
    issuer = x509.load_pem_x509_certificate(second.certificate_pem).issuer
    assert issuer == both.keys[1].certificate.subject
    assert verifies(second.certificate_pem, first.authorities_pem, settled)
    gone = Authority.open(tmp_path, "nip.mesh", NOW + LIFETIME + HOUR)
    assert len(gone.keys) == 1


def test_an_expired_authority_is_replaced_at_once(tmp_path: Path) -> None:
    Authority.open(tmp_path, "nip.mesh", NOW)
    much_later = NOW + LIFETIME * 2
    authority = Authority.open(tmp_path, "nip.mesh", much_later)
    leaf = issue_leaf(authority, identity=IDENTITY, lifetime=HOUR, now=much_later)
    assert verifies(leaf.certificate_pem, leaf.authorities_pem, much_later)


def test_publishing_swaps_a_link_and_keeps_at_most_one_old_folder(tmp_path: Path) -> None:
    authority = Authority.open(tmp_path / "pki", "nip.mesh", NOW)
    folder = tmp_path / "payment-0"
    assert installed_leaf(folder) is None
    for step in range(4):
        leaf = issue_leaf(authority, identity=IDENTITY, lifetime=HOUR, now=NOW + HOUR * step)
        publish_leaf(folder, leaf)
        installed = installed_leaf(folder)
        assert installed is not None
        assert installed.not_valid_after_utc == leaf.expires
    assert (folder / "..data").is_symlink()
    assert len([path for path in folder.iterdir() if not path.is_symlink()]) == 2
    assert {mode_of(path) for path in (folder / "..data").iterdir()} == {0o600}
    assert mode_of(folder / "..data") == 0o700
    assert {path.name for path in (folder / "..data").iterdir()} == {"tls.crt", "tls.key", "ca.crt"}


def test_private_bytes_show_nothing(tmp_path: Path) -> None:
    secret = PrivateBytes(b"hunter2")
    for text in (repr(secret), str(secret), f"{secret}", "%s" % secret):  # noqa: UP031
        assert text == "[redacted]"
    with pytest.raises(TypeError):
        pickle.dumps(secret)
    write_private(tmp_path / "file", secret)
    assert (tmp_path / "file").read_bytes() == b"hunter2"
    assert mode_of(tmp_path / "file") == 0o600
    authority = Authority.open(tmp_path / "pki", "nip.mesh", NOW)
    leaf = issue_leaf(authority, identity=IDENTITY, lifetime=HOUR, now=NOW)
    assert "PRIVATE KEY" not in repr(leaf)
    assert "[redacted]" in repr(authority)


@pytest.mark.parametrize("suffix", [".crt", ".key"])
def test_a_damaged_authority_is_named_with_its_mend(tmp_path: Path, suffix: str) -> None:
    Authority.open(tmp_path, "nip.mesh", NOW)
    (damaged,) = tmp_path.glob(f"*{suffix}")
    damaged.write_text("bad")
    with pytest.raises(DamagedFileError, match=f"{damaged} holds no readable .*; remove {damaged.stem}"):
        Authority.open(tmp_path, "nip.mesh", NOW)
    for path in tmp_path.glob("authority-*"):
        path.unlink()
    assert Authority.open(tmp_path, "nip.mesh", NOW).keys


def test_a_certificate_without_its_key_is_named_with_its_mend(tmp_path: Path) -> None:
    Authority.open(tmp_path, "nip.mesh", NOW)
    (key,) = tmp_path.glob("*.key")
    key.unlink()
    with pytest.raises(DamagedFileError, match=f"{key} is missing; remove {key.stem}"):
        Authority.open(tmp_path, "nip.mesh", NOW)

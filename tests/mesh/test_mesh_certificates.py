"""Strict mTLS between sidecars: who has no certificate of this mesh, or the wrong one, gets nothing; renewal hurts nobody."""

from __future__ import annotations

import asyncio
import datetime as dt
import socket
import ssl
import stat
from collections.abc import Iterator
from pathlib import Path

import grpc.aio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from nipmesh.nip.v1 import nip_service_pb2
from support.load import run_load
from support.mesh import RunningMesh
from support.nostr import User
from support.wallet import Wallet

pytestmark = [pytest.mark.mesh, pytest.mark.timeout(180)]

TLS_ALERT = b"\x15"
GET_ACCOUNT = "/nipmesh.payment.v1.AccountService/GetAccount"
PAY_INVOICE = "/nipmesh.payment.v1.PaymentService/PayInvoice"


def inbound(mesh: RunningMesh, service: str) -> tuple[str, int]:
    """Where a sidecar of a service takes calls of other sidecars."""
    host, _, port = str(mesh.replicas(service)[0]["inbound"]).rpartition(":")
    return host, int(port)


def certificates(mesh: RunningMesh, workload: str) -> Path:
    """The folder of one workload's certificate, key and authority."""
    found = sorted((mesh.directory / ".nipmesh" / "pki").rglob(f"{workload}/..data"))
    assert found, f"no certificates of {workload}"
    return found[0]


async def code_of(target: str, path: str, credentials: grpc.ChannelCredentials) -> grpc.StatusCode:
    """The code of one empty call straight to a sidecar's inbound listener."""
    options = [("grpc.ssl_target_name_override", "nip"), ("grpc.enable_retries", 0)]
    async with grpc.aio.secure_channel(target, credentials, options=options) as channel:
        try:
            await channel.unary_unary(path)(b"", timeout=3)
        except grpc.aio.AioRpcError as error:
            return error.code()
    return grpc.StatusCode.OK


def tls_alert(address: tuple[str, int], context: ssl.SSLContext) -> str | None:
    """What a sidecar does with a TLS client: None when it lets it in and answers HTTP/2, else the error."""
    try:
        with socket.create_connection(address, timeout=5) as plain, context.wrap_socket(plain) as secured:
            secured.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00")
            return None if secured.recv(64) else "closed"
    except (ssl.SSLError, ConnectionError) as error:
        return str(error)


def client_context(certificate: Path | None, key: Path | None) -> ssl.SSLContext:
    """A TLS 1.3 client that does not check the server (the server's checks are what is tested)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    if certificate is not None and key is not None:
        context.load_cert_chain(certificate, key)
    return context


def leaf(folder: Path, identity: str, *, authority: Path | None, expired: bool = False) -> tuple[Path, Path]:
    """A certificate for a SPIFFE id by this mesh's CA (its folder), or by a CA of nobody; optionally expired."""
    key, issuer_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "nobody")])
    if authority is not None:
        issuer_certificate = x509.load_pem_x509_certificate(next(authority.glob("authority-*.crt")).read_bytes())
        loaded = serialization.load_pem_private_key(next(authority.glob("authority-*.key")).read_bytes(), None)
        assert isinstance(loaded, ec.EllipticCurvePrivateKey)
        issuer, issuer_key = issuer_certificate.subject, loaded
    now = dt.datetime.now(dt.UTC)
    end = now + dt.timedelta(hours=-1 if expired else 1)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=2))
        .not_valid_after(end)
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity)]), critical=True)
        .sign(issuer_key, hashes.SHA256())
    )
    paths = folder / "leaf.crt", folder / "leaf.key"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    paths[1].write_bytes(key.private_bytes(encoding, form, serialization.NoEncryption()))
    return paths


def test_plaintext_and_no_certificate_are_refused(mesh: RunningMesh) -> None:
    address = inbound(mesh, "payment")
    assert tls_alert(address, client_context(None, None)) is not None
    with socket.create_connection(address, timeout=5) as plain:
        plain.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        answer = plain.recv(64)
    assert answer[:1] in {b"", TLS_ALERT}, "HTTP/2 in plain text was answered"


def test_a_certificate_of_the_mesh_is_let_in(mesh: RunningMesh) -> None:
    folder = certificates(mesh, "invoice-0")
    context = client_context(folder / "tls.crt", folder / "tls.key")
    assert tls_alert(inbound(mesh, "payment"), context) is None


def test_a_leaf_made_here_is_refused_for_what_is_wrong_with_it_alone(mesh: RunningMesh, tmp_path: Path) -> None:
    authority = mesh.directory / ".nipmesh" / "pki"
    paths = leaf(tmp_path, "spiffe://nip.mesh/service/invoice", authority=authority)
    assert tls_alert(inbound(mesh, "payment"), client_context(*paths)) is None


@pytest.mark.parametrize(
    ("identity", "own_authority", "expired"),
    [
        ("spiffe://nip.mesh/service/invoice", False, False),
        ("spiffe://nip.mesh/service/invoice", True, True),
        ("spiffe://nip.mesh/service/stranger", True, False),
        ("spiffe://other.mesh/service/invoice", True, False),
    ],
    ids=["wrong authority", "expired", "a service that does not call payment", "wrong trust domain"],
)
def test_a_wrong_certificate_is_refused(
    mesh: RunningMesh, tmp_path: Path, identity: str, own_authority: bool, expired: bool
) -> None:
    authority = mesh.directory / ".nipmesh" / "pki" if own_authority else None
    paths = leaf(tmp_path, identity, authority=authority, expired=expired)
    assert tls_alert(inbound(mesh, "payment"), client_context(*paths)) is not None


async def test_a_method_that_the_manifest_does_not_allow_is_denied(mesh: RunningMesh) -> None:
    egress = str(mesh.replicas("invoice")[0]["egress"])
    async with grpc.aio.insecure_channel(egress) as channel:
        allowed = await _code(channel, GET_ACCOUNT)
        denied = await _code(channel, PAY_INVOICE)
    assert allowed is grpc.StatusCode.INVALID_ARGUMENT
    assert denied is grpc.StatusCode.PERMISSION_DENIED


async def _code(channel: grpc.aio.Channel, path: str) -> grpc.StatusCode:
    try:
        await channel.unary_unary(path)(b"", timeout=5)
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def test_private_keys_are_their_owners_alone(mesh: RunningMesh) -> None:
    state = mesh.directory / ".nipmesh"
    keys = [*state.rglob("*.key"), *state.rglob("*.pem"), *(state / "secrets").rglob("*")]
    files = [path for path in keys if path.is_file() and "key" in path.name.lower()]
    assert len(files) >= 9
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert stat.S_IMODE(state.stat().st_mode) == 0o700


SHORT_LIVED = """
mesh: nip
trust_domain: nip.mesh
protos: [protos]
certificates: {lifetime: 20s}
services:
  nip:
    run: python -m services.nip
    serves: [nipmesh.nip.v1.AuthService, nipmesh.nip.v1.NipService]
    replicas: 2
    secrets:
      NIP_KEYSTORE_KEY_FILE: {generate: 32}
gateway:
  listen: 127.0.0.1:8080
  authentication: {issuer: nip, public: [AuthService/Login]}
  expose:
    nip: [AuthService/*, NipService/*]
"""


@pytest.fixture(scope="module")
def short_lived(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningMesh]:
    """A small mesh whose leaf certificates live 20 seconds, and connections 5."""
    running = RunningMesh(tmp_path_factory.mktemp("short"), SHORT_LIVED)
    running.up()
    yield running
    running.down()


async def test_renewal_under_load_fails_no_call(short_lived: RunningMesh) -> None:
    user = User()
    before = {replica["name"]: replica["certificate_expiry"] for replica in short_lived.replicas("nip")}
    async with short_lived.channel() as channel:
        await user.login(channel, f"http://{short_lived.gateway}")
        wallet = Wallet(channel, user)
        request = nip_service_pb2.GetKeyRequest(key_id=await wallet.create_key())
        outcome = await run_load(
            lambda _: wallet.call(wallet.nip.GetKey, request), seconds=25, callers=16, per_second=550
        )
    after = await asyncio.to_thread(short_lived.replicas, "nip")
    assert all(before[replica["name"]] < replica["certificate_expiry"] for replica in after)
    assert not outcome.failures, outcome.failures
    assert outcome.per_second > 450

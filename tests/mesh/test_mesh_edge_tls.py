"""A gateway with a certificate of its own: clients that check it get in, plain text does not."""

from __future__ import annotations

import datetime as dt
import ipaddress
from collections.abc import Iterator
from pathlib import Path

import grpc
import grpc.aio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from nipmesh.nip.v1 import nip_service_pb2
from nipmesh.nip.v1.nip_service_pb2_grpc import AuthServiceStub
from support.mesh import RunningMesh
from support.nostr import User

pytestmark = [pytest.mark.mesh, pytest.mark.timeout(90)]

MANIFEST = """
mesh: nip
trust_domain: nip.mesh
protos: [protos]
services:
  nip:
    run: python -m services.nip
    serves: [nipmesh.nip.v1.AuthService, nipmesh.nip.v1.NipService]
    replicas: 1
    secrets:
      NIP_KEYSTORE_KEY_FILE: {generate: 32}
gateway:
  listen: 127.0.0.1:8443
  tls: {certificate: edge.crt, private_key: edge.key}
  authentication: {issuer: nip, public: [AuthService/Login]}
  expose:
    nip: [AuthService/*, NipService/*]
"""


def write_certificate(folder: Path) -> None:
    """A self-signed certificate for 127.0.0.1, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = dt.datetime.now(dt.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "edge")])
    addresses = [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(minutes=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName(addresses), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "edge.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    form = serialization.PrivateFormat.PKCS8
    pem = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    (folder / "edge.key").touch(mode=0o600)
    (folder / "edge.key").write_bytes(pem)


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningMesh]:
    """A small mesh whose gateway speaks TLS."""
    folder = tmp_path_factory.mktemp("edge")
    write_certificate(folder)
    running = RunningMesh(folder, MANIFEST)
    running.up()
    yield running
    running.down()


async def test_a_login_over_tls_names_the_https_url(secured: RunningMesh) -> None:
    credentials = grpc.ssl_channel_credentials((secured.directory / "edge.crt").read_bytes())
    async with grpc.aio.secure_channel(secured.gateway, credentials) as channel:
        assert await User().login(channel, f"https://{secured.gateway}")
        stub = AuthServiceStub(channel)
        plain_url = nip_service_pb2.LoginRequest(authorization=User().authorization(f"http://{secured.gateway}"))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.Login(plain_url, timeout=10)
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_plain_text_gets_nothing(secured: RunningMesh) -> None:
    async with secured.channel() as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await AuthServiceStub(channel).Login(nip_service_pb2.LoginRequest(authorization="x"), timeout=5)
    assert refused.value.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}

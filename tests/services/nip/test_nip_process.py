"""`python -m services.nip` as a process: exit codes, and what its log must never hold."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from nipmesh.nip.v1 import nip_service_pb2 as pb
from nipmesh.nip.v1 import nip_service_pb2_grpc as pb_grpc
from services.chassis.secret import SecretBytes
from services.chassis.testing import as_gateway, as_user
from services.nip.domain.nip19 import nsec
from support.nostr import User

ROOT = Path(__file__).resolve().parents[3]
GATEWAY = "http://127.0.0.1:8080"
ALICE = "aa" * 32


def _environment(folder: Path) -> dict[str, str]:
    private_key = ec.generate_private_key(ec.SECP256R1())
    (folder / "token.pem").write_bytes(private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (folder / "keystore.key").write_bytes(b"\x05" * 32)
    for name in ("token.pem", "keystore.key"):
        (folder / name).chmod(0o600)
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(("NIPMESH_", "NIP_", "OTEL_"))},
        "PYTHONPATH": f"{ROOT / 'protos'}:{ROOT}",
        "NIPMESH_SERVICE": "nip",
        "NIPMESH_LISTEN": f"unix:{folder}/run/app.sock",
        "NIPMESH_DATA_DIRECTORY": str(folder / "data"),
        "NIPMESH_GATEWAY_URL": GATEWAY,
        "NIPMESH_TOKEN_KEY_FILE": str(folder / "token.pem"),
        "NIPMESH_TOKEN_ISSUER": "spiffe://nip.mesh/service/nip",
        "NIPMESH_TOKEN_AUDIENCE": "nip",
        "NIP_KEYSTORE_KEY_FILE": str(folder / "keystore.key"),
        "NIPMESH_LOG_LEVEL": "debug",
    }


@asynccontextmanager
async def _process(environment: dict[str, str]) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "services.nip",
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_it_serves_drains_and_logs_no_secret(tmp_path: Path) -> None:
    environment, user = _environment(tmp_path), User()
    authorization, text = user.authorization(GATEWAY), nsec(SecretBytes(bytes(user.private_key.secret)))
    async with _process(environment) as process:
        async with grpc.aio.insecure_channel(environment["NIPMESH_LISTEN"]) as channel:
            login = pb.LoginRequest(authorization=authorization)
            session = await pb_grpc.AuthServiceStub(channel).Login(
                login, metadata=as_gateway(), timeout=20, wait_for_ready=True
            )
            create = pb.CreateKeyRequest(request_id=str(uuid.uuid4()), nsec=text)
            key = (await pb_grpc.NipServiceStub(channel).CreateKey(create, metadata=as_user(ALICE), timeout=5)).key
            with pytest.raises(grpc.aio.AioRpcError):
                await pb_grpc.AuthServiceStub(channel).Login(login, metadata=as_gateway(), timeout=5)
        process.send_signal(signal.SIGTERM)
        output, _ = await process.communicate()
    assert process.returncode == 0, output
    assert key.key_id.encode() in output, "the log that was searched is the right one"
    shown = (authorization[6:40], session.access_token, text[5:], user.private_key.to_hex(), "0505050505")
    assert [secret for secret in shown if secret.encode() in output] == []
    assert not (tmp_path / "run" / "app.sock").exists()


@pytest.mark.parametrize("missing", ["NIP_KEYSTORE_KEY_FILE", "NIPMESH_TOKEN_KEY_FILE", "NIPMESH_TOKEN_ISSUER"])
async def test_a_missing_setting_is_named(tmp_path: Path, missing: str) -> None:
    environment = _environment(tmp_path)
    del environment[missing]
    async with _process(environment) as process:
        output, _ = await process.communicate()
    assert process.returncode == 2
    assert missing.encode() in output
    assert b"Traceback" not in output


async def test_a_wrong_key_file_is_said_in_one_line(tmp_path: Path) -> None:
    environment = _environment(tmp_path)
    (tmp_path / "keystore.key").write_bytes(bytes(16))
    async with _process(environment) as process:
        output, _ = await process.communicate()
    assert process.returncode == 2
    assert output.decode().splitlines() == [
        f"error: the secret file {tmp_path}/keystore.key holds 16 bytes, needed are 32"
    ]

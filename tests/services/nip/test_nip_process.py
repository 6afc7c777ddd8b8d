"""`python -m services.nip` as a process: exit codes, and what its log must never hold."""

from __future__ import annotations

import signal
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from nipmesh.nip.v1 import nip_service_pb2 as pb
from nipmesh.nip.v1 import nip_service_pb2_grpc as pb_grpc
from services.chassis.errors import reason_of
from services.chassis.secret import SecretBytes
from services.chassis.testing import as_gateway, as_user
from services.nip.domain.nip19 import nsec
from support.nip_process import GATEWAY, environment, nip_process, write_secrets
from support.nostr import User, encode_authorization

ALICE = "aa" * 32


def _environment(folder: Path) -> dict[str, str]:
    write_secrets(folder)
    return environment(folder)


async def test_it_serves_drains_and_logs_no_secret(tmp_path: Path) -> None:
    values, user = _environment(tmp_path), User()
    authorization, text = user.authorization(GATEWAY), nsec(SecretBytes(bytes(user.private_key.secret)))
    async with nip_process(values) as process:
        async with grpc.aio.insecure_channel(values["NIPMESH_LISTEN"]) as channel:
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
    values = _environment(tmp_path)
    del values[missing]
    async with nip_process(values) as process:
        output, _ = await process.communicate()
    assert process.returncode == 2
    assert missing.encode() in output
    assert b"Traceback" not in output


async def test_a_wrong_key_file_is_said_in_one_line(tmp_path: Path) -> None:
    values = _environment(tmp_path)
    (tmp_path / "keystore.key").write_bytes(bytes(16))
    async with nip_process(values) as process:
        output, _ = await process.communicate()
    assert process.returncode == 2
    assert output.decode().splitlines() == [
        f"error: the secret file {tmp_path}/keystore.key holds 16 bytes, needed are 32"
    ]


async def test_what_was_used_stays_used_after_kill_9_on_every_replica(tmp_path: Path) -> None:
    """A challenge and an authorization are taken by a replica that is killed at once; no other takes them again."""
    write_secrets(tmp_path)
    user, relay = User(), GATEWAY.replace("http", "ws")
    authorization = encode_authorization(user.event(27235, [["u", "https://a.example/x"], ["method", "get"]]))
    request = pb.VerifyHttpAuthRequest(authorization=authorization, url="https://a.example/x", method="GET")
    async with nip_process(environment(tmp_path, "r0")) as first, nip_process(environment(tmp_path, "r1")):
        async with stub_of(tmp_path, "r0") as auth:
            made = await auth.CreateChallenge(
                pb.CreateChallengeRequest(relay_url=relay), metadata=as_gateway(), timeout=30, wait_for_ready=True
            )
            event = user.event(22242, [["relay", relay + "/"], ["challenge", made.challenge]])
            tags = [{"values": tag} for tag in event["tags"]]
            answer = pb.VerifyChallengeRequest(event={**event, "tags": tags}, relay_url=relay)
            session = await auth.VerifyChallenge(answer, metadata=as_gateway(), timeout=20)
            assert session.pubkey == user.pubkey
            assert (await auth.VerifyHttpAuth(request, metadata=as_user(ALICE), timeout=20)).pubkey == user.pubkey
            first.kill()
        await first.wait()
        async with nip_process(environment(tmp_path, "r0")):
            for replica in ("r1", "r0"):
                async with stub_of(tmp_path, replica) as auth:
                    for call, message, reason in (
                        (auth.VerifyChallenge, answer, "CHALLENGE_USED"),
                        (auth.VerifyHttpAuth, request, "AUTHORIZATION_REPLAYED"),
                    ):
                        with pytest.raises(grpc.aio.AioRpcError) as refused:
                            await call(message, metadata=as_user(ALICE), timeout=30, wait_for_ready=True)
                        assert reason_of(refused.value) == reason


@asynccontextmanager
async def stub_of(folder: Path, replica: str) -> AsyncIterator[Any]:
    """AuthService of one replica."""
    async with grpc.aio.insecure_channel(f"unix:{folder}/{replica}/app.sock") as channel:
        yield pb_grpc.AuthServiceStub(channel)

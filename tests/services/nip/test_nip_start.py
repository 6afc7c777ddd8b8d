"""How the NIP service starts: not at all with a wrong secret, and beside another replica at any moment."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from nipmesh.nip.v1 import nip_service_pb2 as pb
from services.chassis.secret import SecretFileError
from services.chassis.testing import as_user


@pytest.fixture
def database_settings(tmp_path: Path) -> dict[str, Any]:
    """Files: what these tests look into."""
    return {"data_directory": tmp_path / "data"}


ALICE = "aa" * 32
Serve = Callable[[str], AbstractAsyncContextManager[Any]]


async def _start(serve: Serve) -> None:
    async with serve("r0"):
        pass


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda folder: (folder / "keystore.key").unlink(), "cannot read"),
        (lambda folder: (folder / "keystore.key").write_bytes(bytes(31)), "31 bytes"),
        (lambda folder: (folder / "keystore.key").chmod(0o640), "chmod 600"),
        (lambda folder: (folder / "keystore.key").write_bytes(bytes(32)), "sealed with another key"),
        (lambda folder: (folder / "token.pem").unlink(), "cannot read"),
        (lambda folder: (folder / "token.pem").chmod(0o644), "chmod 600"),
        (lambda folder: (folder / "token.pem").write_bytes(b"x"), "no unencrypted private key"),
    ],
)
async def test_the_service_refuses_to_start(
    tmp_path: Path, serve: Serve, spoil: Callable[[Path], object], text: str
) -> None:
    await _start(serve)
    spoil(tmp_path)
    with pytest.raises(SecretFileError, match=text):
        await _start(serve)


async def test_a_missing_secret_leaves_no_database_behind(tmp_path: Path, serve: Serve) -> None:
    (tmp_path / "keystore.key").unlink()
    with pytest.raises(SecretFileError):
        await _start(serve)
    assert not (tmp_path / "data").exists()


async def test_two_replicas_start_at_the_same_moment(serve: Serve) -> None:
    async with AsyncExitStack() as stack:
        names = ("r0", "r1")
        first, second = await asyncio.gather(*(stack.enter_async_context(serve(name)) for name in names))
        request = pb.CreateKeyRequest(request_id=str(uuid.uuid4()), fresh=True)
        created = (await first.nip.CreateKey(request, metadata=as_user(ALICE))).key
        got = await second.nip.GetKey(pb.GetKeyRequest(key_id=created.key_id), metadata=as_user(ALICE))
        assert got.key == created

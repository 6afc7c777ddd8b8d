"""A new master key: while replicas run, broken off at each point, on a disturbed key store."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import apsw
import grpc
import pytest

from nipmesh.nip.v1 import nip_pb2
from nipmesh.nip.v1 import nip_service_pb2 as pb
from nipmesh.nip.v1.nip_service_pb2_grpc import NipServiceStub
from services.chassis.errors import Reason, ServiceError
from services.chassis.failpoints import EXIT_CODE, VARIABLE
from services.chassis.secret import SecretBytes
from services.chassis.testing import as_user
from services.nip.domain.keystore import Keystore, SealBrokenError
from services.nip.keyring import successor_of
from services.nip.keys import NewKey, Signing
from services.nip.rotation import RotationError, rotate
from services.nip.store import DATABASE_NAME
from services.nostr.event import Template
from support.load import run_load
from support.nip_process import MASTER_KEY, environment, nip_process, write_secrets


@pytest.fixture
def database_settings(tmp_path: Path) -> dict[str, Any]:
    """Files: what these tests look into."""
    return {"data_directory": tmp_path / "data"}


ALICE, BOB = "aa" * 32, "bb" * 32
FAILPOINTS = ["rotate_key.file_written", "rotate_key.sealed", "rotate_key.committed", "rotate_key.replaced"]
LOAD_SECONDS = 8.0
TEMPLATE = nip_pb2.EventTemplate(kind=1, content="hello")
Serve = Callable[[str], AbstractAsyncContextManager[Any]]
Start = Callable[[], Awaitable[Any]]


def _id() -> str:
    return str(uuid.uuid4())


def _database(folder: Path) -> Path:
    return folder / "data" / DATABASE_NAME


def _query(folder: Path, sql: str) -> list[tuple[Any, ...]]:
    with contextlib.closing(apsw.Connection(str(_database(folder)))) as connection:
        return list(connection.execute(sql))


def _opened(folder: Path, master_key: bytes) -> tuple[int, int]:
    """How many of the held keys a master key opens, and how many there are; the one that signs zap receipts is always there."""
    keystore, opened = Keystore(SecretBytes(master_key)), 0
    rows = _query(folder, "SELECT sealed, key_id, pubkey, owner FROM nostr_key")
    for sealed, key_id, pubkey, owner in rows:
        with contextlib.suppress(SealBrokenError):
            keystore.open(sealed, key_id=key_id, pubkey=pubkey, owner=owner)
            opened += 1
    return opened, len(rows)


async def _rotate_key(folder: Path, **more: str) -> tuple[int, str]:
    """The command; its exit code and output."""
    async with nip_process(environment(folder, **more), "rotate-key") as process:
        output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


# While replicas run


@dataclass
class Caller:
    """Creates keys on one replica and signs with them on the other; UNAVAILABLE is repeated there, as a sidecar does."""

    stubs: list[Any]
    made: list[str] = field(default_factory=list)
    unavailable: int = 0

    async def repeated(self, method: str, request: Any, first: int) -> Any:
        for turn in range(first, first + 20):
            stub = self.stubs[turn % len(self.stubs)]
            try:
                return await getattr(stub, method)(request, metadata=as_user(ALICE), timeout=20)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                self.unavailable += 1
                await asyncio.sleep(0.1)
        raise AssertionError("UNAVAILABLE for two seconds")

    async def __call__(self, number: int) -> None:
        answer = await self.repeated("CreateKey", pb.CreateKeyRequest(request_id=_id(), fresh=True), number)
        self.made.append(answer.key.key_id)
        await self.sign(answer.key.key_id, number + 1)

    async def sign(self, key_id: str, replica: int, request_id: str = "") -> Any:
        request = pb.SignEventRequest(key_id=key_id, request_id=request_id or _id(), template=TEMPLATE)
        return (await self.repeated("SignEvent", request, replica)).event


@contextlib.asynccontextmanager
async def _replicas(folder: Path, *names: str) -> AsyncIterator[Caller]:
    async with AsyncExitStack() as stack:
        stubs = []
        for name in names:
            values = environment(folder, name, NIPMESH_LOG_LEVEL="warning")
            process = await stack.enter_async_context(nip_process(values))
            stack.callback(process.send_signal, signal.SIGTERM)
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(values["NIPMESH_LISTEN"]))
            await asyncio.wait_for(channel.channel_ready(), 60)
            stubs.append(NipServiceStub(channel))
        yield Caller(stubs)


@pytest.mark.timeout(240)
async def test_two_replicas_go_on_while_the_key_is_rotated_twice(tmp_path: Path) -> None:
    write_secrets(tmp_path)
    key_files, outputs = [MASTER_KEY], []
    async with _replicas(tmp_path, "r0", "r1") as caller:
        create = pb.CreateKeyRequest(request_id=_id(), fresh=True)
        first = (await caller.repeated("CreateKey", create, 0)).key
        signed = _id()
        event = await caller.sign(first.key_id, 0, signed)
        load = asyncio.create_task(run_load(caller, seconds=LOAD_SECONDS, callers=8, per_second=200))
        for _ in range(2):
            await asyncio.sleep(1)
            code, output = await _rotate_key(tmp_path)
            assert code == 0, output
            outputs.append(output)
            key_files.append((tmp_path / "keystore.key").read_bytes())
        outcome = await load
        assert outcome.failures == {}
        assert outcome.succeeded == len(caller.made) > 10
        for replica in range(2):
            repeated = await caller.repeated("CreateKey", create, replica)
            assert (repeated.key, repeated.replayed) == (first, True)
            assert await caller.sign(first.key_id, replica, signed) == event, "the same signature, too"
    async with _replicas(tmp_path, "r2") as caller_after:
        for key_id in [*caller.made, first.key_id]:
            await caller_after.sign(key_id, 0)
        assert caller_after.unavailable == 0
    held = len(caller.made) + 2  # and the key that signs zap receipts
    assert len(set(key_files)) == 3
    assert [_opened(tmp_path, key) for key in key_files] == [(0, held), (0, held), (held, held)]
    assert [key.hex() for key in key_files if key.hex() in "".join(outputs)] == []


async def test_a_replica_without_the_new_file_says_unavailable_until_it_comes(tmp_path: Path, serve: Serve) -> None:
    async with serve("r0") as replica:
        made = [
            (
                await replica.nip.CreateKey(pb.CreateKeyRequest(request_id=_id(), fresh=True), metadata=as_user(ALICE))
            ).key
            for _ in range(2)
        ]

        async def sign(number: int) -> Any:
            request = pb.SignEventRequest(key_id=made[number].key_id, request_id=_id(), template=TEMPLATE)
            return await replica.nip.SignEvent(request, metadata=as_user(ALICE))

        await sign(0)
        await rotate(_database(tmp_path), tmp_path / "keystore.key")
        new = (tmp_path / "keystore.key").read_bytes()
        (tmp_path / "keystore.key").write_bytes(MASTER_KEY)  # as on another host, to which the file was not copied yet
        create = pb.CreateKeyRequest(request_id=_id(), fresh=True)
        for call in (sign(1), replica.nip.CreateKey(create, metadata=as_user(ALICE))):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        await sign(0)  # opened before: the private key is the same
        assert _opened(tmp_path, new) == (3, 3), "nothing was stored with the old key"
        (tmp_path / "keystore.key").write_bytes(new)
        await sign(1)
        await replica.nip.CreateKey(create, metadata=as_user(ALICE))
    assert _opened(tmp_path, new) == (4, 4)


# Broken off


@pytest.mark.timeout(180)
@pytest.mark.parametrize("failpoint", FAILPOINTS)
async def test_a_rotation_that_dies_is_completed_by_another(tmp_path: Path, serve: Serve, failpoint: str) -> None:
    create = pb.CreateKeyRequest(request_id=_id(), fresh=True)
    async with serve("r0") as running:
        key = (await running.nip.CreateKey(create, metadata=as_user(ALICE))).key
        sign = pb.SignEventRequest(key_id=key.key_id, request_id=_id(), template=TEMPLATE)
        code, output = await _rotate_key(tmp_path, **{VARIABLE: failpoint})
        assert code == EXIT_CODE, output
        event = (await running.nip.SignEvent(sign, metadata=as_user(ALICE))).event
        async with serve("r1") as started:
            assert (await started.nip.SignEvent(sign, metadata=as_user(ALICE))).event == event
            await started.nip.CreateKey(pb.CreateKeyRequest(request_id=_id(), fresh=True), metadata=as_user(ALICE))
        code, output = await _rotate_key(tmp_path)
        assert code == 0, output
        assert ("interrupted" in output) == (failpoint == "rotate_key.committed")
        assert (await running.nip.SignEvent(sign, metadata=as_user(ALICE))).event == event
        assert (await running.nip.CreateKey(create, metadata=as_user(ALICE))).replayed
    new = (tmp_path / "keystore.key").read_bytes()
    assert new != MASTER_KEY
    assert (_opened(tmp_path, MASTER_KEY), _opened(tmp_path, new)) == ((0, 3), (3, 3))
    assert (tmp_path / "keystore.key").stat().st_mode & 0o777 == 0o600
    assert not (tmp_path / "keystore.key.new").exists()


async def _hold(parts: Any, owner: str = ALICE) -> Any:
    return (await parts.keys.create(NewKey(owner=owner, request_id=_id(), display_name="", secret_key=None)))[0]


def _key_file(folder: Path) -> Path:
    (folder / "keystore.key").write_bytes(MASTER_KEY)
    (folder / "keystore.key").chmod(0o600)
    return folder / "keystore.key"


@pytest.mark.parametrize("left", [0, 31, 32])
async def test_a_file_that_an_earlier_rotation_left_is_taken_when_it_is_whole(
    start: Start, tmp_path: Path, left: int
) -> None:
    await _hold(await start())
    key_file = _key_file(tmp_path)
    successor_of(key_file).touch(mode=0o600)
    successor_of(key_file).write_bytes(b"\x07" * left)
    assert (await rotate(_database(tmp_path), key_file)).keys == 1
    assert (key_file.read_bytes() == b"\x07" * 32) == (left == 32)
    assert _opened(tmp_path, key_file.read_bytes()) == (1, 1)


# What is refused


async def test_a_wrong_key_file_changes_nothing(start: Start, tmp_path: Path) -> None:
    await _hold(await start())
    key_file = _key_file(tmp_path)
    key_file.write_bytes(b"\x06" * 32)
    with pytest.raises(RotationError, match="another key than the one in"):
        await rotate(_database(tmp_path), key_file)
    assert _opened(tmp_path, MASTER_KEY) == (1, 1)
    assert key_file.read_bytes() == b"\x06" * 32


async def test_a_key_that_does_not_open_stops_the_rotation_whole(start: Start, tmp_path: Path) -> None:
    parts = await start()
    held, broken = await _hold(parts), await _hold(parts, BOB)
    with contextlib.closing(apsw.Connection(str(_database(tmp_path)))) as connection:
        connection.execute("UPDATE nostr_key SET sealed = zeroblob(61) WHERE owner = ?", (BOB,))
    with pytest.raises(RotationError, match=broken.key_id):
        await rotate(_database(tmp_path), _key_file(tmp_path))
    assert _opened(tmp_path, MASTER_KEY) == (1, 2)
    template = Template(kind=1, tags=(), content="", created_at=None)
    await parts.keys.sign(Signing(owner=ALICE, request_id=_id(), key_id=held.key_id, template=template))


async def test_without_a_database_none_is_made(tmp_path: Path) -> None:
    with pytest.raises(RotationError, match="no database"):
        await rotate(_database(tmp_path), _key_file(tmp_path))
    assert not _database(tmp_path).parent.exists()


async def test_two_rotations_do_not_run_at_once(start: Start, tmp_path: Path) -> None:
    await start()
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        with pytest.raises(RotationError, match="another rotation"):
            await rotate(_database(tmp_path), _key_file(tmp_path))
    finally:
        os.close(folder)
    assert (await rotate(_database(tmp_path), tmp_path / "keystore.key")).keys == 0


async def test_a_key_sealed_before_a_rotation_is_not_stored_after_it(start: Start, tmp_path: Path) -> None:
    """The replica does not know of the rotation and has no new file: nothing it could still store is stored."""
    parts, key_file = await start(), _key_file(tmp_path)
    await rotate(_database(tmp_path), key_file)
    key_file.write_bytes(MASTER_KEY)
    with pytest.raises(ServiceError) as refused:
        await _hold(parts)
    assert refused.value.reason is Reason.BACKEND_UNAVAILABLE
    assert _opened(tmp_path, MASTER_KEY) == (0, 0)


# What is left


async def test_old_seals_are_in_no_file(start: Start, tmp_path: Path) -> None:
    parts = await start()
    for _ in range(40):
        await _hold(parts)
    sealed = [row[0] for row in _query(tmp_path, "SELECT sealed FROM nostr_key")]

    def found() -> int:
        content = b"".join(path.read_bytes() for path in (tmp_path / "data").iterdir())
        return sum(one in content for one in sealed)

    assert found() == 40, "the files that are searched are the right ones"
    done = await rotate(_database(tmp_path), _key_file(tmp_path))
    assert (done.keys, done.clean) == (40, True)
    assert found() == 0


async def test_many_keys_are_sealed_in_pages(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.nip.store.RESEAL_ROWS", 3)
    parts = await start()
    for number in range(10):
        await _hold(parts, (ALICE, BOB)[number % 2])
    key_file = _key_file(tmp_path)
    assert (await rotate(_database(tmp_path), key_file)).keys == 10
    assert _opened(tmp_path, key_file.read_bytes()) == (10, 10)

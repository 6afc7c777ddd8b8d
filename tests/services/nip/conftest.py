"""Replicas of the NIP service for these tests: its parts over a database, and the whole on a Unix socket."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from nipmesh.nip.v1 import nip_service_pb2_grpc
from services.chassis.secret import SecretBytes
from services.chassis.testing import running
from services.nip.domain.keystore import Keystore
from services.nip.domain.token import TokenIssuer, TokenTerms
from services.nip.keys import Keys
from services.nip.login import Logins
from services.nip.service import NIP_SERVICE
from services.nip.store import DATABASE_NAME, MIGRATIONS, NipStore
from services.storage.database import Database

MASTER_KEY = SecretBytes(b"\x05" * 32)
GATEWAY = "http://127.0.0.1:8080"
NOW_US = 1_700_000_000_000_000
TERMS = TokenTerms(issuer="spiffe://nip.mesh/service/nip", audience="nip", lifetime_seconds=900)


def _token_key() -> bytes:
    private_key = ec.generate_private_key(ec.SECP256R1())
    return private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now_us = NOW_US

    def __call__(self) -> int:
        return self.now_us


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """One process's parts over the shared file."""

    keys: Keys
    logins: Logins
    store: NipStore
    database: Database


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A running replica: its stubs, and the folder with its secrets and data."""

    auth: Any
    nip: Any
    folder: Path


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def start(tmp_path: Path, clock: Clock) -> AsyncIterator[Callable[[], Awaitable[Parts]]]:
    """Open the parts of another replica on the same file."""
    token_key = SecretBytes(_token_key())
    async with AsyncExitStack() as stack:

        async def started() -> Parts:
            database = await Database.open(tmp_path / "data" / DATABASE_NAME, migrations=MIGRATIONS)
            stack.push_async_callback(database.close)
            store, keystore = NipStore(database), Keystore(MASTER_KEY)
            await store.check_master_key(keystore.check_value)
            return Parts(
                keys=Keys(store, keystore, clock=clock),
                logins=Logins(store, TokenIssuer(token_key, TERMS), GATEWAY, clock=clock),
                store=store,
                database=database,
            )

        yield started


@pytest.fixture
async def parts(start: Callable[[], Awaitable[Parts]]) -> Parts:
    return await start()


@pytest.fixture
def make_secrets(tmp_path: Path) -> dict[str, Any]:
    """Make the secrets, as the runner does; return the settings that name them."""
    token_key, keystore_key = tmp_path / "token.pem", tmp_path / "keystore.key"
    token_key.write_bytes(_token_key())
    keystore_key.write_bytes(MASTER_KEY.reveal())
    token_key.chmod(0o600)
    keystore_key.chmod(0o600)
    return {
        "token_key_file": token_key,
        "token_issuer": TERMS.issuer,
        "token_audience": TERMS.audience,
        "keystore_key_file": keystore_key,
        "data_directory": tmp_path / "data",
    }


@pytest.fixture
def serve(tmp_path: Path, make_secrets: dict[str, Any]) -> Callable[[str], AbstractAsyncContextManager[Service]]:
    """Serve as the replica of this name, on the data that all share."""

    @asynccontextmanager
    async def served(name: str) -> AsyncIterator[Service]:
        (tmp_path / name).mkdir(mode=0o700, exist_ok=True)
        async with running(NIP_SERVICE, tmp_path / name, **make_secrets) as (_, channel):
            yield Service(
                auth=nip_service_pb2_grpc.AuthServiceStub(channel),
                nip=nip_service_pb2_grpc.NipServiceStub(channel),
                folder=tmp_path,
            )

    return served


@pytest.fixture
async def service(serve: Callable[[str], AbstractAsyncContextManager[Service]]) -> AsyncIterator[Service]:
    async with serve("r0") as replica:
        yield replica

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
from services.chassis.settings import ChassisSettings
from services.chassis.testing import running
from services.nip.authentication.challenges import Challenges, TrustedRelays
from services.nip.authentication.composition import seal_of
from services.nip.authentication.http_auth import HttpAuths
from services.nip.authentication.proofs import UsedProofs
from services.nip.domain.token import TokenIssuer, TokenTerms
from services.nip.key_life import KeyLife
from services.nip.keyring import Keyring
from services.nip.keys import Keys
from services.nip.life_store import LifeStore
from services.nip.login import Logins
from services.nip.passwords import PasswordWork
from services.nip.service import NIP_SERVICE
from services.nip.store import DATABASE_NAME, MIGRATIONS, NipStore
from services.storage.database import Database
from services.storage.places import place_of

MASTER_KEY = SecretBytes(b"\x05" * 32)
GATEWAY = "http://127.0.0.1:8080"
LOCK_LOG_N = 4
"""A cheap password: what it costs otherwise is of no matter here."""
NOW_US = 1_700_000_000_000_000
RELAYS = TrustedRelays.of(GATEWAY, ["wss://relay.example.com"])
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
    life: KeyLife
    life_store: LifeStore
    logins: Logins
    challenges: Challenges
    http_auths: HttpAuths
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
async def start(
    tmp_path: Path, database_settings: dict[str, Any], clock: Clock
) -> AsyncIterator[Callable[[], Awaitable[Parts]]]:
    """Open the parts of another replica on the same file."""
    token_key = SecretBytes(_token_key())
    async with AsyncExitStack() as stack:

        async def started() -> Parts:
            place = place_of(ChassisSettings(**database_settings), DATABASE_NAME)
            database = await Database.open(place, migrations=MIGRATIONS)
            stack.push_async_callback(database.close)
            store = NipStore(database)
            keyring = await Keyring.open(store, tmp_path / "keystore.key", MASTER_KEY)
            life_store, passwords = LifeStore(database), PasswordWork()
            stack.callback(passwords.close)
            keys, proofs = Keys(store, life_store, keyring, passwords, clock=clock), UsedProofs(database)
            issuer = TokenIssuer(token_key, TERMS)
            return Parts(
                keys=keys,
                life=KeyLife(keys, life_store, keyring, passwords, clock=clock, lock_log_n=LOCK_LOG_N),
                life_store=life_store,
                logins=Logins(proofs, issuer, GATEWAY, clock=clock),
                challenges=Challenges(proofs, issuer, RELAYS, seal_of(keyring), clock=clock),
                http_auths=HttpAuths(keys, proofs, clock=clock),
                store=store,
                database=database,
            )

        yield started


@pytest.fixture
async def parts(start: Callable[[], Awaitable[Parts]]) -> Parts:
    return await start()


@pytest.fixture
def make_secrets(tmp_path: Path, database_settings: dict[str, Any]) -> dict[str, Any]:
    """Make the secrets, as the runner does; return the settings that name them and the database."""
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
        **database_settings,
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

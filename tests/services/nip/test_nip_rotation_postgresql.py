"""A new master key on PostgreSQL: replicas go on, and what died is completed."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from services.chassis.failpoints import EXIT_CODE, VARIABLE
from services.chassis.secret import SecretBytes
from services.nip.domain.keystore import check_value_of
from services.nip.keyring import Keyring, load_master_key
from services.nip.keys import Keys, NewKey, Signing
from services.nip.life_store import LifeStore
from services.nip.passwords import PasswordWork
from services.nip.store import MIGRATIONS, MasterKeyRotatedError, NipStore
from services.nostr.event import Event, Template
from services.storage.database import Database
from support.nip_process import MASTER_KEY, environment, nip_process, write_secrets
from support.postgresql import schema_at

ALICE = "aa" * 32


def _id() -> str:
    return str(uuid.uuid4())


@asynccontextmanager
async def _replica(folder: Path, url: str) -> AsyncIterator[tuple[Keys, NipStore]]:
    key_file = folder / "keystore.key"
    async with await Database.open(schema_at(url, "nip"), migrations=MIGRATIONS) as database:
        store = NipStore(database)
        keyring = await Keyring.open(store, key_file, load_master_key(key_file))
        with closing(PasswordWork()) as passwords:
            yield Keys(store, LifeStore(database), keyring, passwords), store


async def _create(keys: Keys) -> str:
    key, _ = await keys.create(NewKey(owner=ALICE, request_id=_id(), display_name="", secret_key=None))
    return key.key_id


async def _sign(keys: Keys, key_id: str, request_id: str) -> Event:
    template = Template(kind=1, tags=(), content="hello", created_at=None)
    event, _ = await keys.sign(Signing(owner=ALICE, request_id=request_id, key_id=key_id, template=template))
    return event


async def _rotate_key(folder: Path, url: str, failpoint: str = "") -> tuple[int, str]:
    values = environment(folder, NIPMESH_DATABASE_URL=url, **{VARIABLE: failpoint})
    async with nip_process(values, "rotate-key") as process:
        output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


@pytest.mark.timeout(180)
@pytest.mark.parametrize("failpoint", ["", "rotate_key.sealed", "rotate_key.committed"])
async def test_replicas_go_on(tmp_path: Path, postgresql_url: str, failpoint: str) -> None:
    write_secrets(tmp_path)
    async with _replica(tmp_path, postgresql_url) as (first, store), _replica(tmp_path, postgresql_url) as (second, _):
        key_id, request = await _create(first), _id()
        event = await _sign(first, key_id, request)
        code, output = await _rotate_key(tmp_path, postgresql_url, failpoint)
        assert code == (EXIT_CODE if failpoint else 0), output
        made = [key_id, await _create(first), await _create(second)]
        assert await _sign(second, key_id, request) == event
        if failpoint:
            code, output = await _rotate_key(tmp_path, postgresql_url)
            assert code == 0, output
        assert "postgresql://" not in output
        made.append(await _create(second))
        async with _replica(tmp_path, postgresql_url) as (third, _):
            for each in made:
                assert (await _sign(third, each, _id())).pubkey
        with pytest.raises(MasterKeyRotatedError):
            await store.key_to_open(ALICE, key_id, check_value_of(SecretBytes(MASTER_KEY)))
    assert (tmp_path / "keystore.key").read_bytes() != MASTER_KEY

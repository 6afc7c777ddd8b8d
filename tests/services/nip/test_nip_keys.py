"""Keys over a real database: idempotency, ownership, encryption at rest, restarts, two replicas."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import apsw
import pytest

from nipmesh.nip.v1 import nip_pb2
from services.chassis.errors import Reason, ServiceError
from services.chassis.secret import SecretBytes
from services.nip import wire
from services.nip.domain.keystore import SealBrokenError
from services.nip.keyring import Keyring, WrongMasterKeyError
from services.nip.keys import CREATE_KEY, KeyNotFoundError, NewKey, Signing
from services.nip.store import DATABASE_NAME, KeyAlreadyExistsError
from services.nostr.bip340 import InvalidSecretKeyError, Signer
from services.nostr.event import MalformedEventError, Template, Verdict, verify_event
from services.storage.idempotency import RequestKey, run_once
from services.storage.sql import Connection
from services.storage.sweeper import sweep

ALICE, BOB = "aa" * 32, "bb" * 32
PAYMENT = "spiffe://nip.mesh/service/payment"
MASTER_KEY = SecretBytes(b"\x05" * 32)
NOW_US = 1_700_000_000_000_000
NOTE = Template(kind=1, tags=(("t", "x"),), content="hello", created_at=None)
Start = Callable[[], Awaitable[Any]]
"""Opens the parts of another replica on the same file."""
_request_numbers = itertools.count(1)


def _request_id() -> str:
    return f"00000000-0000-4000-8000-{next(_request_numbers):012d}"


def _new(owner: str = ALICE, **changes: Any) -> NewKey:
    new = NewKey(owner=owner, request_id=_request_id(), display_name="work", secret_key=None)
    return replace(new, **changes)


def _signing(key_id: str, owner: str = ALICE, **changes: Any) -> Signing:
    signing = Signing(owner=owner, request_id=_request_id(), key_id=key_id, template=NOTE)
    return replace(signing, **changes)


# Keys


async def test_a_repeated_creation_gives_the_same_key(parts: Any) -> None:
    new = _new()
    key, replayed = await parts.keys.create(new)
    assert not replayed
    assert await parts.keys.create(new) == (key, True)
    assert await parts.keys.page(ALICE, before=None, limit=10) == (key,)


async def test_concurrent_repeats_on_two_replicas_make_one_key(start: Start) -> None:
    first, second = await start(), await start()
    new = _new()
    answers = await asyncio.gather(*(parts.keys.create(new) for parts in (first, second) * 8))
    assert len({key.key_id for key, _ in answers}) == 1
    assert sorted(replayed for _, replayed in answers) == [False] + [True] * 15


@pytest.mark.parametrize("changes", [{"display_name": "other"}, {"secret_key": SecretBytes(b"\x03" * 32)}])
async def test_a_request_id_for_another_key_is_refused(parts: Any, changes: dict[str, Any]) -> None:
    new = _new()
    await parts.keys.create(new)
    with pytest.raises(ServiceError) as refused:
        await parts.keys.create(replace(new, **changes))
    assert refused.value.reason is Reason.REQUEST_ID_REUSED


async def test_a_key_is_found_under_its_request_id_for_ever(parts: Any) -> None:
    """A service asks for its key with a fixed id; other requests are forgotten after days."""
    new = _new()
    key, _ = await parts.keys.create(new)
    await sweep(parts.database, now_ms=2**53)
    assert await parts.keys.create(new) == (key, True)
    with pytest.raises(ServiceError, match="REQUEST_ID_REUSED"):
        await parts.keys.create(replace(new, display_name="other"))


async def test_a_request_of_before_keys_knew_theirs_is_recognised(parts: Any) -> None:
    new = _new()
    key, _ = await parts.keys.create(new)

    def as_before(connection: Connection) -> None:
        rows = connection.execute("SELECT owner, request_id, request_sha256 FROM nostr_key").fetchall()
        ((owner, request_id, sha256),) = rows
        connection.execute("UPDATE nostr_key SET request_id = NULL, request_sha256 = NULL")
        request = RequestKey(scope=owner, method=CREATE_KEY, request_id=request_id, sha256=bytes(sha256))
        run_once(connection, request, nip_pb2.Key, lambda: wire.key_message(key, NOW_US))

    await parts.database.write(as_before)
    assert await parts.keys.create(new) == (key, True)
    with pytest.raises(ServiceError, match="REQUEST_ID_REUSED"):
        await parts.keys.create(replace(new, display_name="other"))


async def test_request_ids_of_two_owners_are_apart(parts: Any) -> None:
    new = _new()
    mine, _ = await parts.keys.create(new)
    other, replayed = await parts.keys.create(replace(new, owner=BOB))
    assert not replayed
    assert mine.pubkey != other.pubkey


async def test_an_imported_key_is_the_one_that_was_given(parts: Any) -> None:
    secret_key = SecretBytes(b"\x03" * 32)
    key, _ = await parts.keys.create(_new(secret_key=secret_key))
    assert key.pubkey == Signer(secret_key).public_key.hex()
    with pytest.raises(KeyAlreadyExistsError):
        await parts.keys.create(_new(secret_key=secret_key))


async def test_two_owners_of_one_secret_do_not_learn_of_each_other(parts: Any) -> None:
    secret_key = SecretBytes(b"\x03" * 32)
    mine, _ = await parts.keys.create(_new(ALICE, secret_key=secret_key))
    other, _ = await parts.keys.create(_new(BOB, secret_key=secret_key))
    assert mine.pubkey == other.pubkey
    assert mine.key_id != other.key_id
    assert await parts.keys.page(BOB, before=None, limit=10) == (other,)


@pytest.mark.parametrize("secret", [bytes(32), b"\xff" * 32])
async def test_what_is_no_private_key_is_not_imported(parts: Any, secret: bytes) -> None:
    with pytest.raises(InvalidSecretKeyError):
        await parts.keys.create(_new(secret_key=SecretBytes(secret)))


async def test_pages_are_newest_first_and_complete(parts: Any, clock: Any) -> None:
    made = []
    for _ in range(7):
        clock.now_us += 1_000_000
        made.append((await parts.keys.create(_new()))[0])
    await parts.keys.create(_new(BOB))
    pages, before = [], None
    while page := await parts.keys.page(ALICE, before=before, limit=3):
        pages.append(page)
        before = page[-1].key_id
    assert [len(page) for page in pages] == [3, 3, 1]
    assert sorted((key.key_id for page in pages for key in page), reverse=True) == [
        key.key_id for page in pages for key in page
    ]
    assert {key for page in pages for key in page} == set(made)


OWNERSHIP = [(ALICE, True), (BOB, False), (PAYMENT, False), ("", False), (ALICE.upper(), False), ("a" * 63, False)]


@pytest.mark.parametrize(("caller", "owns"), OWNERSHIP)
@pytest.mark.parametrize("warm", [True, False])
async def test_only_the_owner_sees_and_signs(parts: Any, caller: str, owns: bool, warm: bool) -> None:
    key, _ = await parts.keys.create(_new())
    if warm:
        await parts.keys.sign(_signing(key.key_id))
    if owns:
        assert await parts.keys.get(caller, key.key_id) == key
        assert (await parts.keys.sign(_signing(key.key_id, caller)))[0].pubkey == key.pubkey
        return
    errors = []
    for key_id in (key.key_id, "00000000-0000-4000-8000-000000000000"):
        for call in (parts.keys.get(caller, key_id), parts.keys.sign(_signing(key_id, caller))):
            with pytest.raises(KeyNotFoundError) as missing:
                await call
            errors.append(type(missing.value))
    assert set(errors) == {KeyNotFoundError}


# Signing


async def test_a_repeated_signing_gives_the_same_event_later(parts: Any, clock: Any) -> None:
    key, _ = await parts.keys.create(_new())
    signing = _signing(key.key_id)
    event, replayed = await parts.keys.sign(signing)
    assert not replayed
    assert verify_event(event) is Verdict.VALID
    assert event.created_at == NOW_US // 1_000_000
    clock.now_us += 5_000_000
    assert await parts.keys.sign(signing) == (event, True)


async def test_concurrent_signings_on_two_replicas_give_one_event(start: Start, clock: Any) -> None:
    first, second = await start(), await start()
    key, _ = await first.keys.create(_new())
    signing = _signing(key.key_id)

    async def sign(parts: Any) -> str:
        clock.now_us += 1_000_000
        return str((await parts.keys.sign(signing))[0].sig)

    assert len(set(await asyncio.gather(*(sign(parts) for parts in (first, second) * 8)))) == 1


async def test_a_time_makes_signing_a_function(parts: Any, clock: Any) -> None:
    key, _ = await parts.keys.create(_new())
    signing = _signing(key.key_id, request_id="", template=replace(NOTE, created_at=1_600_000_000))
    event, replayed = await parts.keys.sign(signing)
    clock.now_us += 5_000_000
    assert await parts.keys.sign(signing) == (event, False)
    assert not replayed
    assert event.created_at == 1_600_000_000


@pytest.mark.parametrize(
    "changes",
    [{"content": "other"}, {"kind": 2}, {"created_at": 5}, {"tags": (("t", "x", ""),)}, {"tags": (("t",), ("x",))}],
)
async def test_a_request_id_for_another_event_is_refused(parts: Any, changes: dict[str, Any]) -> None:
    key, _ = await parts.keys.create(_new())
    signing = _signing(key.key_id)
    await parts.keys.sign(signing)
    with pytest.raises(ServiceError) as refused:
        await parts.keys.sign(replace(signing, template=replace(NOTE, **changes)))
    assert refused.value.reason is Reason.REQUEST_ID_REUSED


async def test_a_request_id_for_another_key_of_the_owner_is_refused(parts: Any) -> None:
    (first, _), (second, _) = await parts.keys.create(_new()), await parts.keys.create(_new())
    signing = _signing(first.key_id)
    await parts.keys.sign(signing)
    with pytest.raises(ServiceError, match="REQUEST_ID_REUSED"):
        await parts.keys.sign(replace(signing, key_id=second.key_id))


async def test_a_malformed_event_is_not_recorded(parts: Any) -> None:
    key, _ = await parts.keys.create(_new())
    signing = _signing(key.key_id, template=replace(NOTE, content="x" * 70_000))
    with pytest.raises(MalformedEventError):
        await parts.keys.sign(signing)
    assert not (await parts.keys.sign(replace(signing, template=NOTE)))[1]


@pytest.mark.parametrize("kind", [22_242, 27_235])
async def test_owners_sign_their_own_credentials(parts: Any, kind: int) -> None:
    key, _ = await parts.keys.create(_new())
    event, _ = await parts.keys.sign(_signing(key.key_id, template=replace(NOTE, kind=kind)))
    assert verify_event(event) is Verdict.VALID


async def test_keys_pushed_out_of_memory_still_sign(parts: Any) -> None:
    parts.keys._signers._capacity = 2
    made = [(await parts.keys.create(_new()))[0] for _ in range(6)]
    events = await asyncio.gather(*(parts.keys.sign(_signing(key.key_id)) for key in made * 5))
    assert [event.pubkey for event, _ in events] == [key.pubkey for key in made] * 5
    assert all(verify_event(event) is Verdict.VALID for event, _ in events)
    assert len(parts.keys._signers) <= 2


# At rest


@pytest.mark.parametrize("database_settings", ["sqlite"], indirect=True)
async def test_no_secret_is_in_any_file(start: Start, tmp_path: Path) -> None:
    parts = await start()
    secret = os.urandom(32)
    key, _ = await parts.keys.create(_new(secret_key=SecretBytes(secret)))
    await parts.keys.sign(_signing(key.key_id))
    await parts.database.close()
    content = b"".join(path.read_bytes() for path in (tmp_path / "data").iterdir())
    assert bytes.fromhex(key.pubkey) not in content
    assert key.pubkey.encode() in content, "the files that were searched are the right ones"
    for shown in (secret, secret.hex().encode(), MASTER_KEY.reveal()):
        assert shown not in content


@pytest.mark.parametrize("database_settings", ["sqlite"], indirect=True)
async def test_files_are_for_their_owner_only(parts: Any, tmp_path: Path) -> None:
    await parts.keys.create(_new())
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "data").iterdir()} == {0o600}


@pytest.mark.parametrize(
    "tampering",
    [
        "UPDATE nostr_key SET owner = replace(owner, 'a', 'b')",
        "UPDATE nostr_key SET pubkey = lower(hex(zeroblob(32)))",
        "UPDATE nostr_key SET sealed = zeroblob(61)",
        "UPDATE nostr_key SET sealed = CAST(substr(sealed, 2) || substr(sealed, 1, 1) AS BLOB)",
    ],
)
@pytest.mark.parametrize("database_settings", ["sqlite"], indirect=True)
async def test_a_row_changed_behind_the_service_signs_nothing(parts: Any, tmp_path: Path, tampering: str) -> None:
    key, _ = await parts.keys.create(_new())
    connection = apsw.Connection(str(tmp_path / "data" / DATABASE_NAME))
    connection.execute(tampering)
    connection.close()
    owner = BOB if "owner" in tampering else ALICE
    with pytest.raises(SealBrokenError):
        await parts.keys.sign(_signing(key.key_id, owner))


async def test_another_key_file_is_noticed(parts: Any, tmp_path: Path) -> None:
    key_file = tmp_path / "keystore.key"
    with pytest.raises(WrongMasterKeyError):
        await Keyring.open(parts.store, key_file, SecretBytes(b"\x06" * 32))
    await Keyring.open(parts.store, key_file, MASTER_KEY)


async def test_keys_live_through_a_restart(start: Start) -> None:
    first = await start()
    key, _ = await first.keys.create(_new())
    signing = _signing(key.key_id)
    event, _ = await first.keys.sign(signing)
    first.keys.close()
    await first.database.close()
    second = await start()
    assert await second.keys.get(ALICE, key.key_id) == key
    assert await second.keys.sign(signing) == (event, True)

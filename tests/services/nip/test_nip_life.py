"""Keys that are locked, unlocked, disabled, deleted and exported: on two replicas, across restarts and rotations, on both engines."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import apsw
import nostr_sdk
import pytest

from nipmesh.events.v1 import key_events_pb2
from nipmesh.nip.v1 import nip_pb2
from services.chassis.errors import Reason, ServiceError
from services.chassis.secret import SecretBytes
from services.nip.domain import nip49
from services.nip.domain.ciphers import Cipher
from services.nip.domain.encryption import DecryptionError
from services.nip.domain.keystore import Keystore
from services.nip.domain.life import Refusal
from services.nip.domain.nip49 import KeySecurity, PasswordWrongError
from services.nip.domain.relays import Relay
from services.nip.key_life import AttemptsExceededError, Order
from services.nip.key_sweeper import sweep_keys
from services.nip.keys import Encrypted, KeyNotFoundError, KeyRefusedError, NewKey, Signing
from services.nip.life_store import Changed, LifeStore
from services.nip.passwords import PasswordWork
from services.nip.store import DATABASE_NAME, KeyAlreadyExistsError
from services.nostr.bip340 import Signer
from services.nostr.event import Template, Verdict, verify_event
from services.storage.events import events_after
from support.nostr import User

ALICE, BOB = "aa" * 32, "bb" * 32
PASSWORD, WRONG = nip49.normalized("open sesame"), nip49.normalized("open barley")
MINUTE_US = 60_000_000
Start = Callable[[], Awaitable[Any]]
_State = nip_pb2.Key
MASTER_KEY = SecretBytes(b"\x05" * 32)


def _id() -> str:
    return str(uuid.uuid4())


def _order(key_id: str, owner: str = ALICE, request_id: str = "") -> Order:
    return Order(owner=owner, key_id=key_id, request_id=request_id or _id())


async def _create(parts: Any, owner: str = ALICE, secret_key: Any = None) -> Any:
    key, _ = await parts.keys.create(NewKey(owner=owner, request_id=_id(), display_name="", secret_key=secret_key))
    return key


async def _sign(parts: Any, key_id: str, owner: str = ALICE) -> Any:
    template = Template(kind=1, tags=(), content="hello", created_at=None)
    event, _ = await parts.keys.sign(Signing(owner=owner, request_id=_id(), key_id=key_id, template=template))
    assert verify_event(event) is Verdict.VALID
    return event


async def _refused(call: Awaitable[Any]) -> Refusal:
    with pytest.raises(KeyRefusedError) as refused:
        await call
    return refused.value.refusal


async def _audit(parts: Any, key_id: str, owner: str = ALICE) -> list[tuple[str, str]]:
    """Method and outcome of every event about a key, in order."""
    events = await parts.database.read(lambda connection: events_after(connection, 0, subject=key_id))
    told = []
    for event in events:
        used = key_events_pb2.KeyUsed.FromString(event.payload)
        outcome = key_events_pb2.KeyUsed.Outcome.Name(used.outcome).removeprefix("OUTCOME_")
        assert event.kind == f"nipmesh.audit.key.{outcome.lower()}"
        assert (used.key_id, used.owner) == (key_id, owner)
        told.append((used.method.rpartition("/")[2], outcome))
    return told


# Two replicas


async def test_what_one_replica_does_to_a_key_holds_on_the_other_with_its_next_use(start: Start) -> None:
    first, second = await start(), await start()
    key = await _create(first)
    peer = User().pubkey
    for replica in (first, second):
        await _sign(replica, key.key_id)
        await replica.keys.encrypt(ALICE, key.key_id, peer, "hello", Cipher.NIP44)
    payload = await first.keys.encrypt(ALICE, key.key_id, peer, "hello", Cipher.NIP44)

    async def uses(replica: Any) -> list[Refusal]:
        return [
            await _refused(_sign(replica, key.key_id)),
            await _refused(replica.keys.encrypt(ALICE, key.key_id, peer, "hello", Cipher.NIP44)),
            await _refused(replica.keys.decrypt(ALICE, key.key_id, peer, payload, Cipher.NIP44)),
        ]

    await first.life.lock(_order(key.key_id), PASSWORD)
    assert await uses(second) == [Refusal.LOCKED] * 3
    assert await uses(first) == [Refusal.LOCKED] * 3
    await second.life.unlock(_order(key.key_id), PASSWORD, MINUTE_US)
    for replica in (first, second):
        await _sign(replica, key.key_id)
    await first.life.lock(_order(key.key_id), None)
    assert await uses(second) == [Refusal.LOCKED] * 3
    await second.life.unlock(_order(key.key_id), PASSWORD, None)
    await _sign(first, key.key_id)
    await second.life.disable(_order(key.key_id))
    assert await uses(first) == [Refusal.NOT_ACTIVE] * 3
    await first.life.enable(_order(key.key_id))
    await _sign(second, key.key_id)
    await first.life.delete(_order(key.key_id))
    for replica in (first, second):
        with pytest.raises(KeyNotFoundError):
            await _sign(replica, key.key_id)
        assert len(replica.keys._signers) == len(replica.keys._conversations) == 0, "wiped, too"


async def test_uses_and_a_deletion_at_the_same_moment(start: Start) -> None:
    """Whatever is signed was recorded before the deletion; nothing is afterwards."""
    first, second = await start(), await start()
    key = await _create(first)
    for replica in (first, second):
        await _sign(replica, key.key_id)
    calls = [_sign(replica, key.key_id) for replica in (first, second) * 12]
    outcomes = await asyncio.gather(
        *calls[:12], first.life.delete(_order(key.key_id)), *calls[12:], return_exceptions=True
    )
    signed = [outcome for outcome in outcomes if hasattr(outcome, "sig")]
    refused = [outcome for outcome in outcomes if isinstance(outcome, KeyNotFoundError)]
    assert len(signed) + len(refused) == 24
    audit = await _audit(first, key.key_id)
    before = audit[: audit.index(("DeleteKey", "DONE"))]
    assert Counter(before)["SignEvent", "DONE"] == len(signed) + 2
    assert ("SignEvent", "DONE") not in audit[len(before) :]


async def test_an_unlocking_outlives_a_restart_and_ends_by_itself(start: Start, clock: Any) -> None:
    first = await start()
    key = await _create(first)
    await first.life.lock(_order(key.key_id), PASSWORD)
    changed = await first.life.unlock(_order(key.key_id), PASSWORD, MINUTE_US)
    assert changed.message.state == _State.STATE_UNLOCKED
    assert changed.message.unlock_expire_time.ToMicroseconds() == clock.now_us + MINUTE_US
    assert changed.message.password_protected
    first.keys.close()
    await first.database.close()
    second = await start()
    clock.now_us += MINUTE_US - 1
    await _sign(second, key.key_id)
    clock.now_us += 1
    assert await _refused(_sign(second, key.key_id)) is Refusal.LOCKED
    assert (await second.keys.get(ALICE, key.key_id)).state(clock.now_us).name == "LOCKED"


async def test_what_is_over_is_swept_from_database_and_memory(start: Start, clock: Any) -> None:
    first, second = await start(), await start()
    keys = [await _create(first) for _ in range(3)]
    for key in keys:
        await first.life.lock(_order(key.key_id), PASSWORD)
    for key, minutes in zip(keys, (1, 1, 3), strict=True):
        await first.life.unlock(_order(key.key_id), PASSWORD, minutes * MINUTE_US)
        await _sign(second, key.key_id)
    clock.now_us += 2 * MINUTE_US
    await sweep_keys(second.keys, second.life_store, clock=clock)
    held = await first.database.read(
        lambda connection: connection.execute("SELECT key_id FROM nostr_key WHERE unlock_sealed IS NOT NULL").fetchall()
    )
    assert held == [(keys[2].key_id,)]
    assert second.keys._signers.names() == ((ALICE, keys[2].key_id),)
    await first.life.disable(_order(keys[2].key_id))
    await sweep_keys(second.keys, second.life_store, clock=clock)
    assert len(second.keys._signers) == 0


# Passwords


async def test_a_locked_key_is_out_of_reach_of_whoever_holds_the_key_file(parts: Any) -> None:
    """All that the master key opens is an ncryptsec, and only the password opens that."""
    secret = SecretBytes(b"\x03" * 32)
    key = await _create(parts, secret_key=secret)
    await parts.life.lock(_order(key.key_id), PASSWORD)
    stored = await parts.store.key_of(ALICE, key.key_id)
    row = {"key_id": key.key_id, "pubkey": key.pubkey, "owner": ALICE}
    encrypted = Keystore(MASTER_KEY).open_locked(stored.sealed, **row)
    assert secret.reveal() not in encrypted
    with pytest.raises(PasswordWrongError):
        nip49.decrypt(encrypted, WRONG)
    assert nip49.decrypt(encrypted, PASSWORD).secret_key == secret


async def test_wrong_passwords_are_counted_on_all_replicas_and_across_restarts(start: Start, clock: Any) -> None:
    first, second = await start(), await start()
    key = await _create(first)
    await first.life.lock(_order(key.key_id), PASSWORD)
    for number in range(5):
        with pytest.raises(PasswordWrongError):
            await (first, second)[number % 2].life.unlock(_order(key.key_id), WRONG, MINUTE_US)
    third = await start()
    for replica in (first, second, third):
        for call in (
            replica.life.unlock(_order(key.key_id), PASSWORD, MINUTE_US),
            replica.life.export(_order(key.key_id), PASSWORD, 16),
        ):
            with pytest.raises(AttemptsExceededError) as refused:
                await call
            assert refused.value.wait_us == 30_000_000
    clock.now_us += 30_000_000
    with pytest.raises(PasswordWrongError):
        await third.life.unlock(_order(key.key_id), WRONG, MINUTE_US)
    with pytest.raises(AttemptsExceededError) as refused:
        await first.life.unlock(_order(key.key_id), PASSWORD, MINUTE_US)
    assert refused.value.wait_us == 60_000_000
    clock.now_us += 60_000_000
    await first.life.unlock(_order(key.key_id), PASSWORD, MINUTE_US)
    with pytest.raises(PasswordWrongError):  # the right one has set the count back
        await second.life.unlock(_order(key.key_id), WRONG, MINUTE_US)
    await second.life.unlock(_order(key.key_id), PASSWORD, MINUTE_US)


async def test_guesses_at_the_same_moment_do_not_outrun_the_count(start: Start) -> None:
    replicas = [await start() for _ in range(4)]
    key = await _create(replicas[0])
    await replicas[0].life.lock(_order(key.key_id), PASSWORD)
    calls = [replica.life.unlock(_order(key.key_id), WRONG, MINUTE_US) for replica in replicas for _ in range(3)]
    outcomes = Counter(type(outcome) for outcome in await asyncio.gather(*calls, return_exceptions=True))
    assert outcomes == {PasswordWrongError: 5, AttemptsExceededError: 7}


async def test_too_much_work_with_passwords_is_refused_before_it_counts(parts: Any) -> None:
    key = await _create(parts)
    await parts.life.lock(_order(key.key_id), PASSWORD)
    calls = [parts.life.unlock(_order(key.key_id), PASSWORD, MINUTE_US) for _ in range(8)]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    overloaded = [outcome for outcome in outcomes if isinstance(outcome, ServiceError)]
    assert {error.reason for error in overloaded} == {Reason.OVERLOADED}
    assert 0 < len(overloaded) <= 5
    assert sum(isinstance(outcome, Changed) for outcome in outcomes) == 8 - len(overloaded)
    rows = await parts.database.read(lambda connection: connection.execute("SELECT * FROM password_attempt").fetchall())
    assert rows == []


async def test_no_owner_keeps_all_others_from_their_turns() -> None:
    with contextlib.closing(PasswordWork()) as passwords, contextlib.ExitStack() as turns:
        for _ in range(3):
            turns.enter_context(passwords.turn(ALICE))
        with pytest.raises(ServiceError, match="OVERLOADED"):
            turns.enter_context(passwords.turn(ALICE))
        assert await passwords.run(BOB, lambda: 5) == 5
        for number in range(5):
            turns.enter_context(passwords.turn(str(number)))
        with pytest.raises(ServiceError, match="OVERLOADED"):
            turns.enter_context(passwords.turn(BOB))


async def test_a_password_that_was_changed_meanwhile_opens_nothing(start: Start) -> None:
    first, second = await start(), await start()
    key = await _create(first)
    await first.life.lock(_order(key.key_id), PASSWORD)
    changed = asyncio.Event()
    begin = first.life._store.begin_attempt

    async def slow(done: Any, now_us: int) -> int:
        wait_us: int = await begin(done, now_us)
        await second.life.unlock(_order(key.key_id), PASSWORD, None)
        await second.life.lock(_order(key.key_id), nip49.normalized("another one"))
        changed.set()
        return wait_us

    first.life._store.begin_attempt = slow
    with pytest.raises(ServiceError, match="another password"):
        await first.life.unlock(_order(key.key_id), PASSWORD, MINUTE_US)
    assert changed.is_set()
    assert await _refused(_sign(first, key.key_id)) is Refusal.LOCKED


# Once per request


@pytest.mark.parametrize("method", ["lock", "unlock", "disable", "enable", "delete"])
async def test_a_repeated_order_has_one_effect_and_one_answer(start: Start, method: str) -> None:
    first, second = await start(), await start()
    key = await _create(first)
    if method == "unlock":
        await first.life.lock(_order(key.key_id), PASSWORD)
    arguments: dict[str, Any] = {"lock": (PASSWORD,), "unlock": (PASSWORD, MINUTE_US)}
    order = _order(key.key_id)
    answers = await asyncio.gather(
        *(getattr(replica.life, method)(order, *arguments.get(method, ())) for replica in (first, second))
    )
    later = await getattr(first.life, method)(
        Order(owner=ALICE, key_id=key.key_id, request_id=order.request_id.upper()), *arguments.get(method, ())
    )
    assert sorted(answer.replayed for answer in answers) == [False, True]
    assert later.replayed
    assert answers[0].message == answers[1].message == later.message
    name = f"{method.capitalize()}Key"
    assert Counter(await _audit(first, key.key_id))[name, "DONE"] == (
        2 if method == "unlock" and name == "LockKey" else 1
    )


async def test_a_request_id_for_another_order_is_refused(parts: Any) -> None:
    key, other = await _create(parts), await _create(parts)
    await parts.life.lock(_order(key.key_id), PASSWORD)
    order = _order(key.key_id)
    await parts.life.unlock(order, PASSWORD, MINUTE_US)
    for call in (
        parts.life.unlock(order, PASSWORD, 2 * MINUTE_US),
        parts.life.unlock(order, PASSWORD, None),
        parts.life.unlock(_order(other.key_id, request_id=order.request_id), PASSWORD, MINUTE_US),
    ):
        with pytest.raises(ServiceError, match="REQUEST_ID_REUSED"):
            await call


async def test_a_refused_order_may_be_given_again_with_its_id(parts: Any) -> None:
    key = await _create(parts)
    order = _order(key.key_id)
    assert await _refused(parts.life.lock(order, None)) is Refusal.NOT_LOCKED
    assert await _refused(parts.life.unlock(_order(key.key_id), PASSWORD, None)) is Refusal.NOT_LOCKED
    await parts.life.disable(_order(key.key_id))
    assert await _refused(parts.life.lock(_order(key.key_id), PASSWORD)) is Refusal.NOT_ACTIVE
    await parts.life.enable(_order(key.key_id))
    lock = _order(key.key_id)
    assert not (await parts.life.lock(lock, PASSWORD)).replayed


@pytest.mark.parametrize("method", ["lock", "unlock", "disable", "enable", "delete", "export"])
async def test_anothers_key_is_a_missing_key(parts: Any, method: str) -> None:
    key = await _create(parts)
    arguments: dict[str, Any] = {"lock": (None,), "unlock": (PASSWORD, None), "export": (PASSWORD, 16)}
    for key_id in (key.key_id, _id()):
        with pytest.raises(KeyNotFoundError):
            await getattr(parts.life, method)(_order(key_id, BOB), *arguments.get(method, ()))
    assert (await parts.keys.get(ALICE, key.key_id)) == key
    assert await _audit(parts, key.key_id) == [("CreateKey", "DONE")]


# Deletion


async def test_a_deleted_key_leaves_a_record_and_nothing_else(parts: Any, clock: Any) -> None:
    secret = SecretBytes(b"\x03" * 32)
    new = NewKey(owner=ALICE, request_id=_id(), display_name="work", secret_key=secret)
    key, _ = await parts.keys.create(new)
    await parts.life.set_relays(_order(key.key_id), (Relay(url="wss://a.example", read=True, write=True),))
    changed = await parts.life.delete(_order(key.key_id))
    assert changed.message.state == _State.STATE_DELETED
    assert changed.message.delete_time.ToMicroseconds() == clock.now_us
    again = await parts.life.delete(_order(key.key_id))
    assert (again.message, again.replayed) == (changed.message, False)
    deleted = await parts.keys.get(ALICE, key.key_id)
    assert deleted.delete_time_us == clock.now_us
    assert await parts.keys.create(new) == (deleted, True), "the request that made it is answered truly"
    assert await parts.keys.page(ALICE, before=None, limit=10) == ()
    for call in (parts.life.relays(ALICE, key.key_id), parts.life.export(_order(key.key_id), PASSWORD, 16)):
        with pytest.raises(KeyNotFoundError):
            await call
    stored = await parts.store.key_of(ALICE, key.key_id)
    assert (stored.sealed, stored.unlock_sealed) == (b"", None)
    other = await _create(parts, secret_key=secret)
    assert (other.pubkey, other.key_id != key.key_id) == (key.pubkey, True), "it may be taken over anew"
    with pytest.raises(KeyAlreadyExistsError):
        await _create(parts, secret_key=secret)


@pytest.mark.parametrize("database_settings", ["sqlite"], indirect=True)
async def test_no_seal_of_a_deleted_or_locked_key_is_left_in_the_file(parts: Any, tmp_path: Path) -> None:
    keys = [await _create(parts) for _ in range(60)]
    seals = [(await parts.store.key_of(ALICE, key.key_id)).sealed for key in keys]
    for number, key in enumerate(keys):
        order = _order(key.key_id)
        await (parts.life.delete(order) if number % 2 else parts.life.lock(order, PASSWORD))
    await parts.database.close()
    file = tmp_path / "data" / DATABASE_NAME
    with contextlib.closing(apsw.Connection(str(file))) as connection:
        connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
    content = b"".join(path.read_bytes() for path in file.parent.iterdir())
    assert all(key.key_id.encode() in content for key in keys), "the files that were searched are the right ones"
    assert [number for number, seal in enumerate(seals) if seal[-40:] in content or seal[:40] in content] == []


# Export and import


@pytest.mark.parametrize("state", ["active", "locked", "unlocked"])
async def test_an_exported_key_is_the_key(parts: Any, state: str) -> None:
    user = User()
    key = await _create(parts, secret_key=SecretBytes(bytes(user.private_key.secret)))
    if state != "active":
        await parts.life.lock(_order(key.key_id), PASSWORD)
    if state == "unlocked":
        await parts.life.unlock(_order(key.key_id), PASSWORD, MINUTE_US)
    order = _order(key.key_id)
    text, replayed = await parts.life.export(order, PASSWORD, 16)
    assert (await parts.life.export(order, PASSWORD, 16), replayed) == ((text, True), False)
    assert (await parts.life.export(_order(key.key_id), PASSWORD, 16))[0] != text
    read = nostr_sdk.EncryptedSecretKey.from_bech32(text)
    assert read.decrypt("open sesame").to_hex() == user.private_key.secret.hex()
    assert read.key_security() is nostr_sdk.KeySecurity.WEAK
    assert (await _audit(parts, key.key_id))[-1] == ("ExportKey", "DONE")


async def test_a_key_with_a_password_is_exported_with_no_other(parts: Any) -> None:
    key = await _create(parts)
    await parts.life.lock(_order(key.key_id), PASSWORD)
    await parts.life.unlock(_order(key.key_id), PASSWORD, MINUTE_US)
    with pytest.raises(PasswordWrongError):
        await parts.life.export(_order(key.key_id), WRONG, 16)
    assert (await _audit(parts, key.key_id))[-1] == ("ExportKey", "FAILED")
    await parts.life.disable(_order(key.key_id))
    assert await _refused(parts.life.export(_order(key.key_id), PASSWORD, 16)) is Refusal.NOT_ACTIVE


@pytest.mark.parametrize("security", KeySecurity)
async def test_an_ncryptsec_is_taken_over(parts: Any, security: KeySecurity) -> None:
    secret = SecretBytes(b"\x04" * 32)
    given = Encrypted(data=nip49.encrypt(secret, PASSWORD, security, log_n=2), password=PASSWORD)
    with pytest.raises(PasswordWrongError):
        await _create(parts, secret_key=Encrypted(data=given.data, password=WRONG))
    key = await _create(parts, secret_key=given)
    assert (key.pubkey, key.security) == (Signer(secret).public_key.hex(), security)


# Texts


async def test_two_held_keys_talk_and_only_they_read_it(parts: Any) -> None:
    alice, bob = await _create(parts), await _create(parts, BOB)
    for cipher in Cipher:
        payload = await parts.keys.encrypt(ALICE, alice.key_id, bob.pubkey, "héllo", cipher)
        for _ in range(2):
            assert await parts.keys.decrypt(BOB, bob.key_id, alice.pubkey, payload, cipher) == "héllo"
        assert await parts.keys.decrypt(ALICE, alice.key_id, bob.pubkey, payload, cipher) == "héllo"
    payload = await parts.keys.encrypt(ALICE, alice.key_id, bob.pubkey, "x" * 200_000, Cipher.NIP44)
    assert await parts.keys.decrypt(BOB, bob.key_id, alice.pubkey, payload, Cipher.NIP44) == "x" * 200_000
    with pytest.raises(DecryptionError):
        await parts.keys.decrypt(BOB, bob.key_id, User().pubkey, payload, Cipher.NIP44)
    assert Counter(await _audit(parts, alice.key_id)) == {
        ("CreateKey", "DONE"): 1,
        ("Encrypt", "DONE"): 3,
        ("Decrypt", "DONE"): 2,
    }


async def test_whose_hand_it_was_is_recorded(parts: Any) -> None:
    """A remote signer uses the owner's key for a client."""
    key, client = await _create(parts), User().pubkey
    template = Template(kind=1, tags=(), content="", created_at=5)
    method = "/nipmesh.nip.v1.RemoteSignerService/HandleRequest"
    signing = Signing(owner=ALICE, request_id="", key_id=key.key_id, template=template, actor=client, method=method)
    await parts.keys.sign(signing)
    events = await parts.database.read(lambda connection: events_after(connection, 0, subject=key.key_id))
    used = key_events_pb2.KeyUsed.FromString(events[-1].payload)
    assert (used.owner, used.actor, used.method) == (ALICE, client, method)
    assert key_events_pb2.KeyUsed.FromString(events[0].payload).actor == ALICE


async def test_a_services_signatures_with_a_time_cost_no_transaction(parts: Any) -> None:
    owner = "spiffe://nip.mesh/service/payment"
    new = NewKey(owner=owner, request_id=str(uuid.uuid4()), display_name="receipts", secret_key=None)
    key, _ = await parts.keys.create(new)
    template = Template(kind=1, tags=(), content="", created_at=5)
    event, replayed = await parts.keys.sign(Signing(owner=owner, request_id="", key_id=key.key_id, template=template))
    assert (verify_event(event), replayed) == (Verdict.VALID, False)
    assert await _audit(parts, key.key_id, owner) == [("CreateKey", "DONE")]
    once = Signing(
        owner=owner, request_id=str(uuid.uuid4()), key_id=key.key_id, template=replace(template, created_at=None)
    )
    first, _ = await parts.keys.sign(once)
    assert await parts.keys.sign(once) == (first, True)
    assert await _audit(parts, key.key_id, owner) == [
        ("CreateKey", "DONE"),
        ("SignEvent", "DONE"),
        ("SignEvent", "DONE"),
    ]


async def test_refused_and_failed_uses_are_recorded(parts: Any) -> None:
    key = await _create(parts)
    await parts.life.lock(_order(key.key_id), PASSWORD)
    assert await _refused(_sign(parts, key.key_id)) is Refusal.LOCKED
    with pytest.raises(PasswordWrongError):
        await parts.life.unlock(_order(key.key_id), WRONG, None)
    await parts.life.unlock(_order(key.key_id), PASSWORD, None)
    with pytest.raises(DecryptionError):
        await parts.keys.decrypt(ALICE, key.key_id, User().pubkey, "x", Cipher.NIP44)
    assert (await _audit(parts, key.key_id))[1:] == [
        ("LockKey", "DONE"),
        ("SignEvent", "REFUSED"),
        ("UnlockKey", "FAILED"),
        ("UnlockKey", "DONE"),
        ("Decrypt", "FAILED"),
    ]


# Relays


async def test_relays_are_replaced_once_per_request(start: Start) -> None:
    first, second = await start(), await start()
    key = await _create(first)
    assert await first.life.relays(ALICE, key.key_id) == ()
    order, wanted = _order(key.key_id), (Relay(url="wss://A.example/", read=True, write=False),)
    stored = (Relay(url="wss://a.example", read=True, write=False),)
    assert await first.life.set_relays(order, wanted) == (stored, False)
    assert await second.life.relays(ALICE, key.key_id) == stored
    await second.life.set_relays(_order(key.key_id), ())
    assert await first.life.set_relays(order, wanted) == (stored, True)
    assert await first.life.relays(ALICE, key.key_id) == (), "an order that comes late changes nothing"
    with pytest.raises(KeyNotFoundError):
        await first.life.relays(BOB, key.key_id)


# Rotation of the key-store key


async def test_locked_and_unlocked_keys_live_through_a_rotation(parts: Any, clock: Any) -> None:
    active, locked, unlocked, deleted = [await _create(parts) for _ in range(4)]
    for key in (locked, unlocked):
        await parts.life.lock(_order(key.key_id), PASSWORD)
    await parts.life.unlock(_order(unlocked.key_id), PASSWORD, MINUTE_US)
    await parts.life.delete(_order(deleted.key_id))
    new_key = SecretBytes(b"\x09" * 32)
    old = parts.keys._keyring.current
    exported = await parts.life.export(order := _order(active.key_id), PASSWORD, 16)
    key_file = parts.keys._keyring._key_file
    key_file.with_name(key_file.name + ".new").write_bytes(new_key.reveal())
    key_file.with_name(key_file.name + ".new").chmod(0o600)
    assert await parts.store.reseal(old, Keystore(new_key)) == 3
    parts.keys.close()
    for key in (active, unlocked):
        await _sign(parts, key.key_id)
    await parts.life.unlock(_order(locked.key_id), PASSWORD, MINUTE_US)
    await _sign(parts, locked.key_id)
    await parts.life.lock(_order(active.key_id), PASSWORD)
    assert (await parts.life.export(order, PASSWORD, 16)) == (exported[0], True), "the same text as before"
    clock.now_us += MINUTE_US
    for key in (locked, unlocked, active):
        assert await _refused(_sign(parts, key.key_id)) is Refusal.LOCKED


async def test_a_store_without_rows_sweeps_nothing(parts: Any) -> None:
    assert not await parts.life_store.unlockings_are_over(2**60)
    assert await LifeStore(parts.database).forget_unlockings(2**60) == 0

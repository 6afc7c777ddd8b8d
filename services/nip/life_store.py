"""The transactions of a held key's use and life: each looks at the key's state, decides, and leaves its event for the audit.

A refusal is a result here and no exception: its event is to be committed, too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from nipmesh.nip.v1 import nip_pb2, nip_service_pb2
from services.nip import wire
from services.nip.domain import attempts
from services.nip.domain.attempts import Attempts
from services.nip.domain.key import Key, StoredKey
from services.nip.domain.life import Action, Refusal, State, Stays, condition_of, decide
from services.nip.domain.relays import Relay
from services.nip.key_audit import Done, Outcome, append_audit
from services.nip.store import check_master_key, stored_key_of
from services.storage.database import Database
from services.storage.idempotency import InProgress, Replay, RequestKey, begin, complete, find, in_progress, run_once
from services.storage.sql import Connection

SWEEP_ROWS_MAX: Final = 500
"""Unlockings that one transaction clears away."""
_NEED_SEALS: Final = frozenset({Action.SEAL, Action.UNLOCK, Action.UNSEAL, Action.EXPORT})
"""What is decided before the transaction by opening the key."""
_GONE: Final = b""
"""What is sealed in a deleted key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """A key that is used at `now_us`. `request` and `created_at` (seconds): for a signing that is done once."""

    done: Done
    now_us: int
    request: RequestKey | None = None
    created_at: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Used:
    """It may be used. `created_at` is the time to sign with, `replayed` whether an earlier call with the request_id set it."""

    created_at: int
    replayed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Seals:
    """What takes the place of a key's seals, and the check value of the master key that made them.

    `made_from` is the seal that was opened for that: meanwhile the key may have got another password.
    """

    check_value: bytes
    made_from: bytes
    sealed: bytes | None = None
    unlock_sealed: bytes | None = None
    unlock_expire_time_us: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Something that is done to a key at `now_us`, once per request. `seals`: for what changes them."""

    done: Done
    action: Action
    now_us: int
    request: RequestKey
    seals: Seals | None = None
    password_was_right: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Changed:
    """The key afterwards; `replayed` tells whether an earlier call with the request_id did it."""

    message: nip_pb2.Key
    replayed: bool


class KeyChangedError(Exception):
    """The key is not any more as it was read: its password or its state was changed at the same moment."""


class LifeStore:
    """The transactions, over the database that all replicas share. None as a result: the owner has no such key."""

    def __init__(self, database: Database) -> None:
        """Use an open database, migrated with `store.MIGRATIONS`."""
        self._database = database

    async def use(self, use: Use) -> Used | Refusal | None:
        """Decide about a use. Raises what a reused request_id raises."""
        return await self._database.write(lambda connection: _used(connection, use))

    async def change(self, change: Change) -> Changed | Refusal | None:
        """Decide about a change, and make it. Raises MasterKeyRotatedError, KeyChangedError and what a reused request_id raises."""
        return await self._database.write(lambda connection: _changed(connection, change))

    async def changed_before(self, request: RequestKey) -> Changed | None:
        """Return what this request did before, if it did. Raises what a reused request_id raises."""
        return await self._database.read(lambda connection: _changed_before(connection, request))

    async def begin_attempt(self, done: Done, now_us: int) -> int:
        """Write down that a password is tried; return how long to wait first in microseconds: then none is to be tried."""
        return await self._database.write(lambda connection: _begin_attempt(connection, done, now_us))

    async def record(self, done: Done) -> None:
        """Leave an event for the audit."""
        await self._database.write(lambda connection: append_audit(connection, done))

    async def relays_of(self, owner: str, key_id: str) -> tuple[Relay, ...] | None:
        """Return the relays that belong to a key."""
        return await self._database.read(lambda connection: _relays_of(connection, owner, key_id))

    async def set_relays(
        self, owner: str, key_id: str, relays: tuple[Relay, ...], request: RequestKey
    ) -> tuple[tuple[Relay, ...], bool] | None:
        """Replace the relays that belong to a key; return (relays, replayed). Raises what a reused request_id raises."""
        return await self._database.write(lambda connection: _set_relays(connection, owner, key_id, relays, request))

    async def unlockings_are_over(self, now_us: int) -> bool:
        """Whether there is anything for `forget_unlockings` to do: a read, which holds no writer up."""
        sql = "SELECT 1 FROM nostr_key WHERE unlock_expire_time_us <= ? LIMIT 1"
        return await self._database.read(lambda connection: connection.execute(sql, (now_us,)).fetchone() is not None)

    async def forget_unlockings(self, now_us: int) -> int:
        """Destroy the seals of unlockings whose time is over; return how many."""
        return await self._database.write(lambda connection: _forget_unlockings(connection, now_us))

    async def usable(self, names: tuple[tuple[str, str], ...], now_us: int) -> frozenset[tuple[str, str]]:
        """Return which of these keys (owner, key id) may be used at this moment."""

        def work(connection: Connection) -> frozenset[tuple[str, str]]:
            found = ((name, stored_key_of(connection, *name)) for name in names)
            return frozenset(
                name
                for name, stored in found
                if stored is not None and isinstance(decide(stored.key.state(now_us), Action.USE), Stays)
            )

        return await self._database.read(work)


def _used(connection: Connection, use: Use) -> Used | Refusal | None:
    stored = stored_key_of(connection, use.done.owner, use.done.key_id)
    if stored is None:
        return None
    outcome = decide(stored.key.state(use.now_us), Action.USE)
    if isinstance(outcome, Refusal):
        append_audit(connection, replace(use.done, outcome=Outcome.REFUSED))
        return outcome
    used = _time_of(connection, use)
    append_audit(connection, use.done)
    return used


def _time_of(connection: Connection, use: Use) -> Used:
    """The time to sign with: that of the first call with the request_id."""
    if use.request is None:
        return Used(created_at=use.created_at, replayed=False)
    answer = nip_pb2.EventTemplate(created_at=use.created_at)
    stored, replayed = run_once(connection, use.request, nip_pb2.EventTemplate, lambda: answer)
    return Used(created_at=stored.created_at, replayed=replayed)


def _changed_before(connection: Connection, request: RequestKey) -> Changed | None:
    earlier = find(connection, request)
    if isinstance(earlier, InProgress):
        raise in_progress()
    if not isinstance(earlier, Replay):
        return None
    return Changed(message=nip_pb2.Key.FromString(earlier.response), replayed=True)


def _changed(connection: Connection, change: Change) -> Changed | Refusal | None:
    """See LifeStore.change."""
    earlier = _changed_before(connection, change.request)
    if earlier is not None:
        return earlier
    stored = stored_key_of(connection, change.done.owner, change.done.key_id)
    if stored is None:
        return None
    if change.seals is not None:
        check_master_key(connection, change.seals.check_value)
    outcome = decide(stored.key.state(change.now_us), change.action)
    if isinstance(outcome, Refusal):
        append_audit(connection, replace(change.done, outcome=Outcome.REFUSED))
        return outcome
    made_from = None if change.seals is None else change.seals.made_from
    if change.action in _NEED_SEALS and made_from != stored.sealed:
        raise KeyChangedError(change.done.key_id)
    begin(connection, change.request)
    after = stored.key if isinstance(outcome, Stays) else _moved(connection, stored, outcome, change)
    if change.password_was_right or after.delete_time_us is not None:
        _end_attempt(connection, change.done)
    message = wire.key_message(after, change.now_us)
    complete(connection, change.request, message)
    append_audit(connection, change.done)
    return Changed(message=message, replayed=False)


def _moved(connection: Connection, stored: StoredKey, to: State, change: Change) -> Key:
    """Write down the new state, and return the key as it is then. An unlocking that goes on is a new one."""
    seals = change.seals if to is State.UNLOCKED else None
    after = replace(
        stored.key,
        condition=condition_of(to),
        unlock_expire_time_us=None if seals is None else seals.unlock_expire_time_us,
        delete_time_us=change.now_us if to is State.DELETED else None,
    )
    sealed = stored.sealed if change.seals is None or change.seals.sealed is None else change.seals.sealed
    sql = (
        "UPDATE nostr_key SET condition = ?, sealed = ?, unlock_sealed = ?, unlock_expire_time_us = ?, delete_time_us = ?"
        " WHERE owner = ? AND key_id = ?"
    )
    unlock = (None if seals is None else seals.unlock_sealed, after.unlock_expire_time_us)
    values = (after.condition.value, _GONE if to is State.DELETED else sealed, *unlock, after.delete_time_us)
    connection.execute(sql, (*values, after.owner, after.key_id))
    assert connection.changes() == 1, "read in this transaction"
    if to is State.DELETED:
        connection.execute(
            "UPDATE nostr_key SET relays = ? WHERE owner = ? AND key_id = ?", (_GONE, after.owner, after.key_id)
        )
    return after


# ---- passwords


def _begin_attempt(connection: Connection, done: Done, now_us: int) -> int:
    sql = "SELECT wrong, blocked_until_us FROM password_attempt WHERE owner = ? AND key_id = ?"
    row = connection.execute(sql, (done.owner, done.key_id)).fetchone()
    before = Attempts() if row is None else Attempts(wrong=row[0], blocked_until_us=row[1])
    wait_us = attempts.wait_us(before, now_us)
    if wait_us > 0:
        append_audit(connection, replace(done, outcome=Outcome.REFUSED))
        return wait_us
    after = attempts.counted(before, now_us)
    connection.execute(
        "INSERT INTO password_attempt (owner, key_id, wrong, blocked_until_us) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (owner, key_id) DO UPDATE SET wrong = excluded.wrong, blocked_until_us = excluded.blocked_until_us",
        (done.owner, done.key_id, after.wrong, after.blocked_until_us),
    )
    return 0


def _end_attempt(connection: Connection, done: Done) -> None:
    connection.execute("DELETE FROM password_attempt WHERE owner = ? AND key_id = ?", (done.owner, done.key_id))


# ---- relays


def _relays_of(connection: Connection, owner: str, key_id: str) -> tuple[Relay, ...] | None:
    sql = "SELECT relays FROM nostr_key WHERE owner = ? AND key_id = ? AND condition <> 'DELETED'"
    row = connection.execute(sql, (owner, key_id)).fetchone()
    return None if row is None else wire.relays_of(nip_service_pb2.GetRelaysResponse.FromString(bytes(row[0])).relays)


def _set_relays(
    connection: Connection, owner: str, key_id: str, relays: tuple[Relay, ...], request: RequestKey
) -> tuple[tuple[Relay, ...], bool] | None:
    response = nip_service_pb2.GetRelaysResponse(relays=wire.relay_messages(relays))
    if _relays_of(connection, owner, key_id) is None:
        return None

    def effect() -> nip_service_pb2.GetRelaysResponse:
        values = (response.SerializeToString(deterministic=True), owner, key_id)
        connection.execute("UPDATE nostr_key SET relays = ? WHERE owner = ? AND key_id = ?", values)
        return response

    stored, replayed = run_once(connection, request, nip_service_pb2.GetRelaysResponse, effect)
    return wire.relays_of(stored.relays), replayed


# ---- housekeeping


def _forget_unlockings(connection: Connection, now_us: int) -> int:
    connection.execute(
        "UPDATE nostr_key SET unlock_sealed = NULL, unlock_expire_time_us = NULL WHERE (owner, key_id) IN (SELECT owner, key_id"
        " FROM nostr_key WHERE unlock_expire_time_us <= ? ORDER BY unlock_expire_time_us LIMIT ?)",
        (now_us, SWEEP_ROWS_MAX),
    )
    return int(connection.changes())

"""The service's rows: held keys, used logins, answers to repeated requests. SQL stands here and nowhere else."""

from __future__ import annotations

import hmac
from pathlib import Path
from typing import Any, Final

import apsw

from nipmesh.nip.v1 import nip_pb2
from services.nip import wire
from services.nip.domain.key import Key, StoredKey
from services.storage.database import Database
from services.storage.idempotency import RequestKey, run_once

MIGRATIONS: Final = Path(__file__).parent / "migrations"
DATABASE_NAME: Final = "nip.db"

FORGET_ROWS_MAX: Final = 64
"""Old logins that one login clears away: more than one, so that the table shrinks, and never a long transaction."""

_KEY_COLUMNS: Final = "key_id, owner, pubkey, display_name, create_time_us"


class KeyAlreadyExistsError(Exception):
    """The owner already holds a key with this public key."""


class WrongMasterKeyError(Exception):
    """The database was made with another key file."""


class NipStore:
    """The rows, over one database that all replicas on this host share."""

    def __init__(self, database: Database) -> None:
        """Use an open database, migrated with MIGRATIONS."""
        self._database = database

    async def check_master_key(self, check_value: bytes) -> None:
        """Write the check value, or compare it with the one that is there. Raises WrongMasterKeyError."""
        stored = await self._database.write(lambda connection: _stored_check_value(connection, check_value))
        if not hmac.compare_digest(stored, check_value):
            raise WrongMasterKeyError("the keys in the database were sealed with another key file")

    async def create_key(self, stored: StoredKey, request: RequestKey) -> tuple[Key, bool]:
        """Insert a key unless the request was answered before; return (key, replayed).

        Raises KeyAlreadyExistsError and what a reused request_id raises.
        """

        def work(connection: apsw.Connection) -> tuple[nip_pb2.Key, bool]:
            return run_once(connection, request, nip_pb2.Key, lambda: _insert_key(connection, stored))

        answer, replayed = await self._database.write(work)
        return wire.key_of(answer), replayed

    async def signing_time(self, request: RequestKey, created_at: int) -> tuple[int, bool]:
        """Return (the time at which the request is signed in seconds, replayed): `created_at` for a new request.

        Raises what a reused request_id raises.
        """
        answer = nip_pb2.EventTemplate(created_at=created_at)
        stored, replayed = await self._database.write(
            lambda connection: run_once(connection, request, nip_pb2.EventTemplate, lambda: answer)
        )
        return stored.created_at, replayed

    async def key_of(self, owner: str, key_id: str) -> StoredKey | None:
        """Return the key with this id if it is `owner`'s."""
        return await self._database.read(lambda connection: _key_of(connection, owner, key_id))

    async def keys_of(self, owner: str, *, before: str | None, limit: int) -> tuple[Key, ...]:
        """Return at most `limit` keys of `owner`, newest first, older than the one with id `before`."""
        return await self._database.read(lambda connection: _keys_of(connection, owner, before, limit))

    async def use_login(self, event_id: str, *, forget_time_seconds: int, now_seconds: int) -> bool:
        """Use up a login event; False when it was used before."""
        return await self._database.write(
            lambda connection: _use_login(connection, event_id, forget_time_seconds, now_seconds)
        )


def _stored_check_value(connection: apsw.Connection, check_value: bytes) -> bytes:
    connection.execute("INSERT INTO keystore (id, check_value) VALUES (1, ?) ON CONFLICT DO NOTHING", (check_value,))
    row = connection.execute("SELECT check_value FROM keystore").fetchone()
    assert row is not None, "written one statement ago"
    return bytes(row[0])


def _key_of(connection: apsw.Connection, owner: str, key_id: str) -> StoredKey | None:
    sql = f"SELECT {_KEY_COLUMNS}, sealed FROM nostr_key WHERE key_id = ? AND owner = ?"  # noqa: S608  # own constant
    row = connection.execute(sql, (key_id, owner)).fetchone()
    return None if row is None else StoredKey(key=_key(row[:5]), sealed=row[5])


def _keys_of(connection: apsw.Connection, owner: str, before: str | None, limit: int) -> tuple[Key, ...]:
    sql = (
        f"SELECT {_KEY_COLUMNS} FROM nostr_key WHERE owner = ?1 AND (?2 IS NULL OR key_id < ?2)"  # noqa: S608  # the same
        " ORDER BY key_id DESC LIMIT ?3"
    )
    return tuple(_key(row) for row in connection.execute(sql, (owner, before, limit)))


def _insert_key(connection: apsw.Connection, stored: StoredKey) -> nip_pb2.Key:
    """Insert a key; return what its owner is told. Raises KeyAlreadyExistsError."""
    key = stored.key
    sql = (
        "INSERT INTO nostr_key (key_id, owner, pubkey, sealed, display_name, create_time_us) VALUES (?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (owner, pubkey) DO NOTHING"
    )
    values = (key.key_id, key.owner, key.pubkey, stored.sealed, key.display_name, key.create_time_us)
    connection.execute(sql, values)
    if connection.changes() == 0:
        raise KeyAlreadyExistsError(key.pubkey)
    return wire.key_message(key)


def _use_login(connection: apsw.Connection, event_id: str, forget_time_seconds: int, now_seconds: int) -> bool:
    forget = (
        "DELETE FROM used_login WHERE event_id IN"
        " (SELECT event_id FROM used_login WHERE forget_time_seconds < ? ORDER BY forget_time_seconds LIMIT ?)"
    )
    connection.execute(forget, (now_seconds, FORGET_ROWS_MAX))
    use = "INSERT INTO used_login (event_id, forget_time_seconds) VALUES (?, ?) ON CONFLICT DO NOTHING"
    connection.execute(use, (event_id, forget_time_seconds))
    return connection.changes() == 1


def _key(row: tuple[Any, ...]) -> Key:
    key_id, owner, pubkey, display_name, create_time_us = row
    return Key(key_id=key_id, owner=owner, pubkey=pubkey, display_name=display_name, create_time_us=create_time_us)

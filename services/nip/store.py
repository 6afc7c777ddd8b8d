"""The service's rows: held keys, answers to repeated requests. SQL stands here and nowhere else."""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from nipmesh.nip.v1 import nip_pb2
from services.chassis.failpoints import failpoint
from services.nip.domain.key import Key, StoredKey
from services.nip.domain.keystore import Keystore, SealBrokenError
from services.nip.domain.life import Condition
from services.nip.domain.nip49 import KeySecurity
from services.nip.key_audit import Done, append_audit
from services.nip.sealing import resealed
from services.storage.database import Database
from services.storage.idempotency import Replay, RequestKey, find, request_id_reused
from services.storage.sql import Connection

MIGRATIONS: Final = Path(__file__).parent / "migrations"
DATABASE_NAME: Final = "nip.db"

RESEAL_ROWS: Final = 1_000
"""Keys that a rotation reads at a time: so many private keys at most are in its memory."""

KEY_COLUMNS: Final = (
    "key_id, owner, pubkey, display_name, create_time_us, condition, unlock_expire_time_us, delete_time_us, security"
)
_KEY_WIDTH: Final = KEY_COLUMNS.count(",") + 1


class KeyAlreadyExistsError(Exception):
    """The owner already holds a key with this public key."""


class MasterKeyRotatedError(Exception):
    """The keys in the database are sealed with another master key than this process holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeystoreRow:
    """What the database says of its master key: how to recognise it, and the lasting keys once it was rotated."""

    check_value: bytes
    sealed_lasting: bytes | None

    def fits(self, check_value: bytes) -> bool:
        """Whether the master key with this check value is the one."""
        return hmac.compare_digest(self.check_value, check_value)


class NipStore:
    """The rows, over one database that all replicas on this host share."""

    def __init__(self, database: Database) -> None:
        """Use an open database, migrated with MIGRATIONS."""
        self._database = database

    async def claim(self, check_value: bytes) -> KeystoreRow:
        """Return the row of the keystore; a new database becomes that of the master key with this check value."""
        return await self._database.write(lambda connection: _claimed(connection, check_value))

    async def keystore(self) -> KeystoreRow | None:
        """Return the row of the keystore; None when no service has used the database yet."""
        return await self._database.read(_keystore_row)

    async def create_key(self, stored: StoredKey, request: RequestKey, check_value: bytes) -> tuple[Key, bool]:
        """Insert a key unless the request was answered before; return (key, replayed).

        `check_value` belongs to the master key that sealed it: it is compared in the same transaction, so that nothing is stored that is
        sealed with a key of before a rotation. Raises MasterKeyRotatedError, KeyAlreadyExistsError and what a reused request_id raises.
        """

        def work(connection: Connection) -> tuple[Key, bool]:
            earlier = _made_before(connection, request)
            if earlier is not None:
                return earlier, True
            check_master_key(connection, check_value)
            _insert_key(connection, stored, request)
            append_audit(connection, Done(owner=stored.key.owner, key_id=stored.key.key_id, method=request.method))
            return stored.key, False

        return await self._database.write(work)

    async def key_of(self, owner: str, key_id: str) -> StoredKey | None:
        """Return the key with this id if it is `owner`'s."""
        return await self._database.read(lambda connection: stored_key_of(connection, owner, key_id))

    async def key_to_open(self, owner: str, key_id: str, check_value: bytes) -> StoredKey | None:
        """Return the key with this id if it is `owner`'s, and sealed with the master key that has this check value.

        Raises MasterKeyRotatedError.
        """

        def work(connection: Connection) -> StoredKey | None:
            check_master_key(connection, check_value)
            return stored_key_of(connection, owner, key_id)

        return await self._database.read(work)

    async def reseal(self, old: Keystore, new: Keystore) -> int:
        """Seal everything that `old` opens with `new`, in one transaction; return how many keys.

        Raises MasterKeyRotatedError when the keys are not sealed with `old` (any more), SealBrokenError when one of them does not open.
        """
        return await self._database.write(lambda connection: _resealed(connection, old, new))

    async def keys_of(self, owner: str, *, before: str | None, limit: int) -> tuple[Key, ...]:
        """Return at most `limit` keys of `owner`, newest first, older than the one with id `before`."""
        return await self._database.read(lambda connection: _keys_of(connection, owner, before, limit))


def _keystore_row(connection: Connection) -> KeystoreRow | None:
    """Read the row of the keystore."""
    row = connection.execute("SELECT check_value, sealed_lasting FROM keystore").fetchone()
    if row is None:
        return None
    return KeystoreRow(check_value=bytes(row[0]), sealed_lasting=None if row[1] is None else bytes(row[1]))


def _claimed(connection: Connection, check_value: bytes) -> KeystoreRow:
    connection.execute("INSERT INTO keystore (id, check_value) VALUES (1, ?) ON CONFLICT DO NOTHING", (check_value,))
    row = _keystore_row(connection)
    assert row is not None, "written one statement ago"
    return row


def check_master_key(connection: Connection, check_value: bytes) -> None:
    """Raise MasterKeyRotatedError unless the keys are sealed with the master key that has this check value."""
    row = _keystore_row(connection)
    if row is None or not row.fits(check_value):
        raise MasterKeyRotatedError("the keys are sealed with another master key")


def _resealed(connection: Connection, old: Keystore, new: Keystore) -> int:
    """See NipStore.reseal."""
    check_master_key(connection, old.check_value)
    count, after = 0, ("", "")
    while page := _page_to_reseal(connection, after):
        for stored in page:
            _reseal_one(connection, stored, old, new)
        count, after = count + len(page), (page[-1].key.owner, page[-1].key.key_id)
    values = (new.check_value, new.seal_lasting_keys_of(old))
    connection.execute("UPDATE keystore SET check_value = ?, sealed_lasting = ?", values)
    assert connection.changes() == 1, "read at the beginning of this transaction"
    failpoint("rotate_key.sealed")
    return count


def _page_to_reseal(connection: Connection, after: tuple[str, str]) -> list[StoredKey]:
    sql = (
        f"SELECT {KEY_COLUMNS}, sealed, unlock_sealed FROM nostr_key WHERE (owner, key_id) > (?, ?)"  # noqa: S608  # own constant
        " AND condition <> 'DELETED' ORDER BY owner, key_id LIMIT ?"
    )
    return [_stored_key(row) for row in connection.execute(sql, (*after, RESEAL_ROWS)).fetchall()]


def _reseal_one(connection: Connection, stored: StoredKey, old: Keystore, new: Keystore) -> None:
    key = stored.key
    try:
        sealed, unlock_sealed = resealed(stored, old, new)
    except SealBrokenError as error:
        raise SealBrokenError(f"the key with id {key.key_id} does not open: its row was changed") from error
    values = (sealed, unlock_sealed, key.owner, key.key_id)
    connection.execute("UPDATE nostr_key SET sealed = ?, unlock_sealed = ? WHERE owner = ? AND key_id = ?", values)
    assert connection.changes() == 1, "read in this transaction"


def stored_key_of(connection: Connection, owner: str, key_id: str) -> StoredKey | None:
    """Return the key with this id if it is `owner`'s."""
    sql = f"SELECT {KEY_COLUMNS}, sealed, unlock_sealed FROM nostr_key WHERE key_id = ? AND owner = ?"  # noqa: S608  # own constant
    row = connection.execute(sql, (key_id, owner)).fetchone()
    return None if row is None else _stored_key(row)


def _stored_key(row: tuple[Any, ...]) -> StoredKey:
    sealed, unlock_sealed = row[_KEY_WIDTH:]
    return StoredKey(
        key=_key(row[:_KEY_WIDTH]),
        sealed=bytes(sealed),
        unlock_sealed=None if unlock_sealed is None else bytes(unlock_sealed),
    )


def _keys_of(connection: Connection, owner: str, before: str | None, limit: int) -> tuple[Key, ...]:
    older = "" if before is None else " AND key_id < ?"
    sql = f"SELECT {KEY_COLUMNS} FROM nostr_key WHERE owner = ?{older} AND condition <> 'DELETED' ORDER BY key_id DESC LIMIT ?"  # noqa: S608  # the same
    values = (owner, limit) if before is None else (owner, before, limit)
    return tuple(_key(row) for row in connection.execute(sql, values))


def _made_before(connection: Connection, request: RequestKey) -> Key | None:
    """Return the key that this request made, however long ago. Raises REQUEST_ID_REUSED for the id of another request."""
    sql = f"SELECT {KEY_COLUMNS}, request_sha256 FROM nostr_key WHERE owner = ? AND request_id = ?"  # noqa: S608  # own constant
    row = connection.execute(sql, (request.scope, request.request_id)).fetchone()
    if row is None:
        return _remembered(connection, request)
    if not hmac.compare_digest(bytes(row[_KEY_WIDTH]), request.sha256):
        raise request_id_reused()
    return _key(row[:_KEY_WIDTH])


def _remembered(connection: Connection, request: RequestKey) -> Key | None:
    """The key of a request of before keys knew theirs."""
    remembered = find(connection, request)
    if not isinstance(remembered, Replay):
        return None
    stored = stored_key_of(connection, request.scope, nip_pb2.Key.FromString(remembered.response).key_id)
    return None if stored is None else stored.key


def _insert_key(connection: Connection, stored: StoredKey, request: RequestKey) -> None:
    """Insert an active key. Raises KeyAlreadyExistsError."""
    key = stored.key
    sql = (
        "INSERT INTO nostr_key (key_id, owner, pubkey, sealed, display_name, create_time_us, request_id, request_sha256, condition,"
        " security, relays) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (owner, pubkey) WHERE condition <> 'DELETED' DO NOTHING"
    )
    values = (key.key_id, key.owner, key.pubkey, stored.sealed, key.display_name, key.create_time_us)
    more = (request.request_id, request.sha256, key.condition.value, key.security.value, b"")
    connection.execute(sql, (*values, *more))
    if connection.changes() == 0:
        raise KeyAlreadyExistsError(key.pubkey)


def _key(row: tuple[Any, ...]) -> Key:
    key_id, owner, pubkey, display_name, create_time_us, condition, unlock_expire_time_us, delete_time_us, security = (
        row
    )
    return Key(
        key_id=key_id,
        owner=owner,
        pubkey=pubkey,
        display_name=display_name,
        create_time_us=create_time_us,
        condition=Condition(condition),
        unlock_expire_time_us=unlock_expire_time_us,
        delete_time_us=delete_time_us,
        security=KeySecurity(security),
    )

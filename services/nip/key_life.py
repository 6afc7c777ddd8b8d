"""The life of held keys: locking with a password, unlocking, disabling, deleting, exporting. `domain.life` says what goes when.

What follows from a password takes its time: it is made before the transaction that decides, which looks whether all is as it was.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from nipmesh.nip.v1 import nip_pb2
from services.chassis.errors import unavailable
from services.chassis.secret import SecretBytes
from services.nip.domain import nip49
from services.nip.domain.keystore import SealBrokenError
from services.nip.domain.life import UNLOCK_US_MAX, Action, Refusal, decide
from services.nip.domain.nip49 import PasswordWrongError
from services.nip.domain.relays import Relay, normalized
from services.nip.key_audit import Done, Outcome
from services.nip.keyring import Keyring
from services.nip.keys import ROTATIONS_MAX, Clock, KeyNotFoundError, KeyRefusedError, Keys, OpenedKey, wall_clock
from services.nip.life_store import Change, Changed, KeyChangedError, LifeStore, Seals
from services.nip.passwords import PasswordWork
from services.nip.sealing import has_password, open_encrypted
from services.nip.store import MasterKeyRotatedError
from services.nostr.bip340 import Signer
from services.storage.idempotency import RequestKey

ResultT = TypeVar("ResultT")

SERVICE_NAME: Final = "/nipmesh.nip.v1.NipService/"
LOCK_LOG_N: Final = 16
"""What the password of a locked key costs: 64 MiB and about 0.2 s for each guess of whoever holds database and key file."""


class AttemptsExceededError(Exception):
    """There were too many wrong passwords."""

    def __init__(self, wait_us: int) -> None:
        """Say how long to wait in microseconds."""
        super().__init__(f"another password may be tried in {wait_us} us")
        self.wait_us = wait_us


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What an owner wants done to a key, once per request_id."""

    owner: str
    key_id: str
    request_id: str


class KeyLife:
    """What can be done to held keys, over the database that all replicas share."""

    def __init__(
        self,
        keys: Keys,
        store: LifeStore,
        keyring: Keyring,
        passwords: PasswordWork,
        *,
        clock: Clock = wall_clock,
        lock_log_n: int = LOCK_LOG_N,
    ) -> None:
        """`lock_log_n` is smaller in tests, which have many keys to lock."""
        self._keys = keys
        self._store = store
        self._keyring = keyring
        self._passwords = passwords
        self._clock = clock
        self._lock_log_n = lock_log_n

    async def lock(self, order: Order, password: SecretBytes | None) -> Changed:
        """Seal an active key with a password; without one, end the unlocking of a key that has one.

        Raises KeyNotFoundError, KeyRefusedError and what a reused request_id raises.
        """
        if password is None:
            return await self._change(order, "LockKey", Action.RELOCK)
        return await self._renewing(lambda: self._sealed(order, password))

    async def unlock(self, order: Order, password: SecretBytes, ttl_us: int | None) -> Changed:
        """Open a locked key for a time in microseconds; None: for good.

        Raises KeyNotFoundError, KeyRefusedError, PasswordWrongError, AttemptsExceededError and what a reused request_id raises.
        """
        assert ttl_us is None or 0 < ttl_us <= UNLOCK_US_MAX, "the request's rules"
        return await self._renewing(lambda: self._unlocked(order, password, ttl_us))

    async def disable(self, order: Order) -> Changed:
        """Switch a key off. Raises KeyNotFoundError and what a reused request_id raises."""
        return await self._change(order, "DisableKey", Action.DISABLE)

    async def enable(self, order: Order) -> Changed:
        """Switch a key on. Raises KeyNotFoundError and what a reused request_id raises."""
        return await self._change(order, "EnableKey", Action.ENABLE)

    async def delete(self, order: Order) -> Changed:
        """Destroy a key. Raises KeyNotFoundError and what a reused request_id raises."""
        return await self._change(order, "DeleteKey", Action.DELETE)

    async def export(self, order: Order, password: SecretBytes, log_n: int) -> tuple[str, bool]:
        """Return the private key as an ncryptsec, and whether it was exported before with this request_id.

        The same request gives the same text: salt and nonce follow from it. Raises KeyNotFoundError, KeyRefusedError,
        PasswordWrongError, AttemptsExceededError and what a reused request_id raises.
        """
        return await self._renewing(lambda: self._exported(order, password, log_n))

    async def relays(self, owner: str, key_id: str) -> tuple[Relay, ...]:
        """Return the relays that belong to a key. Raises KeyNotFoundError."""
        found = await self._store.relays_of(owner, key_id)
        if found is None:
            raise KeyNotFoundError(key_id)
        return found

    async def set_relays(self, order: Order, relays: tuple[Relay, ...]) -> tuple[tuple[Relay, ...], bool]:
        """Replace the relays that belong to a key. Raises KeyNotFoundError, RelayError and what a reused request_id raises."""
        wanted = normalized(relays)
        fields = [field for relay in wanted for field in (relay.url, str(relay.read), str(relay.write))]
        found = await self._store.set_relays(
            order.owner, order.key_id, wanted, self._request(order, "SetRelays", *fields)
        )
        if found is None:
            raise KeyNotFoundError(order.key_id)
        return found

    # ---- with a password

    async def _sealed(self, order: Order, password: SecretBytes) -> Changed:
        request = self._request(order, "LockKey", "password")
        earlier = await self._store.changed_before(request)
        if earlier is not None:
            return earlier
        opened = await self._keys.open(order.owner, order.key_id)
        secret_key, key, seals = opened.secret_key, opened.stored.key, None
        if secret_key is not None and not self._refuses(opened, Action.SEAL):
            encrypted = await self._passwords.run(
                order.owner, lambda: nip49.encrypt(secret_key, password, key.security, log_n=self._lock_log_n)
            )
            sealed = opened.keystore.seal_locked(encrypted, key_id=key.key_id, pubkey=key.pubkey, owner=key.owner)
            seals = _seals(opened, sealed=sealed)
        return await self._change(order, "LockKey", Action.SEAL, seals=seals, request=request)

    async def _unlocked(self, order: Order, password: SecretBytes, ttl_us: int | None) -> Changed:
        action = Action.UNSEAL if ttl_us is None else Action.UNLOCK
        request = self._request(order, "UnlockKey", str(ttl_us))
        earlier = await self._store.changed_before(request)
        if earlier is not None:
            return earlier
        opened = await self._keys.open(order.owner, order.key_id)
        if self._refuses(opened, action):
            return await self._change(order, "UnlockKey", action, request=request)
        secret_key = await self._decrypted(self._done(order, "UnlockKey"), opened, password)
        key = opened.stored.key
        row = {"key_id": key.key_id, "pubkey": key.pubkey, "owner": key.owner}
        if ttl_us is None:
            seals = _seals(opened, sealed=opened.keystore.seal(secret_key, **row))
        else:
            until_us = self._clock() + ttl_us
            unlock_sealed = opened.keystore.seal_unlocked(secret_key, until_us, **row)
            seals = _seals(opened, unlock_sealed=unlock_sealed, unlock_expire_time_us=until_us)
        return await self._change(order, "UnlockKey", action, seals=seals, request=request, password_was_right=True)

    async def _exported(self, order: Order, password: SecretBytes, log_n: int) -> tuple[str, bool]:
        request = self._request(order, "ExportKey", str(log_n))
        opened = await self._keys.open(order.owner, order.key_id)
        secret_key, key, protected = opened.secret_key, opened.stored.key, has_password(opened.stored.key)
        if protected and not self._refuses(opened, Action.EXPORT):
            secret_key = await self._decrypted(self._done(order, "ExportKey"), opened, password)
        seals, encrypted = None, b""
        if secret_key is not None:
            random = _drawn_for_export(opened, order, log_n)
            known = secret_key
            encrypted = await self._passwords.run(
                order.owner, lambda: nip49.encrypt(known, password, key.security, log_n=log_n, random=random)
            )
            seals = _seals(opened)
        changed = await self._change(
            order, "ExportKey", Action.EXPORT, seals=seals, request=request, password_was_right=protected
        )
        return nip49.text_of(encrypted), changed.replayed

    async def _decrypted(self, done: Done, opened: OpenedKey, password: SecretBytes) -> SecretBytes:
        """The private key of a key that has a password. Raises PasswordWrongError, AttemptsExceededError, SealBrokenError."""
        encrypted = open_encrypted(opened.keystore, opened.stored)
        with self._passwords.turn(done.owner) as turn:
            wait_us = await self._store.begin_attempt(done, self._clock())
            if wait_us > 0:
                raise AttemptsExceededError(wait_us)
            try:
                found = await turn.run(lambda: nip49.decrypt(encrypted, password))
            except PasswordWrongError:
                await self._store.record(replace(done, outcome=Outcome.FAILED))
                raise
        if Signer(found.secret_key).public_key.hex() != opened.stored.key.pubkey:
            raise SealBrokenError("a locked key holds another private key")
        return found.secret_key

    # ---- what all have in common

    async def _change(
        self,
        order: Order,
        method: str,
        action: Action,
        *,
        seals: Seals | None = None,
        request: RequestKey | None = None,
        password_was_right: bool = False,
    ) -> Changed:
        """Have it decided, done and recorded. Raises KeyNotFoundError, KeyRefusedError."""
        change = Change(
            done=self._done(order, method),
            action=action,
            now_us=self._clock(),
            request=self._request(order, method, action.name) if request is None else request,
            seals=seals,
            password_was_right=password_was_right,
        )
        try:
            changed = await self._store.change(change)
        except KeyChangedError as error:
            raise unavailable("the key got another password at the same moment") from error
        if not isinstance(changed, Changed) or changed.message.state not in _OPEN:
            self._keys.forget(order.owner, order.key_id)
        if isinstance(changed, Changed):
            return changed
        if changed is None or changed is Refusal.DELETED:
            raise KeyNotFoundError(order.key_id)
        raise KeyRefusedError(order.key_id, changed)

    async def _renewing(self, work: Callable[[], Awaitable[ResultT]]) -> ResultT:
        """Do it; once more when the master key was rotated meanwhile."""
        for _ in range(ROTATIONS_MAX):
            keystore = self._keyring.current
            try:
                return await work()
            except MasterKeyRotatedError:
                await self._keyring.renew(keystore)
        raise unavailable("the key store is given new keys all the time")

    def _refuses(self, opened: OpenedKey, action: Action) -> bool:
        return isinstance(decide(opened.stored.key.state(self._clock()), action), Refusal)

    def _done(self, order: Order, method: str) -> Done:
        return Done(owner=order.owner, key_id=order.key_id, method=SERVICE_NAME + method)

    def _request(self, order: Order, method: str, *fields: str) -> RequestKey:
        """Under which the order is remembered. No password is in it: whoever has the key file could try many on it."""
        fingerprint = self._keyring.current.fingerprint(*(field.encode() for field in (order.key_id, *fields)))
        return RequestKey(
            scope=order.owner, method=SERVICE_NAME + method, request_id=order.request_id, sha256=fingerprint
        )


_OPEN: Final = frozenset({nip_pb2.Key.STATE_ACTIVE, nip_pb2.Key.STATE_UNLOCKED})
"""States in which a key may stay in memory."""


def _seals(
    opened: OpenedKey,
    *,
    sealed: bytes | None = None,
    unlock_sealed: bytes | None = None,
    unlock_expire_time_us: int | None = None,
) -> Seals:
    """What takes the place of the seals that were opened."""
    return Seals(
        check_value=opened.keystore.check_value,
        made_from=opened.stored.sealed,
        sealed=sealed,
        unlock_sealed=unlock_sealed,
        unlock_expire_time_us=unlock_expire_time_us,
    )


def _drawn_for_export(opened: OpenedKey, order: Order, log_n: int) -> bytes:
    """Salt and nonce of an export: nobody can tell them from random ones, and they are the same for the same request."""
    security = opened.stored.key.security.name
    fields = ("export", order.owner, order.key_id, order.request_id.lower(), str(log_n), security)
    return opened.keystore.drawn(nip49.SALT_BYTES + nip49.NONCE_BYTES, *(field.encode() for field in fields))

"""The keys that the service holds: making them, showing them to their owner, signing, encrypting and decrypting with them."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from services.chassis.errors import unavailable
from services.chassis.secret import SecretBytes
from services.nip.domain import ciphers, nip49
from services.nip.domain.ciphers import Cipher
from services.nip.domain.encryption import DecryptionError
from services.nip.domain.key import Key, StoredKey
from services.nip.domain.keystore import Keystore
from services.nip.domain.life import Refusal, State
from services.nip.domain.nip49 import KeySecurity
from services.nip.domain.signers import AgreedKey, ConversationCache, SignerCache
from services.nip.key_audit import Done, Outcome
from services.nip.keyring import Keyring
from services.nip.life_store import LifeStore, Use, Used
from services.nip.passwords import PasswordWork
from services.nip.sealing import open_usable
from services.nip.store import MasterKeyRotatedError, NipStore
from services.nostr import bip340
from services.nostr.bip340 import InvalidSecretKeyError, Signer
from services.nostr.event import Event, Template, sign_event
from services.storage.idempotency import RequestKey
from services.storage.ids import new_id

CREATE_KEY: Final = "/nipmesh.nip.v1.NipService/CreateKey"
SIGN_EVENT: Final = "/nipmesh.nip.v1.NipService/SignEvent"
ENCRYPT: Final = "/nipmesh.nip.v1.NipService/Encrypt"
DECRYPT: Final = "/nipmesh.nip.v1.NipService/Decrypt"
SPIFFE_SCHEME: Final = "spiffe://"
NANOSECONDS_PER_MICROSECOND: Final = 1_000
MICROSECONDS_PER_SECOND: Final = 1_000_000

ROTATIONS_MAX: Final = 3
"""So often a call goes on with a new master key; a rotation takes longer than a call, so that more of them is a fault."""
USES_MAX: Final = 3
"""So often a call begins anew because its key was locked and unlocked meanwhile."""
THREAD_CHARACTERS_MIN: Final = 65_536
"""Texts from here on are encrypted in a thread: below that the thread costs more than the text."""

Clock = Callable[[], int]
"""Microseconds since 1970."""


class KeyNotFoundError(LookupError):
    """The caller owns no key with this id; whether somebody else does is not told."""


class KeyRefusedError(Exception):
    """The key's state does not allow it."""

    def __init__(self, key_id: str, refusal: Refusal) -> None:
        """Say why."""
        super().__init__(f"{key_id}: {refusal.name}")
        self.key_id = key_id
        self.refusal = refusal


@dataclass(frozen=True, slots=True, kw_only=True)
class Encrypted:
    """A private key to take over: the 91 bytes of its ncryptsec, and what opens them."""

    data: bytes
    password: SecretBytes


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedKey:
    """A key as it was read. `secret_key` is None where its state does not let it be opened; `keystore` opens its seals."""

    stored: StoredKey
    secret_key: SecretBytes | None
    keystore: Keystore


@dataclass(frozen=True, slots=True, kw_only=True)
class NewKey:
    """A key to make for `owner`; `secret_key` None for a fresh one."""

    owner: str
    request_id: str
    display_name: str
    secret_key: SecretBytes | Encrypted | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Signing:
    """An event to sign with a key of `owner`; `request_id` may be empty only where the template has a time.

    `actor` and `method` are for the audit: who asked, when it was not the owner, and in what way. Request ids are the method's own.
    """

    owner: str
    request_id: str
    key_id: str
    template: Template
    actor: str = ""
    method: str = SIGN_EVENT


def is_service(owner: str) -> bool:
    """Whether the owner is a service, by its SPIFFE id; only users can lock, disable, delete or export a key."""
    return owner.startswith(SPIFFE_SCHEME)


def wall_clock() -> int:
    """Return the time in microseconds since 1970."""
    return time.time_ns() // NANOSECONDS_PER_MICROSECOND


class Keys:
    """All that can be done with held keys, but for their life. Private keys are opened here and leave only as signatures and texts.

    Whether a key may be used is decided by the transaction that records the use, for each use anew; what was signed before is let out only
    then. So a key that is locked, disabled or deleted on one replica is of no use on all others at once, though they hold it open.
    """

    def __init__(
        self, store: NipStore, life: LifeStore, keyring: Keyring, passwords: PasswordWork, *, clock: Clock = wall_clock
    ) -> None:
        """Share one database and one key file with every other replica."""
        self._store = store
        self._life = life
        self._keyring = keyring
        self._passwords = passwords
        self._signers = SignerCache()
        self._conversations = ConversationCache()
        self._clock = clock

    async def create(self, new: NewKey) -> tuple[Key, bool]:
        """Make or take over a key; the flag tells whether an earlier call with this request_id did.

        Raises InvalidSecretKeyError, PasswordWrongError, KeyAlreadyExistsError and what a reused request_id raises.
        """
        given, security = await self._taken(new)
        signer, secret_key = _opened(given)
        key = Key(
            key_id=new_id(),
            owner=new.owner,
            pubkey=signer.public_key.hex(),
            display_name=new.display_name,
            create_time_us=self._clock(),
            security=security,
        )
        source = key.pubkey if given is not None else ""
        fingerprint = self._keyring.current.fingerprint(new.display_name.encode(), source.encode())
        request = RequestKey(scope=new.owner, method=CREATE_KEY, request_id=new.request_id, sha256=fingerprint)
        return await self._insert(key, secret_key, request)

    async def get(self, owner: str, key_id: str) -> Key:
        """Return a key of `owner`, also a deleted one. Raises KeyNotFoundError."""
        stored = await self._store.key_of(owner, key_id)
        if stored is None:
            raise KeyNotFoundError(key_id)
        return stored.key

    async def page(self, owner: str, *, before: str | None, limit: int) -> tuple[Key, ...]:
        """Return at most `limit` keys of `owner`, newest first, older than the one with id `before`; no deleted ones."""
        return await self._store.keys_of(owner, before=before, limit=limit)

    async def sign(self, signing: Signing) -> tuple[Event, bool]:
        """Sign; the flag tells whether an earlier call with this request_id did.

        A signature is a function of key, content and time alone. So a call with a time needs no memory, and for
        one with a request_id the time is all that is kept. A service's key has one state for ever, and whatever the service signs stands
        in its own books: such a call is not recorded here, and costs no transaction.

        Raises KeyNotFoundError, KeyRefusedError, MalformedEventError and what a reused request_id raises.
        """
        wanted = signing.template.created_at
        created_at = wanted if wanted is not None else self._clock() // MICROSECONDS_PER_SECOND
        request = self._request(signing) if signing.request_id else None
        assert request is not None or wanted is not None, (
            "the request's rules demand a request_id where there is no time"
        )
        done = Done(owner=signing.owner, key_id=signing.key_id, actor=signing.actor, method=signing.method)
        for _ in range(USES_MAX):
            signer = await self.signer(signing.owner, signing.key_id)
            event = None if signer is None else self._signed(signer, signing.template, created_at)
            if event is not None and request is None and is_service(signing.owner):
                return event, False
            used = await self._use(Use(done=done, now_us=self._clock(), request=request, created_at=created_at))
            if event is not None and used.created_at != created_at:
                signer = await self.signer(signing.owner, signing.key_id)
                event = None if signer is None else self._signed(signer, signing.template, used.created_at)
            if event is not None:
                return event, used.replayed
        raise unavailable("the key is locked and unlocked all the time")

    async def encrypt(
        self,
        owner: str,
        key_id: str,
        peer_pubkey: str,
        text: str,
        cipher: Cipher,
        *,
        actor: str = "",
        method: str = ENCRYPT,
    ) -> str:
        """Return the payload of a text for a peer (public key in hex).

        Raises KeyNotFoundError, KeyRefusedError, InvalidPeerError, PlaintextError.
        """
        done = Done(owner=owner, key_id=key_id, actor=actor, method=method)
        payload, _ = await self._transformed(
            done, cipher, peer_pubkey, lambda key: ciphers.encrypt(cipher, text, key), text
        )
        assert payload is not None, "only decryption fails"
        return payload

    async def decrypt(
        self,
        owner: str,
        key_id: str,
        peer_pubkey: str,
        payload: str,
        cipher: Cipher,
        *,
        actor: str = "",
        method: str = DECRYPT,
    ) -> str:
        """Return the text of a payload of a peer (public key in hex), from an event whose signature was verified.

        Raises KeyNotFoundError, KeyRefusedError, InvalidPeerError, DecryptionError.
        """
        done = Done(owner=owner, key_id=key_id, actor=actor, method=method)
        text, error = await self._transformed(
            done, cipher, peer_pubkey, lambda key: ciphers.decrypt(cipher, payload, key), payload
        )
        if error is not None:
            raise error
        assert text is not None, "one or the other"
        return text

    async def signer(self, owner: str, key_id: str) -> Signer | None:
        """Return the opened key, None when its state does not let it be opened. Raises KeyNotFoundError, SealBrokenError.

        Whoever signs with it does so before it awaits again, because another call may push the key out; and lets the signature out only
        when the use was recorded.
        """
        cached = self._signers.get((owner, key_id))
        if cached is not None:
            return cached
        secret_key = (await self.open(owner, key_id)).secret_key
        if secret_key is None:
            return None
        signer = Signer(secret_key)
        self._signers.put((owner, key_id), signer)
        return signer

    async def open(self, owner: str, key_id: str) -> OpenedKey:
        """Read and open a key; once more when the master key was rotated meanwhile. Raises KeyNotFoundError, SealBrokenError."""
        for _ in range(ROTATIONS_MAX):
            keystore = self._keyring.current
            try:
                stored = await self._store.key_to_open(owner, key_id, keystore.check_value)
            except MasterKeyRotatedError:
                await self._keyring.renew(keystore)
                continue
            if stored is None or stored.key.state(self._clock()) is State.DELETED:
                raise KeyNotFoundError(key_id)
            secret_key = open_usable(keystore, stored, self._clock())
            return OpenedKey(stored=stored, secret_key=secret_key, keystore=keystore)
        raise unavailable("the key store is given new keys all the time")

    def forget(self, owner: str, key_id: str) -> None:
        """Wipe a key, and what was agreed on with it, from this replica's memory."""
        self._signers.remove(lambda name: name == (owner, key_id))
        self._conversations.remove(lambda name: name[:2] == (owner, key_id))

    async def forget_unusable(self) -> None:
        """Wipe the keys that another replica has locked, disabled or deleted, or whose unlocking is over."""
        names = frozenset(self._signers.names()) | {name[:2] for name in self._conversations.names()}
        usable = await self._life.usable(tuple(names), self._clock()) if names else frozenset()
        for owner, key_id in names - usable:
            self.forget(owner, key_id)

    def derived_secret(self, *fields: str) -> SecretBytes:
        """Return 32 bytes that depend on the fields and the lasting keys of the key store alone, so that they need not be kept."""
        return SecretBytes(self._keyring.current.fingerprint(*(field.encode() for field in fields)))

    def close(self) -> None:
        """Wipe the opened keys."""
        self._signers.clear()
        self._conversations.clear()

    async def _taken(self, new: NewKey) -> tuple[SecretBytes | None, KeySecurity]:
        """The private key that was given, decrypted, and what is known of its handling. Raises PasswordWrongError."""
        given = new.secret_key
        if isinstance(given, Encrypted):
            found = await self._passwords.run(new.owner, lambda: nip49.decrypt(given.data, given.password))
            return found.secret_key, found.security
        return given, KeySecurity.SAFE if given is None else KeySecurity.EXPOSED  # an nsec is plain text

    async def _insert(self, key: Key, secret_key: SecretBytes, request: RequestKey) -> tuple[Key, bool]:
        """Seal and store; once more when the master key was rotated meanwhile."""
        for _ in range(ROTATIONS_MAX):
            keystore = self._keyring.current
            sealed = keystore.seal(secret_key, key_id=key.key_id, pubkey=key.pubkey, owner=key.owner)
            try:
                return await self._store.create_key(StoredKey(key=key, sealed=sealed), request, keystore.check_value)
            except MasterKeyRotatedError:
                await self._keyring.renew(keystore)
        raise unavailable("the key store is given new keys all the time")

    async def _use(self, use: Use) -> Used:
        """Have the use decided and recorded. Raises KeyNotFoundError, KeyRefusedError."""
        used = await self._life.use(use)
        if isinstance(used, Used):
            return used
        self.forget(use.done.owner, use.done.key_id)
        if used is None or used is Refusal.DELETED:
            raise KeyNotFoundError(use.done.key_id)
        raise KeyRefusedError(use.done.key_id, used)

    async def _transformed(
        self, done: Done, cipher: Cipher, peer_pubkey: str, transform: Callable[[SecretBytes], str], text: str
    ) -> tuple[str | None, DecryptionError | None]:
        """Encrypt or decrypt, and let it out once the use is recorded."""
        for _ in range(USES_MAX):
            key = await self._agreed_key(done.owner, done.key_id, cipher, peer_pubkey)
            result, error = (None, None) if key is None else await _attempted(transform, key, text)
            outcome = Outcome.DONE if error is None else Outcome.FAILED
            recorded = Done(owner=done.owner, key_id=done.key_id, actor=done.actor, method=done.method, outcome=outcome)
            await self._use(Use(done=recorded, now_us=self._clock()))
            if key is not None:
                return result, error
        raise unavailable("the key is locked and unlocked all the time")

    async def _agreed_key(self, owner: str, key_id: str, cipher: Cipher, peer_pubkey: str) -> SecretBytes | None:
        """What the key and the peer agree on, None when the key's state does not let it be opened. Raises InvalidPeerError."""
        name = (owner, key_id, cipher, peer_pubkey)
        cached = self._conversations.get(name)
        if cached is not None:
            return cached.reveal()
        signer = await self.signer(owner, key_id)
        if signer is None:
            return None
        key = ciphers.agreed_key(cipher, signer.secret_key(), peer_pubkey)
        self._conversations.put(name, AgreedKey(key))
        return key

    def _signed(self, signer: Signer, template: Template, created_at: int) -> Event:
        auxiliary_key = self._keyring.current.auxiliary_key
        return sign_event(signer, template, created_at=created_at, auxiliary_key=auxiliary_key)

    def _request(self, signing: Signing) -> RequestKey:
        template = signing.template
        fields = [signing.key_id, str(template.kind), template.content, str(template.created_at)]
        for tag in template.tags:
            fields += [str(len(tag)), *tag]
        fingerprint = self._keyring.current.fingerprint(*(field.encode() for field in fields))
        return RequestKey(scope=signing.owner, method=signing.method, request_id=signing.request_id, sha256=fingerprint)


async def _attempted(
    transform: Callable[[SecretBytes], str], key: SecretBytes, text: str
) -> tuple[str | None, DecryptionError | None]:
    """Encrypt or decrypt, a long text in a thread. Raises PlaintextError."""
    try:
        if len(text) < THREAD_CHARACTERS_MIN:
            return transform(key), None
        return await asyncio.to_thread(transform, key), None
    except DecryptionError as error:
        return None, error


def _opened(secret_key: SecretBytes | None) -> tuple[Signer, SecretBytes]:
    """Return a signer for the given private key, or for a fresh one. Raises InvalidSecretKeyError."""
    if secret_key is not None:
        return Signer(secret_key), secret_key
    while True:
        fresh = SecretBytes(secrets.token_bytes(bip340.SECRET_KEY_BYTES))
        try:
            return Signer(fresh), fresh
        except InvalidSecretKeyError:
            continue  # 2**-128 of all values are not below the order of the curve

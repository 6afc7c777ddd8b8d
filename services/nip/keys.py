"""The keys that the service holds: making them, showing them to their owner, and signing with them."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from services.chassis.secret import SecretBytes
from services.nip.domain import bip340
from services.nip.domain.bip340 import InvalidSecretKeyError, Signer
from services.nip.domain.event import Event, Template, sign_event
from services.nip.domain.key import Key, StoredKey
from services.nip.domain.keystore import Keystore
from services.nip.domain.signers import SignerCache
from services.nip.store import NipStore
from services.storage.idempotency import RequestKey
from services.storage.ids import new_id

CREATE_KEY: Final = "/nipmesh.nip.v1.NipService/CreateKey"
SIGN_EVENT: Final = "/nipmesh.nip.v1.NipService/SignEvent"
NANOSECONDS_PER_MICROSECOND: Final = 1_000
MICROSECONDS_PER_SECOND: Final = 1_000_000

Clock = Callable[[], int]
"""Microseconds since 1970."""


class KeyNotFoundError(LookupError):
    """The caller owns no key with this id; whether somebody else does is not told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewKey:
    """A key to make for `owner`; `secret_key` None for a fresh one."""

    owner: str
    request_id: str
    display_name: str
    secret_key: SecretBytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Signing:
    """An event to sign with a key of `owner`; `request_id` may be empty only where the template has a time."""

    owner: str
    request_id: str
    key_id: str
    template: Template


def wall_clock() -> int:
    """Return the time in microseconds since 1970."""
    return time.time_ns() // NANOSECONDS_PER_MICROSECOND


class Keys:
    """All that can be done with held keys. Private keys are opened here and leave only as signatures."""

    def __init__(self, store: NipStore, keystore: Keystore, *, clock: Clock = wall_clock) -> None:
        """Share one database and one key file with every other replica."""
        self._store = store
        self._keystore = keystore
        self._signers = SignerCache()
        self._clock = clock

    async def create(self, new: NewKey) -> tuple[Key, bool]:
        """Make or take over a key; the flag tells whether an earlier call with this request_id did.

        Raises InvalidSecretKeyError, KeyAlreadyExistsError and what a reused request_id raises.
        """
        signer, secret_key = _opened(new.secret_key)
        pubkey = signer.public_key.hex()
        key = Key(
            key_id=new_id(),
            owner=new.owner,
            pubkey=pubkey,
            display_name=new.display_name,
            create_time_us=self._clock(),
        )
        sealed = self._keystore.seal(secret_key, key_id=key.key_id, pubkey=pubkey, owner=new.owner)
        source = pubkey if new.secret_key is not None else ""
        fingerprint = self._keystore.fingerprint(new.display_name.encode(), source.encode())
        request = RequestKey(scope=new.owner, method=CREATE_KEY, request_id=new.request_id, sha256=fingerprint)
        return await self._store.create_key(StoredKey(key=key, sealed=sealed), request)

    async def get(self, owner: str, key_id: str) -> Key:
        """Return a key of `owner`. Raises KeyNotFoundError."""
        return (await self._stored(owner, key_id)).key

    async def page(self, owner: str, *, before: str | None, limit: int) -> tuple[Key, ...]:
        """Return at most `limit` keys of `owner`, newest first, older than the one with id `before`."""
        return await self._store.keys_of(owner, before=before, limit=limit)

    async def sign(self, signing: Signing) -> tuple[Event, bool]:
        """Sign; the flag tells whether an earlier call with this request_id did.

        A signature is a function of key, content and time alone. So a call with a time needs no memory, and for
        one with a request_id the time is all that is kept.

        Raises KeyNotFoundError, MalformedEventError and what a reused request_id raises.
        """
        signer = await self._signer(signing.owner, signing.key_id)
        wanted = signing.template.created_at
        created_at = wanted if wanted is not None else self._clock() // MICROSECONDS_PER_SECOND
        event = self._signed(signer, signing.template, created_at)
        if not signing.request_id:
            assert wanted is not None, "the request's rules demand a request_id where there is no time"
            return event, False
        signed_at, replayed = await self._store.signing_time(self._request(signing), created_at)
        if signed_at == created_at:
            return event, replayed
        return self._signed(await self._signer(signing.owner, signing.key_id), signing.template, signed_at), replayed

    def close(self) -> None:
        """Wipe the opened keys."""
        self._signers.clear()

    def _signed(self, signer: Signer, template: Template, created_at: int) -> Event:
        auxiliary_key = self._keystore.auxiliary_key
        return sign_event(signer, template, created_at=created_at, auxiliary_key=auxiliary_key)

    def _request(self, signing: Signing) -> RequestKey:
        template = signing.template
        fields = [signing.key_id, str(template.kind), template.content, str(template.created_at)]
        for tag in template.tags:
            fields += [str(len(tag)), *tag]
        fingerprint = self._keystore.fingerprint(*(field.encode() for field in fields))
        return RequestKey(scope=signing.owner, method=SIGN_EVENT, request_id=signing.request_id, sha256=fingerprint)

    async def _signer(self, owner: str, key_id: str) -> Signer:
        """Return the opened key; the caller signs before it awaits again, because another call may push the key out."""
        cached = self._signers.get((owner, key_id))
        if cached is not None:
            return cached
        stored = await self._stored(owner, key_id)
        secret_key = self._keystore.open(stored.sealed, key_id=key_id, pubkey=stored.key.pubkey, owner=owner)
        signer = Signer(secret_key)
        self._signers.put((owner, key_id), signer)
        return signer

    async def _stored(self, owner: str, key_id: str) -> StoredKey:
        stored = await self._store.key_of(owner, key_id)
        if stored is None:
            raise KeyNotFoundError(key_id)
        return stored


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

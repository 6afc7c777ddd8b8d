"""Connections: made by the key's owner, from a key or from an app's URI; changed and ended by the owner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from nipmesh.nip.v1 import remote_signer_service_pb2 as pb
from services.chassis.errors import Reason, ServiceError, not_found, precondition_failed
from services.chassis.secret import SecretBytes
from services.nip.domain.life import State
from services.nip.domain.remote_signer.connection import Connection, ConnectionState, Will, secret_sha256_of
from services.nip.domain.remote_signer.log import Outcome, Recorded
from services.nip.domain.remote_signer.message import Answer, text_of_answer
from services.nip.domain.remote_signer.permission import Permission
from services.nip.domain.remote_signer.uri import RELAYS_MAX, NostrConnect, bunker_uri
from services.nip.keyring import Keyring
from services.nip.keys import MICROSECONDS_PER_SECOND, Clock, KeyNotFoundError, Keys, wall_clock
from services.nip.remote_signer import announcing, store
from services.nip.remote_signer.signer_keys import SignerKeys
from services.nip.remote_signer.wire import connection_message
from services.nostr.event_json import json_of_event
from services.nostr.relay_url import RelayUrlError, normal_relay_url
from services.storage import sql
from services.storage.database import Database
from services.storage.idempotency import Replay, RequestKey, find, run_once
from services.storage.ids import new_id

MessageT = TypeVar("MessageT", pb.CreateBunkerConnectionResponse, pb.AcceptNostrConnectResponse)

CONNECTIONS_MAX: Final = 1_000
"""Living connections of one owner."""
SECRET_BYTES: Final = 16
"""128 bits: nobody guesses one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """A connection to make. `relays` empty: the service's own; `app`: whose URI is accepted."""

    owner: str
    key_id: str
    display_name: str
    permissions: tuple[Permission, ...]
    relays: tuple[str, ...] = ()
    ttl_us: int | None = None
    app: NostrConnect | None = None


class Connecting:
    """Makes, changes and ends connections."""

    def __init__(
        self,
        database: Database,
        keys: Keys,
        signer_keys: SignerKeys,
        keyring: Keyring,
        relays: Sequence[str],
        *,
        clock: Clock = wall_clock,
    ) -> None:
        """`relays`: the service's own, for connections that name none."""
        self._database = database
        self._keys = keys
        self._signer_keys = signer_keys
        self._keyring = keyring
        self._relays = tuple(relays)
        self._clock = clock

    async def create(self, wish: Wish, key: RequestKey) -> pb.CreateBunkerConnectionResponse:
        """Make a connection for whichever app gets the URI; again: the same one."""
        response = await self._earlier(key, pb.CreateBunkerConnectionResponse) or await self._created(wish, key)
        shown = response.connection
        response.bunker_uri = bunker_uri(shown.signer_pubkey, shown.relay_urls, self._secret(shown.connection_id))
        return response

    async def _created(self, wish: Wish, key: RequestKey) -> pb.CreateBunkerConnectionResponse:
        connection = await self._new(wish)
        connection = replace(connection, secret_sha256=secret_sha256_of(self._secret(connection.connection_id)))
        made = pb.CreateBunkerConnectionResponse(connection=connection_message(connection))
        response, replayed = await self._database.write(
            lambda rows: run_once(
                rows, key, pb.CreateBunkerConnectionResponse, lambda: _inserted(rows, connection, None, made)
            )
        )
        response.replayed = replayed
        return response

    async def accept(self, wish: Wish, key: RequestKey) -> pb.AcceptNostrConnectResponse:
        """Make a connection for the app whose URI this is, with the answer that it waits for."""
        assert wish.app is not None, "the caller's URI"
        earlier = await self._earlier(key, pb.AcceptNostrConnectResponse)
        if earlier is not None:
            return earlier
        now_us = self._clock()
        connection = replace(
            await self._new(replace(wish, relays=wish.app.relays)),
            state=ConnectionState.CONNECTED,
            client_pubkey=wish.app.client_pubkey,
            client=wish.app.client,
            connect_time_us=now_us,
        )
        greeting = await self._greeting(connection, wish.app.secret, now_us)
        made = pb.AcceptNostrConnectResponse(connection=connection_message(connection))
        response, replayed = await self._database.write(
            lambda rows: run_once(
                rows, key, pb.AcceptNostrConnectResponse, lambda: _inserted(rows, connection, greeting, made)
            )
        )
        response.replayed = replayed
        return response

    async def get(self, owner: str, connection_id: str) -> Connection:
        """Return a connection of an owner. Raises SIGNER_CONNECTION_NOT_FOUND."""
        return await self._database.read(lambda rows: owned(rows, owner, connection_id))

    async def update(
        self, owner: str, connection_id: str, permissions: tuple[Permission, ...], key: RequestKey
    ) -> pb.UpdatePermissionsResponse:
        """Replace the permissions. Raises SIGNER_CONNECTION_NOT_FOUND, SIGNER_CONNECTION_ENDED."""
        check_permissions(permissions)
        now_us = self._clock()

        def effect(rows: sql.Connection) -> pb.UpdatePermissionsResponse:
            connection = owned(rows, owner, connection_id)
            if not connection.lives(now_us):
                raise precondition_failed(
                    Reason.SIGNER_CONNECTION_ENDED, "the connection has ended", subject=connection_id
                )
            changed = replace(connection, permissions=permissions)
            store.update_connection(rows, changed, noticed=False)
            return pb.UpdatePermissionsResponse(connection=connection_message(changed))

        response, replayed = await self._database.write(
            lambda rows: run_once(rows, key, pb.UpdatePermissionsResponse, lambda: effect(rows))
        )
        response.replayed = replayed
        return response

    async def revoke(self, owner: str, connection_id: str, key: RequestKey) -> pb.RevokeSignerConnectionResponse:
        """End a connection. Raises SIGNER_CONNECTION_NOT_FOUND."""

        def effect(rows: sql.Connection) -> pb.RevokeSignerConnectionResponse:
            connection = owned(rows, owner, connection_id)
            if connection.state in (ConnectionState.PENDING, ConnectionState.CONNECTED):
                connection = replace(connection, state=ConnectionState.REVOKED)
                store.update_connection(rows, connection, noticed=True)
                store.revoke(rows, connection)
                announcing.announce_connection(rows, announcing.REVOKED, connection)
            return pb.RevokeSignerConnectionResponse(connection=connection_message(connection))

        response, replayed = await self._database.write(
            lambda rows: run_once(rows, key, pb.RevokeSignerConnectionResponse, lambda: effect(rows))
        )
        response.replayed = replayed
        return response

    async def _earlier(self, key: RequestKey, kind: type[MessageT]) -> MessageT | None:
        """The answer to the same request, before another key is made for nothing."""
        found = await self._database.read(lambda rows: find(rows, key))
        if not isinstance(found, Replay):
            return None
        response = kind.FromString(found.response)
        response.replayed = True
        return response

    async def _new(self, wish: Wish) -> Connection:
        """A connection that nobody knows yet, with a key of its own. Raises KeyNotFoundError and what is wrong with the wish."""
        check_permissions(wish.permissions)
        relays = checked_relays(wish.relays or self._relays)
        now_us = self._clock()
        key = await self._keys.get(wish.owner, wish.key_id)
        if key.state(now_us) is State.DELETED:
            raise KeyNotFoundError(wish.key_id)
        if key.state(now_us) is State.DISABLED:
            raise precondition_failed(Reason.KEY_NOT_ACTIVE, "the key is switched off", subject=wish.key_id)
        connection_id = new_id()
        signer_key_id, signer_pubkey = await self._signer_keys.create(connection_id)
        return Connection(
            connection_id=connection_id,
            owner=wish.owner,
            key_id=wish.key_id,
            user_pubkey=key.pubkey,
            signer_key_id=signer_key_id,
            signer_pubkey=signer_pubkey,
            state=ConnectionState.PENDING,
            create_time_us=now_us,
            display_name=wish.display_name,
            permissions=wish.permissions,
            relays=relays,
            expire_time_us=None if wish.ttl_us is None else now_us + wish.ttl_us,
        )

    def _secret(self, connection_id: str) -> str:
        """The secret of a bunker:// URI: from the key store's own key, so that it is stored nowhere and the same when asked again."""
        return self._keyring.current.fingerprint(b"nip46 secret", connection_id.encode())[:SECRET_BYTES].hex()

    async def _greeting(self, connection: Connection, secret: SecretBytes, now_us: int) -> Recorded:
        """The answer to an app's URI, as a request that needs only to be published."""
        request_id = new_id()
        text = text_of_answer(request_id, Answer(result=secret.reveal().decode()))
        created_at = now_us // MICROSECONDS_PER_SECOND
        event = await self._signer_keys.event(connection, connection.client_pubkey, text, created_at=created_at)
        return Recorded(
            approval_id=request_id,
            connection_id=connection.connection_id,
            owner=connection.owner,
            client_pubkey=connection.client_pubkey,
            request_id=request_id,
            method="connect",
            kind=None,
            outcome=Outcome.DONE,
            will=Will.UNSAID,
            message=None,
            message_time_s=created_at,
            relay=connection.relays[0],
            answer=json_of_event(event),
            unpublished=True,
            attempts=1,
            create_time_us=now_us,
            update_time_us=now_us,
        )


def owned(rows: sql.Connection, owner: str, connection_id: str) -> Connection:
    """Return a connection of an owner. Raises SIGNER_CONNECTION_NOT_FOUND."""
    connection = store.find_connection(rows, connection_id)
    if connection is None or connection.owner != owner:
        raise not_found(Reason.SIGNER_CONNECTION_NOT_FOUND, "connection")
    return connection


def check_permissions(permissions: Sequence[Permission]) -> None:
    """Raise REMOTE_SIGNER_PERMISSIONS_INVALID when two of them say how the same is handled."""
    names = [(one.method, one.kind, one.effect) for one in permissions]
    if len(set(names)) < len(names):
        raise ServiceError(Reason.REMOTE_SIGNER_PERMISSIONS_INVALID, "the same permission stands there twice")


def checked_relays(urls: Sequence[str]) -> tuple[str, ...]:
    """Return the relays' URLs in normal form. Raises REMOTE_SIGNER_RELAY_INVALID."""
    try:
        relays = tuple(dict.fromkeys(normal_relay_url(url) for url in urls))
    except RelayUrlError as error:
        raise ServiceError(Reason.REMOTE_SIGNER_RELAY_INVALID, str(error)) from error
    if not 0 < len(relays) <= RELAYS_MAX:
        raise ServiceError(Reason.REMOTE_SIGNER_RELAY_INVALID, f"name 1 to {RELAYS_MAX} relays")
    return relays


def _inserted(rows: sql.Connection, connection: Connection, greeting: Recorded | None, made: MessageT) -> MessageT:
    """Insert a connection, with its greeting. Raises TOO_MANY_SIGNER_CONNECTIONS."""
    if store.count_connections(rows, connection.owner) >= CONNECTIONS_MAX:
        raise ServiceError(
            Reason.TOO_MANY_SIGNER_CONNECTIONS, f"at most {CONNECTIONS_MAX} connections at once; revoke one first"
        )
    store.insert_connection(rows, connection)
    if greeting is not None:
        store.insert_request(rows, greeting, "", 0)
        announcing.announce_connection(rows, announcing.CONNECTED, connection)
        announcing.announce_request(rows, announcing.RESPONSE, greeting)
    return made

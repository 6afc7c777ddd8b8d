"""Making, changing and ending connections, for their owners."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from nipmesh.nip.v1 import wallet_connect_service_pb2 as pb
from nipmesh.payment.v1 import payment_pb2
from services.chassis.errors import (
    FieldViolation,
    InvalidRequest,
    Reason,
    ServiceError,
    dependency_failed,
    not_found,
    precondition_failed,
)
from services.chassis.secret import SecretBytes
from services.nip.domain.nip47 import budget
from services.nip.domain.nip47.budget import Usage
from services.nip.domain.nip47.connection import Terms, WalletConnection
from services.nip.domain.nip47.uri import connection_uri
from services.nip.wallet import store
from services.nip.wallet.backend import Backend, CallRefusedError, NoAnswerError
from services.nip.wallet.tasks import Task, TaskKind, add_task
from services.nip.wallet.vault import Vault
from services.nip.wallet.wire import connection_message
from services.nostr.bip340 import Signer
from services.nostr.relay_url import RelayUrlError, normal_relay_url
from services.storage.database import Database
from services.storage.idempotency import Replay, RequestKey, find, run_once
from services.storage.ids import new_id
from services.storage.sql import Connection

CONNECTIONS_MAX: Final = 100
"""Live connections of one user: far more than apps, and a bound on what each event of an account leads to."""
CHANGE_MS_MIN: Final = 1_000
"""Changes of one connection are dated at least a second apart: its info event is replaceable, and a newer one must be newer by the clock of
Nostr, which has whole seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewConnection:
    """What an owner asks for."""

    owner_pubkey: str
    account_id: str
    display_name: str
    terms: Terms
    relays: Sequence[str]


class Connections:
    """What owners do with their connections."""

    def __init__(
        self,
        database: Database,
        vault: Vault,
        backend: Backend,
        relays: tuple[str, ...],
        clock: Callable[[], int],
        listen: Callable[[Sequence[str]], Awaitable[None]],
    ) -> None:
        """`relays`: those that the operator lets wallets use; `clock`: milliseconds since 1970.

        `listen` waits until a new connection is listened for at its relays.
        """
        self._database = database
        self._vault = vault
        self._backend = backend
        self._relays = relays
        self._clock = clock
        self._listen = listen

    async def create(self, new: NewConnection, key: RequestKey) -> pb.CreateWalletConnectionResponse:
        """Make a connection and say its URI. Raises ServiceError."""
        relays = self._allowed(new.relays)
        response = await self._made(key)
        if response is None:
            await self._check_account(new.owner_pubkey, new.account_id)
            response = await self._insert(new, relays, key)
        await self._listen(response.connection.relays)
        await self._add_uri(response, new.owner_pubkey, key.request_id)
        return response

    async def get(self, owner_pubkey: str, connection_id: str) -> pb.WalletConnection:
        """One connection, its usage that of now. Raises WALLET_CONNECTION_NOT_FOUND."""
        now_ms = self._clock()
        return await self._database.read(
            lambda connection: _shown(connection, _owned(connection, owner_pubkey, connection_id), now_ms)
        )

    async def page(self, owner_pubkey: str, before: str | None, limit: int) -> list[pb.WalletConnection]:
        """At most `limit` connections, newest first, older than the one with id `before`."""
        now_ms = self._clock()

        def work(connection: Connection) -> list[pb.WalletConnection]:
            found = store.connections_of_owner(connection, owner_pubkey, before, limit)
            return [_shown(connection, each, now_ms) for each in found]

        return await self._database.read(work)

    async def update(
        self, owner_pubkey: str, connection_id: str, terms: Terms, key: RequestKey
    ) -> pb.UpdateWalletConnectionResponse:
        """Replace the terms. Raises WALLET_CONNECTION_NOT_FOUND, WALLET_CONNECTION_REVOKED."""
        now_ms = self._clock()

        def effect(connection: Connection) -> pb.UpdateWalletConnectionResponse:
            before = _owned(connection, owner_pubkey, connection_id)
            if before.revoke_time_ms is not None:
                message = "the wallet connection was revoked: make another"
                raise precondition_failed(Reason.WALLET_CONNECTION_REVOKED, message, subject=connection_id)
            start_ms = budget.period_start_ms(terms.budget.renewal, now_ms)
            usage = store.sum_usage(connection, connection_id, start_ms)
            after = _change(connection, replace(before, terms=terms, usage=usage), now_ms)
            return pb.UpdateWalletConnectionResponse(connection=connection_message(after, now_ms))

        response, replayed = await self._database.write(
            lambda connection: run_once(connection, key, pb.UpdateWalletConnectionResponse, lambda: effect(connection))
        )
        response.replayed = replayed
        return response

    async def revoke(self, owner_pubkey: str, connection_id: str, key: RequestKey) -> pb.RevokeWalletConnectionResponse:
        """End a connection. Raises WALLET_CONNECTION_NOT_FOUND."""
        now_ms = self._clock()

        def effect(connection: Connection) -> pb.RevokeWalletConnectionResponse:
            after = _owned(connection, owner_pubkey, connection_id)
            if after.revoke_time_ms is None:
                after = _change(connection, replace(after, revoke_time_ms=now_ms), now_ms)
            return pb.RevokeWalletConnectionResponse(connection=_shown(connection, after, now_ms))

        response, replayed = await self._database.write(
            lambda connection: run_once(connection, key, pb.RevokeWalletConnectionResponse, lambda: effect(connection))
        )
        response.replayed = replayed
        return response

    def _allowed(self, wished: Sequence[str]) -> tuple[str, ...]:
        """The relays of a connection. An owner names only the operator's: the mesh does not connect to wherever a user wants."""
        if not self._relays:
            message = "the mesh has no relays for wallets: its operator names them in NIPMESH_WALLET_RELAYS"
            raise ServiceError(Reason.WALLET_RELAYS_NOT_CONFIGURED, message)
        try:
            relays = tuple(dict.fromkeys(normal_relay_url(relay) for relay in wished))
        except RelayUrlError as error:
            raise InvalidRequest(FieldViolation(field="relays", description=str(error))) from error
        if not set(relays) <= set(self._relays):
            message = f"the relays of this mesh are {', '.join(self._relays)}"
            raise ServiceError(Reason.WALLET_RELAY_NOT_ALLOWED, message)
        return relays or self._relays

    async def _check_account(self, owner_pubkey: str, account_id: str) -> None:
        try:
            account = await self._backend.account(owner_pubkey, account_id)
        except CallRefusedError as refused:
            if refused.reason != Reason.ACCOUNT_NOT_FOUND:
                raise dependency_failed("the payment service does not answer") from refused
            raise not_found(Reason.ACCOUNT_NOT_FOUND, "account") from refused
        except NoAnswerError as error:
            raise dependency_failed("the payment service does not answer") from error
        if account.state == payment_pb2.Account.STATE_CLOSED:
            raise not_found(Reason.ACCOUNT_NOT_FOUND, "account")

    async def _made(self, key: RequestKey) -> pb.CreateWalletConnectionResponse | None:
        """What an earlier call with this request_id made."""
        earlier = await self._database.read(lambda connection: find(connection, key))
        if not isinstance(earlier, Replay):
            return None
        response = pb.CreateWalletConnectionResponse.FromString(earlier.response)
        response.replayed = True
        return response

    async def _insert(
        self, new: NewConnection, relays: tuple[str, ...], key: RequestKey
    ) -> pb.CreateWalletConnectionResponse:
        now_ms, connection_id = self._clock(), new_id()
        wallet_key = await self._vault.create(connection_id)
        secret = self._vault.client_secret(new.owner_pubkey, key.request_id, connection_id)
        made = WalletConnection(
            connection_id=connection_id,
            owner_pubkey=new.owner_pubkey,
            account_id=new.account_id,
            display_name=new.display_name,
            key_id=wallet_key.key_id,
            service_pubkey=wallet_key.pubkey,
            client_pubkey=_public_key(secret),
            relays=relays,
            terms=new.terms,
            usage=Usage(period_start_ms=budget.period_start_ms(new.terms.budget.renewal, now_ms)),
            revision=1,
            create_time_ms=now_ms,
            update_time_ms=now_ms,
        )

        def effect(connection: Connection) -> pb.CreateWalletConnectionResponse:
            if store.count_live(connection, new.owner_pubkey, now_ms) >= CONNECTIONS_MAX:
                message = f"{CONNECTIONS_MAX} wallet connections are live: revoke one"
                raise ServiceError(Reason.TOO_MANY_WALLET_CONNECTIONS, message)
            store.insert_connection(connection, made)
            _announce(connection, made, now_ms)
            return pb.CreateWalletConnectionResponse(connection=connection_message(made, now_ms))

        response, replayed = await self._database.write(
            lambda connection: run_once(connection, key, pb.CreateWalletConnectionResponse, lambda: effect(connection))
        )
        response.replayed = replayed
        return response

    async def _add_uri(self, response: pb.CreateWalletConnectionResponse, owner_pubkey: str, request_id: str) -> None:
        """The URI, until the app has used it; none when the key store was rotated since, which derives other secrets."""
        connection_id = response.connection.connection_id
        secret = self._vault.client_secret(owner_pubkey, request_id, connection_id)
        found = await self._database.read(
            lambda connection: store.find_connection(connection, "connection_id", connection_id)
        )
        assert found is not None, "connections are never deleted"
        unused = found.use_time_ms is None and found.revoke_time_ms is None
        if unused and _public_key(secret) == found.client_pubkey:
            response.uri = connection_uri(found.service_pubkey, found.relays, secret)


def _public_key(secret: SecretBytes) -> str:
    return Signer(secret).public_key.hex()


def _owned(connection: Connection, owner_pubkey: str, connection_id: str) -> WalletConnection:
    """Raise WALLET_CONNECTION_NOT_FOUND, whether it is someone else's or nobody's."""
    found = store.find_connection(connection, "connection_id", connection_id.lower())
    if found is None or found.owner_pubkey != owner_pubkey:
        raise not_found(Reason.WALLET_CONNECTION_NOT_FOUND, "wallet connection")
    return found


def _shown(connection: Connection, found: WalletConnection, now_ms: int) -> pb.WalletConnection:
    """A connection with the usage of the period that runs."""
    return connection_message(replace(found, usage=store.usage_at(connection, found, now_ms)), now_ms)


def _change(connection: Connection, changed: WalletConnection, now_ms: int) -> WalletConnection:
    """Store a change and have it announced."""
    update_time_ms = max(now_ms, changed.update_time_ms + CHANGE_MS_MIN)
    after = replace(changed, revision=changed.revision + 1, update_time_ms=update_time_ms)
    store.store_terms(connection, after)
    _announce(connection, after, now_ms)
    return after


def _announce(connection: Connection, changed: WalletConnection, now_ms: int) -> None:
    """Have the connection's info event published."""
    task = Task(
        task_id=f"info:{changed.connection_id}:{changed.revision}",
        connection_id=changed.connection_id,
        kind=TaskKind.INFO,
        input=str(changed.revision),
        next_run_ms=now_ms,
        create_time_ms=now_ms,
    )
    add_task(connection, task)

"""A connection of an app to an account, and what it may do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from services.nip.domain.nip47.budget import Budget, Usage
from services.nip.domain.nip47.words import Code, Failure, Method, Topic

KEY_OWNER_PREFIX: Final = "wallet:"
"""Before a connection's id: the owner of its key among the held keys. Neither a public key nor a SPIFFE id, so that nobody else is it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What an app may do; `expire_time_ms` None: for ever."""

    methods: tuple[Method, ...]
    topics: tuple[Topic, ...] = ()
    budget: Budget
    expire_time_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WalletConnection:
    """A connection as it is stored. `revision` counts changes of the terms; times in milliseconds since 1970."""

    connection_id: str
    owner_pubkey: str
    account_id: str
    display_name: str
    key_id: str
    service_pubkey: str
    client_pubkey: str
    relays: tuple[str, ...]
    terms: Terms
    usage: Usage
    revision: int
    create_time_ms: int
    update_time_ms: int
    revoke_time_ms: int | None = None
    use_time_ms: int | None = None

    @property
    def key_owner(self) -> str:
        """Whose the wallet's key of this connection is, among the held keys."""
        return KEY_OWNER_PREFIX + self.connection_id

    def is_live(self, now_ms: int) -> bool:
        """Whether its app may ask for anything."""
        expire_time_ms = self.terms.expire_time_ms
        return self.revoke_time_ms is None and (expire_time_ms is None or now_ms < expire_time_ms)


def authorize(connection: WalletConnection, client_pubkey: str, now_ms: int) -> None:
    """Check who asks. Raises Failure UNAUTHORIZED: "This public key has no wallet connected"."""
    if client_pubkey != connection.client_pubkey or not connection.is_live(now_ms):
        raise Failure(Code.UNAUTHORIZED, "this public key has no wallet connected")


def permit(connection: WalletConnection, method: Method) -> None:
    """Check what is asked for. Raises Failure RESTRICTED."""
    if method not in connection.terms.methods:
        raise Failure(Code.RESTRICTED, f"the connection may not {method}")

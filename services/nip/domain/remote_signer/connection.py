"""The life of a connection, and what is done with a request that comes over it.

| state | request | by whom | what is done |
|---|---|---|---|
| PENDING | connect, right secret | anyone | CONNECTED with that app; "ack" |
| PENDING | anything else | anyone | nothing: silence |
| CONNECTED | connect | the app | "ack" again, whatever the secret |
| CONNECTED | get_public_key, ping, switch_relays | the app | answered |
| CONNECTED | logout | the app | LOGGED_OUT; "ack" |
| CONNECTED | a method that uses the key | the app | by its permissions: done, refused, or its user is asked |
| CONNECTED | another method | the app | an error |
| CONNECTED | anything | another | silence: the secret is used |
| REVOKED, LOGGED_OUT, over | anything | anyone | silence |
"""

from __future__ import annotations

import enum
import hashlib
import hmac
from dataclasses import dataclass, field, replace
from typing import Final

from services.nip.domain.remote_signer.message import Client, Request, client_of, kind_of
from services.nip.domain.remote_signer.permission import Effect, Permission, counted, deciding

DENIED: Final = "this is not permitted"
UNKNOWN_METHOD: Final = "the signer does not know this method"


class ConnectionState(enum.StrEnum):
    """See the module; the last two are terminal."""

    PENDING = "PENDING"
    CONNECTED = "CONNECTED"
    REVOKED = "REVOKED"
    LOGGED_OUT = "LOGGED_OUT"


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """A connection as it is stored; times in microseconds since 1970, keys in hex. `client_pubkey` is empty until it is CONNECTED."""

    connection_id: str
    owner: str
    key_id: str
    user_pubkey: str
    signer_key_id: str
    signer_pubkey: str
    state: ConnectionState
    create_time_us: int
    client_pubkey: str = ""
    secret_sha256: bytes = b""
    display_name: str = ""
    client: Client = field(default_factory=Client)
    permissions: tuple[Permission, ...] = ()
    relays: tuple[str, ...] = ()
    connect_time_us: int | None = None
    expire_time_us: int | None = None

    def lives(self, now_us: int) -> bool:
        """Whether anything may come over it."""
        ended = self.state in (ConnectionState.REVOKED, ConnectionState.LOGGED_OUT)
        return not ended and (self.expire_time_us is None or now_us < self.expire_time_us)


class Step(enum.Enum):
    """What is done with a request."""

    IGNORE = "ignore"
    CONNECT = "connect"
    ACKNOWLEDGE = "acknowledge"
    PUBLIC_KEY = "public_key"
    PONG = "pong"
    RELAYS = "relays"
    LOGOUT = "logout"
    PERFORM = "perform"
    ASK = "ask"
    REFUSE = "refuse"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What is done; `permission`: the one that allowed it."""

    step: Step
    permission: Permission | None = None


class Will(enum.StrEnum):
    """What the user said about one request."""

    UNSAID = ""
    ALLOW = "allow"
    DENY = "deny"


_OPEN: Final = {
    "connect": Step.ACKNOWLEDGE,
    "get_public_key": Step.PUBLIC_KEY,
    "ping": Step.PONG,
    "switch_relays": Step.RELAYS,
    "logout": Step.LOGOUT,
}
"""What needs no permission, once connected."""


def secret_sha256_of(secret: str) -> bytes:
    """What is stored of a secret: with 128 random bits in it a plain hash tells nothing."""
    return hashlib.sha256(secret.encode()).digest()


def decide(
    connection: Connection, client_pubkey: str, request: Request, now_us: int, will: Will = Will.UNSAID
) -> Decision:
    """Return what is done with a request of `client_pubkey`, whose signature was verified."""
    if not connection.lives(now_us):
        return Decision(step=Step.IGNORE)
    if connection.state is ConnectionState.PENDING:
        return Decision(step=Step.CONNECT if _opens(connection, request) else Step.IGNORE)
    if client_pubkey != connection.client_pubkey:
        return Decision(step=Step.IGNORE)
    if request.method in _OPEN:
        return Decision(step=_OPEN[request.method])
    if request.key_method is None:
        return Decision(step=Step.UNKNOWN)
    return _by_permission(connection, request, now_us, will)


def after(connection: Connection, decision: Decision, client_pubkey: str, request: Request, now_us: int) -> Connection:
    """Return the connection after what was decided was done."""
    match decision.step:
        case Step.CONNECT:
            return replace(
                connection,
                state=ConnectionState.CONNECTED,
                client_pubkey=client_pubkey,
                client=client_of(request),
                connect_time_us=now_us,
            )
        case Step.LOGOUT:
            return replace(connection, state=ConnectionState.LOGGED_OUT)
        case Step.PERFORM if decision.permission is not None:
            return replace(connection, permissions=counted(connection.permissions, decision.permission))
        case _:
            return connection


def _opens(connection: Connection, request: Request) -> bool:
    """Whether this is the connect that the URI was made for."""
    given = secret_sha256_of(request.param(1))
    secret_is_right = bool(connection.secret_sha256) and hmac.compare_digest(given, connection.secret_sha256)
    return request.method == "connect" and request.param(0).lower() == connection.signer_pubkey and secret_is_right


def _by_permission(connection: Connection, request: Request, now_us: int, will: Will) -> Decision:
    """The user's word on this request comes before the permissions, but not before one that denies by now."""
    assert request.key_method is not None, "looked at before"
    permission = deciding(connection.permissions, request.key_method, kind_of(request), now_us)
    if will is Will.DENY or permission is None or permission.effect is Effect.DENY:
        return Decision(step=Step.REFUSE)
    if permission.effect is Effect.ALLOW:
        return Decision(step=Step.PERFORM, permission=permission)
    return Decision(step=Step.PERFORM if will is Will.ALLOW else Step.ASK)

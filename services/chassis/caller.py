"""Who calls, and what they may: the caller of the running RPC, access rules per method, and how long the call has left.

The callee's sidecar sets `x-forwarded-client-cert` from the peer's certificate, and only the sidecar can reach our socket: the peer's
SPIFFE id is a fact. Claims of the user's token are believed only when that peer is the gateway, which verified the token.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import ClassVar, Final

from services.chassis.errors import Reason, ServiceError

PEER_HEADER: Final = "x-forwarded-client-cert"
"""Set by the sidecar (SANITIZE_SET): one element with the peer's `URI`."""
OPERATOR: Final = "operator"
"""The role that LedgerService and other operators' methods need."""
CALLERS_KEPT_MAX: Final = 1_024
"""Callers whose headers need not be read again; about 1 KiB each."""
_SUBJECT: Final = re.compile(r"[0-9a-f]{64}\Z")
_EXPIRE_TIME: Final = re.compile(r"[0-9]{1,11}(\.[0-9]{1,9})?\Z")
_PAIR: Final = re.compile(r'([A-Za-z]+)=("(?:[^"\\]|\\.)*"|[^;,"]*)')
_ELEMENT: Final = re.compile(rf"{_PAIR.pattern}(?:;{_PAIR.pattern})*")
_SPIFFE: Final = re.compile(r"spiffe://[a-z0-9._-]{1,255}(/[A-Za-z0-9._-]{1,255}){1,8}\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who makes the running call.

    `peer` is the SPIFFE id of the calling workload ("" when there is none: then nothing is believed). `service` is the service's name
    when the peer is one of this mesh. `subject` (64 hex: the user's public key), `roles` and `expire_time_s` (seconds since 1970; None:
    not told) come from the token, through the gateway. `agent`: what acts for the subject, when it is not the user who calls; see
    `acting_for`.
    """

    peer: str = ""
    service: str = ""
    gateway: bool = False
    subject: str = ""
    roles: frozenset[str] = frozenset()
    expire_time_s: float | None = None
    agent: str = ""

    @property
    def scope(self) -> str:
        """Whose idempotency keys and page tokens these are: the token's subject, else the SPIFFE id; an agent's are its own."""
        return f"{self.agent}:{self.subject}" if self.agent else self.subject or self.peer

    @property
    def operator(self) -> bool:
        """Whether the token has the operator's role."""
        return OPERATOR in self.roles


ANONYMOUS: Final = Caller()
"""Nobody: outside a call, or a call without the sidecar's header."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identities:
    """What the mesh calls its members: needed to read the caller from metadata."""

    trust_domain: str
    gateway: str
    subject_header: str = "x-nipmesh-subject"
    role_header: str = "x-nipmesh-role"
    expire_time_header: str = "x-nipmesh-token-expire-time"

    def caller(self, metadata: Iterable[tuple[str, str | bytes]]) -> Caller:
        """The caller that the metadata of a call proves. A header that is there twice proves nothing."""
        names = (PEER_HEADER, self.subject_header, self.role_header, self.expire_time_header)
        values: dict[str, list[str]] = {name: [] for name in names}
        for key, value in metadata:
            if key in values and isinstance(value, str):
                values[key].append(value)
        return _caller(self, *(tuple(values[name]) for name in names))

    def service(self, peer: str) -> str:
        """The name in `spiffe://<trust domain>/service/<name>`, or ""."""
        prefix = f"spiffe://{self.trust_domain}/service/"
        name = peer.removeprefix(prefix)
        return name if peer.startswith(prefix) and "/" not in name else ""


Values = tuple[str, ...]
"""All values of one header."""


@functools.lru_cache(CALLERS_KEPT_MAX)
def _caller(identities: Identities, peers: Values, subjects: Values, roles: Values, expire_times: Values) -> Caller:
    """Who says so, with these headers and no others: the same ones come with each call of a connection or a token."""
    peer = _peer(peers)
    if peer != identities.gateway or not peer:
        return Caller(peer=peer, service=identities.service(peer))
    return _user(peer, subjects, roles, expire_times) or Caller(peer=peer, gateway=True)


def _user(gateway: str, subjects: Values, roles: Values, expire_times: Values) -> Caller | None:
    """Whom the claims name that the gateway sent; None when one of them is not what the gateway writes."""
    subject, expire_time = _single(subjects), _single(expire_times)
    if _SUBJECT.match(subject) is None or (expire_times and _EXPIRE_TIME.match(expire_time) is None):
        return None
    return Caller(
        peer=gateway,
        gateway=True,
        subject=subject,
        roles=frozenset(re.split(r"[\s,]+", _single(roles))) - {""},
        expire_time_s=float(expire_time) if expire_times else None,
    )


def _single(values: Sequence[str]) -> str:
    """The only value, or ""."""
    return values[0] if len(values) == 1 else ""


def _peer(values: Values) -> str:
    """The SPIFFE id of an x-forwarded-client-cert header with exactly one element and one URI, else "".

    Two elements (a comma) mean that somebody forwarded the header instead of our sidecar setting it.
    """
    header = _single(values)
    if _ELEMENT.fullmatch(header) is None:
        return ""
    uri = _single([value.strip('"') for key, value in _PAIR.findall(header) if key.lower() == "uri"])
    return uri if _SPIFFE.match(uri) else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallInfo:
    """What is known about the running call. `deadline_s` is on time.monotonic()'s clock; None: no deadline."""

    method: str = ""
    caller: Caller = ANONYMOUS
    deadline_s: float | None = None


OUTSIDE: Final = CallInfo()
_current: ContextVar[CallInfo] = ContextVar("nipmesh_call", default=OUTSIDE)


def current_call() -> CallInfo:
    """The running call; outside one (background tasks) an empty one."""
    return _current.get()


def current_caller() -> Caller:
    """Who makes the running call; ANONYMOUS outside a call."""
    return _current.get().caller


def set_current_call(call: CallInfo) -> None:
    """Say which call this context runs (the interceptor, and tests)."""
    _current.set(call)


@contextmanager
def acting_for(subject: str, *, agent: str, method: str) -> Iterator[None]:
    """Run what a user's `method` ("/package.Service/Method") does, for the user `subject` (64 hex), who does not call.

    Only for a service that lets nobody but a trusted peer say whom it acts for. The user's rows are seen, and no operator's; ids of
    requests and page tokens have a scope of their own, "<agent>:<subject>". Peer and deadline stay those of the running call.
    """
    assert _SUBJECT.match(subject) is not None, "the request's rules demand a public key"
    assert agent, "who acts has a name"
    call = current_call()
    caller = Caller(peer=call.caller.peer, service=call.caller.service, subject=subject, agent=agent)
    before = _current.set(CallInfo(method=method, caller=caller, deadline_s=call.deadline_s))
    try:
        yield
    finally:
        _current.reset(before)


def remaining_s() -> float | None:
    """Seconds until the running call's deadline, at least 0; None when there is none."""
    deadline_s = _current.get().deadline_s
    return None if deadline_s is None else max(0.0, deadline_s - time.monotonic())


def require_subject() -> str:
    """The user's public key (64 hex). Raises NOT_AUTHENTICATED."""
    caller = current_caller()
    if not caller.subject:
        raise ServiceError(Reason.NOT_AUTHENTICATED, "the method needs an access token")
    return caller.subject


def require_peer(*services: str) -> str:
    """The calling service's name, one of `services`. Raises CALLER_NOT_ALLOWED, or NOT_AUTHENTICATED without a peer."""
    caller = current_caller()
    SERVICE(*services).check(caller)
    return caller.service


def require_operator() -> str:
    """The operator's public key (64 hex). Raises OPERATOR_REQUIRED or NOT_AUTHENTICATED."""
    caller = current_caller()
    Access.OPERATOR.check(caller)
    return caller.subject


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Who may call a method; combine with `|`: `Access.USER | SERVICE("payment")`. Checked before the servicer sees the request."""

    public: bool = False
    user: bool = False
    operator: bool = False
    services: frozenset[str] = field(default_factory=frozenset)

    PUBLIC: ClassVar[Access]
    """Anyone who reaches us; only for Login, health and reflection."""
    USER: ClassVar[Access]
    """A user with a token, through the gateway."""
    OPERATOR: ClassVar[Access]
    """A user whose token has the operator's role."""

    def __or__(self, other: Access) -> Access:
        """Either is enough."""
        return Access(
            public=self.public or other.public,
            user=self.user or other.user,
            operator=self.operator or other.operator,
            services=self.services | other.services,
        )

    def check(self, caller: Caller) -> None:
        """Raise NOT_AUTHENTICATED, OPERATOR_REQUIRED or CALLER_NOT_ALLOWED when the caller may not."""
        if self._allows(caller):
            return
        if not caller.peer or (caller.gateway and not caller.subject and (self.user or self.operator)):
            raise ServiceError(Reason.NOT_AUTHENTICATED, "the method needs an access token")
        if self.operator and caller.subject:
            raise ServiceError(Reason.OPERATOR_REQUIRED, "only an operator may do this")
        raise ServiceError(Reason.CALLER_NOT_ALLOWED, "the calling workload may not call this method")

    def _allows(self, caller: Caller) -> bool:
        """Whether any of the ways in is open to the caller."""
        by_token = bool(caller.subject) and (self.user or (self.operator and caller.operator))
        return self.public or by_token or (bool(caller.service) and caller.service in self.services)


Access.PUBLIC = Access(public=True)
Access.USER = Access(user=True)
Access.OPERATOR = Access(operator=True)
DENIED: Final = Access()
"""Nobody: what holds for a method that the table does not name."""


def SERVICE(*names: str) -> Access:  # reads as one of the constants beside it
    """The services of this mesh with these names, under their own SPIFFE ids."""
    return Access(services=frozenset(names))


AccessTable = Mapping[str, Access]
"""Full method name ("/nipmesh.nip.v1.NipService/GetKey") -> who may call it. Default deny; the server refuses to start on a gap."""

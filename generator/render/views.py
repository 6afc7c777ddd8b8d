"""What templates see: small flat values, decided before. Times are milliseconds."""

from __future__ import annotations

from dataclasses import dataclass

from generator.model import Address, UnixAddress

SOCKET_MODE = 0o600


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressView:
    """A Unix socket (`path`, and `mode` where Envoy makes it) or a TCP address."""

    path: str | None
    mode: int | None
    host: str | None
    port: int | None


def address_view(address: Address, *, listens: bool = False) -> AddressView:
    """View an address; `listens`: Envoy makes the socket, for its owner only."""
    if isinstance(address, UnixAddress):
        return AddressView(path=str(address.path), mode=SOCKET_MODE if listens else None, host=None, port=None)
    return AddressView(path=None, mode=None, host=address.host, port=address.port)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long a call may take (None: for ever) and be silent (0: the duration bounds it)."""

    duration_ms: int | None
    idle_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HeaderMatch:
    """A response header whose value means that another attempt is allowed."""

    name: str
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryView:
    """When and how often another attempt is made."""

    retry_on: str
    headers: tuple[HeaderMatch, ...]
    attempts_max: int
    host_choices_max: int
    backoff_base_ms: int
    backoff_ms_max: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CallView:
    """One method on its way to a service."""

    path: str
    cluster: str
    authority: str
    limits: Limits
    grpc_timeout: str | None
    """The `grpc-timeout` for callers that name none."""
    retry: RetryView | None
    is_public: bool
    """Needs no token (of the gateway's routes)."""
    is_stream: bool
    """May stay open; counts against the breaker of streams."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerView:
    """How many calls of one of Envoy's two priorities may run at once."""

    priority: str
    requests_max: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrivingCall:
    """One method on its way to the application."""

    path: str
    limits: Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class CallerView:
    """A peer and the paths that it may call."""

    name: str
    identity: str
    paths: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CountedService:
    """A protobuf service whose calls are counted per method."""

    name: str
    methods: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FileView:
    """A resource of its own file."""

    name: str
    file: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretsView:
    """Where a TLS context finds its own certificate and whom it trusts."""

    leaf: FileView
    authority: FileView


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointView:
    """One replica."""

    name: str
    host: str
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PageView:
    """One page of the scrape listener."""

    path: str
    cluster: str
    target: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimView:
    """A claim that is forwarded as a header."""

    claim: str
    header: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleView:
    """A role and the paths that need it."""

    role: str
    paths: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthenticationView:
    """Who issues tokens, for whom, and which methods need which role."""

    issuer: str
    audience: str
    jwks: str
    claim_headers: tuple[ClaimView, ...]
    roles: tuple[RoleView, ...]
    role_paths: tuple[str, ...]
    """Every path that needs a role."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IntrospectionView:
    """The server beside the gateway."""

    cluster: str
    prefixes: tuple[str, ...]
    limits: Limits

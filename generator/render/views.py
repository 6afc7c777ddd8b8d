"""What templates see: small flat values, decided before. Times are milliseconds."""

from __future__ import annotations

from dataclasses import dataclass

from generator.model import Address, Faults, Session, UnixAddress

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
    follows_caller: bool
    """Whether the caller's own `grpc-timeout` shortens it, which Envoy then writes anew for the service."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeaderMatch:
    """A header that a call must bring."""

    name: str
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerMatch:
    """A response header whose whole value matches a regular expression (RE2): another attempt is allowed."""

    name: str
    pattern: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryView:
    """When and how often another attempt is made."""

    retry_on: str
    headers: tuple[AnswerMatch, ...]
    attempts_max: int
    host_choices_max: int
    backoff_base_ms: int
    backoff_ms_max: int
    wait_header: str | None
    """The response header with the seconds to wait instead; None: nobody names any."""
    wait_ms_max: int
    per_try_ms: int | None
    """When an attempt is given up, or (hedging) gets another one beside it."""
    is_hedged: bool
    avoids_zones: bool
    """Another attempt goes to another zone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PatternMatch:
    """A header whose whole value fits a regular expression."""

    name: str
    pattern: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetView:
    """Where calls of one method go: one cluster, or several with weights."""

    name: str
    """Of the route."""
    clusters: tuple[WeightView, ...]
    headers: tuple[HeaderMatch, ...] = ()
    """What a call must bring besides its path."""
    session: PatternMatch | None = None
    """Only calls of sessions that began here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightView:
    """A cluster and its share."""

    cluster: str
    weight: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorView:
    """A cluster that gets copies."""

    cluster: str
    percent: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CallView:
    """One method on its way to a service."""

    path: str
    targets: tuple[TargetView, ...]
    """Routes in the order in which they are tried."""
    authority: str
    limits: Limits
    grpc_timeout: str | None
    """The `grpc-timeout` of a stream."""
    retry: RetryView | None
    is_public: bool
    """Needs no token (of the gateway's routes)."""
    is_stream: bool
    """May stay open; counts against the breaker of streams."""
    mirror: MirrorView | None
    faults: Faults | None
    session: Session | None
    hash_on: HashView | None
    request_headers: HeadersView
    response_headers: HeadersView
    roles: tuple[str, ...]
    """The token must carry one of these (of the gateway's routes); empty: no role is needed."""

    @property
    def has_filters(self) -> bool:
        """Whether a filter treats this method differently from others."""
        is_guarded = self.is_public or bool(self.roles)
        return is_guarded or self.has_mutations or self.faults is not None or self.session is not None

    @property
    def has_mutations(self) -> bool:
        """Whether headers or trailers change in a way that routes cannot say."""
        has_field = self.hash_on is not None and self.hash_on.field is not None
        return has_field or bool(self.response_headers.removed)


@dataclass(frozen=True, slots=True, kw_only=True)
class HashView:
    """What the balancer hashes: one of these."""

    header: str | None = None
    cookie: str | None = None
    ttl_ms: int | None = None
    """Of the cookie that Envoy makes when a call brings none; None: it makes none."""
    field: str | None = None
    source: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class HeaderView:
    """A header that is written."""

    name: str
    value: str
    """In the language of Envoy's formatter."""
    action: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadersView:
    """What happens to headers on their way."""

    written: tuple[HeaderView, ...]
    removed: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractionView:
    """Methods of which the sidecar reads a field of the request."""

    descriptor_set: str
    """Base64 of the part of the protobufs that is needed."""
    methods: tuple[ExtractedMethod, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractedMethod:
    """One method, as `package.Service.Method`, and the field."""

    method: str
    field: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FiltersView:
    """Which filters the outgoing calls of a workload need besides the usual ones."""

    has_faults: bool
    has_sessions: bool
    has_mutations: bool
    extraction: ExtractionView | None


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
    is_stream: bool
    body_bytes_max: int | None
    """The longest message and what gRPC writes before it."""
    rates: tuple[RateView, ...]
    callers: tuple[str, ...]
    """Identities of the peers that may call it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RateView:
    """How often a caller may call a method."""

    caller: str
    identity: str
    requests: int
    period_ms: int
    burst: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RateReply:
    """What a caller beyond its rate is told."""

    expression: str
    """Whether an answer is one to such a caller."""
    retry_ms: int
    message: str
    details: str
    """Base64 of google.rpc.Status with RetryInfo and the same message: clients compare the two."""


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
    weight: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalityView:
    """The replicas of one zone, as one caller sees it; None: no zones."""

    zone: str | None
    priority: int
    replicas: tuple[EndpointView, ...]


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
class AuthenticationView:
    """Who issues tokens, for whom, and which methods need which role."""

    issuer: str
    audience: str
    jwks: str
    claim_headers: tuple[ClaimView, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class IntrospectionView:
    """The server beside the gateway."""

    cluster: str
    prefixes: tuple[str, ...]
    limits: Limits

"""Resolved traffic policies: numbers and names, nothing left open, no Envoy word. Times are integer milliseconds."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class RetryCondition(enum.Enum):
    """What must have happened for another attempt to be allowed."""

    NOT_DELIVERED = "not_delivered"
    """The application provably never saw the call: safe for every unary method."""
    RESET = "reset"
    """The connection broke with the outcome unknown: only for methods that may run twice."""
    UNAVAILABLE = "unavailable"
    """The service itself answered UNAVAILABLE and does not forbid another attempt: only for methods that may run twice."""
    PUSH_BACK = "push_back"
    """The service answered RESOURCE_EXHAUSTED and said when to come again: only for methods that may run twice."""


class Balancer(enum.Enum):
    """How a replica is chosen."""

    LEAST_REQUEST = "least_request"
    ROUND_ROBIN = "round_robin"
    RANDOM = "random"
    RING_HASH = "ring_hash"
    MAGLEV = "maglev"
    WEIGHTED_ROUND_ROBIN = "weighted_round_robin"


CONSISTENT = frozenset({Balancer.RING_HASH, Balancer.MAGLEV})
"""Balancers that need something to hash."""


class HashKind(enum.Enum):
    """What consistent hashing looks at."""

    HEADER = "header"
    FIELD = "field"
    COOKIE = "cookie"
    SOURCE = "source"


@dataclass(frozen=True, slots=True, kw_only=True)
class HashOn:
    """What consistent hashing looks at; `name` is a header, a field or a cookie."""

    kind: HashKind
    name: str
    ttl_ms: int = 0
    """Of a cookie."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadBalancing:
    """Which replica takes a call."""

    balancer: Balancer
    hash_on: HashOn | None
    weights: tuple[int, ...]
    """By replica; replicas beyond the end weigh 1."""
    slow_start_ms: int | None
    panic_threshold_percent: int
    failover: tuple[str, ...]
    """Zones in the order in which they follow the caller's own; those not listed come last, together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """When and how often a failed attempt is repeated; `attempts_max` excludes the first try."""

    conditions: frozenset[RetryCondition]
    attempts_max: int
    backoff_base_ms: int
    backoff_max_ms: int
    per_try_ms: int | None = None
    """An attempt that takes longer is given up and repeated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hedging:
    """Another attempt beside one that is slower than this; the first answer wins."""

    delay_ms: int
    attempts_max: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """A token bucket: `requests` come in every `period_ms`, at most `burst` wait."""

    requests: int
    period_ms: int
    burst: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimit:
    """How many calls of one method a caller may make at one replica."""

    default: Rate
    callers: tuple[tuple[str, Rate], ...]
    """Other rates for single callers, sorted by name."""

    def of(self, caller: str) -> Rate:
        """The rate of one caller."""
        return dict(self.callers).get(caller, self.default)


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """Calls that are disturbed on purpose; percentages are of the calls that bring all `headers`."""

    delay_ms: int | None
    delay_percent: int
    abort_code: int | None
    """A gRPC status code, 1 to 16."""
    abort_percent: int
    headers: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeaderChanges:
    """What happens to headers on their way."""

    set: tuple[tuple[str, str], ...] = ()
    add: tuple[tuple[str, str], ...] = ()
    remove: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """Calls that bring these headers go to this version."""

    headers: tuple[tuple[str, str], ...]
    to: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """Which version of a service takes a call: the first match, else the split, else the service itself."""

    matches: tuple[Match, ...] = ()
    split: tuple[tuple[str, int], ...] = ()
    """(version, weight), sorted; empty: the service itself."""
    mirror_to: str | None = None
    mirror_percent: int = 0

    def versions(self, service: str) -> frozenset[str]:
        """Every version that a call may reach."""
        named = {match.to for match in self.matches} | {name for name, _ in self.split}
        return frozenset(named | ({self.mirror_to} if self.mirror_to else set()) | (set() if self.split else {service}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What keeps the calls of one session at one replica."""

    header: str | None
    cookie: str | None
    ttl_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SuccessRate:
    """Eject replicas whose success rate is far below the mean; `stdev_factor` in thousandths."""

    replicas_min: int
    requests_min: int
    stdev_factor: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FailurePercentage:
    """Eject replicas that fail more than this share of their calls."""

    threshold_percent: int
    replicas_min: int
    requests_min: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OutlierDetection:
    """When a replica that answers badly is taken out of rotation, and for how long."""

    consecutive_errors: int
    consecutive_gateway_errors: int
    interval_ms: int
    base_ejection_ms: int
    ejection_ms_max: int
    ejection_jitter_ms: int
    ejection_percent_max: int
    always_eject_one: bool
    success_rate: SuccessRate | None
    failure_percentage: FailurePercentage | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitBreaker:
    """Bulkhead of a caller towards one callee."""

    connections_max: int
    pending_requests_max: int
    requests_max: int
    """Unary calls."""
    streams_max: int
    retry_budget_percent: int
    retry_concurrency_min: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthCheck:
    """Active gRPC health check by each caller's sidecar."""

    interval_ms: int
    timeout_ms: int
    healthy_threshold: int
    unhealthy_threshold: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Keepalive:
    """HTTP/2 pings of a caller's sidecar; the callee tolerates this interval."""

    interval_ms: int
    timeout_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptiveConcurrency:
    """A limit on the running calls of an application that follows its latency."""

    concurrency_min: int
    concurrency_max: int
    percentile: int
    update_ms: int
    measure_ms: int
    measure_requests: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionControl:
    """A growing share of the calls is refused while an application fails too many of them."""

    success_rate_percent: int
    window_ms: int
    requests_per_second_min: int
    rejection_percent_max: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficPolicy:
    """What a caller applies towards one service; computed from its replica count."""

    load_balancing: LoadBalancing
    outlier_detection: OutlierDetection
    circuit_breaker: CircuitBreaker
    health_check: HealthCheck | None
    """None: a host outside, which is not asked."""
    keepalive: Keepalive
    request_bytes_max: int
    """How much of a request is kept for another attempt."""
    connection_duration_ms_max: int
    """Connections are renewed after this, so that old certificates go away."""
    session: Session | None
    adaptive_concurrency: AdaptiveConcurrency | None
    """In the sidecar of the service itself, as the next."""
    admission_control: AdmissionControl | None

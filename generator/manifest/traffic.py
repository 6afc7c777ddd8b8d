"""At which levels traffic policies are written: mesh, service, method, and the edges between services.

Each key's `sample` is rendered and shown to Envoy by a test, and printed in the reference.
"""
# ruff: noqa: RUF009  (key() makes a dataclasses.field, which is what belongs there)

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from generator.manifest.collections import MapOf, RecordOf, key
from generator.manifest.kinds import Number
from generator.manifest.policies import (
    DEADLINE,
    LONG,
    MESSAGE_BYTES_MAX,
    METHOD,
    METHODS_MAX,
    REASON,
    AdaptiveConcurrency,
    AdmissionControl,
    CircuitBreaker,
    Faults,
    Headers,
    Hedging,
    LoadBalancing,
    OutlierDetection,
    RateLimit,
    Retries,
    RetryBudget,
    Routing,
    SessionPersistence,
)
from generator.manifest.values import Entry, Located, Record


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeMethodTraffic(Record):
    """How calls of one method are carried on one edge: a caller may be stricter than the service, never looser."""

    deadline: Located[int] | None = key(
        DEADLINE,
        "Longest time of a unary call, retries included; callers may ask for less.",
        default="10s",
        sample="deadline: 2s",
    )
    idle_timeout: Located[int] | None = key(
        LONG, "Longest silence on a stream.", default="5m", sample="idle_timeout: 30s"
    )
    max_stream_duration: Located[int] | None = key(
        LONG,
        "Longest life of a stream; at most a quarter of the certificates' lifetime.",
        default="a quarter of the certificates' lifetime, at most 1h",
        sample="max_stream_duration: 10m",
    )
    retries: Retries | None = key(
        RecordOf(record=Retries, word="`{attempts: 2}`"),
        "When and how often a failed attempt is repeated.",
        default="decided for each method from its `idempotency_level`",
        sample=(
            "retries:\n  attempts: 2\n  on: [not_delivered, unavailable]\n  backoff: {base: 20ms, max: 1s}",
            "retries: {per_try_timeout: 500ms}",
        ),
    )
    faults: Faults | None = key(
        RecordOf(record=Faults, word="`{abort: {code: UNAVAILABLE}}`"),
        "Disturb calls on purpose, in the caller's sidecar.",
        default="off",
        sample=(
            "faults:\n  delay: {duration: 200ms, percent: 10}\n  abort: {code: UNAVAILABLE, percent: 5}\n"
            "  headers: {x-chaos: please}"
        ),
    )


ROUTING: Final = RecordOf(record=Routing, word="`{split: {orders: 90, orders-next: 10}}`")
ROUTING_SAMPLE = (
    "routing:\n  match:\n    - headers: {x-canary: always}\n      to: orders-next\n"
    "  split: {orders: 90, orders-next: 10}\n  mirror: {to: orders-next, percent: 10}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallTraffic(EdgeMethodTraffic):
    """How calls are carried, by every caller."""

    max_request_bytes: Located[int] | None = key(
        Number(minimum=1, maximum=MESSAGE_BYTES_MAX),
        "Longest request of a unary or server-streaming call; the sidecar of the service ends longer ones with "
        "RESOURCE_EXHAUSTED before the application sees them.",
        default="what the application itself accepts (gRPC: 4 MiB)",
        sample="max_request_bytes: 65536",
    )
    hedging: Hedging | None = key(
        RecordOf(record=Hedging, word="`{delay: 100ms}`"),
        "A second attempt beside a slow first one; the first answer wins.",
        default="off",
        sample="hedging: {delay: 100ms, attempts: 1}",
    )
    rate_limit: RateLimit | None = key(
        RecordOf(record=RateLimit, word="`{requests: 100, per: 1s}`"),
        "How many calls each caller may make of each method, at each replica.",
        default="none",
        sample="rate_limit:\n  requests: 100\n  per: 1s\n  burst: 200\n  callers: {checkout: {requests: 10}}",
    )
    headers: Headers | None = key(
        RecordOf(record=Headers, word="`{request: {set: {x-team: orders}}}`"),
        "Headers to set, add and remove, in the caller's sidecar.",
        default="none",
        sample=(
            "headers:\n  request: {set: {x-team: orders}, add: {x-hop: mesh}, remove: [x-debug]}\n"
            "  response: {remove: [x-internal-shard]}"
        ),
    )
    unsafe: Located[str] | None = key(
        REASON,
        "Why this method may be repeated, hedged or mirrored although its protobuf does not say so.",
        default="what the protobuf does not allow is refused",
        sample="retries: {on: [not_delivered, reset]}\nunsafe: PlaceOrder is idempotent by order_id",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodTraffic(CallTraffic):
    """How calls of one method (or of `Service/*`) are carried, by every caller."""

    routing: Routing | None = key(
        ROUTING, "Which version of the service takes a call.", default="the service itself", sample=ROUTING_SAMPLE
    )


METHODS_OF_EDGE: Final = MapOf(
    key=METHOD,
    item=RecordOf(record=EdgeMethodTraffic, word="settings of a method"),
    count_max=METHODS_MAX,
    word="a mapping from method to settings",
)
METHODS_OF_SERVICE: Final = MapOf(
    key=METHOD,
    item=RecordOf(record=MethodTraffic, word="settings of a method"),
    count_max=METHODS_MAX,
    word="a mapping from method to settings",
)
CIRCUIT_BREAKER: Final = RecordOf(record=CircuitBreaker, word="`{max_requests: 100}`")


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeTraffic(EdgeMethodTraffic):
    """How calls are carried on one edge: a caller may be stricter than the service, never looser."""

    circuit_breaker: CircuitBreaker | None = key(
        CIRCUIT_BREAKER, "The bulkhead of this caller towards this service.", default="as the service says"
    )
    methods: tuple[Entry[EdgeMethodTraffic], ...] = key(
        METHODS_OF_EDGE, "Settings of single methods; they win over the edge's."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshTraffic(CallTraffic):
    """What holds for every service that says nothing else."""

    load_balancing: LoadBalancing | None = key(
        RecordOf(record=LoadBalancing, word="`{policy: round_robin}`"),
        "Which replica takes a call.",
        sample=(
            "load_balancing:\n  policy: least_request\n  weights: [3, 1]\n  slow_start: 30s\n  panic_threshold: 0",
            "load_balancing:\n  policy: maglev\n  hash_on: {field: order_id}",
            "load_balancing:\n  policy: ring_hash\n  hash_on: {cookie: {name: shard, ttl: 1h}}",
        ),
    )
    circuit_breaker: CircuitBreaker | None = key(
        CIRCUIT_BREAKER,
        "The bulkhead of each caller's sidecar towards the service.",
        sample=(
            "circuit_breaker:\n  max_connections: 8\n  max_pending_requests: 64\n  max_requests: 256\n  max_streams: 32"
        ),
    )
    retry_budget: RetryBudget | None = key(
        RecordOf(record=RetryBudget, word="`{percent: 20}`"),
        "How many of the running calls may be repetitions.",
        sample="retry_budget: {percent: 20, min_concurrency: 4}",
    )
    outlier_detection: OutlierDetection | None = key(
        RecordOf(record=OutlierDetection, word="`{consecutive_errors: 5}`"),
        "When a replica that answers badly is taken out of rotation, and for how long.",
        sample=(
            "outlier_detection:\n  consecutive_errors: 3\n  consecutive_gateway_errors: 3\n  interval: 1s\n"
            "  base_ejection_time: 10s\n  max_ejection_time: 2m\n  max_ejection_percent: 50\n"
            "  success_rate: {min_replicas: 3, min_requests: 50, stdev_factor: 1900}\n"
            "  failure_percentage: {threshold: 50, min_replicas: 2, min_requests: 20}"
        ),
    )
    adaptive_concurrency: AdaptiveConcurrency | None = key(
        RecordOf(record=AdaptiveConcurrency, word="`{max_concurrency: 100}`"),
        "Each replica's sidecar learns how many unary calls its application runs well, and refuses more.",
        default="off",
        sample="adaptive_concurrency: {min_concurrency: 3, max_concurrency: 200, measure_interval: 30s}",
    )
    admission_control: AdmissionControl | None = key(
        RecordOf(record=AdmissionControl, word="`{success_rate_threshold: 95}`"),
        "Each replica's sidecar refuses a growing share of the calls while its application fails too many of them.",
        default="off",
        sample="admission_control: {success_rate_threshold: 90, window: 30s, max_rejection_percent: 80}",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic(MeshTraffic):
    """How calls to a service are carried, by every caller."""

    routing: Routing | None = key(
        ROUTING, "Which version of the service takes a call.", default="the service itself", sample=ROUTING_SAMPLE
    )
    session_persistence: SessionPersistence | None = key(
        RecordOf(record=SessionPersistence, word="`{header: x-session}`"),
        "All calls of one session go to one replica for as long as it lives.",
        default="off",
        sample=(
            "session_persistence: {header: x-order-session}",
            "session_persistence: {cookie: {name: session, ttl: 1h}}",
        ),
    )
    methods: tuple[Entry[MethodTraffic], ...] = key(
        METHODS_OF_SERVICE, "Settings of single methods of this service; they win over the service's."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ExternalTraffic(EdgeMethodTraffic):
    """How calls to a host outside are carried."""

    circuit_breaker: CircuitBreaker | None = key(
        CIRCUIT_BREAKER, "The bulkhead of each caller's sidecar towards the host.", default="as for one replica"
    )
    methods: tuple[Entry[EdgeMethodTraffic], ...] = key(
        METHODS_OF_EDGE, "Settings of single methods; they win over the host's."
    )

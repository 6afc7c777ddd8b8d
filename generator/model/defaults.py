"""Every computed default with its reason. Pure functions of replicas, method kind, callers, certificate lifetime.

Times are integer milliseconds. `resolve` takes the values, `nipmesh explain` prints the reasons: one source for both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Generic, TypeVar

from generator.model.mesh import Idempotency, Method, StreamingKind
from generator.model.policies import Balancer, RetryCondition

T = TypeVar("T")

SECOND_MS = 1_000
MINUTE_MS = 60 * SECOND_MS
HOUR_MS = 60 * MINUTE_MS

REPLICAS = 2
EVENTS_RETENTION_MS = 7 * 24 * HOUR_MS
EVENTS_BYTES_MAX = 4 * 1024**3
GATEWAY_LISTEN = "127.0.0.1:8080"
DEADLINE_MS = 10 * SECOND_MS
IDLE_TIMEOUT_MS = 5 * MINUTE_MS
STREAM_DURATION_MS_MAX = HOUR_MS
CERTIFICATE_LIFETIME_MS = HOUR_MS
RETRY_ATTEMPTS_MAX = 4
BACKOFF_BASE_MS = 25
BACKOFF_RATIO = 10
BACKOFF_MS_MAX = BACKOFF_BASE_MS * BACKOFF_RATIO
CONSECUTIVE_FAILURES = 5
SUCCESS_RATE_REPLICAS_MIN = 5
SUCCESS_RATE_REQUESTS_MIN = 100
SUCCESS_RATE_STDEV_FACTOR = 1_900
SUCCESS_RATE_REACH = 950
"""Thousandths: a little less than the farthest that a replica can be from the mean."""
FAILURE_PERCENTAGE = 85
FAILURE_REPLICAS_MIN = 2
FAILURE_REQUESTS_MIN = 50
OUTLIER_INTERVAL_MS = SECOND_MS
EJECTION_BASE_MS = 5 * SECOND_MS
EJECTION_MS_MAX = MINUTE_MS
EJECTION_JITTER_MS = SECOND_MS
EJECTION_PERCENT_MAX = 99
CONNECTIONS_PER_REPLICA = 32
REQUESTS_PER_REPLICA = 1_024
STREAMS_DIVISOR = 2
RETRY_BUDGET_PERCENT_MIN = 20
RETRY_BUDGET_PERCENT_MAX = 50
RETRY_CONCURRENCY_PER_REPLICA = 16
HEALTH_INTERVAL_MS_MIN = SECOND_MS
HEALTH_CHECKS_PER_SECOND_MAX = 20
HEALTH_TIMEOUT_MS = SECOND_MS
HEALTHY_THRESHOLD = 1
UNHEALTHY_THRESHOLD = 2
KEEPALIVE_INTERVAL_MS = 30 * SECOND_MS
KEEPALIVE_TIMEOUT_MS = 5 * SECOND_MS
REQUEST_BYTES_MAX = 4 * 1024 * 1024
HEDGING_ATTEMPTS = 1
COOKIE_TTL_MS = HOUR_MS
RATE_PERIOD_MS = SECOND_MS
CONCURRENCY_MIN = 3
CONCURRENCY_MAX = 1_000
CONCURRENCY_PERCENTILE = 90
CONCURRENCY_UPDATE_MS = 100
CONCURRENCY_MEASURE_MS = MINUTE_MS
CONCURRENCY_MEASURE_REQUESTS = 50
ADMISSION_SUCCESS_PERCENT = 95
ADMISSION_WINDOW_MS = 30 * SECOND_MS
ADMISSION_REQUESTS_PER_SECOND_MIN = 5
ADMISSION_REJECTION_PERCENT_MAX = 80
CLAIM_HEADERS = (
    ("exp", "x-nipmesh-token-expire-time"),
    ("role", "x-nipmesh-role"),
    ("sub", "x-nipmesh-subject"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided(Generic[T]):
    """A value and why it is this one."""

    value: T
    reason: str


def replicas() -> Decided[int]:
    """How many copies of a service run."""
    return Decided(value=REPLICAS, reason="one may die or be replaced while the other answers")


def deadline_ms(method: Method) -> Decided[int | None]:
    """Longest time of a unary call; None for streams."""
    if method.streaming is StreamingKind.UNARY:
        return Decided(value=DEADLINE_MS, reason="unary: long enough for a retry after a replica died, and it does end")
    return Decided(value=None, reason="a stream lives as long as it talks: idle timeout and longest life bound it")


def idle_timeout_ms(method: Method) -> Decided[int | None]:
    """Longest silence of a stream; None for unary calls."""
    if method.streaming is StreamingKind.UNARY:
        return Decided(value=None, reason="unary: the deadline bounds it")
    return Decided(value=IDLE_TIMEOUT_MS, reason="a stream without a message for this long is taken for dead")


def stream_duration_ms_max(method: Method, certificate_lifetime_ms: int) -> Decided[int | None]:
    """Longest life of a stream; None for unary calls."""
    if method.streaming is StreamingKind.UNARY:
        return Decided(value=None, reason="unary: the deadline bounds it")
    value = min(STREAM_DURATION_MS_MAX, certificate_lifetime_ms // 4)
    reason = "a quarter of the certificates' lifetime, at most 1h: a stream keeps the identity it began with"
    return Decided(value=value, reason=reason)


def retry_conditions(method: Method) -> Decided[frozenset[RetryCondition]]:
    """When another attempt is safe; empty: never."""
    if method.streaming is not StreamingKind.UNARY:
        return Decided(value=frozenset(), reason="streams are not repeated: the client resumes them itself")
    if method.idempotency is Idempotency.UNKNOWN:
        reason = "idempotency_level is unset: repeated only when the application provably never saw the call"
        return Decided(value=frozenset({RetryCondition.NOT_DELIVERED}), reason=reason)
    reason = (
        f"idempotency_level is {method.idempotency.value}: it may run twice, unless the service's push-back says no"
    )
    return Decided(value=frozenset(RetryCondition), reason=reason)


def repeatable(method: Method) -> frozenset[RetryCondition]:
    """Every condition on which a manifest may have this method repeated; it is more than the default for server streams."""
    if method.streaming in {StreamingKind.CLIENT, StreamingKind.BIDIRECTIONAL}:
        return frozenset()
    if method.idempotency is Idempotency.UNKNOWN:
        return frozenset({RetryCondition.NOT_DELIVERED})
    return frozenset(RetryCondition)


def may_run_twice(method: Method) -> bool:
    """Whether running it twice does no more than running it once."""
    return method.idempotency is not Idempotency.UNKNOWN


def may_run_beside(method: Method) -> bool:
    """Whether copies of it may run at the same time, and elsewhere. A stream's copy would outlive whoever made it."""
    return method.streaming is StreamingKind.UNARY and method.idempotency is Idempotency.NO_SIDE_EFFECTS


def retry_attempts_max(replica_count: int) -> Decided[int]:
    """Decide how many attempts follow the first one."""
    value = min(replica_count + 1, RETRY_ATTEMPTS_MAX)
    reason = f"{count(replica_count)}: every replica once, and one more; at most {RETRY_ATTEMPTS_MAX}"
    return Decided(value=value, reason=reason)


def backoff_base_ms() -> Decided[int]:
    """First pause before another attempt."""
    return Decided(value=BACKOFF_BASE_MS, reason="doubles with each attempt, with jitter")


def backoff_ms_max() -> Decided[int]:
    """Longest pause before another attempt."""
    return Decided(value=BACKOFF_MS_MAX, reason="short against any deadline: the attempts fit into it")


def backoff_max_of(base_ms: int) -> Decided[int]:
    """Longest pause when the manifest names the first one."""
    return Decided(value=base_ms * BACKOFF_RATIO, reason=f"{BACKOFF_RATIO} times the first pause")


def per_try_ms() -> Decided[int | None]:
    """How long one attempt may take; None: as long as the call."""
    return Decided(value=None, reason="none: a slow replica is not a dead one, and the deadline bounds all attempts")


def balancer() -> Decided[str]:
    """Name what chooses the replica."""
    reason = "of two at random the one with fewer running calls: slow replicas get fewer"
    return Decided(value=Balancer.LEAST_REQUEST.value, reason=reason)


def slow_start_ms() -> Decided[int | None]:
    """How long a new replica's share grows; None: it has its whole share at once."""
    return Decided(value=None, reason="off: a replica is in rotation only when it says that it is ready")


def weights() -> Decided[tuple[int, ...]]:
    """Weigh the replicas."""
    return Decided(value=(), reason="all alike")


def failover(zones: tuple[str, ...]) -> Decided[tuple[str, ...]]:
    """Order the zones behind the caller's own."""
    if not zones:
        return Decided(value=(), reason="there are no zones")
    return Decided(value=(), reason="the caller's own zone first, then all others alike")


def panic_threshold_percent(replica_count: int) -> Decided[int]:
    """Below this share of healthy replicas the health is ignored and all get calls."""
    trusted_min = max(1, replica_count // 3)
    value = (100 * trusted_min - 50) // replica_count
    reason = f"{count(replica_count)}: {trusted_min} healthy of {replica_count} are still trusted, fewer are not"
    return Decided(value=value, reason=reason)


def consecutive_failures() -> Decided[int]:
    """Failures in a row that take a replica out."""
    return Decided(value=CONSECUTIVE_FAILURES, reason="a single hiccup does not eject, a dead replica is out at once")


def success_rate_replicas_min(replica_count: int) -> int:
    """With fewer replicas no success rate is compared."""
    return min(SUCCESS_RATE_REPLICAS_MIN, max(replica_count, 2))


def success_rate_stdev_factor(replica_count: int) -> int:
    """How many thousandths of a standard deviation below the mean are too far.

    One of n replicas that fails alone is sqrt(n - 1) deviations away, however much it fails.
    """
    return min(SUCCESS_RATE_STDEV_FACTOR, math.isqrt(SUCCESS_RATE_REACH**2 * (replica_count - 1)))


def outlier_interval_ms() -> Decided[int]:
    """How often ejected replicas are looked at."""
    return Decided(value=OUTLIER_INTERVAL_MS, reason="a replica comes back within a second of its time")


def base_ejection_ms() -> Decided[int]:
    """How long the first ejection lasts."""
    return Decided(value=EJECTION_BASE_MS, reason="about a restart's time; grows with each ejection")


def ejection_ms_max(base_ms: int) -> Decided[int]:
    """How long an ejection may last; never less than the first one."""
    return Decided(value=max(EJECTION_MS_MAX, base_ms), reason="a replica that recovered is not forgotten")


def ejection_jitter_ms() -> Decided[int]:
    """Random addition, so that replicas do not come back together."""
    return Decided(value=EJECTION_JITTER_MS, reason="ejected replicas do not come back at the same instant")


def ejection_percent_max(replica_count: int) -> Decided[int]:
    """Share of replicas that may be out at once."""
    # Rounded up: of three replicas two are more than 66 %.
    value = min(-(-100 * (replica_count - 1) // replica_count), EJECTION_PERCENT_MAX)
    reason = f"{count(replica_count)}: all but one may be out"
    return Decided(value=value, reason=reason)


def always_eject_one(replica_count: int) -> Decided[bool]:
    """Whether one may be ejected whatever the percentage says."""
    if replica_count == 1:
        return Decided(value=False, reason="1 replica: without it nobody would answer")
    return Decided(value=True, reason=f"{count(replica_count)}: rounding must not protect a bad one")


def connections_max(replica_count: int) -> Decided[int]:
    """Limit the connections of one caller's sidecar to a service."""
    value = CONNECTIONS_PER_REPLICA * replica_count
    return Decided(value=value, reason=f"{CONNECTIONS_PER_REPLICA} per replica; one carries many calls (HTTP/2)")


def pending_requests_max(requests: int) -> Decided[int]:
    """Limit the calls of one caller's sidecar that wait for a connection."""
    return Decided(value=requests, reason="as many as may run: a burst may wait for its first connection")


def requests_max(replica_count: int) -> Decided[int]:
    """Limit the unary calls of one caller's sidecar that run at once."""
    value = REQUESTS_PER_REPLICA * replica_count
    return Decided(value=value, reason=f"{REQUESTS_PER_REPLICA} per replica; more fail at once")


def streams_max(requests: int) -> Decided[int]:
    """Limit the streams of one caller's sidecar, which have a bulkhead of their own.

    Each holds memory for as long as its client likes, and replicas must have room for the unary calls beside them.
    """
    return Decided(
        value=max(1, requests // STREAMS_DIVISOR), reason="half as many as unary calls, which keep their room"
    )


def retry_budget_percent(replica_count: int) -> Decided[int]:
    """Share of the running calls that may be retries."""
    share = -(-100 // replica_count)
    value = min(max(share, RETRY_BUDGET_PERCENT_MIN), RETRY_BUDGET_PERCENT_MAX)
    reason = f"{count(replica_count)}: the calls of one that died may all be repeated, and no storm follows"
    return Decided(value=value, reason=reason)


def retry_concurrency_min(replica_count: int) -> Decided[int]:
    """Retries that may run whatever the budget says."""
    value = RETRY_CONCURRENCY_PER_REPLICA * replica_count
    reason = f"{RETRY_CONCURRENCY_PER_REPLICA} per replica: with few calls a percentage would allow none"
    return Decided(value=value, reason=reason)


def health_interval_ms(caller_sidecars: int) -> Decided[int]:
    """How often each caller's sidecar checks each replica."""
    value = max(HEALTH_INTERVAL_MS_MIN, caller_sidecars * 1_000 // HEALTH_CHECKS_PER_SECOND_MAX)
    reason = (
        f"{caller_sidecars} calling sidecars: a replica answers at most {HEALTH_CHECKS_PER_SECOND_MAX} checks a second"
    )
    return Decided(value=value, reason=reason)


def health_timeout_ms() -> Decided[int]:
    """When a check without an answer has failed."""
    return Decided(value=HEALTH_TIMEOUT_MS, reason="an application that is busy for a second is still alive")


def healthy_threshold() -> Decided[int]:
    """Good checks that bring a replica back."""
    return Decided(value=HEALTHY_THRESHOLD, reason="health is reported by the application itself: one yes is enough")


def unhealthy_threshold() -> Decided[int]:
    """Bad checks that take a replica out."""
    return Decided(value=UNHEALTHY_THRESHOLD, reason="one lost check is no proof")


def keepalive_interval_ms() -> Decided[int]:
    """How often a silent connection is pinged."""
    return Decided(value=KEEPALIVE_INTERVAL_MS, reason="a vanished peer is noticed; the callee's sidecar tolerates it")


def keepalive_timeout_ms() -> Decided[int]:
    """When a ping without an answer closes the connection."""
    return Decided(value=KEEPALIVE_TIMEOUT_MS, reason="longer than any pause of a living peer")


def request_bytes_max() -> Decided[int]:
    """Longest request body."""
    return Decided(value=REQUEST_BYTES_MAX, reason="what gRPC libraries accept by default")


def connection_duration_ms_max(certificate_lifetime_ms: int) -> Decided[int]:
    """When a connection is renewed."""
    reason = "a quarter of the certificates' lifetime: an old identity is gone before it expires"
    return Decided(value=certificate_lifetime_ms // 4, reason=reason)


def certificate_lifetime_ms() -> Decided[int]:
    """How long a leaf lives."""
    return Decided(value=CERTIFICATE_LIFETIME_MS, reason="short enough that no revocation list is needed")


def trust_domain(mesh: str) -> Decided[str]:
    """Name the authority part of every SPIFFE id."""
    return Decided(value=f"{mesh}.mesh", reason="the mesh's name; certificates of another mesh are never valid here")


def audience(mesh: str) -> Decided[str]:
    """Name the `aud` that tokens must carry."""
    return Decided(value=mesh, reason="the mesh's name: a token for another mesh is refused")


def gateway_listen() -> Decided[str]:
    """Where the edge listens."""
    return Decided(value=GATEWAY_LISTEN, reason="this machine only")


def events_server(mesh: str) -> Decided[str]:
    """The stream of a server that the runner starts."""
    return Decided(value=mesh, reason="`nipmesh up` starts the server and makes the stream, named like the mesh")


def events_cluster(mesh: str) -> Decided[str]:
    """The stream in a cluster that others run."""
    return Decided(value=mesh, reason="named like the mesh, in the cluster of `events.url`")


def events_retention_ms() -> Decided[int]:
    """How long events are kept."""
    return Decided(value=EVENTS_RETENTION_MS, reason="a consumer that stood still over a long weekend misses nothing")


def events_bytes_max() -> Decided[int]:
    """How much is kept."""
    reason = "4 GiB; when it is full new events wait in the outboxes, and nothing is lost"
    return Decided(value=EVENTS_BYTES_MAX, reason=reason)


def count(replica_count: int) -> str:
    """`1 replica`, `2 replicas`."""
    return f"{replica_count} replica" + ("" if replica_count == 1 else "s")

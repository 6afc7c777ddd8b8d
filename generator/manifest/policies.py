"""The traffic policies of the manifest, one record each: how calls are balanced, repeated, bounded, shaped and disturbed.

Terms are those of Envoy, Istio and the Gateway API wherever these have one.
"""
# ruff: noqa: RUF009  (key() makes a dataclasses.field, which is what belongs there)

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from generator.manifest.collections import ListOf, MapOf, RecordOf, key
from generator.manifest.kinds import Choice, Duration, Number, Text
from generator.manifest.values import Entry, Located, Record

NAME_LENGTH_MAX = 40
"""Names stand in socket paths, of which Linux allows 107 bytes in all."""
METHODS_MAX = 1_000
DEADLINE_MS_MIN = 10
DEADLINE_MS_MAX = 3_600_000
IDLE_TIMEOUT_MS_MIN = 100
DAY_MS = 24 * 3_600_000
ATTEMPTS_MAX = 10
"""More repetitions of one call are a storm, not a policy."""
CALLS_MAX = 1_000_000
MESSAGE_BYTES_MAX = 1024 * 1024 * 1024
HEADERS_MAX = 50
RULES_MAX = 100
WEIGHT_MAX = 1_000
REASON_LENGTH_MAX = 200

NAME: Final = Text(
    word="a name like `orders`",
    pattern=r"[a-z]([a-z0-9-]*[a-z0-9])?",
    length_max=NAME_LENGTH_MAX,
    rule="a name has lower-case letters, digits and hyphens, starts with a letter and ends with a letter or digit",
)
METHOD: Final = Text(
    word="a method like `OrderService/GetOrder` or `OrderService/*`",
    pattern=r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*/(\*|[A-Za-z_][A-Za-z0-9_]*)",
    length_max=320,
    rule="a method is written as Service/Method, with or without the package; `Service/*` means all of them",
)
HEADER: Final = Text(
    word="a header like `x-user`",
    pattern=r"[a-z0-9]([a-z0-9._-]*[a-z0-9])?",
    length_max=100,
    rule="a header has lower-case letters, digits, hyphens, dots and underscores",
)
HEADER_VALUE: Final = Text(
    word="a header's value",
    pattern=r"[\x20-\x7e]+",
    length_max=1_000,
    rule="a header's value has printable ASCII characters",
)
FIELD: Final = Text(
    word="a field of the request like `account_id` or `order.customer_id`",
    pattern=r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*){0,15}",
    length_max=200,
    rule="a field is written by its protobuf name; a dot goes into a message",
)
REASON: Final = Text(
    word="a sentence",
    pattern=r"\S.{6,}\S",
    length_max=REASON_LENGTH_MAX,
    rule="a reason is a sentence that convinces a reader, at least 8 characters",
)
CALLS: Final = Number(minimum=1, maximum=CALLS_MAX)
PERCENT: Final = Number(minimum=0, maximum=100, word="a percentage from 0 to 100")
SHARE: Final = Number(minimum=1, maximum=100, word="a percentage from 1 to 100")
SHORT: Final = Duration(minimum_ms=1, maximum_ms=DEADLINE_MS_MAX)
DEADLINE: Final = Duration(minimum_ms=DEADLINE_MS_MIN, maximum_ms=DEADLINE_MS_MAX)
LONG: Final = Duration(minimum_ms=IDLE_TIMEOUT_MS_MIN, maximum_ms=DAY_MS)

RETRY_CONDITIONS = ("not_delivered", "reset", "unavailable", "push_back")
BALANCERS = ("least_request", "round_robin", "random", "ring_hash", "maglev", "weighted_round_robin")
GRPC_CODES = (
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
)
"""1 to 16, in order (https://grpc.github.io/grpc/core/md_doc_statuscodes.html)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff(Record):
    """The pause before another attempt: it doubles each time, and a random part of it is waited."""

    base: Located[int] | None = key(SHORT, "The first pause.", default="25ms")
    max: Located[int] | None = key(SHORT, "The longest pause.", default="10 times `base`")


@dataclass(frozen=True, slots=True, kw_only=True)
class Retries(Record):
    """When and how often a failed attempt is repeated; always at another replica where there is one."""

    attempts: Located[int] | None = key(
        Number(minimum=0, maximum=ATTEMPTS_MAX),
        "How many attempts may follow the first one; 0: none.",
        default="one more than replicas, at most 4",
    )
    on: tuple[Located[str], ...] = key(
        ListOf(item=Choice(options=RETRY_CONDITIONS), count_max=4, word="a list of conditions"),
        "What must have happened. `not_delivered`: the application saw nothing of the call. `reset`: the connection "
        "broke with the outcome unknown. `unavailable`: the application answered UNAVAILABLE. `push_back`: it answered "
        "with `grpc-retry-pushback-ms`, which is waited for.",
        default="unary: `not_delivered`; all four where `idempotency_level` allows it",
    )
    per_try_timeout: Located[int] | None = key(
        SHORT,
        "An attempt that takes longer is given up and repeated; for methods that may run twice.",
        default="none: a slow replica is not a dead one",
    )
    backoff: Backoff | None = key(RecordOf(record=Backoff, word="`{base: 25ms, max: 250ms}`"), "Pauses in between.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hedging(Record):
    """A second attempt beside a slow first one; the first answer wins. Only for methods without side effects."""

    delay: Located[int] | None = key(
        SHORT, "How slow an attempt must be before another one starts.", required=True, example="100ms"
    )
    attempts: Located[int] | None = key(
        Number(minimum=1, maximum=ATTEMPTS_MAX), "How many attempts may follow the first one.", default="1"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Cookie(Record):
    """A cookie that Envoy sets when a call brings none."""

    name: Located[str] | None = key(HEADER, "The cookie's name.", required=True, example="shard")
    ttl: Located[int] | None = key(LONG, "How long it is good.", default="1h")


@dataclass(frozen=True, slots=True, kw_only=True)
class HashOn(Record):
    """What consistent hashing looks at: exactly one of these."""

    header: Located[str] | None = key(HEADER, "A header of the call; without it any replica takes the call.")
    field: Located[str] | None = key(
        FIELD,
        "A scalar field of the request, which the sidecar reads by the protobuf; unary and server streaming. Requests that "
        "a client has compressed are refused: the sidecar cannot read them.",
    )
    cookie: Cookie | None = key(
        RecordOf(record=Cookie, word="`{name: shard, ttl: 1h}`"),
        "A cookie; the gateway makes one for a connection that brings none.",
    )
    source: Located[str] | None = key(
        Choice(options=("address",)), "`address`: where the call comes from (of the gateway: the client's address)."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadBalancing(Record):
    """Which replica takes a call."""

    policy: Located[str] | None = key(
        Choice(options=BALANCERS),
        "`least_request`: of two at random the one with fewer running calls. `ring_hash` and `maglev` need `hash_on`; when "
        "a replica goes, `maglev` moves hardly a call but its own, `ring_hash` up to a sixth of the others. "
        "`weighted_round_robin` follows the load that replicas report (ORCA).",
        default="least_request",
    )
    hash_on: HashOn | None = key(
        RecordOf(record=HashOn, word="`{header: x-user}`"), "What `ring_hash` and `maglev` hash."
    )
    weights: tuple[Located[int], ...] = key(
        ListOf(item=Number(minimum=1, maximum=WEIGHT_MAX), count_max=100, word="a list of whole numbers"),
        "The weight of each replica, by its number; replicas beyond the list weigh 1.",
        default="all alike",
    )
    slow_start: Located[int] | None = key(
        LONG,
        "How long a new replica's share grows from a tenth; `least_request` and `round_robin`.",
        default="off: a replica is in rotation only when it says that it is ready",
    )
    panic_threshold: Located[int] | None = key(
        PERCENT,
        "Below this share of healthy replicas health is ignored and all get calls; 0: never.",
        default="a third of the replicas are still trusted",
    )
    failover: tuple[Located[str], ...] = key(
        ListOf(item=NAME, count_max=20, word="a list of zones"),
        "The zones that follow the caller's own, in this order; zones that are not listed come last, together.",
        default="the caller's own zone first, then all others alike",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitBreaker(Record):
    """The bulkhead of one caller's sidecar towards one service: what is beyond fails at once with UNAVAILABLE."""

    max_connections: Located[int] | None = key(CALLS, "Connections.", default="32 per replica")
    max_pending_requests: Located[int] | None = key(
        CALLS, "Calls that wait for a connection.", default="as many as `max_requests`"
    )
    max_requests: Located[int] | None = key(CALLS, "Unary calls at once.", default="1024 per replica")
    max_streams: Located[int] | None = key(CALLS, "Streams at once.", default="half of `max_requests`")


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryBudget(Record):
    """How many of the running calls may be repetitions."""

    percent: Located[int] | None = key(PERCENT, "Of the running calls.", default="100 / replicas, between 20 and 50")
    min_concurrency: Located[int] | None = key(CALLS, "Allowed whatever the percentage says.", default="16 per replica")


@dataclass(frozen=True, slots=True, kw_only=True)
class SuccessRate(Record):
    """Eject replicas whose success rate is far below that of the others."""

    min_replicas: Located[int] | None = key(
        Number(minimum=2, maximum=1_000),
        "With fewer replicas no rate is compared.",
        default="5; all where there are fewer",
    )
    min_requests: Located[int] | None = key(
        CALLS, "A replica with fewer calls in an interval is not looked at.", default="100"
    )
    stdev_factor: Located[int] | None = key(
        Number(minimum=100, maximum=10_000),
        "How many thousandths of a standard deviation below the mean are too far.",
        default="1900; with fewer than 5 replicas less, since none of them can be so far from the mean",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class FailurePercentage(Record):
    """Eject replicas that fail more than this share of their calls."""

    threshold: Located[int] | None = key(SHARE, "The share.", default="85")
    min_replicas: Located[int] | None = key(
        Number(minimum=2, maximum=1_000), "With fewer replicas none is ejected so.", default="2"
    )
    min_requests: Located[int] | None = key(
        CALLS, "A replica with fewer calls in an interval is not looked at.", default="50"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class OutlierDetection(Record):
    """When a replica that answers badly is taken out of rotation, and for how long."""

    consecutive_errors: Located[int] | None = key(CALLS, "Server errors in a row.", default="5")
    consecutive_gateway_errors: Located[int] | None = key(
        CALLS, "UNAVAILABLE or DEADLINE_EXCEEDED answers, or broken connections, in a row.", default="5"
    )
    interval: Located[int] | None = key(LONG, "How often replicas are looked at.", default="1s")
    base_ejection_time: Located[int] | None = key(
        LONG, "How long the first ejection lasts; grows with each.", default="5s"
    )
    max_ejection_time: Located[int] | None = key(
        LONG, "How long an ejection may last.", default="1m, or `base_ejection_time` where that is longer"
    )
    max_ejection_percent: Located[int] | None = key(
        PERCENT, "Share of the replicas that may be out at once.", default="all but one"
    )
    success_rate: SuccessRate | None = key(
        RecordOf(record=SuccessRate, word="`{min_replicas: 5}`"),
        "Eject replicas whose success rate is far below that of the others.",
        default="off: it ejects whoever is worse than the others, also when all are well",
    )
    failure_percentage: FailurePercentage | None = key(
        RecordOf(record=FailurePercentage, word="`{threshold: 85}`"),
        "Eject replicas that fail more than a share of their calls.",
        default="off",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptiveConcurrency(Record):
    """Each replica's sidecar learns how many unary calls its application runs well, and refuses more.

    What is refused ends as RESOURCE_EXHAUSTED; the application has seen nothing of it, so another replica may take it.
    """

    min_concurrency: Located[int] | None = key(CALLS, "The limit never falls below this.", default="3")
    max_concurrency: Located[int] | None = key(CALLS, "The limit never rises above this.", default="1000")
    percentile: Located[int] | None = key(SHARE, "Which latency is compared.", default="90")
    update_interval: Located[int] | None = key(LONG, "How often the limit follows.", default="100ms")
    measure_interval: Located[int] | None = key(LONG, "How often the best latency is measured anew.", default="60s")
    measure_requests: Located[int] | None = key(CALLS, "By how many calls.", default="50")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionControl(Record):
    """Each replica's sidecar refuses a growing share of the calls while its application fails too many of them."""

    success_rate_threshold: Located[int] | None = key(SHARE, "Below this percentage calls are refused.", default="95")
    window: Located[int] | None = key(
        Duration(minimum_ms=1_000, maximum_ms=600_000), "Over how long the rate is taken.", default="30s"
    )
    min_requests_per_second: Located[int] | None = key(CALLS, "With fewer calls none is refused.", default="5")
    max_rejection_percent: Located[int] | None = key(SHARE, "At most this share is refused.", default="80")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate(Record):
    """A token bucket."""

    requests: Located[int] | None = key(CALLS, "How many calls.", required=True, example="100")
    per: Located[int] | None = key(Duration(minimum_ms=50, maximum_ms=DAY_MS), "In which time.", default="1s")
    burst: Located[int] | None = key(CALLS, "How many may come at once.", default="`requests`")


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimit(Rate):
    """How many calls each caller may make of each method, at each replica; the rest ends as RESOURCE_EXHAUSTED."""

    callers: tuple[Entry[Rate], ...] = key(
        MapOf(
            key=NAME,
            item=RecordOf(record=Rate, word="`{requests: 100, per: 1s}`"),
            count_max=1_000,
            word="a mapping from caller to rate",
        ),
        "Other rates for single callers, by the service's name or `gateway`.",
        default="all callers alike",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Delay(Record):
    """Wait before the call goes on."""

    duration: Located[int] | None = key(SHORT, "How long.", required=True, example="200ms")
    percent: Located[int] | None = key(SHARE, "Of the calls.", default="100")


@dataclass(frozen=True, slots=True, kw_only=True)
class Abort(Record):
    """End the call; the service sees nothing of it."""

    code: Located[str] | None = key(
        Choice(options=GRPC_CODES), "The gRPC status that the caller gets.", required=True, example="UNAVAILABLE"
    )
    percent: Located[int] | None = key(SHARE, "Of the calls.", default="100")


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults(Record):
    """Disturb calls on purpose, in the caller's sidecar."""

    delay: Delay | None = key(RecordOf(record=Delay, word="`{duration: 200ms, percent: 10}`"), "Slow calls down.")
    abort: Abort | None = key(RecordOf(record=Abort, word="`{code: UNAVAILABLE, percent: 10}`"), "End calls.")
    headers: tuple[Entry[Located[str]], ...] = key(
        MapOf(key=HEADER, item=HEADER_VALUE, count_max=HEADERS_MAX, word="a mapping from header to value"),
        "Only calls that bring these headers are disturbed.",
        default="all calls",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Mirror(Record):
    """A copy of a unary call for a version; its answer is thrown away. Only for methods without side effects."""

    to: Located[str] | None = key(NAME, "The version of the service.", required=True, example="orders-next")
    percent: Located[int] | None = key(SHARE, "Of the calls.", default="100")


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchRule(Record):
    """Calls that bring these headers go to one version."""

    headers: tuple[Entry[Located[str]], ...] = key(
        MapOf(key=HEADER, item=HEADER_VALUE, count_max=HEADERS_MAX, word="a mapping from header to value"),
        "All of them, each with exactly this value.",
        required=True,
        example="{x-canary: always}",
    )
    to: Located[str] | None = key(NAME, "The version of the service.", required=True, example="orders-next")


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionPersistence(Record):
    """All calls of one session go to one replica for as long as it lives: exactly one of `header` and `cookie`."""

    header: Located[str] | None = key(
        HEADER, "The answer brings this header; the client sends it back with its next calls."
    )
    cookie: Cookie | None = key(RecordOf(record=Cookie, word="`{name: session, ttl: 1h}`"), "The same with a cookie.")


@dataclass(frozen=True, slots=True, kw_only=True)
class HeaderChanges(Record):
    """What happens to headers on their way."""

    set: tuple[Entry[Located[str]], ...] = key(
        MapOf(key=HEADER, item=HEADER_VALUE, count_max=HEADERS_MAX, word="a mapping from header to value"),
        "Written, whatever was there.",
    )
    add: tuple[Entry[Located[str]], ...] = key(
        MapOf(key=HEADER, item=HEADER_VALUE, count_max=HEADERS_MAX, word="a mapping from header to value"),
        "Added to what is there.",
    )
    remove: tuple[Located[str], ...] = key(
        ListOf(item=HEADER, count_max=HEADERS_MAX, word="a list of headers"), "Taken away."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Headers(Record):
    """Headers to set, add and remove, in the caller's sidecar."""

    request: HeaderChanges | None = key(
        RecordOf(record=HeaderChanges, word="`{set: {x-team: orders}}`"), "On the way to the service."
    )
    response: HeaderChanges | None = key(
        RecordOf(record=HeaderChanges, word="`{remove: [x-debug]}`"), "On the way back."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing(Record):
    """Which version of the service takes a call."""

    match: tuple[MatchRule, ...] = key(
        ListOf(
            item=RecordOf(record=MatchRule, word="`{headers: {x-canary: always}, to: orders-next}`"),
            count_max=RULES_MAX,
            word="a list of rules",
        ),
        "Calls with certain headers go to a certain version; the first rule that fits wins, before `split`.",
        default="none",
    )
    split: tuple[Entry[Located[int]], ...] = key(
        MapOf(
            key=NAME,
            item=Number(minimum=0, maximum=WEIGHT_MAX),
            count_max=20,
            word="a mapping from version to weight",
        ),
        "Which share of the calls each version gets; the service itself is one of them.",
        default="all calls go to the service itself",
    )
    mirror: Mirror | None = key(
        RecordOf(record=Mirror, word="`{to: orders-next, percent: 10}`"),
        "Send a copy of calls to a version and throw its answer away; only unary methods without side effects.",
        default="off",
    )

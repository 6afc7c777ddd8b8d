"""How defaults are computed, shown by computing them: from the replica count, the kind of the method, and the call graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from generator.model import Idempotency, Method, StreamingKind, defaults
from generator.model.defaults import Decided
from generator.model.recording import show
from generator.outputs.reference.tables import table

REPLICAS = (1, 2, 3, 5, 10)
SIDECARS = (1, 20, 100, 1_000)
LIFETIME_MS = defaults.CERTIFICATE_LIFETIME_MS

ByReplicas = Callable[[int], Decided[Any]]
BY_REPLICAS: Final[Mapping[str, ByReplicas]] = {
    "retries.attempts": defaults.retry_attempts_max,
    "retry_budget.percent": defaults.retry_budget_percent,
    "retry_budget.min_concurrency": defaults.retry_concurrency_min,
    "load_balancing.panic_threshold": defaults.panic_threshold_percent,
    "outlier_detection.max_ejection_percent": defaults.ejection_percent_max,
    "outlier_detection.success_rate.min_replicas": lambda replicas: Decided(
        value=defaults.success_rate_replicas_min(replicas), reason="where `success_rate` is written: fewer say nothing"
    ),
    "outlier_detection.success_rate.stdev_factor": lambda replicas: Decided(
        value=defaults.success_rate_stdev_factor(replicas),
        reason="where `success_rate` is written: one of few replicas that fails alone is not farther away",
    ),
    "circuit_breaker.max_connections": defaults.connections_max,
    "circuit_breaker.max_pending_requests": defaults.pending_requests_max,
    "circuit_breaker.max_requests": defaults.requests_max,
    "circuit_breaker.max_streams": lambda replicas: defaults.streams_max(defaults.requests_max(replicas).value),
}
"""What depends on how many replicas there are, by its path of keys."""

ByMethod = Callable[[Method], Decided[Any]]
BY_METHOD: Final[Mapping[str, tuple[str, ByMethod]]] = {
    "deadline": ("deadline_ms", defaults.deadline_ms),
    "idle_timeout": ("idle_timeout_ms", defaults.idle_timeout_ms),
    "max_stream_duration": (
        "duration_ms_max",
        lambda method: defaults.stream_duration_ms_max(method, LIFETIME_MS),
    ),
    "retries.on": ("conditions", defaults.retry_conditions),
}
"""What depends on the method, by its path of keys: the setting's name for `explain`, and how it is decided."""

ALWAYS: Final[Mapping[str, tuple[str, Callable[[], Decided[Any]]]]] = {
    "retries.per_try_timeout": ("per_try_ms", defaults.per_try_ms),
    "retries.backoff.base": ("backoff_base_ms", defaults.backoff_base_ms),
    "load_balancing.policy": ("policy", defaults.balancer),
    "load_balancing.slow_start": ("slow_start_ms", defaults.slow_start_ms),
    "outlier_detection.consecutive_errors": ("consecutive_errors", defaults.consecutive_failures),
    "outlier_detection.consecutive_gateway_errors": ("consecutive_gateway_errors", defaults.consecutive_failures),
    "outlier_detection.interval": ("interval_ms", defaults.outlier_interval_ms),
    "outlier_detection.base_ejection_time": ("base_ejection_ms", defaults.base_ejection_ms),
    "outlier_detection.max_ejection_time": (
        "ejection_ms_max",
        lambda: defaults.ejection_ms_max(defaults.EJECTION_BASE_MS),
    ),
    "certificates.lifetime": ("certificate_lifetime_ms", defaults.certificate_lifetime_ms),
}
"""What is the same everywhere, and why."""

SAMPLE_METHODS: Final = (
    ("unary, `idempotency_level` unset", StreamingKind.UNARY, Idempotency.UNKNOWN),
    ("unary, `IDEMPOTENT`", StreamingKind.UNARY, Idempotency.IDEMPOTENT),
    ("unary, `NO_SIDE_EFFECTS`", StreamingKind.UNARY, Idempotency.NO_SIDE_EFFECTS),
    ("server streaming", StreamingKind.SERVER, Idempotency.NO_SIDE_EFFECTS),
    ("client streaming", StreamingKind.CLIENT, Idempotency.UNKNOWN),
    ("bidirectional", StreamingKind.BIDIRECTIONAL, Idempotency.UNKNOWN),
)


def by_replicas() -> str:
    """The table of defaults that follow from the replica count."""
    rows = (
        (f"`{path}`", *(show("", decide(count).value) for count in REPLICAS), decide(2).reason)
        for path, decide in BY_REPLICAS.items()
    )
    return table(("Key", *map(defaults.count, REPLICAS), "Why, with 2 replicas"), rows)


def by_method() -> str:
    """The table of defaults that follow from the kind of the method."""
    rows = []
    for title, streaming, idempotency in SAMPLE_METHODS:
        method = Method(
            service="shop.v1.S", name="M", streaming=streaming, idempotency=idempotency, request="", response=""
        )
        shown = [show(setting, decide(method).value) for setting, decide in BY_METHOD.values()]
        rows.append((title, *shown, defaults.retry_conditions(method).reason))
    return table(("Method", *(f"`{path}`" for path in BY_METHOD), "Why it is repeated so"), rows)


def by_graph() -> str:
    """The table of defaults that follow from who calls."""
    decided = [(sidecars, defaults.health_interval_ms(sidecars)) for sidecars in SIDECARS]
    rows = ((str(sidecars), show("interval_ms", each.value)) for sidecars, each in decided)
    return table(("Sidecars that call the service", "Pause between their health checks of a replica"), rows)


def always() -> str:
    """The table of defaults that depend on nothing."""
    rows = ((f"`{path}`", show(setting, decide().value), decide().reason) for path, (setting, decide) in ALWAYS.items())
    return table(("Key", "Default", "Why"), rows)


def reasons(policy: str) -> tuple[str, ...]:
    """How the defaults of one policy come about, a sentence each; of what depends on the replica count with 2 of them."""
    found = [(path, show("", decide(2).value), decide(2).reason) for path, decide in BY_REPLICAS.items()]
    found += [(path, show(name, decide().value), decide().reason) for path, (name, decide) in ALWAYS.items()]
    return tuple(
        f"`{path}`{'' if value == '-' else f' is {value}'}: {why}"
        for path, value, why in found
        if path.partition(".")[0] == policy
    )

"""Resolves what every caller applies towards a service, and what its own sidecars apply for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from generator.manifest.values import Located
from generator.model import defaults
from generator.model.defaults import Decided
from generator.model.links import Layer, Written
from generator.model.policies import (
    AdaptiveConcurrency,
    AdmissionControl,
    Balancer,
    CircuitBreaker,
    FailurePercentage,
    HashKind,
    HashOn,
    HealthCheck,
    Keepalive,
    LoadBalancing,
    OutlierDetection,
    Session,
    SuccessRate,
    TrafficPolicy,
)
from generator.model.recording import Recorder, from_line

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """How many replicas there are of everything, and who calls."""

    replicas: Mapping[str, int]
    """By service, versions included; external hosts count as one."""
    zones: Mapping[str, tuple[str, ...]]
    caller_sidecars: Mapping[str, int]
    """By service: sidecars that check its health."""


class ServicePolicies:
    """Resolves the policies of services and their versions; numbers depend on how many replicas there are."""

    def __init__(self, recorder: Recorder, fleet: Fleet, lifetime_ms: int) -> None:
        self.recorder, self.fleet, self.lifetime_ms = recorder, fleet, lifetime_ms

    def resolve(self, name: str, layer: Layer) -> TrafficPolicy:
        """Decide everything about one service, version or host outside."""
        take = self.recorder.take
        return TrafficPolicy(
            load_balancing=self._load_balancing(name, layer),
            outlier_detection=self._outlier_detection(name, layer),
            circuit_breaker=self._circuit_breaker(name, layer),
            health_check=self._health_check(name),
            keepalive=Keepalive(
                interval_ms=take(name, "keepalive.interval_ms", defaults.keepalive_interval_ms()),
                timeout_ms=take(name, "keepalive.timeout_ms", defaults.keepalive_timeout_ms()),
            ),
            request_bytes_max=take(name, "request_bytes_max", defaults.request_bytes_max()),
            connection_duration_ms_max=take(
                name, "connection_duration_ms_max", defaults.connection_duration_ms_max(self.lifetime_ms)
            ),
            session=self._session(name, layer),
            adaptive_concurrency=self._adaptive_concurrency(name, layer),
            admission_control=self._admission_control(name, layer),
        )

    def _load_balancing(self, name: str, layer: Layer) -> LoadBalancing:
        replicas, zones = self.fleet.replicas[name], self.fleet.zones.get(name, ())

        def pick(setting: str, path: str, default: Decided[T]) -> T:
            return self.recorder.pick(name, setting, layer, f"load_balancing.{path}", default)

        return LoadBalancing(
            balancer=Balancer(pick("load_balancing.policy", "policy", defaults.balancer())),
            hash_on=self._hash_source(layer),
            weights=values(pick("load_balancing.weights", "weights", defaults.weights())),
            slow_start_ms=pick("load_balancing.slow_start_ms", "slow_start", defaults.slow_start_ms()),
            panic_threshold_percent=pick(
                "panic_threshold_percent", "panic_threshold", defaults.panic_threshold_percent(replicas)
            ),
            failover=values(pick("load_balancing.failover", "failover", defaults.failover(zones))),
        )

    def _hash_source(self, layer: Layer) -> HashOn | None:
        path = "load_balancing.hash_on"
        for kind in (HashKind.HEADER, HashKind.FIELD, HashKind.SOURCE):
            written = layer.get(f"{path}.{kind.value}")
            if written is not None:
                return HashOn(kind=kind, name=str(written.value))
        if f"{path}.cookie.name" not in layer:
            return None
        ttl_ms = value_of(layer, f"{path}.cookie.ttl", defaults.COOKIE_TTL_MS)
        return HashOn(kind=HashKind.COOKIE, name=layer[f"{path}.cookie.name"].value, ttl_ms=ttl_ms)

    def _outlier_detection(self, name: str, layer: Layer) -> OutlierDetection:
        replicas = self.fleet.replicas[name]

        def pick(setting: str, path: str, default: Decided[T]) -> T:
            return self.recorder.pick(name, f"outlier_detection.{setting}", layer, f"outlier_detection.{path}", default)

        failures = defaults.consecutive_failures()
        base_ms = pick("base_ejection_ms", "base_ejection_time", defaults.base_ejection_ms())
        return OutlierDetection(
            consecutive_errors=pick("consecutive_errors", "consecutive_errors", failures),
            consecutive_gateway_errors=pick("consecutive_gateway_errors", "consecutive_gateway_errors", failures),
            interval_ms=pick("interval_ms", "interval", defaults.outlier_interval_ms()),
            base_ejection_ms=base_ms,
            # A level may shorten what a farther one lengthened; Envoy refuses a longest time below the first.
            ejection_ms_max=max(
                base_ms, pick("ejection_ms_max", "max_ejection_time", defaults.ejection_ms_max(base_ms))
            ),
            ejection_jitter_ms=pick("ejection_jitter_ms", "", defaults.ejection_jitter_ms()),
            ejection_percent_max=pick(
                "ejection_percent_max", "max_ejection_percent", defaults.ejection_percent_max(replicas)
            ),
            always_eject_one=pick("always_eject_one", "", self._always_eject_one(replicas, layer)),
            success_rate=self._success_rate(name, replicas, layer),
            failure_percentage=self._failure_percentage(name, layer),
        )

    def _always_eject_one(self, replicas: int, layer: Layer) -> Decided[bool]:
        written = layer.get("outlier_detection.max_ejection_percent")
        if written is not None and written.value == 0:
            return Decided(value=False, reason=f"{from_line(written.position.line)}: none may be out")
        return defaults.always_eject_one(replicas)

    def _success_rate(self, name: str, replicas: int, layer: Layer) -> SuccessRate | None:
        path = "outlier_detection.success_rate"
        if not self._is_on(
            name, path, layer, "off: it ejects whoever is worse than the others, also when all are well"
        ):
            return None
        return SuccessRate(
            replicas_min=value_of(layer, f"{path}.min_replicas", defaults.success_rate_replicas_min(replicas)),
            requests_min=value_of(layer, f"{path}.min_requests", defaults.SUCCESS_RATE_REQUESTS_MIN),
            stdev_factor=value_of(layer, f"{path}.stdev_factor", defaults.success_rate_stdev_factor(replicas)),
        )

    def _failure_percentage(self, name: str, layer: Layer) -> FailurePercentage | None:
        path = "outlier_detection.failure_percentage"
        if not self._is_on(name, path, layer, "off: failures in a row are looked at"):
            return None
        return FailurePercentage(
            threshold_percent=value_of(layer, f"{path}.threshold", defaults.FAILURE_PERCENTAGE),
            replicas_min=value_of(layer, f"{path}.min_replicas", defaults.FAILURE_REPLICAS_MIN),
            requests_min=value_of(layer, f"{path}.min_requests", defaults.FAILURE_REQUESTS_MIN),
        )

    def _is_on(self, name: str, path: str, layer: Layer, reason: str) -> bool:
        """Whether a policy that is off by default is written down at all."""
        written = layer.get(path)
        decided = Decided(value=False, reason=reason)
        if written is not None:
            decided = Decided(value=True, reason=from_line(written.position.line))
        return self.recorder.take(name, path, decided)

    def _circuit_breaker(self, name: str, layer: Layer) -> CircuitBreaker:
        replicas = self.fleet.replicas[name]

        def pick(setting: str, path: str, default: Decided[T]) -> T:
            return self.recorder.pick(name, f"circuit_breaker.{setting}", layer, path, default)

        requests = pick("requests_max", "circuit_breaker.max_requests", defaults.requests_max(replicas))
        return CircuitBreaker(
            connections_max=pick(
                "connections_max", "circuit_breaker.max_connections", defaults.connections_max(replicas)
            ),
            pending_requests_max=pick(
                "pending_requests_max", "circuit_breaker.max_pending_requests", defaults.pending_requests_max(requests)
            ),
            requests_max=requests,
            streams_max=pick("streams_max", "circuit_breaker.max_streams", defaults.streams_max(requests)),
            retry_budget_percent=pick(
                "retry_budget_percent", "retry_budget.percent", defaults.retry_budget_percent(replicas)
            ),
            retry_concurrency_min=pick(
                "retry_concurrency_min", "retry_budget.min_concurrency", defaults.retry_concurrency_min(replicas)
            ),
        )

    def _health_check(self, name: str) -> HealthCheck | None:
        def take(setting: str, decided: Decided[T]) -> T:
            return self.recorder.take(name, f"health_check.{setting}", decided)

        if name not in self.fleet.caller_sidecars:
            return None
        return HealthCheck(
            interval_ms=take("interval_ms", defaults.health_interval_ms(self.fleet.caller_sidecars[name])),
            timeout_ms=take("timeout_ms", defaults.health_timeout_ms()),
            healthy_threshold=take("healthy_threshold", defaults.healthy_threshold()),
            unhealthy_threshold=take("unhealthy_threshold", defaults.unhealthy_threshold()),
        )

    def _session(self, name: str, layer: Layer) -> Session | None:
        path = "session_persistence"
        if not self._is_on(name, path, layer, "off: any replica takes any call"):
            return None
        return Session(
            header=value_of(layer, f"{path}.header", None),
            cookie=value_of(layer, f"{path}.cookie.name", None),
            ttl_ms=value_of(layer, f"{path}.cookie.ttl", defaults.COOKIE_TTL_MS),
        )

    def _adaptive_concurrency(self, name: str, layer: Layer) -> AdaptiveConcurrency | None:
        path = "adaptive_concurrency"
        if not self._is_on(name, path, layer, "off: the circuit breakers of the callers bound what runs"):
            return None
        least, most = layer.get(f"{path}.min_concurrency"), layer.get(f"{path}.max_concurrency")
        return AdaptiveConcurrency(
            concurrency_min=least.value if least is not None else _least(most),
            concurrency_max=most.value if most is not None else _most(least),
            percentile=value_of(layer, f"{path}.percentile", defaults.CONCURRENCY_PERCENTILE),
            update_ms=value_of(layer, f"{path}.update_interval", defaults.CONCURRENCY_UPDATE_MS),
            measure_ms=value_of(layer, f"{path}.measure_interval", defaults.CONCURRENCY_MEASURE_MS),
            measure_requests=value_of(layer, f"{path}.measure_requests", defaults.CONCURRENCY_MEASURE_REQUESTS),
        )

    def _admission_control(self, name: str, layer: Layer) -> AdmissionControl | None:
        path = "admission_control"
        if not self._is_on(name, path, layer, "off: outlier detection takes out what fails"):
            return None
        return AdmissionControl(
            success_rate_percent=value_of(layer, f"{path}.success_rate_threshold", defaults.ADMISSION_SUCCESS_PERCENT),
            window_ms=value_of(layer, f"{path}.window", defaults.ADMISSION_WINDOW_MS),
            requests_per_second_min=value_of(
                layer, f"{path}.min_requests_per_second", defaults.ADMISSION_REQUESTS_PER_SECOND_MIN
            ),
            rejection_percent_max=value_of(
                layer, f"{path}.max_rejection_percent", defaults.ADMISSION_REJECTION_PERCENT_MAX
            ),
        )


def _least(most: Written | None) -> int:
    """The default of the lower limit; it is never above the upper one."""
    return defaults.CONCURRENCY_MIN if most is None else min(defaults.CONCURRENCY_MIN, int(most.value))


def _most(least: Written | None) -> int:
    """The default of the upper limit; it is never below the lower one."""
    return defaults.CONCURRENCY_MAX if least is None else max(defaults.CONCURRENCY_MAX, int(least.value))


def values(listed: tuple[Any, ...]) -> tuple[Any, ...]:
    """The bare values of a list that the user may have written."""
    return tuple(item.value if isinstance(item, Located) else item for item in listed)


def value_of(layer: Layer, path: str, default: Any) -> Any:
    """What was written at a path, else the default."""
    written = layer.get(path)
    return default if written is None else written.value

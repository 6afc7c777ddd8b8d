"""Resolves what services, methods and edges say about traffic into policies; what nobody wrote is computed.

A setting that was written for more than one method (by the mesh, a service or `Service/*`) holds for those that it fits and
whose protobuf allows it. One that was written for a single method and does not fit is an error, found by the analysis.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from generator.manifest.traffic import GRPC_CODES
from generator.manifest.values import Entry, Located
from generator.model import defaults
from generator.model.defaults import Decided
from generator.model.links import Layer, Level, Links, is_deliberate
from generator.model.mesh import Destination, Edge, Method, MethodPolicy, StreamingKind
from generator.model.policies import (
    CONSISTENT,
    AdaptiveConcurrency,
    AdmissionControl,
    Balancer,
    CircuitBreaker,
    FailurePercentage,
    Faults,
    HashKind,
    HashOn,
    HeaderChanges,
    HealthCheck,
    Hedging,
    Keepalive,
    LoadBalancing,
    Match,
    OutlierDetection,
    Rate,
    RateLimit,
    RetryCondition,
    RetryPolicy,
    Routing,
    Session,
    SuccessRate,
    TrafficPolicy,
)
from generator.model.recording import Recorder, from_line

T = TypeVar("T")
NOTHING: Layer = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """How many replicas there are of everything, and who calls."""

    replicas: Mapping[str, int]
    """By service, versions included; external hosts count as one."""
    zones: Mapping[str, tuple[str, ...]]
    caller_sidecars: Mapping[str, int]
    """By service: sidecars that check its health."""


class Policies:
    """Resolves and remembers the policies of methods, services and edges."""

    def __init__(self, recorder: Recorder, links: Links, fleet: Fleet, lifetime_ms: int) -> None:
        self.recorder, self.links, self.fleet, self.lifetime_ms = recorder, links, fleet, lifetime_ms
        self._methods: dict[tuple[str, Method], MethodPolicy] = {}
        self._services: dict[str, TrafficPolicy] = {}

    def method(self, owner: str, method: Method) -> MethodPolicy:
        """How every caller's calls of a method are carried, unless its edge says more."""
        key = (owner, method)
        if key not in self._methods:
            self._methods[key] = self._method(owner, method)
        return self._methods[key]

    def service(self, name: str, owner: str) -> TrafficPolicy:
        """What every caller applies towards a service, or towards a version of the service `owner`."""
        if name not in self._services:
            self._services[name] = self._traffic(name, self.links.layers.services.get(owner, NOTHING))
        return self._services[name]

    def edge(self, caller: str, callee: str, methods: tuple[Method, ...]) -> Edge:
        """One edge: the service's policies, tightened by what the caller says."""
        policies = tuple(self._edge_method(caller, callee, method) for method in methods)
        reached = {name for policy in policies for name in policy.routing.versions(callee)}
        traffic = {name: self._edge_traffic(caller, callee, name) for name in sorted(reached)}
        destinations = tuple(Destination(service=name, traffic=policy) for name, policy in traffic.items())
        return Edge(caller=caller, callee=callee, methods=policies, destinations=destinations)

    def _method(self, owner: str, method: Method) -> MethodPolicy:
        subject, layer = f"{owner}{method.path}", self.links.layers.methods.get((owner, method), NOTHING)
        is_unary = method.streaming is StreamingKind.UNARY
        timed, streamed = (layer, NOTHING) if is_unary else (NOTHING, layer)
        pick = self.recorder.pick
        hedging = self._hedging(subject, method, layer)
        return MethodPolicy(
            method=method,
            deadline_ms=pick(subject, "deadline_ms", timed, "deadline", defaults.deadline_ms(method)),
            idle_timeout_ms=pick(
                subject, "idle_timeout_ms", streamed, "idle_timeout", defaults.idle_timeout_ms(method)
            ),
            duration_ms_max=pick(
                subject,
                "duration_ms_max",
                streamed,
                "max_stream_duration",
                defaults.stream_duration_ms_max(method, self.lifetime_ms),
            ),
            retry=self._retry(subject, owner, method, layer),
            hedging=hedging,
            faults=self._faults(subject, layer),
            routing=self._routing(subject, method, layer),
            hash_on=self._hash_on(owner, method),
            request_bytes_max=self._request_bytes_max(subject, method, layer),
            rate_limit=self._rate_limit(subject, layer),
            request_headers=self._headers(subject, layer, "request"),
            response_headers=self._headers(subject, layer, "response"),
        )

    def _edge_method(self, caller: str, callee: str, method: Method) -> MethodPolicy:
        base = self.method(callee, method)
        layer = self.links.layers.edge_methods.get((caller, callee, method), NOTHING)
        if not layer:
            return base
        subject = f"{caller} -> {callee}{method.path}"

        def tighten(setting: str, path: str, value: int | None) -> int | None:
            written = layer.get(path)
            if written is None or value is None or written.value >= value:
                return value
            reason = from_line(written.position.line)
            return self.recorder.take(subject, setting, Decided(value=int(written.value), reason=reason))

        return replace(
            base,
            deadline_ms=tighten("deadline_ms", "deadline", base.deadline_ms),
            idle_timeout_ms=tighten("idle_timeout_ms", "idle_timeout", base.idle_timeout_ms),
            duration_ms_max=tighten("duration_ms_max", "max_stream_duration", base.duration_ms_max),
            retry=self._edge_retry(subject, base, layer),
            faults=self._faults(subject, layer) if "faults" in layer else base.faults,
        )

    def _retry(self, subject: str, owner: str, method: Method, layer: Layer) -> RetryPolicy | None:
        take, pick = self.recorder.take, self.recorder.pick
        conditions = take(subject, "retry.conditions", self._conditions(method, layer))
        if not conditions:
            return None
        attempts = defaults.retry_attempts_max(self.fleet.replicas[owner])
        base_ms = pick(subject, "retry.backoff_base_ms", layer, "retries.backoff.base", defaults.backoff_base_ms())
        policy = RetryPolicy(
            conditions=conditions,
            attempts_max=pick(subject, "retry.attempts_max", layer, "retries.attempts", attempts),
            backoff_base_ms=base_ms,
            backoff_max_ms=pick(
                subject, "retry.backoff_ms_max", layer, "retries.backoff.max", defaults.backoff_max_of(base_ms)
            ),
            per_try_ms=self._per_try(subject, method, layer),
        )
        return policy if policy.attempts_max else None

    def _conditions(self, method: Method, layer: Layer) -> Decided[frozenset[RetryCondition]]:
        default, written = defaults.retry_conditions(method), layer.get("retries.on")
        is_unary = method.streaming is StreamingKind.UNARY
        if written is None or not (is_unary or written.level is Level.METHOD):
            return default
        wanted = frozenset(RetryCondition(word.value) for word in written.value)
        if is_deliberate(layer, "retries.on") and defaults.repeatable(method):
            return Decided(value=wanted, reason=f"{from_line(written.position.line)}, {_deliberately(layer)}")
        clipped = wanted & defaults.repeatable(method)
        reason = from_line(written.position.line)
        if clipped != wanted:
            reason += ", less what the method's idempotency_level does not allow"
        return Decided(value=clipped, reason=reason)

    def _per_try(self, subject: str, method: Method, layer: Layer) -> int | None:
        path = "retries.per_try_timeout"
        is_allowed = defaults.may_run_twice(method) or is_deliberate(layer, path)
        chosen = layer if is_allowed and method.streaming is StreamingKind.UNARY else NOTHING
        return self.recorder.pick(subject, "retry.per_try_ms", chosen, path, defaults.per_try_ms())

    def _edge_retry(self, subject: str, base: MethodPolicy, layer: Layer) -> RetryPolicy | None:
        policy = base.retry
        if policy is None or not any(path.startswith("retries.") for path in layer):
            return policy
        on = layer.get("retries.on")
        wanted = policy.conditions if on is None else frozenset(RetryCondition(word.value) for word in on.value)
        attempts = layer.get("retries.attempts")
        limit = policy.attempts_max if attempts is None else min(policy.attempts_max, int(attempts.value))
        per_try = layer.get("retries.per_try_timeout")
        shortest = _smaller(policy.per_try_ms, int(per_try.value)) if per_try is not None else policy.per_try_ms
        if not (defaults.may_run_twice(base.method) and base.method.streaming is StreamingKind.UNARY):
            shortest = policy.per_try_ms
        written = next(layer[path] for path in sorted(layer) if path.startswith("retries."))
        decided = Decided(value=wanted & policy.conditions, reason=from_line(written.position.line))
        conditions = self.recorder.take(subject, "retry.conditions", decided)
        limit = self.recorder.take(subject, "retry.attempts_max", Decided(value=limit, reason=decided.reason))
        if not conditions or not limit:
            return None
        return replace(policy, conditions=conditions, attempts_max=limit, per_try_ms=shortest)

    def _hedging(self, subject: str, method: Method, layer: Layer) -> Hedging | None:
        is_unary = method.streaming is StreamingKind.UNARY
        if "hedging.delay" not in layer or not is_unary or not _may_copy(method, layer, "hedging"):
            return None
        attempts = Decided(value=defaults.HEDGING_ATTEMPTS, reason="one more than the call itself")
        written = layer["hedging.delay"]
        delay = Decided(value=int(written.value), reason=from_line(written.position.line))
        return Hedging(
            delay_ms=self.recorder.take(subject, "hedging.delay_ms", delay),
            attempts_max=self.recorder.pick(subject, "hedging.attempts_max", layer, "hedging.attempts", attempts),
        )

    def _faults(self, subject: str, layer: Layer) -> Faults | None:
        if "faults" not in layer:
            return None
        code = _value(layer, "faults.abort.code", None)
        faults = Faults(
            delay_ms=_value(layer, "faults.delay.duration", None),
            delay_percent=_value(layer, "faults.delay.percent", 100),
            abort_code=None if code is None else GRPC_CODES.index(code) + 1,
            abort_percent=_value(layer, "faults.abort.percent", 100),
            headers=pairs(_value(layer, "faults.headers", ())),
        )
        shown = f"delay {faults.delay_ms} ms of {faults.delay_percent} %, abort {code} of {faults.abort_percent} %"
        reason = from_line(layer["faults"].position.line)
        self.recorder.take(subject, "faults", Decided(value=shown, reason=reason))
        return faults if faults.delay_ms is not None or faults.abort_code is not None else None

    def _routing(self, subject: str, method: Method, layer: Layer) -> Routing:
        if "routing" not in layer:
            return Routing()
        rules = _value(layer, "routing.match", ())
        mirror = _value(layer, "routing.mirror.to", None) if _may_copy(method, layer, "routing.mirror") else None
        weights = tuple(sorted((item.key.value, item.value.value) for item in _value(layer, "routing.split", ())))
        routing = Routing(
            matches=tuple(Match(headers=pairs(rule.headers), to=rule.to.value) for rule in rules),
            split=tuple((name, weight) for name, weight in weights if weight),
            mirror_to=mirror,
            mirror_percent=_value(layer, "routing.mirror.percent", 100) if mirror else 0,
        )
        reason = from_line(layer["routing"].position.line)
        self.recorder.take(subject, "routing.split", Decided(value=routing.split, reason=reason))
        return routing

    def _request_bytes_max(self, subject: str, method: Method, layer: Layer) -> int | None:
        is_single = method.streaming in {StreamingKind.UNARY, StreamingKind.SERVER}
        none: Decided[int | None] = Decided(value=None, reason="none: the application's own limit holds")
        chosen = layer if is_single else NOTHING
        return self.recorder.pick(subject, "request_bytes_max", chosen, "max_request_bytes", none)

    def _rate_limit(self, subject: str, layer: Layer) -> RateLimit | None:
        if "rate_limit.requests" not in layer:
            return None
        default = _rate(
            int(layer["rate_limit.requests"].value),
            _value(layer, "rate_limit.per", None),
            _value(layer, "rate_limit.burst", None),
        )
        callers = sorted(_value(layer, "rate_limit.callers", ()), key=lambda entry: entry.key.value)
        limit = RateLimit(
            default=default,
            callers=tuple(
                (entry.key.value, _rate(entry.value.requests.value, _of(entry.value.per), _of(entry.value.burst)))
                for entry in callers
            ),
        )
        reason = f"{from_line(layer['rate_limit'].position.line)}: each caller, at each replica"
        shown = f"{default.requests} in {default.period_ms} ms, {default.burst} at once"
        self.recorder.take(subject, "rate_limit", Decided(value=shown, reason=reason))
        return limit

    def _headers(self, subject: str, layer: Layer, side: str) -> HeaderChanges:
        changes = HeaderChanges(
            set=pairs(_value(layer, f"headers.{side}.set", ())),
            add=pairs(_value(layer, f"headers.{side}.add", ())),
            remove=tuple(name.value for name in _value(layer, f"headers.{side}.remove", ())),
        )
        if f"headers.{side}" in layer:
            reason = from_line(layer[f"headers.{side}"].position.line)
            names = frozenset([name for name, _ in (*changes.set, *changes.add)] + list(changes.remove))
            self.recorder.take(subject, f"headers.{side}", Decided(value=names, reason=reason))
        return changes

    def _hash_on(self, owner: str, method: Method) -> HashOn | None:
        balancing = self.service(owner, owner).load_balancing
        if balancing.balancer not in CONSISTENT or balancing.hash_on is None:
            return None
        if balancing.hash_on.kind is HashKind.FIELD and method not in self.links.field_methods.get(owner, frozenset()):
            return None
        return balancing.hash_on

    def _edge_traffic(self, caller: str, callee: str, name: str) -> TrafficPolicy:
        traffic = self.service(name, callee)
        layer = self.links.layers.edges.get((caller, callee), NOTHING)
        breaker = traffic.circuit_breaker

        def tighten(setting: str, path: str, value: int) -> int:
            written = layer.get(f"circuit_breaker.{path}")
            if written is None or written.value >= value:
                return value
            decided = Decided(value=int(written.value), reason=from_line(written.position.line))
            return self.recorder.take(f"{caller} -> {name}", f"circuit_breaker.{setting}", decided)

        tightened = replace(
            breaker,
            connections_max=tighten("connections_max", "max_connections", breaker.connections_max),
            pending_requests_max=tighten("pending_requests_max", "max_pending_requests", breaker.pending_requests_max),
            requests_max=tighten("requests_max", "max_requests", breaker.requests_max),
            streams_max=tighten("streams_max", "max_streams", breaker.streams_max),
        )
        return traffic if tightened == breaker else replace(traffic, circuit_breaker=tightened)

    def _traffic(self, name: str, layer: Layer) -> TrafficPolicy:
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
        ttl_ms = _value(layer, f"{path}.cookie.ttl", defaults.COOKIE_TTL_MS)
        return HashOn(kind=HashKind.COOKIE, name=layer[f"{path}.cookie.name"].value, ttl_ms=ttl_ms)

    def _outlier_detection(self, name: str, layer: Layer) -> OutlierDetection:
        replicas = self.fleet.replicas[name]

        def pick(setting: str, path: str, default: Decided[T]) -> T:
            return self.recorder.pick(name, f"outlier_detection.{setting}", layer, f"outlier_detection.{path}", default)

        failures = defaults.consecutive_failures()
        return OutlierDetection(
            consecutive_errors=pick("consecutive_errors", "consecutive_errors", failures),
            consecutive_gateway_errors=pick("consecutive_gateway_errors", "consecutive_gateway_errors", failures),
            interval_ms=pick("interval_ms", "interval", defaults.outlier_interval_ms()),
            base_ejection_ms=pick("base_ejection_ms", "base_ejection_time", defaults.base_ejection_ms()),
            ejection_ms_max=pick("ejection_ms_max", "max_ejection_time", defaults.ejection_ms_max()),
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
        path, default = "outlier_detection.success_rate", defaults.success_rate(replicas)
        if path in layer:
            default = Decided(value=True, reason=from_line(layer[path].position.line))
        if not self.recorder.take(name, path, default):
            return None
        return SuccessRate(
            replicas_min=_value(layer, f"{path}.min_replicas", defaults.SUCCESS_RATE_REPLICAS_MIN),
            requests_min=_value(layer, f"{path}.min_requests", defaults.SUCCESS_RATE_REQUESTS_MIN),
            stdev_factor=_value(layer, f"{path}.stdev_factor", defaults.SUCCESS_RATE_STDEV_FACTOR),
        )

    def _failure_percentage(self, name: str, layer: Layer) -> FailurePercentage | None:
        path = "outlier_detection.failure_percentage"
        if not self._is_on(name, path, layer, "off: failures in a row are looked at"):
            return None
        return FailurePercentage(
            threshold_percent=_value(layer, f"{path}.threshold", defaults.FAILURE_PERCENTAGE),
            replicas_min=_value(layer, f"{path}.min_replicas", defaults.FAILURE_REPLICAS_MIN),
            requests_min=_value(layer, f"{path}.min_requests", defaults.FAILURE_REQUESTS_MIN),
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
                "pending_requests_max", "circuit_breaker.max_pending_requests", defaults.pending_requests_max(replicas)
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
            header=_value(layer, f"{path}.header", None),
            cookie=_value(layer, f"{path}.cookie.name", None),
            ttl_ms=_value(layer, f"{path}.cookie.ttl", defaults.COOKIE_TTL_MS),
        )

    def _adaptive_concurrency(self, name: str, layer: Layer) -> AdaptiveConcurrency | None:
        path = "adaptive_concurrency"
        if not self._is_on(name, path, layer, "off: the circuit breakers of the callers bound what runs"):
            return None
        return AdaptiveConcurrency(
            concurrency_min=_value(layer, f"{path}.min_concurrency", defaults.CONCURRENCY_MIN),
            concurrency_max=_value(layer, f"{path}.max_concurrency", defaults.CONCURRENCY_MAX),
            percentile=_value(layer, f"{path}.percentile", defaults.CONCURRENCY_PERCENTILE),
            update_ms=_value(layer, f"{path}.update_interval", defaults.CONCURRENCY_UPDATE_MS),
            measure_ms=_value(layer, f"{path}.measure_interval", defaults.CONCURRENCY_MEASURE_MS),
            measure_requests=_value(layer, f"{path}.measure_requests", defaults.CONCURRENCY_MEASURE_REQUESTS),
        )

    def _admission_control(self, name: str, layer: Layer) -> AdmissionControl | None:
        path = "admission_control"
        if not self._is_on(name, path, layer, "off: outlier detection takes out what fails"):
            return None
        return AdmissionControl(
            success_rate_percent=_value(layer, f"{path}.success_rate_threshold", defaults.ADMISSION_SUCCESS_PERCENT),
            window_ms=_value(layer, f"{path}.window", defaults.ADMISSION_WINDOW_MS),
            requests_per_second_min=_value(
                layer, f"{path}.min_requests_per_second", defaults.ADMISSION_REQUESTS_PER_SECOND_MIN
            ),
            rejection_percent_max=_value(
                layer, f"{path}.max_rejection_percent", defaults.ADMISSION_REJECTION_PERCENT_MAX
            ),
        )


def _may_copy(method: Method, layer: Layer, path: str) -> bool:
    is_single = method.streaming in {StreamingKind.UNARY, StreamingKind.SERVER}
    return defaults.may_run_beside(method) or (is_single and is_deliberate(layer, path))


def pairs(entries: tuple[Entry[Located[str]], ...]) -> tuple[tuple[str, str], ...]:
    """Headers as (name, value), sorted."""
    return tuple(sorted((entry.key.value, entry.value.value) for entry in entries))


def values(listed: tuple[Any, ...]) -> tuple[Any, ...]:
    """The bare values of a list that the user may have written."""
    return tuple(item.value if isinstance(item, Located) else item for item in listed)


def _value(layer: Layer, path: str, default: Any) -> Any:
    written = layer.get(path)
    return default if written is None else written.value


def _of(written: Located[int] | None) -> int | None:
    return None if written is None else written.value


def _rate(requests: int, period_ms: int | None, burst: int | None) -> Rate:
    return Rate(requests=requests, period_ms=period_ms or defaults.RATE_PERIOD_MS, burst=burst or requests)


def _smaller(one: int | None, other: int) -> int:
    return other if one is None else min(one, other)


def _deliberately(layer: Layer) -> str:
    return f"deliberately: {layer['unsafe'].value}"

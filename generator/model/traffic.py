"""Resolves what services, methods and edges say about traffic into policies; what nobody wrote is computed.

A setting that was written for more than one method (by the mesh, a service or `Service/*`) holds for those that it fits and
whose protobuf allows it. One that was written for a single method and does not fit is an error, found by the analysis.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from generator.manifest.policies import GRPC_CODES
from generator.manifest.values import Entry, Located
from generator.model import defaults
from generator.model.defaults import Decided
from generator.model.links import Layer, Level, Links, is_deliberate
from generator.model.mesh import Destination, Edge, Method, MethodPolicy, StreamingKind
from generator.model.policies import (
    CONSISTENT,
    Faults,
    HashKind,
    HashOn,
    HeaderChanges,
    Hedging,
    Match,
    Rate,
    RateLimit,
    RetryCondition,
    RetryPolicy,
    Routing,
    TrafficPolicy,
)
from generator.model.recording import Recorder, from_line
from generator.model.service_traffic import Fleet, ServicePolicies, value_of

T = TypeVar("T")
NOTHING: Layer = {}


class Policies:
    """Resolves and remembers the policies of methods, services and edges."""

    def __init__(self, recorder: Recorder, links: Links, fleet: Fleet, lifetime_ms: int) -> None:
        self.recorder, self.links, self.fleet, self.lifetime_ms = recorder, links, fleet, lifetime_ms
        self._resolver = ServicePolicies(recorder, fleet, lifetime_ms)
        self.methods: dict[tuple[str, Method], MethodPolicy] = {}
        self.services: dict[str, TrafficPolicy] = {}

    def method(self, owner: str, method: Method) -> MethodPolicy:
        """How every caller's calls of a method are carried, unless its edge says more."""
        key = (owner, method)
        if key not in self.methods:
            self.methods[key] = self._method(owner, method)
        return self.methods[key]

    def service(self, name: str, owner: str) -> TrafficPolicy:
        """What every caller applies towards a service, or towards a version of the service `owner`."""
        if name not in self.services:
            self.services[name] = self._resolver.resolve(name, self.links.layers.services.get(owner, NOTHING))
        return self.services[name]

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
        first_ms, longest_ms = self._edge_backoff(subject, policy, layer)
        return replace(
            policy,
            conditions=conditions,
            attempts_max=limit,
            per_try_ms=shortest,
            backoff_base_ms=first_ms,
            backoff_max_ms=longest_ms,
        )

    def _edge_backoff(self, subject: str, policy: RetryPolicy, layer: Layer) -> tuple[int, int]:
        """Of pauses a longer one is the stricter."""
        first = max(policy.backoff_base_ms, int(value_of(layer, "retries.backoff.base", 0)))
        longest = max(policy.backoff_max_ms, int(value_of(layer, "retries.backoff.max", 0)), first)
        written = layer.get("retries.backoff")
        if written is not None:
            for setting, value in (("backoff_base_ms", first), ("backoff_ms_max", longest)):
                decided = Decided(value=value, reason=from_line(written.position.line))
                self.recorder.take(subject, f"retry.{setting}", decided)
        return first, longest

    def _hedging(self, subject: str, method: Method, layer: Layer) -> Hedging | None:
        if "hedging.delay" not in layer or not _may_copy(method, layer, "hedging"):
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
        code = value_of(layer, "faults.abort.code", None)
        faults = Faults(
            delay_ms=value_of(layer, "faults.delay.duration", None),
            delay_percent=value_of(layer, "faults.delay.percent", 100),
            abort_code=None if code is None else GRPC_CODES.index(code) + 1,
            abort_percent=value_of(layer, "faults.abort.percent", 100),
            headers=pairs(value_of(layer, "faults.headers", ())),
        )
        shown = f"delay {faults.delay_ms} ms of {faults.delay_percent} %, abort {code} of {faults.abort_percent} %"
        reason = from_line(layer["faults"].position.line)
        self.recorder.take(subject, "faults", Decided(value=shown, reason=reason))
        return faults if faults.delay_ms is not None or faults.abort_code is not None else None

    def _routing(self, subject: str, method: Method, layer: Layer) -> Routing:
        if "routing" not in layer:
            return Routing()
        rules = value_of(layer, "routing.match", ())
        mirror = value_of(layer, "routing.mirror.to", None) if _may_copy(method, layer, "routing.mirror") else None
        weights = tuple(sorted((item.key.value, item.value.value) for item in value_of(layer, "routing.split", ())))
        routing = Routing(
            matches=tuple(Match(headers=pairs(rule.headers), to=rule.to.value) for rule in rules),
            split=tuple((name, weight) for name, weight in weights if weight),
            mirror_to=mirror,
            mirror_percent=value_of(layer, "routing.mirror.percent", 100) if mirror else 0,
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
            value_of(layer, "rate_limit.per", None),
            value_of(layer, "rate_limit.burst", None),
        )
        callers = sorted(value_of(layer, "rate_limit.callers", ()), key=lambda entry: entry.key.value)
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
            set=pairs(value_of(layer, f"headers.{side}.set", ())),
            add=pairs(value_of(layer, f"headers.{side}.add", ())),
            remove=tuple(name.value for name in value_of(layer, f"headers.{side}.remove", ())),
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


def _may_copy(method: Method, layer: Layer, path: str) -> bool:
    is_unary = method.streaming is StreamingKind.UNARY
    return defaults.may_run_beside(method) or (is_unary and is_deliberate(layer, path))


def pairs(entries: tuple[Entry[Located[str]], ...]) -> tuple[tuple[str, str], ...]:
    """Headers as (name, value), sorted."""
    return tuple(sorted((entry.key.value, entry.value.value) for entry in entries))


def _of(written: Located[int] | None) -> int | None:
    return None if written is None else written.value


def _rate(requests: int, period_ms: int | None, burst: int | None) -> Rate:
    return Rate(requests=requests, period_ms=period_ms or defaults.RATE_PERIOD_MS, burst=burst or requests)


def _smaller(one: int | None, other: int) -> int:
    return other if one is None else min(one, other)


def _deliberately(layer: Layer) -> str:
    return f"deliberately: {layer['unsafe'].value}"

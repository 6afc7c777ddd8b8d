"""Checks of what the levels say together: a setting of the mesh may contradict one of a method, far from it in the file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from generator.analysis.policies import conditions
from generator.analysis.verdicts import Misfit, Once, Verdicts
from generator.manifest.finding import Position, Reporter, Severity, did_you_mean, quoted
from generator.manifest.kinds import format_duration
from generator.manifest.types import Manifest
from generator.model import CONSISTENT, Balancer, Method, StreamingKind, defaults
from generator.model.links import Layer, Level, Links, Written, is_deliberate
from generator.model.mesh import GATEWAY

SLOW_STARTERS = frozenset({Balancer.LEAST_REQUEST, Balancer.ROUND_ROBIN})
WEIGHTLESS = frozenset({Balancer.RANDOM, Balancer.WEIGHTED_ROUND_ROBIN})
WITHIN_DEADLINE = {
    "retries.per_try_timeout": "no attempt is ever given up",
    "retries.backoff.base": "no other attempt ever begins",
    "hedging.delay": "no second attempt ever begins",
}
"""What must be shorter than the deadline to mean anything, and what happens otherwise."""


def check_consistency(manifest: Manifest, links: Links, replicas: Mapping[str, int], reporter: Reporter) -> None:
    """Report settings that together mean nothing. `replicas`: by service and version."""
    _Consistency(manifest, links, replicas, reporter).check()


class _Consistency:
    """One pass over the merged layers."""

    def __init__(self, manifest: Manifest, links: Links, replicas: Mapping[str, int], reporter: Reporter) -> None:
        self.links, self.replicas = links, replicas
        self.once, self.verdicts, self.reporter = Once(reporter), Verdicts(), reporter
        self.versions = {version for versions in links.versions.values() for version in versions}
        self.externals = {entry.key.value for entry in manifest.external}
        zones = {entry.key.value: entry.value.zones or manifest.zones for entry in manifest.services}
        self.zones = {name: {zone.value for zone in listed} for name, listed in zones.items()}
        self.callers = _callers(links, self.versions)

    def check(self) -> None:
        """See the module's function."""
        for (owner, method), layer in self.links.layers.methods.items():
            if owner not in self.versions:
                self._method(owner, method, layer)
        for (_, callee, method), layer in self.links.layers.edge_methods.items():
            base = self.links.layers.methods.get((callee, method), {})
            deadline = {path: written for path, written in base.items() if path == "deadline"}
            for path, verdict in within_deadline(method, {**deadline, **layer}):
                self.verdicts.add(path, layer[path].position, verdict)
        for owner, layer in self.links.layers.services.items():
            if owner not in self.versions and owner not in self.externals:
                self._balancing(layer)
                self._weights(owner, layer)
                self._failover(owner, layer)
                self._sessions(layer)
        self._fields()
        self.verdicts.report(self.reporter)

    def _method(self, owner: str, method: Method, layer: Layer) -> None:
        for path, verdict in within_deadline(method, layer):
            self.verdicts.add(path, layer[path].position, verdict)
        self._backoff(layer)
        self._hedged_attempts(layer)
        if "unsafe" in layer:
            self.verdicts.add("unsafe", layer["unsafe"].position, _idle_reason(method, layer))
        if "rate_limit.callers" in layer:
            self._callers(owner, method, layer["rate_limit.callers"])

    def _backoff(self, layer: Layer) -> None:
        longest, first = layer.get("retries.backoff.max"), layer.get("retries.backoff.base")
        base_ms = int(first.value) if first is not None else defaults.BACKOFF_BASE_MS
        if longest is None or longest.value >= base_ms:
            return
        position = first.position if first is not None and first.level > longest.level else longest.position
        cause = f"the first pause is {format_duration(base_ms)}, the longest {format_duration(longest.value)}"
        self._together(position, "`max` is less than `base`", cause, "write a longer `max`, or a shorter `base`")

    def _hedged_attempts(self, layer: Layer) -> None:
        """Only where both were written for one method: of what holds for many each method takes what it may have."""
        limit, hedging = layer.get("retries.per_try_timeout"), layer.get("hedging")
        if limit is not None and hedging is not None and limit.level is hedging.level is Level.METHOD:
            cause = "a hedged attempt is not given up when another one starts: the first answer wins"
            self._together(limit.position, "`per_try_timeout` beside `hedging`", cause, "keep one of them")

    def _callers(self, owner: str, method: Method, written: Written) -> None:
        callers = self.callers.get((owner, method), set())
        for entry in written.value:
            verdict = None
            if entry.key.value not in callers:
                cause = f"it does not call `{owner}`, or not such a method of it: the rate would hold for nobody"
                fix = did_you_mean(entry.key.value, callers, what="caller")
                message = f"{quoted(entry.key.value)} is no caller of `{owner}`"
                verdict = Misfit(code="NM514", message=message, cause=cause, fix=fix)
            self.verdicts.add("caller", entry.key.position, verdict)

    def _balancing(self, layer: Layer) -> None:
        policy, hash_on = layer.get("load_balancing.policy"), layer.get("load_balancing.hash_on")
        balancer = Balancer(policy.value) if policy is not None else Balancer.LEAST_REQUEST
        level = policy.level if policy is not None else Level.MESH
        if policy is not None and balancer in CONSISTENT and hash_on is None:
            cause = f"{balancer.value} sends equal things to the same replica, and nothing says what is compared"
            self._together(policy.position, "nothing to hash", cause, "add `hash_on`, e.g. {header: x-user}")
        if hash_on is not None and balancer not in CONSISTENT and hash_on.level >= level:
            fix = "write `policy: maglev` or `policy: ring_hash`, or remove `hash_on`"
            self._together(hash_on.position, "`hash_on` without effect", f"{balancer.value} hashes nothing", fix)
        slow = layer.get("load_balancing.slow_start")
        if slow is not None and balancer not in SLOW_STARTERS and slow.level >= level:
            cause = f"Envoy starts replicas slowly with least_request and round_robin only, not with {balancer.value}"
            fix = "remove `slow_start`, or choose another `policy`"
            self._together(slow.position, "no slow start with this policy", cause, fix)
        weights = layer.get("load_balancing.weights")
        if weights is not None and balancer in WEIGHTLESS and weights.level >= level:
            fix = "remove `weights`, or choose another `policy`"
            cause = f"{balancer.value} does not look at them"
            self._idle(weights.position, "weights without effect", cause, fix)

    def _weights(self, owner: str, layer: Layer) -> None:
        weights = layer.get("load_balancing.weights")
        if weights is None or weights.level is Level.MESH:
            return
        most = max(self.replicas[name] for name in (owner, *self.links.versions.get(owner, ())))
        if len(weights.value) > most:
            cause = f"there are {defaults.count(most)}; this weight is for one more"
            fix = "remove it, unless more replicas come by `nipmesh scale`"
            position = weights.value[most].position
            self._idle(position, "more weights than replicas", cause, fix, severity=Severity.WARNING)

    def _failover(self, owner: str, layer: Layer) -> None:
        failover = layer.get("load_balancing.failover")
        seen: set[str] = set()
        for zone in failover.value if failover is not None else ():
            if zone.value in seen:
                self._idle(zone.position, f"{quoted(zone.value)} twice", "its place is taken already", "keep one")
            elif failover is not None and failover.level is Level.SERVICE and self._is_elsewhere(zone.value, owner):
                cause = f"no replica of `{owner}` is in it"
                fix = did_you_mean(zone.value, self.zones[owner], what="zone of the service")
                self._idle(zone.position, f"no failover to {quoted(zone.value)}", cause, fix)
            seen.add(zone.value)

    def _is_elsewhere(self, zone: str, owner: str) -> bool:
        """Whether a zone exists, and none of a service's replicas is in it."""
        return zone not in self.zones[owner] and any(zone in zones for zones in self.zones.values())

    def _sessions(self, layer: Layer) -> None:
        session, policy = layer.get("session_persistence"), layer.get("load_balancing.policy")
        if session is None:
            return
        hashes = policy is not None and Balancer(policy.value) in CONSISTENT
        if policy is not None and hashes and policy.level is Level.SERVICE:
            cause = "a session stays at its replica whatever the hash says: equal calls of two sessions may be apart"
            message, fix = "`session_persistence` beside consistent hashing", "keep one of them"
            misfit = Misfit(code="NM509", message=message, cause=cause, fix=fix, severity=Severity.WARNING)
            self.once.report(misfit, session.position)

    def _fields(self) -> None:
        for name, methods in self.links.field_methods.items():
            written = self.links.layers.services[name]["load_balancing.hash_on.field"]
            if name in self.versions or not self.links.served.get(name):
                continue
            cause = f"no request of a unary or server-streaming method of `{name}` has such a scalar field "
            cause += "(text or a number, not repeated)"
            fix = "write the protobuf name of a field, or hash a header"
            misfit = Misfit(code="NM511", message=f"no field {quoted(str(written.value))}", cause=cause, fix=fix)
            self.verdicts.add("field", written.position, None if methods else misfit)

    def _together(self, position: Position, message: str, cause: str, fix: str) -> None:
        self.once.report(Misfit(code="NM509", message=message, cause=cause, fix=fix), position)

    def _idle(
        self, position: Position, message: str, cause: str, fix: str, *, severity: Severity = Severity.ERROR
    ) -> None:
        self.once.report(Misfit(code="NM508", message=message, cause=cause, fix=fix, severity=severity), position)


def _callers(links: Links, versions: set[str]) -> dict[tuple[str, Method], set[str]]:
    """Who may call what; versions call as their service."""
    found: dict[tuple[str, Method], set[str]] = {}
    for caller, targets in ((GATEWAY, links.exposes), *links.calls.items()):
        if caller not in versions:
            for callee, methods in targets.items():
                for method in methods:
                    found.setdefault((callee, method), set()).add(caller)
    return found


def within_deadline(method: Method, layer: Layer) -> Iterator[tuple[str, Misfit | None]]:
    """What each pause or limit of an attempt is worth within the deadline of a unary call."""
    deadline_ms = defaults.deadline_ms(method).value
    if method.streaming is not StreamingKind.UNARY or deadline_ms is None:
        return
    written = layer.get("deadline")
    if written is not None:
        deadline_ms = int(written.value)
    where = f" (line {written.position.line})" if written is not None else ""
    for path, what in WITHIN_DEADLINE.items():
        if path not in layer:
            continue
        if layer[path].value < deadline_ms:
            yield path, None
            continue
        cause = f"the whole call ends after {format_duration(deadline_ms)}{where}: {what}"
        fix = "write a shorter time, or a longer `deadline`"
        yield path, Misfit(code="NM508", message=f"`{path}` without effect", cause=cause, fix=fix)


def _idle_reason(method: Method, layer: Layer) -> Misfit | None:
    """Why `unsafe` allows a method nothing that would not be allowed without it; None when it does."""
    on = layer.get("retries.on")
    repeats = on is not None and conditions(on) - defaults.repeatable(method)
    covered = {
        "retries.on": bool(repeats),
        "retries.per_try_timeout": not defaults.may_run_twice(method),
        "hedging": not defaults.may_run_beside(method),
        "routing.mirror": not defaults.may_run_beside(method),
    }
    if any(is_needed and is_deliberate(layer, path) for path, is_needed in covered.items()):
        return None
    cause = "nothing as close as itself, or closer, asks for what the protobuf does not allow"
    fix = "remove it: it would cover what somebody adds later"
    message = "`unsafe` without effect"
    return Misfit(code="NM508", message=message, cause=cause, fix=fix, severity=Severity.WARNING)

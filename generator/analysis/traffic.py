"""Checks of traffic settings against each other and against the rest of the manifest: names, zones, versions, headers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from generator.manifest.finding import Position, Reporter, did_you_mean, quoted
from generator.manifest.kinds import format_duration
from generator.manifest.policies import (
    Faults,
    HashOn,
    HeaderChanges,
    LoadBalancing,
    MatchRule,
    OutlierDetection,
    RateLimit,
    Retries,
    Routing,
    SessionPersistence,
)
from generator.manifest.traffic import CallTraffic, MeshTraffic, Traffic
from generator.manifest.types import Manifest
from generator.manifest.values import Located, Record
from generator.model import CONSISTENT, Balancer, defaults
from generator.model.links import Links
from generator.model.mesh import GATEWAY

SLOW_STARTERS = frozenset({Balancer.LEAST_REQUEST, Balancer.ROUND_ROBIN})
RESERVED_PREFIXES = ("x-nipmesh-", "x-envoy-", "x-forwarded-", "grpc-", "content-", ":")
RESERVED_HEADERS = frozenset({"authorization", "host", "te", "connection", "transfer-encoding", "traceparent"})
"""What gRPC, Envoy and the mesh itself write: whoever changes them breaks calls or forges an identity."""


def check_traffic(manifest: Manifest, links: Links, reporter: Reporter) -> None:
    """All checks of what `traffic` says, anywhere."""
    _TrafficCheck(manifest, links, reporter).check()


class _TrafficCheck:
    """One pass over every `traffic` of a manifest."""

    def __init__(self, manifest: Manifest, links: Links, reporter: Reporter) -> None:
        self.manifest, self.links, self.reporter = manifest, links, reporter
        self.zones = {zone.value for zone in manifest.zones}
        self.zones |= {zone.value for entry in manifest.services for zone in entry.value.zones}
        written = manifest.certificates.lifetime if manifest.certificates else None
        lifetime_ms = written.value if written else defaults.CERTIFICATE_LIFETIME_MS
        self.stream_ms_max = lifetime_ms // 4

    def check(self) -> None:
        """See the module's function."""
        for owner, record in self._records():
            self._durations(record)
            if isinstance(record, CallTraffic):
                self._calls(owner, record)
            if isinstance(record, MeshTraffic):
                self._balancing(record.load_balancing)
            if isinstance(record, Traffic) and record.session_persistence is not None:
                self._session(record.session_persistence)
            routing = getattr(record, "routing", None)
            if routing is not None and owner is not None:
                self._routing(owner, routing)
        self._fields()
        if self.manifest.gateway is not None and self.manifest.gateway.zone is not None:
            self._zone(self.manifest.gateway.zone)

    def _records(self) -> Iterator[tuple[str | None, Record]]:
        """(service, record) of every record that holds settings; None: of the whole mesh."""
        if self.manifest.traffic is not None:
            yield None, self.manifest.traffic
        for service in self.manifest.services:
            yield from self._with_methods(service.key.value, service.value.traffic)
            for call in service.value.calls:
                yield from self._with_methods(call.key.value, call.value.traffic)
        for external in self.manifest.external:
            yield from self._with_methods(external.key.value, external.value.traffic)
        for exposed in self.manifest.gateway.expose if self.manifest.gateway is not None else ():
            yield from self._with_methods(exposed.key.value, exposed.value.traffic)

    def _with_methods(self, owner: str, traffic: Any) -> Iterator[tuple[str, Record]]:
        if traffic is not None:
            yield owner, traffic
            yield from ((owner, item.value) for item in traffic.methods)

    def _report(self, code: str, position: Position, message: str, cause: str, fix: str) -> None:
        self.reporter.report(code, position, message, cause=cause, fix=fix)

    def _durations(self, record: Record) -> None:
        longest: Located[int] | None = getattr(record, "max_stream_duration", None)
        if longest is not None and longest.value > self.stream_ms_max:
            cause = "a stream keeps the certificate that it began with; a quarter of the certificates' lifetime is "
            cause += f"{format_duration(self.stream_ms_max)}"
            fix = "write less, or a longer `certificates.lifetime`; clients of longer streams resume"
            self._report("NM509", longest.position, "streams would outlive certificates", cause, fix)
        self._ejections(getattr(record, "outlier_detection", None))
        retries: Retries | None = getattr(record, "retries", None)
        backoff = retries.backoff if retries is not None else None
        if backoff is None or backoff.max is None:
            return
        base_ms = backoff.base.value if backoff.base is not None else defaults.BACKOFF_BASE_MS
        if backoff.max.value < base_ms:
            cause = f"the first pause is {format_duration(base_ms)}"
            self._report("NM509", backoff.max.position, "`max` is less than `base`", cause, "write a longer `max`")

    def _ejections(self, outliers: OutlierDetection | None) -> None:
        if outliers is None or outliers.max_ejection_time is None:
            return
        base = outliers.base_ejection_time
        base_ms = base.value if base is not None else defaults.EJECTION_BASE_MS
        if outliers.max_ejection_time.value < base_ms:
            cause, fix = f"the first ejection lasts {format_duration(base_ms)}", "write a longer `max_ejection_time`"
            position = outliers.max_ejection_time.position
            self._report("NM509", position, "`max_ejection_time` is less than `base_ejection_time`", cause, fix)

    def _calls(self, owner: str | None, record: CallTraffic) -> None:
        if record.rate_limit is not None and owner is not None:
            self._rate_limit(owner, record.rate_limit)
        if record.headers is not None:
            for changes in (record.headers.request, record.headers.response):
                self._headers(changes)
        if record.faults is not None:
            self._faults(record.faults)

    def _faults(self, faults: Faults) -> None:
        if faults.delay is None and faults.abort is None and not faults.broken:
            cause, fix = "it names neither `delay` nor `abort`", "write one of them, or remove `faults`"
            self._report("NM508", faults.position, "faults without a fault", cause, fix)

    def _rate_limit(self, owner: str, limit: RateLimit) -> None:
        callers = {caller for caller, targets in self.links.calls.items() if owner in targets}
        callers |= {GATEWAY} if owner in self.links.exposes else set()
        for entry in limit.callers:
            if entry.key.value not in callers:
                cause = f"it does not call `{owner}`, so the rate would hold for nobody"
                fix = did_you_mean(entry.key.value, callers, what="caller")
                message = f"{quoted(entry.key.value)} is no caller of `{owner}`"
                self._report("NM514", entry.key.position, message, cause, fix)

    def _headers(self, changes: HeaderChanges | None) -> None:
        if changes is None:
            return
        names: list[Located[str]] = [entry.key for entry in (*changes.set, *changes.add)]
        for name in (*names, *changes.remove):
            self._header(name)

    def _header(self, name: Located[str]) -> None:
        if name.value.startswith(RESERVED_PREFIXES) or name.value in RESERVED_HEADERS:
            cause = "gRPC, Envoy or the mesh itself writes it; changed, calls break or identities are forged"
            self._report("NM513", name.position, f"{quoted(name.value)} is reserved", cause, "use another header")

    def _balancing(self, balancing: LoadBalancing | None) -> None:
        if balancing is None:
            return
        written = balancing.policy.value if balancing.policy is not None else Balancer.LEAST_REQUEST.value
        balancer = Balancer(written)
        if balancing.hash_on is not None:
            self._hash_on(balancing.hash_on, balancer, balancing)
        elif balancer in CONSISTENT and "hash_on" not in balancing.broken and balancing.policy is not None:
            cause = f"{balancer.value} sends equal things to the same replica, and nothing says what is compared"
            fix = "add `hash_on`, e.g. {header: x-user}"
            self._report("NM509", balancing.policy.position, "nothing to hash", cause, fix)
        if balancing.slow_start is not None and balancer not in SLOW_STARTERS:
            cause = f"Envoy starts replicas slowly with least_request and round_robin only, not with {balancer.value}"
            fix = "remove `slow_start`, or choose another `policy`"
            self._report("NM509", balancing.slow_start.position, "no slow start with this policy", cause, fix)
        if balancing.weights and balancer in {Balancer.RANDOM, Balancer.WEIGHTED_ROUND_ROBIN}:
            cause = f"{balancer.value} does not look at them"
            fix = "remove `weights`, or choose another `policy`"
            self._report("NM508", balancing.weights[0].position, "weights without effect", cause, fix)
        for zone in balancing.failover:
            self._zone(zone)

    def _hash_on(self, hash_on: HashOn, balancer: Balancer, balancing: LoadBalancing) -> None:
        chosen = [name for name in ("header", "field", "cookie", "source") if getattr(hash_on, name) is not None]
        if len(chosen) != 1 and not hash_on.broken:
            cause = f"it names {' and '.join(chosen) or 'nothing'}; exactly one thing is hashed"
            self._report("NM509", hash_on.position, "what is hashed is not clear", cause, "keep one of them")
        if balancer not in CONSISTENT and "policy" not in balancing.broken:
            cause = f"{balancer.value} hashes nothing"
            fix = "write `policy: maglev` or `policy: ring_hash`, or remove `hash_on`"
            self._report("NM509", hash_on.position, "`hash_on` without effect", cause, fix)

    def _zone(self, zone: Located[str]) -> None:
        if zone.value not in self.zones:
            cause = "neither the mesh nor a service has a zone of this name"
            fix = did_you_mean(zone.value, self.zones, what="zone")
            self._report("NM512", zone.position, f"unknown zone {quoted(zone.value)}", cause, fix)

    def _session(self, session: SessionPersistence) -> None:
        if (session.header is None) == (session.cookie is None) and not session.broken:
            cause = "a session is known by a header or by a cookie, by exactly one of them"
            self._report("NM509", session.position, "a session needs one mark", cause, "write `header` or `cookie`")
        if session.header is not None:
            self._header(session.header)

    def _routing(self, owner: str, routing: Routing) -> None:
        names = [entry.key for entry in routing.split]
        names += [rule.to for rule in routing.match if rule.to is not None]
        if routing.mirror is not None and routing.mirror.to is not None:
            names.append(routing.mirror.to)
        known = {owner, *self.links.versions.get(owner, ())}
        for name in names:
            if name.value not in known:
                cause = f"it is neither `{owner}` nor a service with `version_of: {owner}`"
                fix = did_you_mean(name.value, known, what="version")
                self._report("NM317", name.position, f"{quoted(name.value)} is no version of `{owner}`", cause, fix)
        if routing.split and not any(entry.value.value for entry in routing.split):
            cause, fix = "all weights are 0, and no call would go anywhere", "give one of them a weight"
            self._report("NM509", routing.split[0].key.position, "a split without weight", cause, fix)
        self._shadowed(routing.match)

    def _shadowed(self, rules: tuple[MatchRule, ...]) -> None:
        """A rule that an earlier one covers never fits."""
        seen: list[set[tuple[str, str]]] = []
        for rule in rules:
            wanted = {(entry.key.value, entry.value.value) for entry in rule.headers}
            if any(earlier <= wanted for earlier in seen):
                cause = "every call that fits it fits an earlier rule, and the first one wins"
                self._report("NM508", rule.position, "a rule that never fits", cause, "move it up, or remove it")
            seen.append(wanted)

    def _fields(self) -> None:
        for name, methods in self.links.field_methods.items():
            written = self.links.layers.services[name]["load_balancing.hash_on.field"]
            if not methods and self.links.served.get(name):
                cause = f"no request of a unary or server-streaming method of `{name}` has such a scalar field "
                cause += "(text or a number, not repeated)"
                fix = "write the protobuf name of a field, or hash a header"
                self._report("NM511", written.position, f"no field {quoted(str(written.value))}", cause, fix)

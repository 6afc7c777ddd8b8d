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
    MatchRule,
    OutlierDetection,
    Routing,
    SessionPersistence,
)
from generator.manifest.traffic import CallTraffic, MeshTraffic, Traffic
from generator.manifest.types import CallsEntry, Manifest
from generator.manifest.values import Entry, Located, Record
from generator.model import defaults
from generator.model.links import Links
from generator.model.mesh import GATEWAY

RESERVED_PREFIXES = ("x-nipmesh-", "x-envoy-", "x-forwarded-", "grpc-", "content-", ":")
RESERVED_HEADERS = frozenset({"authorization", "host", "te", "connection", "transfer-encoding", "traceparent"})
"""What gRPC, Envoy and the mesh itself write: whoever changes them breaks calls or forges an identity."""
STRIPPED_PREFIXES = ("x-nipmesh-", "x-envoy-")
STRIPPED = frozenset({"x-forwarded-client-cert"})
"""What no application or client can send."""
USER_HEADERS = frozenset(header for _, header in defaults.CLAIM_HEADERS)
"""Of these the gateway writes claims of the token, before it chooses a replica."""


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
            faults = getattr(record, "faults", None)
            if faults is not None:
                self._faults(faults)
            if isinstance(record, CallTraffic):
                self._calls(record)
            if isinstance(record, MeshTraffic):
                self._service(record)
            if isinstance(record, Traffic) and record.session_persistence is not None:
                self._session(record.session_persistence)
            routing = getattr(record, "routing", None)
            if routing is not None and owner is not None:
                self._routing(owner, routing)
        self._outside()
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

    def _ejections(self, outliers: OutlierDetection | None) -> None:
        if outliers is None or outliers.max_ejection_time is None:
            return
        base = outliers.base_ejection_time
        base_ms = base.value if base is not None else defaults.EJECTION_BASE_MS
        if outliers.max_ejection_time.value < base_ms:
            cause, fix = f"the first ejection lasts {format_duration(base_ms)}", "write a longer `max_ejection_time`"
            position = outliers.max_ejection_time.position
            self._report("NM509", position, "`max_ejection_time` is less than `base_ejection_time`", cause, fix)

    def _calls(self, record: CallTraffic) -> None:
        if record.headers is not None:
            for changes in (record.headers.request, record.headers.response):
                self._headers(changes)

    def _faults(self, faults: Faults) -> None:
        if faults.delay is None and faults.abort is None and not faults.broken:
            cause, fix = "it names neither `delay` nor `abort`", "write one of them, or remove `faults`"
            self._report("NM508", faults.position, "faults without a fault", cause, fix)
        for entry in faults.headers:
            self._readable(entry.key)

    def _headers(self, changes: HeaderChanges | None) -> None:
        if changes is None:
            return
        seen: dict[str, str] = {}
        parts = [("set", entry.key) for entry in changes.set] + [("add", entry.key) for entry in changes.add]
        for part, name in (*parts, *(("remove", name) for name in changes.remove)):
            other = seen.setdefault(name.value, part)
            if other != part:
                cause, fix = f"`{other}` names it, too", "keep it in one of them"
                self._report("NM509", name.position, f"{quoted(name.value)} in `{other}` and `{part}`", cause, fix)
        names: list[Located[str]] = [entry.key for entry in (*changes.set, *changes.add)]
        for name in (*names, *changes.remove):
            self._writable(name)

    def _writable(self, name: Located[str]) -> None:
        if name.value.startswith(RESERVED_PREFIXES) or name.value in RESERVED_HEADERS:
            cause = "gRPC, Envoy or the mesh itself writes it; changed, calls break or identities are forged"
            self._report("NM513", name.position, f"{quoted(name.value)} is reserved", cause, "use another header")

    def _service(self, record: MeshTraffic) -> None:
        balancing = record.load_balancing
        if balancing is not None:
            if balancing.hash_on is not None:
                self._hash_on(balancing.hash_on)
            for zone in balancing.failover:
                self._zone(zone)
        limit = record.adaptive_concurrency
        if limit is not None:
            self._ordered(limit.min_concurrency, limit.max_concurrency, "`max_concurrency`", "`min_concurrency`")

    def _ordered(self, low: Located[int] | None, high: Located[int] | None, more: str, less: str) -> None:
        if low is not None and high is not None and high.value < low.value:
            cause = f"it must be at least as large as {less} on line {low.position.line}"
            self._report("NM509", high.position, f"{more} is less than {less}", cause, f"raise {more}")

    def _hash_on(self, hash_on: HashOn) -> None:
        chosen = [name for name in ("header", "field", "cookie", "source") if getattr(hash_on, name) is not None]
        if len(chosen) != 1 and not hash_on.broken:
            cause = f"it names {' and '.join(chosen) or 'nothing'}; exactly one thing is hashed"
            self._report("NM509", hash_on.position, "what is hashed is not clear", cause, "keep one of them")
        if hash_on.header is not None and hash_on.header.value not in USER_HEADERS:
            self._readable(hash_on.header)

    def _readable(self, header: Located[str]) -> None:
        """Headers that a sidecar takes away from its application's calls are never there to be looked at."""
        if header.value.startswith(STRIPPED_PREFIXES) or header.value in STRIPPED:
            cause = "sidecars and the gateway take it away from every call, so that nobody forges it"
            self._report("NM513", header.position, f"{quoted(header.value)} never arrives", cause, "use another header")

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
            self._writable(session.header)

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
        for rule in routing.match:
            for entry in rule.headers:
                self._readable(entry.key)
        self._shadowed(routing.match)
        self._reflected(owner, routing)

    def _reflected(self, owner: str, routing: Routing) -> None:
        """A copy for the version that has the call itself."""
        to = routing.mirror.to if routing.mirror is not None else None
        targets = {entry.key.value for entry in routing.split if entry.value.value} or {owner}
        if to is not None and targets == {to.value} and not routing.match:
            cause = f"`{to.value}` has the call itself, and would get each twice"
            fix = did_you_mean("", self.links.versions.get(owner, ()), what="version")
            self._report("NM509", to.position, "a mirror of itself", cause, fix)

    def _shadowed(self, rules: tuple[MatchRule, ...]) -> None:
        """A rule that an earlier one covers never fits."""
        seen: list[set[tuple[str, str]]] = []
        for rule in rules:
            wanted = {(entry.key.value, entry.value.value) for entry in rule.headers}
            if any(earlier <= wanted for earlier in seen):
                cause = "every call that fits it fits an earlier rule, and the first one wins"
                self._report("NM508", rule.position, "a rule that never fits", cause, "move it up, or remove it")
            seen.append(wanted)

    def _outside(self) -> None:
        """Traffic of hosts that speak no gRPC, and methods that an edge does not list."""
        for external in self.manifest.external:
            entry = external.value
            if entry.traffic is not None and not entry.serves and "serves" not in entry.broken:
                cause = "it `serves` no protobuf service: its bytes pass as they are"
                self._report("NM508", entry.traffic.position, "traffic of bytes", cause, "remove it, or add `serves`")
        for caller, references in self._references():
            for reference in references:
                self._edge_methods(caller, reference)

    def _references(self) -> Iterator[tuple[str, tuple[Entry[CallsEntry], ...]]]:
        for service in self.manifest.services:
            yield service.key.value, service.value.calls
        if self.manifest.gateway is not None:
            yield GATEWAY, self.manifest.gateway.expose

    def _edge_methods(self, caller: str, reference: Entry[CallsEntry]) -> None:
        callee, traffic = reference.key.value, reference.value.traffic
        called = self.links.called(caller, callee)
        for item in traffic.methods if traffic is not None and called else ():
            service, _, name = item.key.value.rpartition("/")
            if any(
                name in {"*", method.name} and f".{method.service}".endswith(f".{service}") for method in called
            ) or not any(f".{method.service}".endswith(f".{service}") for method in self.links.served[callee]):
                continue
            listed = [f"{method.service.rpartition('.')[2]}/{method.name}" for method in called]
            fix = did_you_mean(item.key.value, listed, what="method of this edge")
            cause = f"`methods` of this edge does not list it: `{caller}` may not call it at all"
            self._report("NM508", item.key.position, f"{quoted(item.key.value)} is not of this edge", cause, fix)

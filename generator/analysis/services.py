"""Checks of services: names, reachability, ports, circles of calls, deadlines."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping

from generator.manifest.finding import Position, Reporter, did_you_mean, quoted
from generator.manifest.kinds import format_duration
from generator.manifest.placeholder import RUN_PLACEHOLDER
from generator.manifest.types import REPLICAS_MAX, Manifest, ServiceEntry
from generator.manifest.values import Entry
from generator.model import Method, StreamingKind, defaults
from generator.model.links import Links
from generator.model.mesh import GATEWAY
from generator.model.overrides import Overrides
from generator.model.resolve import parse_listen

LOOPBACK = "127.0.0.1"
CERTIFICATE_LIFETIME_MS_USUAL = 24 * defaults.HOUR_MS
"""Longer-lived certificates call for revocation, which the mesh does not have."""


def check_names(manifest: Manifest, reporter: Reporter) -> None:
    """No service may be called like the edge."""
    for entry in manifest.services:
        if entry.key.value == GATEWAY:
            cause = "it names the edge in identities, folders and edges"
            fix = "choose another name"
            reporter.report("NM308", entry.key.position, f"`{GATEWAY}` is reserved", cause=cause, fix=fix)


def check_commands(manifest: Manifest, reporter: Reporter) -> None:
    """What `nipmesh init` could not know has to be written by somebody who does."""
    for entry in manifest.services:
        run = entry.value.run
        if run is not None and run.value == (RUN_PLACEHOLDER,):
            name = entry.key.value
            cause = "`nipmesh init` found no single program that serves it, and wrote a placeholder"
            fix = f"write the command that starts one replica, e.g. `python {name}.py` or `./{name}`"
            reporter.report("NM110", run.position, f"nobody has said how `{name}` is started", cause=cause, fix=fix)


def check_versions(manifest: Manifest, reporter: Reporter) -> None:
    """A version stands beside its service, and says only what differs: the program."""
    entries = {entry.key.value: entry.value for entry in manifest.services}
    for entry in manifest.services:
        service, version_of = entry.value, entry.value.version_of
        if version_of is None:
            continue
        parent = entries.get(version_of.value)
        if parent is None or parent.version_of is not None:
            cause = "`services` has no service of this name" if parent is None else "it is a version itself"
            known = [name for name, other in entries.items() if other.version_of is None and name != entry.key.value]
            fix = did_you_mean(version_of.value, known, what="service")
            message = f"{quoted(version_of.value)} cannot have versions"
            reporter.report("NM317", version_of.position, message, cause=cause, fix=fix)
        for name in ("serves", "calls", "consumes", "external"):
            if getattr(service, name):
                first = getattr(service, name)[0]
                cause = f"a version has the `{name}` of `{version_of.value}`"
                position = first.key.position if isinstance(first, Entry) else first.position
                reporter.report("NM317", position, f"`{name}` of a version", cause=cause, fix=f"remove `{name}`")
        if service.traffic is not None:
            cause = f"callers treat all versions of `{version_of.value}` alike"
            fix = f"write it in the `traffic` of `{version_of.value}`"
            reporter.report("NM317", service.traffic.position, "`traffic` of a version", cause=cause, fix=fix)


def check_reachable(manifest: Manifest, links: Links, reporter: Reporter) -> None:
    """Warn of services that nobody calls, that are not exposed and that hear no events."""
    listening = {entry.key.value for entry in manifest.services if entry.value.consumes}
    called = {callee for caller, targets in links.calls.items() for callee in targets if callee != caller}
    for entry in manifest.services:
        name = entry.key.value
        reached = entry.value.version_of.value if entry.value.version_of is not None else name
        if reached in called or reached in links.exposes or not links.served[name] or reached in listening:
            continue
        cause = "no service calls it and the gateway does not expose it: every call to it is denied"
        fix = "add it to the `calls` of a service or to `gateway.expose`, or remove it"
        reporter.warn("NM310", entry.key.position, f"nobody can call `{name}`", cause=cause, fix=fix)


def check_lifetime(manifest: Manifest, reporter: Reporter) -> None:
    """Long-lived certificates are a choice to think about."""
    certificates = manifest.certificates
    if certificates is None or certificates.lifetime is None:
        return
    if certificates.lifetime.value > CERTIFICATE_LIFETIME_MS_USUAL:
        cause = "a stolen key stays good until its certificate expires; nothing is revoked"
        fix = "they are renewed by themselves: the default of 1h costs nothing"
        reporter.warn("NM504", certificates.lifetime.position, "certificates live long", cause=cause, fix=fix)


def check_overrides(manifest: Manifest, overrides: Overrides, reporter: Reporter) -> None:
    """Report overrides of what does not exist or beyond the manifest's limits."""
    places = {entry.key.value: entry.key.position for entry in manifest.services}
    for name, count in sorted(overrides.replicas.items()):
        position = places.get(name, manifest.position)
        if name not in places:
            cause, fix = f"the manifest has: {', '.join(sorted(places))}", "name one of them"
            reporter.report("NM315", position, f"no service {quoted(name)} to scale", cause=cause, fix=fix)
        elif not 1 <= count <= REPLICAS_MAX:
            cause = f"{count} is not between 1 and {REPLICAS_MAX}"
            fix = "choose another number of replicas"
            reporter.report("NM106", position, f"replicas of `{name}` out of range", cause=cause, fix=fix)
    if overrides.gateway_listen is not None and manifest.gateway is None:
        cause = "--gateway-listen was given and the manifest has no gateway"
        reporter.report("NM315", manifest.position, "no gateway", cause=cause, fix="add `gateway`, or drop the option")


def replicas_of(manifest: Manifest, overrides: Overrides) -> dict[str, int]:
    """How many replicas each service and version has."""
    written = {entry.key.value: entry.value.replicas for entry in manifest.services}
    counts = {name: replicas.value if replicas is not None else defaults.REPLICAS for name, replicas in written.items()}
    return counts | {name: count for name, count in overrides.replicas.items() if name in counts}


def check_listens(manifest: Manifest, overrides: Overrides, reporter: Reporter) -> None:
    """Every address must be one, loopback where an application listens, and no port is taken twice."""
    taken = dict(_gateway_ports(manifest, overrides, reporter))
    for entry in manifest.services:
        if entry.value.listen is None:
            continue
        port = _application_port(entry, reporter)
        if port is None:
            continue
        position = entry.value.listen.position
        mine = f"line {position.line}: `{entry.key.value}`"
        owner = taken.setdefault(port, mine)
        if owner != mine:
            cause = f"{owner} listens on port {port} too"
            fix = (
                "choose another port, or remove `listen` if the program can serve on the Unix socket in NIPMESH_LISTEN"
            )
            reporter.report("NM312", position, f"port {port} twice", cause=cause, fix=fix)
    telemetry = manifest.telemetry
    if telemetry is not None and telemetry.otlp is not None:
        checked_listen(telemetry.otlp.value, telemetry.otlp.position, "telemetry.otlp", reporter)


def checked_listen(text: str, position: Position, where: str, reporter: Reporter) -> tuple[str, int] | None:
    """Host and port; None after a finding."""
    try:
        return parse_listen(text)
    except ValueError as error:
        fix = "write an IP address by number and a port, e.g. 127.0.0.1:8080"
        message = f"{where}: {quoted(text)} is not an address"
        reporter.report("NM107", position, message, cause=quoted(str(error))[1:-1], fix=fix)
        return None


def _gateway_ports(manifest: Manifest, overrides: Overrides, reporter: Reporter) -> Iterator[tuple[int, str]]:
    gateway = manifest.gateway
    if gateway is None or "listen" in gateway.broken:
        return
    text = gateway.listen.value if gateway.listen else defaults.GATEWAY_LISTEN
    position, where = gateway.listen.position if gateway.listen else gateway.position, "gateway.listen"
    if overrides.gateway_listen is not None:
        text, where = overrides.gateway_listen, "--gateway-listen"
    found = checked_listen(text, position, where, reporter)
    if found is not None:
        yield found[1], f"line {position.line}: the gateway" if where == "gateway.listen" else f"the gateway ({where})"


def _application_port(entry: Entry[ServiceEntry], reporter: Reporter) -> int | None:
    name, listen = entry.key.value, entry.value.listen
    assert listen is not None
    found = checked_listen(listen.value, listen.position, f"services.{name}.listen", reporter)
    if found is None:
        return None
    host, port = found
    if host != LOOPBACK:
        cause = f"{host} is open to {'the network' if not ipaddress.ip_address(host).is_loopback else 'programs'}"
        cause += "; only the sidecar, which connects to 127.0.0.1, may reach an application"
        fix = f"write {LOOPBACK}:{port}"
        reporter.report("NM313", listen.position, f"`{name}` must listen on {LOOPBACK}", cause=cause, fix=fix)
        return None
    cause = "every local program can reach this port without mTLS, identity or authorization"
    fix = "remove `listen` if the program can serve on the Unix socket in NIPMESH_LISTEN"
    reporter.warn("NM313", listen.position, f"`{name}` has a TCP port", cause=cause, fix=fix)
    return port


def check_circles(manifest: Manifest, links: Links, reporter: Reporter) -> None:
    """Services that call each other in a circle are legal; the deadline of such a call depends on itself."""
    circles = {name: circle for circle in _circles(links.calls) for name in circle}
    seen: set[str] = set()
    for entry in manifest.services:
        name = entry.key.value
        circle = circles.get(name, frozenset())
        if len(circle) < 2 or name in seen:
            continue
        seen |= circle
        members = " and ".join(f"`{member}`" for member in sorted(circle))
        cause = "a call that goes round spends one deadline: each hop must pass on the time that is left"
        fix = "nothing, as long as no method calls itself on the way round"
        reporter.note("NM502", entry.key.position, f"{members} call each other", cause=cause, fix=fix)


def _circles(calls: Mapping[str, Mapping[str, tuple[Method, ...]]]) -> Iterator[frozenset[str]]:
    """The strongly connected parts of the call graph, in time that grows with its edges (Kosaraju's algorithm)."""
    finished: list[str] = []
    seen: set[str] = set()
    for name in calls:
        _walk(name, calls, seen, finished)
    callers: dict[str, dict[str, None]] = {}
    for caller, targets in calls.items():
        for callee in targets:
            callers.setdefault(callee, {})[caller] = None
    seen = set()
    for name in reversed(finished):
        circle: list[str] = []
        _walk(name, callers, seen, circle)
        if circle:
            yield frozenset(circle)


def _walk(start: str, edges: Mapping[str, Iterable[str]], seen: set[str], finished: list[str]) -> None:
    """Depth first from `start` through what is not `seen`; `finished` grows by each name after those that it leads to."""
    if start in seen:
        return
    seen.add(start)
    waiting = [(start, iter(edges.get(start, ())))]
    while waiting:
        name, rest = waiting[-1]
        following = next((other for other in rest if other not in seen), None)
        if following is None:
            finished.append(name)
            waiting.pop()
        else:
            seen.add(following)
            waiting.append((following, iter(edges.get(following, ()))))


def deadline_of(service: str, method: Method, links: Links) -> int | None:
    """Return the deadline that `resolve` will decide."""
    written = links.layers.methods.get((service, method), {}).get("deadline")
    if written is not None and method.streaming is StreamingKind.UNARY:
        return int(written.value)
    return defaults.deadline_ms(method).value


def check_deadlines(manifest: Manifest, links: Links, reporter: Reporter) -> None:
    """Warn of a callee's deadline that no method of the caller lives to see."""
    for entry in manifest.services:
        caller = entry.key.value
        own = links.served[caller]
        longest = _longest(caller, own, links)
        if longest is None or any(method.streaming is not StreamingKind.UNARY for method in own):
            continue
        for reference in entry.value.calls:
            callee = reference.key.value
            theirs = _longest(callee, links.calls.get(caller, {}).get(callee, ()), links)
            if theirs is not None and theirs > longest and callee != caller:
                theirs_shown, longest_shown = format_duration(theirs), format_duration(longest)
                message = f"`{callee}` may take {theirs_shown}, `{caller}` ends after {longest_shown}"
                cause = f"every method of `{caller}` is over before the deadline of what it calls"
                fix = f"raise a deadline of `{caller}` or lower that of `{callee}`"
                reporter.warn("NM501", reference.key.position, message, cause=cause, fix=fix)


def _longest(service: str, methods: tuple[Method, ...], links: Links) -> int | None:
    found = [deadline_of(service, method, links) for method in methods]
    return max((value for value in found if value is not None), default=None)

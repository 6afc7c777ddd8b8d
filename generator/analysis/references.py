"""Resolves the names that a manifest uses for protobuf services and methods; each failure is one finding."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from generator.manifest.finding import Reporter, closest, did_you_mean, quoted
from generator.manifest.values import Located
from generator.model import Method

WILDCARD = "*"


@dataclass(frozen=True, slots=True, kw_only=True)
class Directory:
    """Which protobuf services there are and who serves them."""

    catalog: Mapping[str, tuple[Method, ...]]
    """Full protobuf service name to methods."""
    servers: Mapping[str, str]
    """Full protobuf service name to the mesh service that serves it."""

    _served: dict[str, tuple[str, ...]] = field(default_factory=dict, init=False, repr=False, compare=False)
    """The other way round; filled when it is first asked for."""

    def served_by(self, service: str) -> tuple[str, ...]:
        """Return the protobuf services of one mesh service, sorted."""
        if not self._served:
            found: dict[str, list[str]] = {}
            for name, server in sorted(self.servers.items()):
                found.setdefault(server, []).append(name)
            self._served.update({server: tuple(names) for server, names in found.items()})
        return self._served.get(service, ())


def matches(written: str, names: Iterable[str]) -> tuple[str, ...]:
    """Names that are `written` or end with it at a dot; an exact one wins."""
    known = tuple(names)
    if written in known:
        return (written,)
    return tuple(sorted(name for name in known if name.endswith(f".{written}")))


def short(name: str) -> str:
    """Return the last part of a full name."""
    return name.rpartition(".")[2]


def find_service(written: Located[str], names: Iterable[str], reporter: Reporter) -> str | None:
    """Return the full name among `names` of a protobuf service; None after a finding."""
    known = tuple(names)
    found = matches(written.value, known)
    if len(found) == 1:
        return found[0]
    if found:
        _ambiguous(written, written.value, found, reporter)
        return None
    cause = "no .proto file of `protos` (or of what they import) defines it"
    fix = _service_fix(written.value, known)
    message = f"unknown protobuf service {quoted(written.value)}"
    reporter.report("NM302", written.position, message, cause=cause, fix=fix)
    return None


def _service_fix(written: str, known: Iterable[str]) -> str:
    names = tuple(known)
    if closest(written, names) is None:
        match = closest(short(written), [short(name) for name in names])
        if match is not None:
            return f"did you mean {quoted(next(name for name in sorted(names) if short(name) == match))}?"
    return did_you_mean(written, names, what="protobuf service")


def _ambiguous(written: Located[str], name: str, found: tuple[str, ...], reporter: Reporter) -> None:
    cause = "these end with it: " + ", ".join(found[:8])
    fix = f"write the package too, e.g. {quoted(found[0])}"
    reporter.report("NM303", written.position, f"{quoted(name)} is ambiguous", cause=cause, fix=fix)


def find_methods(
    written: Located[str], directory: Directory, scope: Iterable[str], place: str, reporter: Reporter
) -> tuple[Method, ...] | None:
    """Return the methods that `Service/Method` or `Service/*` names among the protobuf services in `scope`.

    `place` says whose methods they must be, e.g. "service `orders`". None after a finding.
    """
    service_name, _, method_name = written.value.rpartition("/")
    names = tuple(scope)
    found = matches(service_name, names)
    if len(found) > 1:
        _ambiguous(written, service_name, found, reporter)
        return None
    if not found:
        _not_served(written, service_name, directory, names, place, reporter)
        return None
    methods = directory.catalog[found[0]]
    if method_name == WILDCARD:
        return methods
    chosen = tuple(method for method in methods if method.name == method_name)
    if not chosen:
        cause = f"{found[0]} has no method {quoted(method_name)}"
        candidates = [f"{service_name}/{method.name}" for method in methods]
        fix = did_you_mean(written.value, candidates, what="method")
        reporter.report("NM305", written.position, f"unknown method {quoted(written.value)}", cause=cause, fix=fix)
        return None
    return chosen


def _not_served(
    written: Located[str], name: str, directory: Directory, names: tuple[str, ...], place: str, reporter: Reporter
) -> None:
    message = f"{quoted(written.value)} is not a method of {place}"
    elsewhere = matches(name, directory.servers)
    if elsewhere:
        owner = directory.servers[elsewhere[0]]
        cause = f"{elsewhere[0]} is served by `{owner}`"
        fix = f"write it under `{owner}`, or choose a method of {place}"
        reporter.report("NM306", written.position, message, cause=cause, fix=fix)
        return
    unserved = matches(name, directory.catalog)
    if unserved:
        cause = f"no service of this mesh serves {unserved[0]}"
        fix = f"add {unserved[0]} to the `serves` of the service that implements it"
        reporter.report("NM306", written.position, message, cause=cause, fix=fix)
        return
    cause = f"there is no protobuf service {quoted(name)}"
    fix = did_you_mean(short(name), [short(known) for known in names], what="protobuf service here")
    reporter.report("NM302", written.position, message, cause=cause, fix=fix)

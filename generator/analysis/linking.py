"""Joins the manifest with the catalog: every reference becomes methods, every wrong one a finding."""

from __future__ import annotations

from collections.abc import Mapping

from generator.analysis.references import Directory, find_methods, find_service
from generator.catalog import Catalog
from generator.manifest.finding import Reporter, did_you_mean, quoted
from generator.manifest.types import GatewayEntry, Manifest, ServiceEntry, Traffic
from generator.manifest.values import Entry, Located
from generator.model import Method, StreamingKind
from generator.model.links import Links, MethodChoice
from generator.model.mesh import GATEWAY
from generator.model.resolve import chosen_of

IMPLICIT_PREFIXES = ("grpc.health.v1.", "grpc.reflection.")
"""Every gRPC process answers these for itself; they are no service of a mesh."""

Methods = tuple[Method, ...]
References = tuple[Entry[tuple[Located[str], ...]], ...]


def link(manifest: Manifest, catalog: Catalog, reporter: Reporter) -> Links:
    """Resolve every reference. With error findings the result has gaps and is good for further checks only."""
    return _Linker(manifest, catalog, reporter).link()


def ordered(methods: set[Method]) -> Methods:
    """Methods by path."""
    return tuple(sorted(methods, key=lambda method: method.path))


class _Linker:
    """One pass over the manifest; knows the services and who serves what."""

    def __init__(self, manifest: Manifest, catalog: Catalog, reporter: Reporter) -> None:
        self.manifest, self.catalog, self.reporter = manifest, catalog, reporter
        self.entries: dict[str, ServiceEntry] = {entry.key.value: entry.value for entry in manifest.services}
        self.incomplete: set[str] = {name for name, entry in self.entries.items() if "serves" in entry.broken}
        self.directory = Directory(catalog=catalog.services, servers=self._servers())

    def link(self) -> Links:
        """See the module's function."""
        gateway = self.manifest.gateway
        exposes = self._references(GATEWAY, gateway.expose) if gateway else {}
        calls = {name: self._references(name, entry.calls) for name, entry in self.entries.items()}
        return Links(
            served={name: self._served(name) for name in self.entries},
            calls={name: targets for name, targets in calls.items() if targets},
            exposes=exposes,
            public=self._public(gateway, exposes),
            roles=self._roles(gateway, exposes),
            choices={name: self._choices(name, entry) for name, entry in self.entries.items()},
        )

    def _servers(self) -> dict[str, str]:
        servers: dict[str, Located[str]] = {}
        owners: dict[str, str] = {}
        for entry in self.manifest.services:
            for written in entry.value.serves:
                name = self._protobuf_service(written)
                if name is None:
                    self.incomplete.add(entry.key.value)
                    continue
                if name in owners:
                    self._served_twice(written, name, owners[name], servers[name])
                    self.incomplete.add(entry.key.value)
                    continue
                servers[name], owners[name] = written, entry.key.value
        return owners

    def _protobuf_service(self, written: Located[str]) -> str | None:
        if written.value.startswith(IMPLICIT_PREFIXES):
            message = f"{quoted(written.value)} needs no mention"
            cause = "health and reflection are answered by every process for itself, and by the gateway"
            self.reporter.report("NM314", written.position, message, cause=cause, fix="remove it from `serves`")
            return None
        return find_service(written, self.catalog.services, self.reporter)

    def _served_twice(self, written: Located[str], name: str, owner: str, first: Located[str]) -> None:
        cause = f"`{owner}` serves it already, on line {first.position.line}; a path leads to one service only"
        fix = "leave it with one service; more of it are `replicas`"
        self.reporter.report("NM304", written.position, f"{name} is served twice", cause=cause, fix=fix)

    def _served(self, name: str) -> Methods:
        served = self.directory.served_by(name)
        return ordered({method for service in served for method in self.catalog.services[service]})

    def _references(self, owner: str, references: References) -> dict[str, Methods]:
        found = {}
        for reference in references:
            methods = self._targets(owner, reference)
            if methods:
                found[reference.key.value] = ordered(methods)
        return found

    def _targets(self, owner: str, reference: Entry[tuple[Located[str], ...]]) -> set[Method]:
        callee = reference.key.value
        if callee not in self.entries:
            self._unknown_service(reference.key)
            return set()
        if callee == owner:
            cause = "a call that comes back to its own service waits for itself while its deadline runs"
            fix = "call the function inside the program, or make sure that the circle ends"
            self.reporter.warn("NM311", reference.key.position, f"`{callee}` calls itself", cause=cause, fix=fix)
        scope, place = self.directory.served_by(callee), f"service `{callee}`"
        return self._union(reference.value, scope, place, self._reporter_for({callee}))

    def _reporter_for(self, services: set[str]) -> Reporter:
        """Where unknown methods go: to nobody when `serves` is wrong already, for they follow from it."""
        return Reporter(path="", lines=()) if services & self.incomplete else self.reporter

    def _unknown_service(self, key: Located[str]) -> None:
        cause = "`services` has no service of this name"
        if key.value == GATEWAY:
            cause = "the gateway is the way in; services call each other directly"
        fix = did_you_mean(key.value, self.entries, what="service")
        self.reporter.report("NM301", key.position, f"unknown service {quoted(key.value)}", cause=cause, fix=fix)

    def _union(
        self, references: tuple[Located[str], ...], scope: tuple[str, ...], place: str, reporter: Reporter
    ) -> set[Method]:
        found: set[Method] = set()
        for written in references:
            methods = find_methods(written, self.directory, scope, place, reporter) or ()
            again = found.intersection(methods)
            if again:
                cause = f"the list has {next(iter(ordered(again))).path[1:]} already"
                message = f"{quoted(written.value)} repeats what stands before it"
                self.reporter.warn("NM309", written.position, message, cause=cause, fix="keep one of them")
            found.update(methods)
        return found

    def _all_served(self) -> tuple[str, ...]:
        return tuple(sorted(self.directory.servers))

    def _public(self, gateway: GatewayEntry | None, exposes: Mapping[str, Methods]) -> Methods:
        if gateway is None or gateway.authentication is None:
            return ()
        return self._exposed(gateway, gateway.authentication.public, exposes, "public")

    def _roles(self, gateway: GatewayEntry | None, exposes: Mapping[str, Methods]) -> dict[str, Methods]:
        if gateway is None or gateway.authentication is None:
            return {}
        roles = gateway.authentication.roles
        return {role.key.value: self._exposed(gateway, role.value, exposes, "roles") for role in roles}

    def _exposed(
        self, gateway: GatewayEntry, references: tuple[Located[str], ...], exposes: Mapping[str, Methods], key: str
    ) -> Methods:
        exposed = {method for methods in exposes.values() for method in methods}
        found: set[Method] = set()
        reporter = self._reporter_for(set(self.entries))
        for written in references:
            methods = find_methods(written, self.directory, self._all_served(), "this mesh", reporter)
            if methods is None:
                continue
            inside = exposed.intersection(methods)
            if not inside and methods and "expose" not in gateway.broken and reporter is self.reporter:
                cause = f"`gateway.expose` does not list it, so no client reaches it and the rule in `{key}` is void"
                fix = "expose it, or remove it here"
                message = f"{quoted(written.value)} is not exposed"
                self.reporter.report("NM403", written.position, message, cause=cause, fix=fix)
            found |= inside
        return ordered(found)

    def _choices(self, name: str, entry: ServiceEntry) -> dict[Method, MethodChoice]:
        if entry.traffic is None:
            return {}
        served = self._served(name)
        choices = {}
        if entry.traffic.deadline is not None:
            deadline = chosen_of(entry.traffic.deadline)
            unary = (method for method in served if method.streaming is StreamingKind.UNARY)
            choices = {method: MethodChoice(deadline_ms=deadline) for method in unary}
        self._method_choices(name, entry.traffic, choices)
        return choices

    def _method_choices(self, name: str, traffic: Traffic, choices: dict[Method, MethodChoice]) -> None:
        scope, place = self.directory.served_by(name), f"service `{name}`"
        reporter = self._reporter_for({name})
        wildcards_first = sorted(traffic.methods, key=lambda item: not item.key.value.endswith("/*"))
        for item in wildcards_first:
            for method in find_methods(item.key, self.directory, scope, place, reporter) or ():
                before = choices.get(method, MethodChoice())
                unary = method.streaming is StreamingKind.UNARY
                deadline = chosen_of(item.value.deadline) if unary else None
                idle = None if unary else chosen_of(item.value.idle_timeout)
                choices[method] = MethodChoice(
                    deadline_ms=deadline or before.deadline_ms, idle_timeout_ms=idle or before.idle_timeout_ms
                )
            self._check_kinds(item.key, item.value.deadline, item.value.idle_timeout, scope)

    def _check_kinds(
        self, key: Located[str], deadline: Located[int] | None, idle: Located[int] | None, scope: tuple[str, ...]
    ) -> None:
        methods = find_methods(key, self.directory, scope, "", Reporter(path="", lines=())) or ()
        kinds = {method.streaming is StreamingKind.UNARY for method in methods}
        if deadline is not None and kinds == {False}:
            cause = "it streams: a deadline would cut it off in the middle"
            fix = "write `idle_timeout`, the longest silence"
            self.reporter.report("NM503", deadline.position, "a deadline on a stream", cause=cause, fix=fix)
        if idle is not None and kinds == {True}:
            cause = "it is a unary call: one request, one response, no silence in between"
            self.reporter.report(
                "NM503", idle.position, "an idle timeout on a unary call", cause=cause, fix="write `deadline`"
            )

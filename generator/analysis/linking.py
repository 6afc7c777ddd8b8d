"""Joins the manifest with the catalog: every reference becomes methods, every wrong one a finding."""

from __future__ import annotations

from collections.abc import Mapping

from generator.analysis.layers import about_calls, flatten, merged, method_layers
from generator.analysis.references import Directory, find_methods, find_service
from generator.catalog import Catalog
from generator.catalog.fields import has_hashable_field
from generator.manifest.finding import Reporter, did_you_mean, quoted
from generator.manifest.traffic import ExternalTraffic, Traffic
from generator.manifest.types import CallsEntry, ExternalEntry, GatewayEntry, Manifest, ServiceEntry
from generator.manifest.values import Entry, Located
from generator.model import Method
from generator.model.links import Layer, Layers, Level, Links
from generator.model.mesh import GATEWAY

IMPLICIT_PREFIXES = ("grpc.health.v1.", "grpc.reflection.")
"""Every gRPC process answers these for itself; they are no service of a mesh."""

Methods = tuple[Method, ...]
References = tuple[Entry[CallsEntry], ...]
NOBODY = Reporter(path="", lines=())
"""Takes findings that follow from others."""


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
        self.externals: dict[str, ExternalEntry] = {entry.key.value: entry.value for entry in manifest.external}
        self.incomplete: set[str] = {name for name, entry in self.entries.items() if "serves" in entry.broken}
        self.incomplete |= {name for name, entry in self.externals.items() if "serves" in entry.broken}
        self.versions = self._versions()
        self.directory = Directory(catalog=catalog.services, servers=self._servers())

    def link(self) -> Links:
        """See the module's function."""
        gateway = self.manifest.gateway
        exposes = self._references(GATEWAY, gateway.expose) if gateway else {}
        found = {name: self._references(name, entry.calls) for name, entry in self.entries.items()}
        inside = {name: self._those_in(targets, self.entries) for name, targets in found.items()}
        outside = {name: self._those_in(targets, self.externals) for name, targets in found.items()}
        layers = self._layers(inside | {GATEWAY: exposes}, outside)
        return Links(
            served={name: self._served(name) for name in (*self.entries, *self.externals)},
            calls=self._of_versions({name: targets for name, targets in inside.items() if targets}),
            external_calls=self._of_versions({name: targets for name, targets in outside.items() if targets}),
            exposes=exposes,
            public=self._public(gateway, exposes),
            roles=self._roles(gateway, exposes),
            versions=self.versions,
            layers=layers,
            field_methods=self._field_methods(layers),
        )

    def _those_in(self, targets: Mapping[str, Methods], names: Mapping[str, object]) -> dict[str, Methods]:
        return {callee: methods for callee, methods in targets.items() if callee in names}

    def _versions(self) -> dict[str, tuple[str, ...]]:
        found: dict[str, list[str]] = {}
        for name, entry in sorted(self.entries.items()):
            if entry.version_of is not None and entry.version_of.value in self.entries:
                found.setdefault(entry.version_of.value, []).append(name)
        return {name: tuple(others) for name, others in found.items()}

    def _of_versions(self, calls: dict[str, dict[str, Methods]]) -> dict[str, dict[str, Methods]]:
        """Versions call what their service calls."""
        for name, others in self.versions.items():
            if name in calls:
                calls |= dict.fromkeys(others, calls[name])
        return calls

    def _owner(self, name: str) -> str:
        """The service of which this is a version; itself when it is none."""
        entry = self.entries.get(name)
        return entry.version_of.value if entry is not None and entry.version_of is not None else name

    def _servers(self) -> dict[str, str]:
        servers: dict[str, Located[str]] = {}
        owners: dict[str, str] = {}
        services = [entry for entry in self.manifest.services if entry.value.version_of is None]
        lists = [(entry.key.value, entry.value.serves) for entry in services]
        lists += [(entry.key.value, entry.value.serves) for entry in self.manifest.external]
        for owner, serves in lists:
            for written in serves:
                name = self._protobuf_service(written)
                if name is None:
                    self.incomplete.add(owner)
                    continue
                if name in owners:
                    self._served_twice(written, name, owners[name], servers[name])
                    self.incomplete.add(owner)
                    continue
                servers[name], owners[name] = written, owner
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
        served = self.directory.served_by(self._owner(name))
        return ordered({method for service in served for method in self.catalog.services[service]})

    def _references(self, owner: str, references: References) -> dict[str, Methods]:
        found = {}
        for reference in references:
            methods = self._targets(owner, reference)
            if methods:
                found[reference.key.value] = ordered(methods)
        return found

    def _targets(self, owner: str, reference: Entry[CallsEntry]) -> set[Method]:
        callee = reference.key.value
        if not self._is_callable(owner, reference.key):
            return set()
        if callee == owner:
            cause = "a call that comes back to its own service waits for itself while its deadline runs"
            fix = "call the function inside the program, or make sure that the circle ends"
            self.reporter.warn("NM311", reference.key.position, f"`{callee}` calls itself", cause=cause, fix=fix)
        scope, place = self.directory.served_by(callee), f"service `{callee}`"
        return self._union(reference.value.methods, scope, place, self._reporter_for({callee}))

    def _is_callable(self, owner: str, key: Located[str]) -> bool:
        """Whether there is a service or, for services, a host outside of this name; a version is called by its service's."""
        callee = key.value
        if callee in self.externals and owner != GATEWAY:
            return self._speaks_grpc(key)
        if callee not in self.entries:
            self._unknown_service(key)
            return False
        version_of = self.entries[callee].version_of
        if version_of is None:
            return True
        cause = f"it is a version of `{version_of.value}`, whose `routing` decides which calls it gets"
        fix = f"write {quoted(version_of.value)}"
        self.reporter.report("NM317", key.position, f"{quoted(callee)} is not called by itself", cause=cause, fix=fix)
        return False

    def _speaks_grpc(self, key: Located[str]) -> bool:
        entry = self.externals[key.value]
        if entry.serves or "serves" in entry.broken:
            return True
        cause = f"`external.{key.value}` has no `serves`: it speaks something else than gRPC"
        fix = "add it to `external` of the service instead, or say what it `serves`"
        self.reporter.report("NM318", key.position, f"{quoted(key.value)} has no methods", cause=cause, fix=fix)
        return False

    def _reporter_for(self, services: set[str]) -> Reporter:
        """Where unknown methods go: to nobody when `serves` is wrong already, for they follow from it."""
        return NOBODY if services & self.incomplete else self.reporter

    def _unknown_service(self, key: Located[str]) -> None:
        cause = "`services` has no service of this name"
        if key.value == GATEWAY:
            cause = "the gateway is the way in; services call each other directly"
        fix = did_you_mean(key.value, [*self.entries, *self.externals], what="service")
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

    def _layers(
        self, inside: Mapping[str, Mapping[str, Methods]], outside: Mapping[str, Mapping[str, Methods]]
    ) -> Layers:
        """Everything written about traffic."""
        mesh = flatten(self.manifest.traffic, Level.MESH)
        services: dict[str, Layer] = {}
        methods: dict[tuple[str, Method], Layer] = {}
        spoken: dict[str, Traffic | ExternalTraffic | None] = {
            name: entry.traffic for name, entry in self.entries.items()
        }
        for name, traffic in (spoken | {name: entry.traffic for name, entry in self.externals.items()}).items():
            own = flatten(traffic, Level.SERVICE)
            services[name] = merged(mesh, own) if name in self.entries else own
            found = method_layers(
                about_calls(services[name]),
                self._served(name),
                traffic.methods if traffic is not None else (),
                lambda key, name=name: self._named(key, name),  # type: ignore[misc]  # binds the loop's name
            )
            methods |= {(name, method): layer for method, layer in found.items()}
        edges, edge_methods = self._edge_layers(inside, outside)
        return Layers(services=services, methods=methods, edges=edges, edge_methods=edge_methods)

    def _named(self, key: Located[str], owner: str) -> Methods:
        """The methods of a service that a key of `methods` names."""
        scope, place = self.directory.served_by(owner), f"service `{owner}`"
        return find_methods(key, self.directory, scope, place, self._reporter_for({owner})) or ()

    def _edge_layers(
        self, inside: Mapping[str, Mapping[str, Methods]], outside: Mapping[str, Mapping[str, Methods]]
    ) -> tuple[dict[tuple[str, str], Layer], dict[tuple[str, str, Method], Layer]]:
        edges: dict[tuple[str, str], Layer] = {}
        methods: dict[tuple[str, str, Method], Layer] = {}
        lists = [(name, entry.calls) for name, entry in self.entries.items()]
        if self.manifest.gateway is not None:
            lists.append((GATEWAY, self.manifest.gateway.expose))
        for caller, references in lists:
            for reference in references:
                callee, traffic = reference.key.value, reference.value.traffic
                called = inside.get(caller, {}).get(callee) or outside.get(caller, {}).get(callee)
                if traffic is None or called is None:
                    continue
                edges[caller, callee] = flatten(traffic, Level.SERVICE)
                found = method_layers(
                    about_calls(edges[caller, callee]),
                    called,
                    traffic.methods,
                    lambda key, callee=callee: self._named(key, callee),  # type: ignore[misc]  # the same
                )
                methods |= {(caller, callee, method): layer for method, layer in found.items()}
        for name, others in self.versions.items():
            for other in others:
                edges |= {(other, callee): layer for (caller, callee), layer in edges.items() if caller == name}
                methods |= {
                    (other, callee, method): layer
                    for (caller, callee, method), layer in methods.items()
                    if caller == name
                }
        return edges, methods

    def _field_methods(self, layers: Layers) -> dict[str, frozenset[Method]]:
        found = {}
        for name, layer in layers.services.items():
            written = layer.get("load_balancing.hash_on.field")
            if written is not None:
                served = self._served(name)
                has = has_hashable_field(self.catalog.descriptor_set, str(written.value), served)
                found[name] = frozenset(has)
        return found

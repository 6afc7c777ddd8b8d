"""From the typed manifest and its links to the mesh, with every default decided and every decision recorded."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from generator.manifest.events import EventsEntry
from generator.manifest.types import ExternalEntry, GatewayEntry, Generate, Manifest, ServiceEntry
from generator.manifest.types import ExternalTls as ExternalTlsEntry
from generator.manifest.values import Entry, Located
from generator.model import defaults, needs
from generator.model.defaults import Decided
from generator.model.events import EVENTS, Cluster, Events, Hearing
from generator.model.links import Links
from generator.model.mesh import (
    GATEWAY,
    Authentication,
    Edge,
    External,
    ExternalTls,
    Gateway,
    GeneratedSecret,
    Mesh,
    Method,
    MethodPolicy,
    RoleRule,
    Secret,
    Service,
    Telemetry,
    TlsFiles,
)
from generator.model.overrides import Overrides
from generator.model.policies import TrafficPolicy
from generator.model.recording import Decision, Recorder, from_line
from generator.model.service_traffic import Fleet
from generator.model.traffic import Policies

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolution:
    """The mesh and why it is so."""

    mesh: Mesh
    decisions: tuple[Decision, ...]
    methods: Mapping[tuple[str, Method], MethodPolicy]
    """By (service or host outside, method): what every caller may do, before an edge tightens it."""
    services: Mapping[str, TrafficPolicy]
    """By service, version or host outside: the same."""


def resolve(manifest: Manifest, links: Links, descriptor_set: bytes, base: Path, overrides: Overrides) -> Resolution:
    """Build the mesh. The manifest must have no error finding; `base` is the folder of the manifest, absolute."""
    return _Resolver(manifest, links, base, overrides).resolve(descriptor_set)


class _Resolver:
    """One pass over a sound manifest; every method returns one part of the mesh."""

    def __init__(self, manifest: Manifest, links: Links, base: Path, overrides: Overrides) -> None:
        assert manifest.mesh is not None
        self.manifest, self.links, self.base, self.overrides = manifest, links, base, overrides
        self.callers = _callers_by_callee(links)
        self.recorder = Recorder()
        self.name = manifest.mesh.value
        trust_domain = defaults.trust_domain(self.name)
        self.trust_domain = self._text("mesh", "trust_domain", manifest.trust_domain, trust_domain)
        self.entries = {entry.key.value: entry.value for entry in sorted(manifest.services, key=_key)}
        self.lifetime_ms = self._lifetime_ms()
        self.replicas = {name: self._replicas(name, entry) for name, entry in self.entries.items()}
        self.zones = {name: self._zones(entry) for name, entry in self.entries.items()}
        self.outside = {entry.key.value: entry.value for entry in sorted(manifest.external, key=_key)}
        self.policies = Policies(self.recorder, links, self._fleet(), self.lifetime_ms)

    def resolve(self, descriptor_set: bytes) -> Resolution:
        """Everything, services first: their policies are what edges carry."""
        for name, entry in self.entries.items():
            for method in self.links.served[name] if entry.version_of is None else ():
                self.policies.method(name, method)
        services = tuple(self._service(name, entry) for name, entry in self.entries.items())
        mesh = Mesh(
            name=self.name,
            trust_domain=self.trust_domain,
            certificate_lifetime_ms=self.lifetime_ms,
            services=services,
            gateway=self._gateway(),
            externals=tuple(self._external(name, entry) for name, entry in self.outside.items()),
            telemetry=self._telemetry(),
            events=self._events(),
            volumes=tuple(volume.value for volume in self.manifest.volumes),
            descriptor_set=descriptor_set,
        )
        return Resolution(
            mesh=mesh,
            decisions=tuple(self.recorder.decisions),
            methods=self.policies.methods,
            services=self.policies.services,
        )

    def _text(self, subject: str, setting: str, written: Located[str] | None, default: Decided[str]) -> str:
        if written is None:
            return self.recorder.take(subject, setting, default)
        reason = from_line(written.position.line)
        return self.recorder.take(subject, setting, Decided(value=written.value, reason=reason))

    def _number(self, subject: str, setting: str, written: Located[int] | None, default: Decided[int]) -> int:
        if written is None:
            return self.recorder.take(subject, setting, default)
        reason = from_line(written.position.line)
        return self.recorder.take(subject, setting, Decided(value=written.value, reason=reason))

    def _lifetime_ms(self) -> int:
        written = self.manifest.certificates.lifetime if self.manifest.certificates else None
        return self._number("mesh", "certificate_lifetime_ms", written, defaults.certificate_lifetime_ms())

    def _replicas(self, name: str, entry: ServiceEntry) -> int:
        if name in self.overrides.replicas:
            decided = Decided(value=self.overrides.replicas[name], reason="the command line")
            return self.recorder.take(name, "replicas", decided)
        return self._number(name, "replicas", entry.replicas, defaults.replicas())

    def _zones(self, entry: ServiceEntry) -> tuple[str, ...]:
        return tuple(zone.value for zone in entry.zones or self.manifest.zones)

    def _fleet(self) -> Fleet:
        return Fleet(
            replicas=self.replicas | dict.fromkeys(self.outside, 1),
            zones=self.zones,
            caller_sidecars={name: self._caller_sidecars(name) for name in self.entries},
        )

    def _caller_sidecars(self, name: str) -> int:
        """How many sidecars check the health of each replica of a service or version."""
        role = self._role(name)
        sidecars = sum(self.replicas[caller] for caller in self.callers.get(role, ()))
        return sidecars + (1 if role in self.links.exposes else 0)

    def _role(self, name: str) -> str:
        version_of = self.entries[name].version_of
        return name if version_of is None else version_of.value

    def _service(self, name: str, entry: ServiceEntry) -> Service:
        assert entry.run is not None
        role = self._role(name)
        base = self.entries[role]  # what a version does not say, its service says
        environment = {variable.key.value: variable.value.value for variable in (*base.env, *entry.env)}
        secrets = {secret.key.value: secret for secret in (*base.secrets, *entry.secrets)}
        return Service(
            name=name,
            identity=f"spiffe://{self.trust_domain}/service/{role}",
            version_of=role if role != name else None,
            command=entry.run.value,
            methods=self.links.served[name],
            replicas=self.replicas[name],
            zones=self.zones[name],
            calls=self._edges(name, self.links.calls.get(name, {})),
            callers=self._callers(role),
            external_calls=self._edges(name, self.links.external_calls.get(name, {})),
            external_connections=tuple(sorted(external.value for external in base.external)),
            consumes=self._consumes(name, base),
            traffic=self.policies.service(name, role),
            listen_port=parse_listen(entry.listen.value)[1] if entry.listen else None,
            environment=tuple(sorted(environment.items())),
            environment_file=self._path(entry.env_file or base.env_file),
            secrets=tuple(self._secret(secrets[variable]) for variable in sorted(secrets)),
            working_directory=self._path(entry.cwd or base.cwd),
            image=image.value if (image := entry.image or base.image) else None,
            volumes=needs.volumes(entry, base, self.base),
            resources=needs.resources(self.recorder, name, entry.resources, base.resources),
            probe=needs.probe(self.recorder, name, entry.probe, base.probe),
        )

    def _edges(self, caller: str, calls: Mapping[str, tuple[Method, ...]]) -> tuple[Edge, ...]:
        return tuple(self.policies.edge(caller, callee, methods) for callee, methods in sorted(calls.items()))

    def _callers(self, callee: str) -> tuple[Edge, ...]:
        """Edges that end at a service; a version of a caller has the identity of its service, and no edge of its own."""
        callers = [name for name in self.callers.get(callee, ()) if self._role(name) == name]
        edges = [self.policies.edge(caller, callee, self.links.calls[caller][callee]) for caller in callers]
        if callee in self.links.exposes:
            edges.append(self.policies.edge(GATEWAY, callee, self.links.exposes[callee]))
        return tuple(sorted(edges, key=lambda edge: edge.caller))

    def _external(self, name: str, entry: ExternalEntry) -> External:
        assert entry.address is not None
        host, port = parse_host(entry.address.value)
        return External(
            name=name,
            host=host,
            port=port,
            tls=None if entry.plaintext is not None else self._external_tls(host, entry.tls),
            methods=self.links.served[name],
        )

    def _external_tls(self, host: str, entry: ExternalTlsEntry | None) -> ExternalTls:
        if entry is None:
            return ExternalTls(server_name=host, ca=None, client=None)
        certificate, private_key = self._path(entry.certificate), self._path(entry.private_key)
        client = None
        if certificate is not None and private_key is not None:
            client = TlsFiles(certificate=certificate, private_key=private_key)
        server_name = entry.server_name.value if entry.server_name is not None else host
        return ExternalTls(server_name=server_name, ca=self._path(entry.ca), client=client)

    def _secret(self, entry: Entry[Located[str] | Generate]) -> Secret:
        if isinstance(entry.value, Generate):
            source: Path | GeneratedSecret = GeneratedSecret(bytes_count=entry.value.generate.value)
        else:
            source = Path(os.path.normpath(self.base / entry.value.value))
        return Secret(variable=entry.key.value, source=source)

    def _path(self, written: Located[str] | None) -> Path | None:
        return None if written is None else Path(os.path.normpath(self.base / written.value))

    def _gateway(self) -> Gateway | None:
        entry = self.manifest.gateway
        if entry is None:
            return None
        host, port = parse_listen(self._gateway_listen(entry))
        tls = None
        if entry.tls is not None:
            certificate, private_key = self._path(entry.tls.certificate), self._path(entry.tls.private_key)
            assert certificate is not None
            assert private_key is not None
            tls = TlsFiles(certificate=certificate, private_key=private_key)
        return Gateway(
            identity=f"spiffe://{self.trust_domain}/{GATEWAY}",
            listen_host=host,
            listen_port=port,
            tls=tls,
            public_url=self._text(GATEWAY, "public_url", entry.public_url, public_url(host, port, tls is not None)),
            authentication=self._authentication(),
            reflection=entry.reflection.value if entry.reflection else False,
            exposes=self._edges(GATEWAY, self.links.exposes),
            zone=self._gateway_zone(entry),
        )

    def _gateway_zone(self, entry: GatewayEntry) -> str | None:
        if entry.zone is not None:
            return entry.zone.value
        return self.manifest.zones[0].value if self.manifest.zones else None

    def _gateway_listen(self, entry: GatewayEntry) -> str:
        if self.overrides.gateway_listen is not None:
            decided = Decided(value=self.overrides.gateway_listen, reason="the command line")
            return self.recorder.take(GATEWAY, "listen", decided)
        return self._text(GATEWAY, "listen", entry.listen, defaults.gateway_listen())

    def _authentication(self) -> Authentication | None:
        gateway = self.manifest.gateway
        entry = gateway.authentication if gateway else None
        if entry is None:
            return None
        assert entry.issuer is not None
        issuer = entry.issuer.value
        own = issuer in self.entries
        roles = (RoleRule(role=role, methods=methods) for role, methods in sorted(self.links.roles.items()))
        return Authentication(
            issuer=f"spiffe://{self.trust_domain}/service/{issuer}" if own else issuer,
            issuer_service=issuer if own else None,
            audience=self._text(GATEWAY, "authentication.audience", entry.audience, defaults.audience(self.name)),
            jwks_file=self._path(entry.jwks),
            public=self.links.public,
            roles=tuple(roles),
            claim_headers=defaults.CLAIM_HEADERS,
        )

    def _telemetry(self) -> Telemetry:
        entry = self.manifest.telemetry
        if entry is None or entry.otlp is None:
            return Telemetry(otlp_host=None, otlp_port=None)
        host, port = parse_listen(entry.otlp.value)
        return Telemetry(otlp_host=host, otlp_port=port)

    def _consumes(self, name: str, base: ServiceEntry) -> tuple[Hearing, ...]:
        """What a service hears; a version hears with its service, as the same consumer."""
        found = []
        for entry in sorted(base.consumes, key=_key):
            types = tuple(sorted({written.value for written in entry.value}))
            decided = Decided(value=types, reason=from_line(entry.key.position.line))
            self.recorder.take(f"{name} <- {entry.key.value}", "consumes", decided)
            found.append(Hearing(publisher=entry.key.value, types=types))
        return tuple(found)

    def _events(self) -> Events | None:
        written = self.manifest.events
        if written is None:
            return None
        entry = written if isinstance(written, EventsEntry) else EventsEntry(server=written, position=written.position)
        server = defaults.events_server(self.name) if entry.url is None else defaults.events_cluster(self.name)
        self.recorder.take(EVENTS, "stream", server)
        retention_ms = self._number(EVENTS, "retention_ms", entry.retention, defaults.events_retention_ms())
        bytes_max = self._number(EVENTS, "max_bytes", entry.max_bytes, defaults.events_bytes_max())
        return Events(cluster=self._cluster(entry), retention_ms=retention_ms, bytes_max=bytes_max)

    def _cluster(self, entry: EventsEntry) -> Cluster | None:
        if entry.url is None:
            return None
        written = entry.credentials
        everybody = self._path(written) if isinstance(written, Located) else None
        own = sorted(written, key=_key) if isinstance(written, tuple) else ()
        files = ((one.key.value, self._path(one.value)) for one in own)
        return Cluster(
            url=entry.url.value,
            ca=self._path(entry.ca),
            credentials=everybody,
            service_credentials=tuple((name, path) for name, path in files if path is not None),
            admin=self._path(entry.admin),
        )


def _callers_by_callee(links: Links) -> dict[str, list[str]]:
    """Who calls each service, in the order of the manifest's calls."""
    callers: dict[str, list[str]] = {}
    for caller, calls in links.calls.items():
        for callee in calls:
            callers.setdefault(callee, []).append(caller)
    return callers


def _key(entry: Entry[T]) -> str:
    return entry.key.value


def parse_host(text: str) -> tuple[str, int]:
    """`rates.example.org:443` or `[::1]:443` to a host and a port. Raises ValueError when either is out of range."""
    host, _, port = text.rpartition(":")
    if not 1 <= int(port[:6]) <= 65_535:
        raise ValueError(f"the port is not between 1 and 65535: {port[:20]}")
    if host.startswith("[") or re.fullmatch(r"[0-9.]+", host):
        return parse_listen(text)
    return host, int(port)


def parse_listen(text: str) -> tuple[str, int]:
    """`127.0.0.1:80` or `[::1]:80` to a canonical host and a port. Raises ValueError when either is out of range."""
    host, _, port = text.rpartition(":")
    if not (port.isascii() and port.isdigit() and 1 <= int(port[:6]) <= 65_535):
        raise ValueError(f"the port is not between 1 and 65535: {port[:20]}")
    bracketed = host.startswith("[") and host.endswith("]")
    address = ipaddress.ip_address(host[1:-1] if bracketed else host)
    if bracketed != (address.version == 6):
        raise ValueError("IPv6 addresses stand in brackets, others do not")
    return str(address), int(port)


def public_url(host: str, port: int, tls: bool) -> Decided[str]:
    """How a client on this machine spells the gateway; a wildcard address becomes loopback."""
    address = ipaddress.ip_address(host)
    if address.is_unspecified:
        address = ipaddress.ip_address("127.0.0.1" if address.version == 4 else "::1")
    shown = f"[{address}]" if address.version == 6 else str(address)
    reason = "what a client on this machine writes; logins are bound to it"
    return Decided(value=f"{'https' if tls else 'http'}://{shown}:{port}", reason=reason)

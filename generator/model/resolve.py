"""From the typed manifest and its links to the mesh, with every default decided and every decision recorded."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from generator.manifest.kinds import format_duration
from generator.manifest.types import GatewayEntry, Generate, Manifest, ServiceEntry
from generator.manifest.values import Entry, Located
from generator.model import defaults
from generator.model.defaults import Decided
from generator.model.links import Chosen, Links, MethodChoice
from generator.model.mesh import (
    GATEWAY,
    Authentication,
    CircuitBreaker,
    Edge,
    Gateway,
    GeneratedSecret,
    HealthCheck,
    Keepalive,
    Mesh,
    Method,
    MethodPolicy,
    OutlierDetection,
    RetryPolicy,
    RoleRule,
    Secret,
    Service,
    Telemetry,
    TlsFiles,
    TrafficPolicy,
)
from generator.model.overrides import Overrides

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One setting, for `nipmesh explain`."""

    subject: str
    """`mesh`, `gateway`, a service, or `service/package.Service/Method`."""
    setting: str
    value: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolution:
    """The mesh and why it is so."""

    mesh: Mesh
    decisions: tuple[Decision, ...]


@dataclass(slots=True)
class Recorder:
    """Takes decided values and remembers the reasons, in order."""

    decisions: list[Decision] = field(default_factory=list)

    def take(self, subject: str, setting: str, decided: Decided[T]) -> T:
        """Record and unwrap."""
        value = show(setting, decided.value)
        self.decisions.append(Decision(subject=subject, setting=setting, value=value, reason=decided.reason))
        return decided.value

    def choose(self, subject: str, setting: str, chosen: Chosen | None, default: Decided[int]) -> int:
        """Return the user's number when there is one, else the default."""
        if chosen is None:
            return self.take(subject, setting, default)
        return self.take(subject, setting, Decided(value=chosen.value, reason=f"line {chosen.line} of the manifest"))


def show(setting: str, value: object) -> str:
    """Return a value as `explain` prints it: durations with a unit, sets sorted, `-` for none."""
    if value is None or value == frozenset():
        return "-"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, frozenset):
        return ", ".join(sorted(str(getattr(item, "value", item)) for item in value))
    if isinstance(value, int) and setting.endswith(("_ms", "_ms_max")):
        return format_duration(value)
    return str(value)


def resolve(manifest: Manifest, links: Links, descriptor_set: bytes, base: Path, overrides: Overrides) -> Resolution:
    """Build the mesh. The manifest must have no error finding; `base` is the folder of the manifest, absolute."""
    return _Resolver(manifest, links, base, overrides).resolve(descriptor_set)


class _Resolver:
    """One pass over a sound manifest; every method returns one part of the mesh."""

    def __init__(self, manifest: Manifest, links: Links, base: Path, overrides: Overrides) -> None:
        assert manifest.mesh is not None
        self.manifest, self.links, self.base, self.overrides = manifest, links, base, overrides
        self.recorder = Recorder()
        self.name = manifest.mesh.value
        trust_domain = defaults.trust_domain(self.name)
        self.trust_domain = self._text("mesh", "trust_domain", manifest.trust_domain, trust_domain)
        self.entries = {entry.key.value: entry.value for entry in sorted(manifest.services, key=_key)}
        self.lifetime_ms = self._lifetime_ms()
        self.replicas = {name: self._replicas(name, entry) for name, entry in self.entries.items()}
        self.policies: dict[Method, MethodPolicy] = {}

    def resolve(self, descriptor_set: bytes) -> Resolution:
        """Everything, services first: their policies are what edges carry."""
        for name in self.entries:
            for method in self.links.served[name]:
                self.policies[method] = self._policy(name, method)
        services = tuple(self._service(name, entry) for name, entry in self.entries.items())
        mesh = Mesh(
            name=self.name,
            trust_domain=self.trust_domain,
            certificate_lifetime_ms=self.lifetime_ms,
            services=services,
            gateway=self._gateway(),
            telemetry=self._telemetry(),
            descriptor_set=descriptor_set,
        )
        return Resolution(mesh=mesh, decisions=tuple(self.recorder.decisions))

    def _text(self, subject: str, setting: str, written: Located[str] | None, default: Decided[str]) -> str:
        if written is None:
            return self.recorder.take(subject, setting, default)
        reason = f"line {written.position.line} of the manifest"
        return self.recorder.take(subject, setting, Decided(value=written.value, reason=reason))

    def _lifetime_ms(self) -> int:
        certificates = self.manifest.certificates
        chosen = chosen_of(certificates.lifetime if certificates else None)
        default = defaults.certificate_lifetime_ms()
        return self.recorder.choose("mesh", "certificate_lifetime_ms", chosen, default)

    def _replicas(self, name: str, entry: ServiceEntry) -> int:
        if name in self.overrides.replicas:
            decided = Decided(value=self.overrides.replicas[name], reason="the command line")
            return self.recorder.take(name, "replicas", decided)
        return self.recorder.choose(name, "replicas", chosen_of(entry.replicas), defaults.replicas())

    def _policy(self, service: str, method: Method) -> MethodPolicy:
        subject = f"{service}{method.path}"
        choice = self.links.choices.get(service, {}).get(method, MethodChoice())
        decided_deadline = _chosen_or(choice.deadline_ms, defaults.deadline_ms(method))
        decided_idle = _chosen_or(choice.idle_timeout_ms, defaults.idle_timeout_ms(method))
        return MethodPolicy(
            method=method,
            deadline_ms=self.recorder.take(subject, "deadline_ms", decided_deadline),
            idle_timeout_ms=self.recorder.take(subject, "idle_timeout_ms", decided_idle),
            duration_ms_max=self.recorder.take(
                subject, "duration_ms_max", defaults.stream_duration_ms_max(method, self.lifetime_ms)
            ),
            retry=self._retry(subject, service, method),
        )

    def _retry(self, subject: str, service: str, method: Method) -> RetryPolicy | None:
        take = self.recorder.take
        conditions = take(subject, "retry.conditions", defaults.retry_conditions(method))
        if not conditions:
            return None
        return RetryPolicy(
            conditions=conditions,
            attempts_max=take(subject, "retry.attempts_max", defaults.retry_attempts_max(self.replicas[service])),
            backoff_base_ms=take(subject, "retry.backoff_base_ms", defaults.backoff_base_ms()),
            backoff_max_ms=take(subject, "retry.backoff_ms_max", defaults.backoff_ms_max()),
        )

    def _service(self, name: str, entry: ServiceEntry) -> Service:
        assert entry.run is not None
        return Service(
            name=name,
            identity=f"spiffe://{self.trust_domain}/service/{name}",
            command=entry.run.value,
            methods=self.links.served[name],
            replicas=self.replicas[name],
            calls=self._edges(name, self.links.calls.get(name, {})),
            callers=self._callers(name),
            traffic=self._traffic(name),
            listen_port=parse_listen(entry.listen.value)[1] if entry.listen else None,
            environment=tuple(sorted((variable.key.value, variable.value.value) for variable in entry.env)),
            environment_file=self._path(entry.env_file),
            secrets=tuple(self._secret(secret) for secret in sorted(entry.secrets, key=_key)),
            working_directory=self._path(entry.cwd),
            image=entry.image.value if entry.image else None,
        )

    def _edges(self, caller: str, calls: Mapping[str, tuple[Method, ...]]) -> tuple[Edge, ...]:
        return tuple(self._edge(caller, callee, methods) for callee, methods in sorted(calls.items()))

    def _edge(self, caller: str, callee: str, methods: tuple[Method, ...]) -> Edge:
        return Edge(caller=caller, callee=callee, methods=tuple(self.policies[method] for method in methods))

    def _callers(self, callee: str) -> tuple[Edge, ...]:
        edges = [
            self._edge(caller, callee, calls[callee]) for caller, calls in self.links.calls.items() if callee in calls
        ]
        if callee in self.links.exposes:
            edges.append(self._edge(GATEWAY, callee, self.links.exposes[callee]))
        return tuple(sorted(edges, key=lambda edge: edge.caller))

    def _traffic(self, name: str) -> TrafficPolicy:
        take, replicas = self.recorder.take, self.replicas[name]
        duration = defaults.connection_duration_ms_max(self.lifetime_ms)
        return TrafficPolicy(
            panic_threshold_percent=take(name, "panic_threshold_percent", defaults.panic_threshold_percent(replicas)),
            outlier_detection=self._outlier_detection(name, replicas),
            circuit_breaker=self._circuit_breaker(name, replicas),
            health_check=self._health_check(name),
            keepalive=Keepalive(
                interval_ms=take(name, "keepalive.interval_ms", defaults.keepalive_interval_ms()),
                timeout_ms=take(name, "keepalive.timeout_ms", defaults.keepalive_timeout_ms()),
            ),
            request_bytes_max=take(name, "request_bytes_max", defaults.request_bytes_max()),
            connection_duration_ms_max=take(name, "connection_duration_ms_max", duration),
        )

    def _outlier_detection(self, name: str, replicas: int) -> OutlierDetection:
        def take(setting: str, decided: Decided[T]) -> T:
            return self.recorder.take(name, f"outlier_detection.{setting}", decided)

        return OutlierDetection(
            consecutive_failures=take("consecutive_failures", defaults.consecutive_failures()),
            interval_ms=take("interval_ms", defaults.outlier_interval_ms()),
            base_ejection_ms=take("base_ejection_ms", defaults.base_ejection_ms()),
            ejection_ms_max=take("ejection_ms_max", defaults.ejection_ms_max()),
            ejection_jitter_ms=take("ejection_jitter_ms", defaults.ejection_jitter_ms()),
            ejection_percent_max=take("ejection_percent_max", defaults.ejection_percent_max(replicas)),
            always_eject_one=take("always_eject_one", defaults.always_eject_one(replicas)),
        )

    def _circuit_breaker(self, name: str, replicas: int) -> CircuitBreaker:
        def take(setting: str, decided: Decided[T]) -> T:
            return self.recorder.take(name, f"circuit_breaker.{setting}", decided)

        return CircuitBreaker(
            connections_max=take("connections_max", defaults.connections_max(replicas)),
            pending_requests_max=take("pending_requests_max", defaults.pending_requests_max(replicas)),
            requests_max=take("requests_max", defaults.requests_max(replicas)),
            retry_budget_percent=take("retry_budget_percent", defaults.retry_budget_percent(replicas)),
            retry_concurrency_min=take("retry_concurrency_min", defaults.retry_concurrency_min(replicas)),
        )

    def _health_check(self, name: str) -> HealthCheck:
        def take(setting: str, decided: Decided[T]) -> T:
            return self.recorder.take(name, f"health_check.{setting}", decided)

        sidecars = sum(self.replicas[caller] for caller, calls in self.links.calls.items() if name in calls)
        sidecars += 1 if name in self.links.exposes else 0
        return HealthCheck(
            interval_ms=take("interval_ms", defaults.health_interval_ms(sidecars)),
            timeout_ms=take("timeout_ms", defaults.health_timeout_ms()),
            healthy_threshold=take("healthy_threshold", defaults.healthy_threshold()),
            unhealthy_threshold=take("unhealthy_threshold", defaults.unhealthy_threshold()),
        )

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
        )

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


def _key(entry: Entry[T]) -> str:
    return entry.key.value


def chosen_of(written: Located[int] | None) -> Chosen | None:
    """Say what the user wrote, with its line."""
    return None if written is None else Chosen(value=written.value, line=written.position.line)


def _chosen_or(chosen: Chosen | None, default: Decided[int | None]) -> Decided[int | None]:
    if chosen is None:
        return default
    return Decided(value=chosen.value, reason=f"line {chosen.line} of the manifest")


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

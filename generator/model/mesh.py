"""The resolved mesh: services, who calls what, and each policy as a number. Times are integer milliseconds."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from pathlib import Path

from generator.model.events import Events, Hearing
from generator.model.policies import (
    Faults,
    HashOn,
    HeaderChanges,
    Hedging,
    RateLimit,
    RetryPolicy,
    Routing,
    TrafficPolicy,
)
from generator.model.process import Probe, Resources, Volume

GATEWAY = "gateway"
"""Name of the edge in SPIFFE ids, edges and folders; no service may be called so."""

LOOPBACK_BEGINS = "127."

SYSTEM_AUTHORITIES = "/etc/ssl/certs/ca-certificates.crt"
"""Where Debian and most others keep the authorities that a system trusts; a fixed path, since no output depends on a machine."""


class StreamingKind(enum.Enum):
    """Which sides of a method stream; decides timeouts and whether a retry can be safe."""

    UNARY = "unary"
    CLIENT = "client_streaming"
    SERVER = "server_streaming"
    BIDIRECTIONAL = "bidirectional_streaming"


class Idempotency(enum.Enum):
    """`google.protobuf.MethodOptions.idempotency_level`, by its names."""

    UNKNOWN = "IDEMPOTENCY_UNKNOWN"
    IDEMPOTENT = "IDEMPOTENT"
    NO_SIDE_EFFECTS = "NO_SIDE_EFFECTS"


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One rpc of a protobuf service."""

    service: str
    """Full name, e.g. `nipmesh.nip.v1.NipService`."""
    name: str
    streaming: StreamingKind
    idempotency: Idempotency
    request: str
    response: str

    @property
    def path(self) -> str:
        """The `:path` of a gRPC call, e.g. `/nipmesh.nip.v1.NipService/SignEvent`."""
        return f"/{self.service}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodPolicy:
    """How one method is carried on one edge. None means that the limit does not apply to its streaming kind."""

    method: Method
    deadline_ms: int | None
    """Longest time of a unary call, all attempts included; also the cap of the caller's `grpc-timeout`."""
    idle_timeout_ms: int | None
    """Streams: longest silence."""
    duration_ms_max: int | None
    """Streams: longest life, at most a quarter of the leaf certificate's."""
    retry: RetryPolicy | None
    hedging: Hedging | None = None
    faults: Faults | None = None
    routing: Routing = field(default_factory=Routing)
    hash_on: HashOn | None = None
    """What the balancer hashes of this method's calls; None: nothing, or it does not hash."""
    request_bytes_max: int | None = None
    """Longest request that the service's sidecar lets through; None: the application decides."""
    rate_limit: RateLimit | None = None
    request_headers: HeaderChanges = field(default_factory=HeaderChanges)
    response_headers: HeaderChanges = field(default_factory=HeaderChanges)


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """One version of a callee, and what a caller applies towards it."""

    service: str
    traffic: TrafficPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """One caller may call these methods of one callee; the gateway is a caller too."""

    caller: str
    callee: str
    """A service, or (of `Service.external_calls`) an external host."""
    methods: tuple[MethodPolicy, ...]
    destinations: tuple[Destination, ...]
    """Every version that a call of this edge may reach, sorted by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratedSecret:
    """A file of random bytes that the runner makes once (0600)."""

    bytes_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Secret:
    """A secret reaches an application as a file; the environment variable holds the file's path."""

    variable: str
    source: Path | GeneratedSecret


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """One workload kind: the application, its replicas and its edges."""

    name: str
    identity: str
    """SPIFFE id: `spiffe://<trust domain>/service/<name>`, of a version that of its service."""
    version_of: str | None
    """The service of which this is another version: it serves and calls the same."""
    command: tuple[str, ...]
    methods: tuple[Method, ...]
    replicas: int
    zones: tuple[str, ...]
    """Zones of the replicas in turn; empty: there are no zones."""
    calls: tuple[Edge, ...]
    callers: tuple[Edge, ...]
    """Edges that end here, the gateway's included; whatever is not here is denied."""
    external_calls: tuple[Edge, ...]
    """Edges to hosts outside that speak gRPC."""
    external_connections: tuple[str, ...]
    """Hosts outside that speak something else."""
    consumes: tuple[Hearing, ...]
    """What it hears of whom, sorted by publisher; whatever is not here is denied."""
    traffic: TrafficPolicy
    listen_port: int | None
    """Loopback TCP port of a foreign application that cannot listen on a Unix socket; None: Unix socket."""
    environment: tuple[tuple[str, str], ...]
    environment_file: Path | None
    secrets: tuple[Secret, ...]
    working_directory: Path | None
    image: str | None
    volumes: tuple[Volume, ...] = ()
    resources: Resources = field(default_factory=Resources)
    probe: Probe = field(default_factory=Probe)

    @property
    def service_names(self) -> tuple[str, ...]:
        """Full names of the protobuf services that it serves, sorted."""
        return tuple(sorted({method.service for method in self.methods}))

    @property
    def role(self) -> str:
        """The service whose part it plays in edges: its own name, or of a version that of its service."""
        return self.version_of or self.name

    def zone(self, index: int) -> str | None:
        """The zone of one replica."""
        return self.zones[index % len(self.zones)] if self.zones else None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExternalTls:
    """Whom a host outside must prove to be."""

    server_name: str
    ca: Path | None
    """None: the authorities that the system trusts."""
    client: TlsFiles | None


@dataclass(frozen=True, slots=True, kw_only=True)
class External:
    """A host outside the mesh."""

    name: str
    host: str
    """A DNS name, or an IP address."""
    port: int
    tls: ExternalTls | None
    methods: tuple[Method, ...]
    """What it serves over gRPC; empty: it speaks something else."""

    @property
    def variable(self) -> str:
        """The environment variable that tells applications where to connect to it."""
        return f"NIPMESH_EXTERNAL_{self.name.upper().replace('-', '_')}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleRule:
    """Methods that need this value among the token's `role` claim."""

    role: str
    methods: tuple[Method, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Authentication:
    """Who may enter through the gateway: JWTs (ES256) of one issuer."""

    issuer: str
    """The `iss` claim. For an issuer inside the mesh it is that service's SPIFFE id."""
    issuer_service: str | None
    """The service that mints tokens with the key that the runner made; None: a foreign issuer with `jwks_file`."""
    audience: str
    jwks_file: Path | None
    public: tuple[Method, ...]
    roles: tuple[RoleRule, ...]
    claim_headers: tuple[tuple[str, str], ...]
    """(claim, header) pairs that are forwarded to the services, e.g. `("sub", "x-nipmesh-subject")`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """A certificate chain and its key, PEM."""

    certificate: Path
    private_key: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    """The edge: what the world may call."""

    identity: str
    """SPIFFE id: `spiffe://<trust domain>/gateway`."""
    listen_host: str
    listen_port: int
    tls: TlsFiles | None
    public_url: str
    """How clients spell this gateway, no trailing slash, e.g. `http://127.0.0.1:8080`."""
    authentication: Authentication | None
    reflection: bool
    exposes: tuple[Edge, ...]
    zone: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Telemetry:
    """Where traces go; None: nowhere."""

    otlp_host: str | None
    otlp_port: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Mesh:
    """Everything the generator knows, and nothing about any one machine."""

    name: str
    trust_domain: str
    certificate_lifetime_ms: int
    services: tuple[Service, ...]
    """Sorted by name."""
    gateway: Gateway | None
    externals: tuple[External, ...]
    """Sorted by name."""
    telemetry: Telemetry
    events: Events | None
    volumes: tuple[str, ...] = ()
    """Names of volumes that services share, in the order of the manifest."""
    descriptor_set: bytes
    """The user's protobufs as a serialized `google.protobuf.FileDescriptorSet`, imports included."""
    _services: dict[str, Service] = field(default_factory=dict, init=False, repr=False, compare=False)
    """By name; filled when one is first asked for."""

    def service(self, name: str) -> Service:
        """The service of this name; KeyError when there is none."""
        if not self._services:
            self._services.update({service.name: service for service in self.services})
        return self._services[name]

    @property
    def written_ports(self) -> frozenset[int]:
        """The TCP ports that the manifest names on this machine: what is chosen for the mesh must leave them free."""
        listening = {service.listen_port for service in self.services}
        edge = {self.gateway.listen_port} if self.gateway is not None else set()
        outside = {external.port for external in self.externals if external.host.startswith(LOOPBACK_BEGINS)}
        return frozenset(port for port in {*listening, *edge, *outside, self.telemetry.otlp_port} if port is not None)

    @property
    def connected(self) -> tuple[str, ...]:
        """Hosts outside for which sidecars open sockets, sorted."""
        return tuple(sorted({name for service in self.services for name in service.external_connections}))

    def external(self, name: str) -> External:
        """The host outside of this name; KeyError when there is none."""
        for external in self.externals:
            if external.name == name:
                return external
        raise KeyError(name)

"""The resolved mesh: services, who calls what, and each policy as a number. Times are integer milliseconds."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from pathlib import Path

GATEWAY = "gateway"
"""Name of the edge in SPIFFE ids, edges and folders; no service may be called so."""


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


class RetryCondition(enum.Enum):
    """What must have happened for another attempt to be allowed."""

    NOT_DELIVERED = "not_delivered"
    """The application provably never saw the call: safe for every unary method."""
    RESET = "reset"
    """The connection broke with the outcome unknown: only for methods that may run twice."""
    UNAVAILABLE = "unavailable"
    """The service itself answered UNAVAILABLE: only for methods that may run twice."""


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
class RetryPolicy:
    """When and how often a failed attempt is repeated; `attempts_max` excludes the first try."""

    conditions: frozenset[RetryCondition]
    attempts_max: int
    backoff_base_ms: int
    backoff_max_ms: int


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


@dataclass(frozen=True, slots=True, kw_only=True)
class OutlierDetection:
    """When a replica that answers badly is taken out of rotation, and for how long."""

    consecutive_failures: int
    interval_ms: int
    base_ejection_ms: int
    ejection_ms_max: int
    ejection_jitter_ms: int
    ejection_percent_max: int
    always_eject_one: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitBreaker:
    """Bulkhead of a caller towards one callee."""

    connections_max: int
    pending_requests_max: int
    requests_max: int
    retry_budget_percent: int
    retry_concurrency_min: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthCheck:
    """Active gRPC health check by each caller's sidecar."""

    interval_ms: int
    timeout_ms: int
    healthy_threshold: int
    unhealthy_threshold: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Keepalive:
    """HTTP/2 pings of a caller's sidecar; the callee tolerates this interval."""

    interval_ms: int
    timeout_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficPolicy:
    """What every caller applies towards one service; computed from its replica count."""

    panic_threshold_percent: int
    outlier_detection: OutlierDetection
    circuit_breaker: CircuitBreaker
    health_check: HealthCheck
    keepalive: Keepalive
    request_bytes_max: int
    connection_duration_ms_max: int
    """Connections are renewed after this, so that old certificates go away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """One caller may call these methods of one callee; the gateway is a caller too."""

    caller: str
    callee: str
    methods: tuple[MethodPolicy, ...]


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
    """SPIFFE id: `spiffe://<trust domain>/service/<name>`."""
    command: tuple[str, ...]
    methods: tuple[Method, ...]
    replicas: int
    calls: tuple[Edge, ...]
    callers: tuple[Edge, ...]
    """Edges that end here, the gateway's included; whatever is not here is denied."""
    traffic: TrafficPolicy
    listen_port: int | None
    """Loopback TCP port of a foreign application that cannot listen on a Unix socket; None: Unix socket."""
    environment: tuple[tuple[str, str], ...]
    environment_file: Path | None
    secrets: tuple[Secret, ...]
    working_directory: Path | None
    image: str | None

    @property
    def service_names(self) -> tuple[str, ...]:
        """Full names of the protobuf services that it serves, sorted."""
        return tuple(sorted({method.service for method in self.methods}))


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
    telemetry: Telemetry
    descriptor_set: bytes
    """The user's protobufs as a serialized `google.protobuf.FileDescriptorSet`, imports included."""

    def service(self, name: str) -> Service:
        """The service of this name; KeyError when there is none."""
        for service in self.services:
            if service.name == name:
                return service
        raise KeyError(name)

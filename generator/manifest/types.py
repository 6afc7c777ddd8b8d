"""The typed manifest: each field declares its key with kind, limits, documentation and default.

Loading, the JSON Schema and the reference all come from these declarations. Field names are the keys of the file.
"""
# ruff: noqa: RUF009  (key() makes a dataclasses.field, which is what belongs there)

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from generator.manifest.collections import Either, ListOf, MapOf, RecordOf, Shorthand, key
from generator.manifest.events import CONSUMES, EVENTS, PATH, EventsEntry
from generator.manifest.kinds import Boolean, Command, Duration, EnvironmentValue, Number, Text
from generator.manifest.policies import METHOD, METHODS_MAX, NAME, REASON
from generator.manifest.process import PROBE, RESOURCES, VOLUMES, VOLUMES_MAX, ProbeEntry, ResourcesEntry
from generator.manifest.traffic import EdgeTraffic, ExternalTraffic, MeshTraffic, Traffic
from generator.manifest.values import Entry, Located, Record

SERVICES_MAX = 1_000
REPLICAS_MAX = 100
"""Replicas on one machine; each is two processes."""
PROTOS_MAX = 32
VARIABLES_MAX = 200
ROLES_MAX = 100
SECRET_BYTES_MIN = 16
SECRET_BYTES_MAX = 4_096
CERTIFICATE_LIFETIME_MS_MIN = 10_000
"""Shorter ones would be renewed all the time."""
CERTIFICATE_LIFETIME_MS_MAX = 30 * 24 * 3_600_000

DOMAIN: Final = Text(
    word="a domain like `example.mesh`",
    pattern=r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*",
    length_max=200,
    rule="a trust domain has lower-case letters, digits, hyphens and dots, like a DNS name",
)
PROTOBUF_SERVICE: Final = Text(
    word="a protobuf service like `shop.v1.OrderService`",
    pattern=r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*",
    length_max=255,
    rule="a protobuf service is written with its package: letters, digits, underscores and dots",
)
LISTEN: Final = Text(
    word="an address like `127.0.0.1:8080`",
    pattern=r"([0-9]{1,3}(\.[0-9]{1,3}){3}|\[[0-9A-Fa-f:.]{2,45}\]):[1-9][0-9]{0,4}",
    length_max=60,
    rule="an address is an IP address by number, a colon and a port; IPv6 stands in brackets",
)
HOST_NAME: Final = Text(
    word="a host name like `rates.example.org`",
    pattern=r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*",
    length_max=253,
    rule="a host name has letters, digits, hyphens and dots",
)
HOST_AND_PORT: Final = Text(
    word="a host and a port like `rates.example.org:443`",
    pattern=rf"({HOST_NAME.pattern}|\[[0-9A-Fa-f:.]{{2,45}}\]):[1-9][0-9]{{0,4}}",
    length_max=260,
    rule="a host name or IP address, a colon and a port; IPv6 stands in brackets",
)
VARIABLE: Final = Text(
    word="an environment variable like `LOG_LEVEL`",
    pattern=r"[A-Za-z_][A-Za-z0-9_]*",
    length_max=128,
    rule="a variable has letters, digits and underscores and does not start with a digit",
)
ROLE: Final = Text(
    word="a role like `operator`",
    pattern=r"[A-Za-z0-9]([A-Za-z0-9._:-]*[A-Za-z0-9])?",
    length_max=64,
    rule="a role has letters, digits, dots, colons, underscores and hyphens",
)
URL: Final = Text(
    word="a URL like `https://api.example.org`",
    pattern=r"https?://[A-Za-z0-9.\-]+(:[1-9][0-9]{0,4})?|https?://\[[0-9A-Fa-f:.]+\](:[1-9][0-9]{0,4})?",
    length_max=300,
    rule="a public URL has a scheme, a host and perhaps a port, and no path or trailing slash",
)
ISSUER: Final = Text(
    word="a service of this mesh, or the URL in the `iss` claim",
    pattern=r"[a-z]([a-z0-9-]*[a-z0-9])?|https?://[\x21-\x7e]+",
    length_max=300,
    rule="an issuer is the name of a service, or a URL for a foreign one",
)
AUDIENCE: Final = Text(
    word="an audience", pattern=r"[\x21-\x7e]+", length_max=300, rule="an audience has visible ASCII characters only"
)
IMAGE: Final = Text(
    word="a container image like `registry.example.org/orders:1.2`",
    pattern=r"[a-z0-9]+([._:/-]+[A-Za-z0-9]+)*(@sha256:[0-9a-f]{64})?",
    length_max=300,
    rule="an image has a name, perhaps a registry before it, and a tag or digest after it",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Generate(Record):
    """`{generate: 32}`: a secret that is made once."""

    generate: Located[int] = key(
        Number(minimum=SECRET_BYTES_MIN, maximum=SECRET_BYTES_MAX),
        "Make a file of this many random bytes once, readable by its owner only.",
        required=True,
        example="32",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CallsEntry(Record):
    """What one caller calls of one service, and how."""

    methods: tuple[Located[str], ...] = key(
        ListOf(item=METHOD, count_max=METHODS_MAX, word="a list of methods"),
        "The methods; everything else is denied.",
        required=True,
        example="[OrderService/*]",
    )
    traffic: EdgeTraffic | None = key(
        RecordOf(record=EdgeTraffic, word="traffic settings"),
        "How this caller's calls are carried: it may be stricter than the service, never looser.",
        default="as the service says",
        sample=(
            "services:\n  checkout:\n    calls:\n      orders:\n        methods: [OrderService/*]\n        traffic:\n"
            "          deadline: 1s\n          circuit_breaker: {max_requests: 10}\n          methods:\n"
            "            OrderService/GetOrder: {retries: {attempts: 1}}"
        ),
    )


CALLS: Final = MapOf(
    key=NAME,
    item=Shorthand(
        record=RecordOf(record=CallsEntry, word="a list of methods, or `{methods: [...], traffic: {...}}`"),
        listed="methods",
    ),
    count_max=SERVICES_MAX,
    word="a mapping from service to methods",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExternalTls(Record):
    """Whom a host outside must prove to be."""

    server_name: Located[str] | None = key(
        HOST_NAME, "The name to ask for (SNI), which its certificate must carry.", default="the host of `address`"
    )
    ca: Located[str] | None = key(
        PATH, "The authorities that may have signed its certificate, PEM.", default="those that the system trusts"
    )
    certificate: Located[str] | None = key(PATH, "A client's certificate for it, PEM.", default="none")
    private_key: Located[str] | None = key(PATH, "Its private key, PEM.", default="none")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExternalEntry(Record):
    """A host outside the mesh that services may call; every other one is denied."""

    address: Located[str] | None = key(HOST_AND_PORT, "Where it is.", required=True, example="rates.example.org:443")
    serves: tuple[Located[str], ...] = key(
        ListOf(item=PROTOBUF_SERVICE, count_max=100, word="a list of protobuf services"),
        "The protobuf services that it answers, when it speaks gRPC.",
        default="it speaks something else over TCP: callers find a socket in NIPMESH_EXTERNAL_NAME",
    )
    tls: ExternalTls | None = key(
        RecordOf(record=ExternalTls, word="`{server_name: rates.example.org}`"),
        "Who it must prove to be; TLS 1.2 or later is always spoken, unless `plaintext` says why not.",
        default="the host of `address`, by the authorities that the system trusts",
    )
    plaintext: Located[str] | None = key(REASON, "Why no TLS is spoken.", default="TLS")
    traffic: ExternalTraffic | None = key(
        RecordOf(record=ExternalTraffic, word="traffic settings"), "How calls to it are carried."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceEntry(Record):
    """One service: a program, what it serves and what it calls."""

    run: Located[tuple[str, ...]] | None = key(
        Command(),
        "The command that starts one replica. No shell interprets it.",
        required=True,
        example="python -m app",
    )
    serves: tuple[Located[str], ...] = key(
        ListOf(item=PROTOBUF_SERVICE, count_max=100, word="a list of protobuf services"),
        "The protobuf services that it implements.",
        required=True,
        unless="version_of",
        example="[shop.v1.OrderService]",
    )
    replicas: Located[int] | None = key(
        Number(minimum=1, maximum=REPLICAS_MAX), "How many copies run.", default="2, so that one may die"
    )
    version_of: Located[str] | None = key(
        NAME,
        "Another version of this service: it serves and calls the same and has the same identity; `routing` of the "
        "service decides which calls it gets.",
        default="a service of its own",
        sample=(
            "services:\n  orders-blue: {run: python -m orders.blue, version_of: orders, replicas: 1}\n"
            "  orders:\n    traffic:\n      routing: {split: {orders: 90, orders-blue: 10}}"
        ),
    )
    calls: tuple[Entry[CallsEntry], ...] = key(
        CALLS, "Which methods of which services it calls; everything else is denied.", default="nothing"
    )
    consumes: tuple[Entry[tuple[Located[str], ...]], ...] = key(
        CONSUMES,
        "Which types of events it hears of which services; everything else is denied. Every service may publish, under its own "
        "name only.",
        default="nothing",
    )
    external: tuple[Located[str], ...] = key(
        ListOf(item=NAME, count_max=100, word="a list of external hosts"),
        "The external hosts without `serves` that it connects to; for those with `serves` write their methods in `calls`.",
        default="none",
    )
    zones: tuple[Located[str], ...] = key(
        ListOf(item=NAME, count_max=20, word="a list of zones"),
        "The zones of its replicas, in turn: replica 0 is in the first.",
        default="the mesh's zones",
        sample=(
            "services:\n  orders:\n    zones: [east, west]\n    traffic:\n      load_balancing: {failover: [west]}\n"
            "  checkout: {zones: [east]}"
        ),
    )
    traffic: Traffic | None = key(
        RecordOf(record=Traffic, word="traffic settings"), "How calls to this service are carried."
    )
    listen: Located[str] | None = key(
        LISTEN,
        "For a program that cannot listen on a Unix socket: the loopback address of its first replica. Every "
        "replica finds its own in PORT.",
        default="a Unix socket that only its sidecar can reach",
    )
    env: tuple[Entry[Located[str]], ...] = key(
        MapOf(key=VARIABLE, item=EnvironmentValue(), count_max=VARIABLES_MAX, word="a mapping of variables"),
        "Environment variables. Secrets do not belong here.",
    )
    env_file: Located[str] | None = key(PATH, "A file of NAME=value lines that are added to the environment.")
    secrets: tuple[Entry[Located[str] | Generate], ...] = key(
        MapOf(
            key=VARIABLE,
            item=Either(
                scalar=PATH,
                mapping=RecordOf(record=Generate, word="`{generate: 32}`"),
                word="the path of a file, or `{generate: 32}`",
            ),
            count_max=VARIABLES_MAX,
            word="a mapping from variable to file",
        ),
        "Secrets reach the program as files; the variable holds the path.",
    )
    cwd: Located[str] | None = key(PATH, "The working directory.", default="the manifest's folder")
    image: Located[str] | None = key(IMAGE, "The container image, for outputs that run containers.")
    volumes: tuple[Located[str], ...] = key(
        VOLUMES,
        "Folders that the program sees, for outputs that run containers: one of the mesh's volumes by its name, or a folder beside the "
        "manifest; `:ro` at the end forbids writing.",
        default="none but its own data",
    )
    resources: ResourcesEntry | None = key(
        RESOURCES,
        "What one replica may use at most.",
        default="no limits",
    )
    probe: ProbeEntry | None = key(
        PROBE,
        "When a replica counts as ready, and when as dead.",
        default="gRPC's health protocol, every second",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthenticationEntry(Record):
    """Whose tokens open the gateway."""

    issuer: Located[str] | None = key(
        ISSUER,
        "Who issues tokens: a service of this mesh, or the `iss` of a foreign issuer.",
        required=True,
        example="SERVICE",
    )
    audience: Located[str] | None = key(AUDIENCE, "The `aud` that tokens must carry.", default="the mesh's name")
    jwks: Located[str] | None = key(PATH, "A foreign issuer's public keys (JSON Web Key Set); not for own services.")
    public: tuple[Located[str], ...] = key(
        ListOf(item=METHOD, count_max=METHODS_MAX, word="a list of methods"), "Methods that need no token."
    )
    roles: tuple[Entry[tuple[Located[str], ...]], ...] = key(
        MapOf(
            key=ROLE,
            item=ListOf(item=METHOD, count_max=METHODS_MAX, word="a list of methods"),
            count_max=ROLES_MAX,
            word="a mapping from role to methods",
        ),
        "Methods that need this value in the token's `role` claim.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsEntry(Record):
    """The gateway's certificate."""

    certificate: Located[str] | None = key(PATH, "Certificate chain, PEM.", required=True, example="edge.crt")
    private_key: Located[str] | None = key(PATH, "Its private key, PEM.", required=True, example="edge.key")


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayEntry(Record):
    """The edge: the one way in from outside."""

    listen: Located[str] | None = key(
        LISTEN, "Where clients connect.", default="127.0.0.1:8080", example="127.0.0.1:8080"
    )
    public_url: Located[str] | None = key(
        URL, "How clients spell this gateway; logins are bound to it.", default="http(s)://LISTEN"
    )
    tls: TlsEntry | None = key(
        RecordOf(record=TlsEntry, word="`{certificate: FILE, private_key: FILE}`"),
        "Serve TLS with this certificate.",
        default="plaintext HTTP/2",
    )
    authentication: AuthenticationEntry | None = key(
        RecordOf(record=AuthenticationEntry, word="authentication settings"),
        "Which tokens are accepted.",
        default="none: everything exposed is open",
    )
    reflection: Located[bool] | None = key(Boolean(), "Answer gRPC reflection, for development.", default="false")
    zone: Located[str] | None = key(NAME, "The zone of the gateway.", default="the first of the mesh's zones")
    expose: tuple[Entry[CallsEntry], ...] = key(
        CALLS,
        "Which methods of which services the world may call.",
        required=True,
        example="{SERVICE: [OrderService/*]}",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TelemetryEntry(Record):
    """Where traces go."""

    otlp: Located[str] | None = key(LISTEN, "OTLP/gRPC endpoint for traces.", default="no traces")


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificatesEntry(Record):
    """The workloads' certificates."""

    lifetime: Located[int] | None = key(
        Duration(minimum_ms=CERTIFICATE_LIFETIME_MS_MIN, maximum_ms=CERTIFICATE_LIFETIME_MS_MAX),
        "How long each certificate lives; it is renewed at half of it.",
        default="1h",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest(Record):
    """The whole file."""

    mesh: Located[str] | None = key(NAME, "The mesh's name.", required=True, example="shop")
    trust_domain: Located[str] | None = key(DOMAIN, "The authority part of every SPIFFE id.", default="MESH.mesh")
    protos: tuple[Located[str], ...] = key(
        ListOf(item=PATH, count_max=PROTOS_MAX, word="a list of folders"),
        "Folders with .proto files, each an import root.",
        required=True,
        example="[protos]",
    )
    certificates: CertificatesEntry | None = key(
        RecordOf(record=CertificatesEntry, word="certificate settings"), "The workloads' certificates."
    )
    telemetry: TelemetryEntry | None = key(
        RecordOf(record=TelemetryEntry, word="telemetry settings"), "Where traces go."
    )
    services: tuple[Entry[ServiceEntry], ...] = key(
        MapOf(
            key=NAME,
            item=RecordOf(record=ServiceEntry, word="a service"),
            count_max=SERVICES_MAX,
            word="a mapping from name to service",
        ),
        "The services.",
        required=True,
        example="{orders: {run: python -m orders, serves: [shop.v1.OrderService]}}",
    )
    volumes: tuple[Located[str], ...] = key(
        ListOf(item=NAME, count_max=VOLUMES_MAX, word="a list of names"),
        "Volumes that services share and that outlive them, for outputs that run containers.",
        default="none",
    )
    events: Located[str] | EventsEntry | None = key(
        EVENTS, "Where services publish events and hear those of others.", default="no events"
    )
    zones: tuple[Located[str], ...] = key(
        ListOf(item=NAME, count_max=20, word="a list of zones"),
        "Zones over which the replicas of every service are spread in turn.",
        default="no zones",
        sample="zones: [east, west]",
    )
    traffic: MeshTraffic | None = key(
        RecordOf(record=MeshTraffic, word="traffic settings"), "What holds for every service that says nothing else."
    )
    external: tuple[Entry[ExternalEntry], ...] = key(
        MapOf(
            key=NAME,
            item=RecordOf(record=ExternalEntry, word="an external host"),
            count_max=100,
            word="a mapping from name to external host",
        ),
        "Hosts outside the mesh that services may call; every other one is denied.",
        default="none",
        sample=(
            "external:\n  rates:\n    address: rates.example.org:443\n    serves: [shop.v1.RateService]\n"
            "    traffic: {deadline: 1s, retries: {attempts: 1}}\n"
            "  ledger:\n    address: 10.1.2.3:5432\n    tls: {server_name: ledger.example.org}\n"
            "services:\n  checkout:\n    external: [ledger]  # its socket is in NIPMESH_EXTERNAL_LEDGER\n"
            "    calls:\n      rates: [RateService/GetRate]"
        ),
    )
    gateway: GatewayEntry | None = key(
        RecordOf(record=GatewayEntry, word="gateway settings"), "The one way in from outside.", default="no gateway"
    )


MANIFEST: Final = RecordOf(record=Manifest, word="a mapping with the keys mesh, protos and services")
"""The root kind."""

"""Where everything is in the containers of a mesh: the same path in all that share it, since Envoy's files name each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from generator.model import (
    Address,
    GatewayPlacement,
    Mesh,
    Placement,
    ReplicaPlacement,
    Service,
    SocketAddress,
    UnixAddress,
)
from generator.model.mesh import GATEWAY
from generator.model.placement import external_socket
from generator.outputs.local.paths import StatePaths
from generator.outputs.workloads import SecretFile, takes_database
from generator.pki.store import AUTHORITIES

USER_ID = 65_532
"""Of every process in every container: nobody's on most machines, the usual one of images without root."""
EVERYWHERE = "0.0.0.0"  # noqa: S104  # inside a container, whose networks say who reaches it
LOOPBACK = "127.0.0.1"
PORT_FIRST = 21_000
"""Each sidecar has an address of its own, so all have the same ports, from here."""
SOCKETS = Path("/run/nipmesh")
FILES = Path("/etc/nipmesh")
MANIFEST = FILES / "mesh"
"""The manifest's folder, for who renders."""
ENVOY = FILES / "envoy"
CERTIFICATES = FILES / "certificates"
SECRETS = FILES / "secrets"
INTROSPECTION = FILES / "introspection"
EVENTS = FILES / "events"
POSTGRESQL_FILES = FILES / "postgresql"
DATA = Path("/var/lib/nipmesh")
EVENT_STORE = Path("/var/lib/nats")
POSTGRESQL_STATE = Path("/var/lib/postgresql")
POSTGRESQL = "postgresql"
"""The name of its container, of its profile, and of the host that services connect to."""
POSTGRESQL_PORT = 5_432
POSTGRESQL_OWNER = "postgres"
"""Of the whole server; only the agent knows the password."""
DATABASE_URL = "database.url"
DATABASE_AUTHORITIES = f"database-{AUTHORITIES}"
"""Who vouches for the server, in the volume of a service's secrets, beside the URL."""
EVENT_PORT = 4_222
EVENT_MONITOR_PORT = 8_222
"""On the loopback of the server's own container: for its health check."""
MESH_SUFFIX = ".mesh"
"""A sidecar's name on the mesh's network alone: it may have others with other names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerPaths(StatePaths):
    """The layout for whoever fills the volumes; durable things that only it has are below its root."""

    @property
    def envoy(self) -> Path:
        """Bootstraps and xDS files, one volume per workload."""
        return ENVOY

    @property
    def introspection(self) -> Path:
        """What the introspection server is started with."""
        return INTROSPECTION

    @property
    def event_configuration(self) -> Path:
        """What the server of events is started with."""
        return EVENTS / "nats.json"

    @property
    def event_store(self) -> Path:
        """Where the server of events keeps its streams."""
        return EVENT_STORE

    @property
    def event_system(self) -> Path:
        """The seed of the user that may tell the server of events to read its files again."""
        return self.event_admin.parent / "system.nk"

    def certificates(self, workload: str) -> Path:
        """Give the volume with a workload's `..data` link."""
        return CERTIFICATES / workload

    @property
    def postgresql(self) -> Path:
        """What the server of databases is started with."""
        return POSTGRESQL_FILES

    @property
    def postgresql_password(self) -> Path:
        """The password of the server's owner; durable, as its databases are."""
        return self.root / "secrets" / POSTGRESQL / "owner.password"

    def database_password(self, role: str) -> Path:
        """Give the password of a service's own role."""
        return self.root / "secrets" / POSTGRESQL / "services" / f"{role}.password"

    def given_secrets(self, role: str) -> Path:
        """Give the volume with the secrets of a service."""
        return SECRETS / role


def secret_file_name(secret: SecretFile) -> str:
    """Name a secret's file: `nip-keystore-key-file`."""
    return secret.variable.lower().replace("_", "-")


EVENT_AUTHORITIES = f"events-{AUTHORITIES}"


def database_role(role: str) -> str:
    """The role and the database of a service: `nipmesh_payment`; unlike any that the server has by itself."""
    return f"nipmesh_{role}"


def database_roles(mesh: Mesh) -> tuple[str, ...]:
    """The services with a database, in the order of the mesh."""
    return tuple(dict.fromkeys(service.role for service in mesh.services if takes_database(service)))


def host_name(workload: str) -> str:
    """The name of a sidecar on the mesh's network."""
    return workload + MESH_SUFFIX


def placement(mesh: Mesh, found: Mapping[str, str] | None = None, *, jwks: str | None = None) -> Placement:
    """Place every replica and the gateway; `found` are the addresses of sidecars by workload, of those that have one."""
    known = found or {}
    return Placement(
        directory=ENVOY,
        replicas=tuple(
            _replica(service, index, known.get(f"{service.name}-{index}"))
            for service in mesh.services
            for index in range(service.replicas)
        ),
        gateway=None if mesh.gateway is None else _gateway(mesh.gateway.listen_port),
        jwks=jwks,
    )


def scrape_port(service: Service) -> int:
    """The port of a sidecar for metrics and readiness."""
    return _port_first(service) + 1


def _port_first(service: Service) -> int:
    """The first port of a sidecar: those of an application that shares its network are left out."""
    count = 3 + len(service.external_connections)
    taken = service.listen_port is not None and PORT_FIRST <= service.listen_port < PORT_FIRST + count
    return PORT_FIRST + count if taken else PORT_FIRST


def _replica(service: Service, index: int, found_at: str | None) -> ReplicaPlacement:
    name, first = f"{service.name}-{index}", _port_first(service)
    is_unix = service.listen_port is None
    app: Address = UnixAddress(path=SOCKETS / "app.sock")
    if service.listen_port is not None:
        app = SocketAddress(host=LOOPBACK, port=service.listen_port)
    outside = tuple(
        (
            external,
            UnixAddress(path=SOCKETS / external_socket(external))
            if is_unix
            else SocketAddress(host=LOOPBACK, port=first + 3 + position),
        )
        for position, external in enumerate(service.external_connections)
    )
    return ReplicaPlacement(
        service=service.name,
        index=index,
        app=app,
        app_metrics=UnixAddress(path=SOCKETS / "metrics.sock"),
        egress=UnixAddress(path=SOCKETS / "egress.sock") if is_unix else SocketAddress(host=LOOPBACK, port=first + 2),
        admin=UnixAddress(path=SOCKETS / "admin.sock"),
        inbound=SocketAddress(host=EVERYWHERE, port=first),
        scrape=SocketAddress(host=EVERYWHERE, port=scrape_port(service)),
        certificates=CERTIFICATES / name,
        in_rotation=found_at is not None,
        found_at=found_at,
        external=outside,
    )


def _gateway(port: int) -> GatewayPlacement:
    return GatewayPlacement(
        listen=SocketAddress(host=EVERYWHERE, port=port),
        introspection=UnixAddress(path=SOCKETS / "introspection.sock"),
        admin=UnixAddress(path=SOCKETS / "admin.sock"),
        scrape=SocketAddress(host=EVERYWHERE, port=gateway_scrape_port(port)),
        certificates=CERTIFICATES / GATEWAY,
    )


def gateway_scrape_port(port: int) -> int:
    """The gateway's port for metrics and readiness."""
    return PORT_FIRST + 1 if port != PORT_FIRST + 1 else PORT_FIRST + 2

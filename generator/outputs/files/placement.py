"""Addresses for `nipmesh render`, which runs nothing: fixed by the mesh alone, so that the output is always the same."""

from __future__ import annotations

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

LOOPBACK = "127.0.0.1"
PORT_FIRST = 21_000
PORTS_PER_REPLICA = 4
"""Inbound, scrape, and two for an application without Unix sockets."""
PORT_MAX = 65_535
SOCKETS = Path("/run/nipmesh")
EMPTY_KEY_SET = '{"keys":[]}'


def default_placement(mesh: Mesh, directory: Path, *, jwks: str | None = None, certificates: Path | None = None) -> Placement:
    """Place everything on one machine, in the order of the mesh.

    `directory`: where the files will be written, absolute. `jwks`: the issuer's key set; without one, tokens are
    verified against a set with no key in it, which refuses all. `certificates`: the parent of the workloads'
    certificate folders; by default beside the files. Raises ValueError when ports run out.
    """
    folder = certificates or directory / "certificates"
    replicas: list[ReplicaPlacement] = []
    for service in mesh.services:
        for index in range(service.replicas):
            replicas.append(_replica(service, index, len(replicas), folder))
    has_authentication = mesh.gateway is not None and mesh.gateway.authentication is not None
    return Placement(
        directory=directory,
        replicas=tuple(replicas),
        gateway=_gateway(mesh, len(replicas), folder),
        jwks=(jwks or EMPTY_KEY_SET) if has_authentication else None,
    )


def _replica(service: Service, index: int, position: int, certificates: Path) -> ReplicaPlacement:
    name = f"{service.name}-{index}"
    sockets = SOCKETS / name
    app: Address = UnixAddress(path=sockets / "app.sock")
    egress: Address = UnixAddress(path=sockets / "egress.sock")
    if service.listen_port is not None:
        app = SocketAddress(host=LOOPBACK, port=service.listen_port) if index == 0 else _port(position, 2)
        egress = _port(position, 3)
    return ReplicaPlacement(
        service=service.name,
        index=index,
        app=app,
        app_metrics=UnixAddress(path=sockets / "metrics.sock"),
        egress=egress,
        admin=UnixAddress(path=sockets / "admin.sock"),
        inbound=_port(position, 0),
        scrape=_port(position, 1),
        certificates=certificates / name,
        in_rotation=True,
    )


def _gateway(mesh: Mesh, position: int, certificates: Path) -> GatewayPlacement | None:
    if mesh.gateway is None:
        return None
    sockets = SOCKETS / GATEWAY
    return GatewayPlacement(
        listen=SocketAddress(host=mesh.gateway.listen_host, port=mesh.gateway.listen_port),
        introspection=UnixAddress(path=sockets / "introspection.sock"),
        admin=UnixAddress(path=sockets / "admin.sock"),
        scrape=_port(position, 1),
        certificates=certificates / GATEWAY,
    )


def _port(position: int, offset: int) -> SocketAddress:
    port = PORT_FIRST + position * PORTS_PER_REPLICA + offset
    if port > PORT_MAX:
        raise ValueError(f"a mesh of more than {position} replicas has too few ports on one machine")
    return SocketAddress(host=LOOPBACK, port=port)

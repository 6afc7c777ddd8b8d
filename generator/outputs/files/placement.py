"""Addresses for `nipmesh render`, which runs nothing: fixed by the mesh alone, so that the output is always the same."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

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

LOOPBACK = "127.0.0.1"
PORT_FIRST = 21_000
PORTS_PER_REPLICA = 4
"""Inbound, scrape, and two for an application without Unix sockets."""
PORT_MAX = 65_535
SOCKETS = Path("/run/nipmesh")
NOBODY = b"nipmesh: nobody holds the private half of this key"
"""Hashed to a public key: Envoy wants at least one, and one made at random would not be the same twice."""


def default_placement(
    mesh: Mesh, directory: Path, *, jwks: str | None = None, certificates: Path | None = None
) -> Placement:
    """Place everything on one machine, in the order of the mesh.

    `directory`: where the files will be written, absolute. `jwks`: the issuer's key set; without one it is the
    manifest's file, and without that a key that nobody holds, so that no token passes. `certificates`: the parent of
    the workloads' certificate folders; by default beside the files.

    Raises ValueError when ports run out and OSError when the manifest's key set cannot be read.
    """
    folder = certificates or directory / "certificates"
    replicas: list[ReplicaPlacement] = []
    for service in mesh.services:
        for index in range(service.replicas):
            replicas.append(_replica(service, index, len(replicas), folder))
    return Placement(
        directory=directory,
        replicas=tuple(replicas),
        gateway=_gateway(mesh, len(replicas), folder),
        jwks=_key_set(mesh, jwks),
    )


def _key_set(mesh: Mesh, given: str | None) -> str | None:
    authentication = mesh.gateway.authentication if mesh.gateway is not None else None
    if authentication is None:
        return None
    if given is not None:
        return given
    if authentication.jwks_file is not None:
        return authentication.jwks_file.read_text(encoding="utf-8")
    return nobodys_key_set()


def nobodys_key_set() -> str:
    """A key set of one valid P-256 key whose private half nobody knows: its x is a hash. It verifies no token."""
    x = NOBODY
    while True:
        x = hashlib.sha256(x).digest()
        try:
            point = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\x02" + x)
        except ValueError:
            continue  # half of all numbers are the x of no point
        numbers = point.public_numbers()
        members = {name: _base64url(value) for name, value in (("x", numbers.x), ("y", numbers.y))}
        return json.dumps({"keys": [{"kty": "EC", "crv": "P-256", "alg": "ES256", "kid": "nobody", **members}]})


def _base64url(coordinate: int) -> str:
    return base64.urlsafe_b64encode(coordinate.to_bytes(32, "big")).rstrip(b"=").decode("ascii")


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
        external=tuple(
            (external, UnixAddress(path=sockets / external_socket(external)))
            for external in service.external_connections
        ),
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

"""Addresses for `nipmesh render`, which runs nothing: fixed by the mesh and its hosts, so that the output is always the same."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
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
from generator.model.events import EVENTS
from generator.model.mesh import GATEWAY
from generator.model.placement import external_socket
from generator.outputs.files.ports import Ports

LOOPBACK = "127.0.0.1"
SOCKETS = Path("/run/nipmesh")
NOBODY = b"nipmesh: nobody holds the private half of this key"
"""Hashed to a public key: Envoy wants at least one, and one made at random would not be the same twice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grounds:
    """Where a placement puts things."""

    certificates: Path
    """The parent of the workloads' certificate folders."""
    sockets: Path = SOCKETS
    """The parent of their socket folders."""
    addresses: Mapping[str, str] = field(default_factory=dict)
    """Workload to the address by which sidecars on other machines reach it; loopback where it has none."""

    def host(self, workload: str) -> str:
        """Where its sidecar takes calls of others."""
        return self.addresses.get(workload, LOOPBACK)


def default_placement(
    mesh: Mesh,
    directory: Path,
    *,
    jwks: str | None = None,
    certificates: Path | None = None,
    sockets: Path = SOCKETS,
    addresses: Mapping[str, str] | None = None,
) -> Placement:
    """Place everything, on one machine or (with `addresses`: workload to address) on several.

    `directory`: where the files will be written, absolute. `jwks`: the issuer's key set; without one it is the
    manifest's file, and without that a key that nobody holds, so that no token passes. `certificates`: the parent of
    the workloads' certificate folders; by default beside the files. `sockets`: the parent of their socket folders.

    Raises ValueError when ports run out and OSError when the manifest's key set cannot be read.
    """
    grounds = Grounds(
        certificates=certificates or directory / "certificates", sockets=sockets, addresses=addresses or {}
    )
    ports = Ports(mesh)
    replicas = (
        _replica(service, index, ports, grounds) for service in mesh.services for index in range(service.replicas)
    )
    return Placement(
        directory=directory,
        replicas=tuple(replicas),
        gateway=_gateway(mesh, ports, grounds),
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


def _replica(service: Service, index: int, ports: Ports, grounds: Grounds) -> ReplicaPlacement:
    name = f"{service.name}-{index}"
    sockets = grounds.sockets / name
    port = partial(ports.port, service.name, index)
    app: Address = UnixAddress(path=sockets / "app.sock")
    egress: Address = UnixAddress(path=sockets / "egress.sock")
    if service.listen_port is not None:
        app = _loopback(service.listen_port if index == 0 else port(2))
        egress = _loopback(port(3))
    return ReplicaPlacement(
        service=service.name,
        index=index,
        app=app,
        app_metrics=UnixAddress(path=sockets / "metrics.sock"),
        egress=egress,
        admin=UnixAddress(path=sockets / "admin.sock"),
        inbound=SocketAddress(host=grounds.host(name), port=port(0)),
        scrape=_loopback(port(1)),
        certificates=grounds.certificates / name,
        in_rotation=True,
        external=tuple((other, _outside(service, sockets, other, ports)) for other in service.external_connections),
    )


def _outside(service: Service, sockets: Path, external: str, ports: Ports) -> Address:
    """Choose where connections to a host outside begin: who cannot listen on a Unix socket may not dial one either."""
    if service.listen_port is not None:
        return _loopback(ports.spare(f"{sockets.name} {external}"))
    return UnixAddress(path=sockets / external_socket(external))


def _gateway(mesh: Mesh, ports: Ports, grounds: Grounds) -> GatewayPlacement | None:
    if mesh.gateway is None:
        return None
    sockets = grounds.sockets / GATEWAY
    return GatewayPlacement(
        listen=SocketAddress(host=mesh.gateway.listen_host, port=mesh.gateway.listen_port),
        introspection=UnixAddress(path=sockets / "introspection.sock"),
        admin=UnixAddress(path=sockets / "admin.sock"),
        scrape=_loopback(ports.port(GATEWAY, 0, 1)),
        certificates=grounds.certificates / GATEWAY,
    )


def events_address(mesh: Mesh, addresses: Mapping[str, str] | None = None) -> SocketAddress:
    """Where the mesh's own server of events listens; on several machines at the address of its own."""
    return SocketAddress(host=(addresses or {}).get(EVENTS, LOOPBACK), port=Ports(mesh).port(EVENTS, 0, 0))


def _loopback(port: int) -> SocketAddress:
    return SocketAddress(host=LOOPBACK, port=port)

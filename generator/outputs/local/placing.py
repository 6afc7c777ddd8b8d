"""Decides where each workload lives on this machine: its sockets, ports and certificate folder."""

from __future__ import annotations

import shutil
from pathlib import Path

from generator.model import (
    Address,
    Gateway,
    GatewayPlacement,
    ReplicaPlacement,
    Service,
    SocketAddress,
    UnixAddress,
)
from generator.model.mesh import GATEWAY
from generator.model.placement import external_socket
from generator.outputs.local.paths import StatePaths
from generator.outputs.local.ports import LOOPBACK, PortPool
from generator.pki import private_directory


class Placer:
    """Gives replicas and the gateway their addresses; a replica keeps them until it is removed."""

    def __init__(self, paths: StatePaths, sockets: Path, ports: PortPool) -> None:
        self._paths = paths
        self._sockets = sockets
        self._ports = ports

    def leave(self, ports: frozenset[int]) -> None:
        """Choose none of these from now on."""
        self._ports.leave(ports)

    def has_chosen(self, port: int) -> bool:
        """Whether one of the mesh's own listeners was given this port."""
        return self._ports.holds(port)

    def place_replica(self, service: Service, index: int) -> ReplicaPlacement:
        """Reserve everything for one replica, out of rotation. Raises PortError and OSError."""
        name = f"{service.name}-{index}"
        folder = private_directory(self._sockets / name)
        return ReplicaPlacement(
            service=service.name,
            index=index,
            app=self._application(service, index, folder),
            app_metrics=UnixAddress(path=folder / "metrics.sock"),
            egress=self._egress(service, folder),
            admin=UnixAddress(path=folder / "admin.sock"),
            inbound=self._ports.take(),
            scrape=self._ports.take(),
            certificates=self._paths.certificates(name),
            in_rotation=False,
            external=tuple((name, self._outside(service, name, folder)) for name in service.external_connections),
        )

    def place_gateway(self, gateway: Gateway) -> GatewayPlacement:
        """Reserve everything for the edge, its public port first. Raises PortError and OSError."""
        listen = SocketAddress(host=gateway.listen_host, port=gateway.listen_port)
        self._ports.hold(listen)
        folder = private_directory(self._sockets / GATEWAY)
        return GatewayPlacement(
            listen=listen,
            introspection=UnixAddress(path=folder / "app.sock"),
            admin=UnixAddress(path=folder / "admin.sock"),
            scrape=self._ports.take(),
            certificates=self._paths.certificates(GATEWAY),
        )

    def place_events(self) -> SocketAddress:
        """Reserve the port of the server of events. Raises PortError."""
        return self._ports.take_shared()

    def release(self, replica: ReplicaPlacement) -> None:
        """Give a removed replica's ports back and remove its socket folder."""
        shutil.rmtree(self._sockets / replica.name, ignore_errors=True)
        outside = (address for _, address in replica.external)
        for address in (replica.app, replica.egress, replica.inbound, replica.scrape, *outside):
            if isinstance(address, SocketAddress):
                self._ports.release(address)

    def _application(self, service: Service, index: int, folder: Path) -> Address:
        """Choose the application's address; a foreign application's first replica gets the manifest's port.

        The port is not held: an application that binds without SO_REUSEPORT could not have it then.
        """
        if service.listen_port is None:
            return UnixAddress(path=folder / "app.sock")
        if index == 0:
            return SocketAddress(host=LOOPBACK, port=service.listen_port)
        address = self._ports.take()
        self._ports.release(address)
        return address

    def _outside(self, service: Service, name: str, folder: Path) -> Address:
        """Choose where connections to a host outside begin."""
        return UnixAddress(path=folder / external_socket(name)) if service.listen_port is None else self._ports.take()

    def _egress(self, service: Service, folder: Path) -> Address:
        """Choose where calls go out: an application that cannot listen on a Unix socket may not dial one either."""
        return UnixAddress(path=folder / "egress.sock") if service.listen_port is None else self._ports.take()

"""Inner ports: free ones, and nobody else's while the mesh runs.

A probe alone would race with another mesh that starts in the same second, and two Envoys may share a port in silence
(both set SO_REUSEPORT). So the supervisor keeps a bound socket per port that never listens: a plain bind elsewhere
fails, while its own Envoys may bind beside it, because the kept socket allows that after the exclusive bind.
"""

from __future__ import annotations

import errno
import hashlib
import socket
from collections.abc import Iterable
from pathlib import Path

from generator.model import SocketAddress

LOOPBACK = "127.0.0.1"
PORT_MIN = 20_000
PORT_MAX = 31_999
"""Below Linux' range for outgoing connections (32,768 and up), so that no client's port is ever in the way."""


class PortError(Exception):
    """A port cannot be had, or none is free; `number` is the system's error, if there was one."""

    def __init__(self, message: str, number: int | None = None) -> None:
        super().__init__(message)
        self.number = number


class PortPool:
    """Hands out loopback ports and holds them until they are released."""

    def __init__(self, seed: Path, leave: Iterable[int] = ()) -> None:
        """`seed`: where to begin, so that two meshes seldom try the same. `leave`: ports that are somebody's already."""
        self._left = set(leave)
        digest = hashlib.sha256(str(seed).encode()).digest()
        self._next = PORT_MIN + int.from_bytes(digest[:4], "big") % (PORT_MAX - PORT_MIN + 1)
        self._held: dict[tuple[str, int], socket.socket] = {}

    def leave(self, ports: Iterable[int]) -> None:
        """Never hand these out from now on: the manifest gives them to somebody, who may listen only later."""
        self._left.update(ports)

    def holds(self, port: int) -> bool:
        """Whether it was handed out."""
        return any(held == port for _, held in self._held)

    def take(self) -> SocketAddress:
        """Reserve the next free port. Raises PortError when all are taken."""
        for _ in range(PORT_MIN, PORT_MAX + 1):
            address = SocketAddress(host=LOOPBACK, port=self._next)
            self._next = PORT_MIN + (self._next + 1 - PORT_MIN) % (PORT_MAX - PORT_MIN + 1)
            if address.port in self._left:
                continue
            try:
                self._hold(address, is_shared=False)
            except OSError:
                continue
            return address
        raise PortError(f"no free port between {PORT_MIN} and {PORT_MAX}")

    def take_shared(self) -> SocketAddress:
        """Reserve a port for a server that binds it as Go does: with SO_REUSEADDR, and without SO_REUSEPORT.

        Linux lets it listen beside a socket that has SO_REUSEADDR too and does not listen; other meshes' reservations still fail.
        """
        address = self.take()
        self._held[address.host, address.port].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return address

    def hold(self, address: SocketAddress) -> None:
        """Reserve this very port. Raises PortError when somebody has it.

        What is left of connections of an earlier run keeps a port from an exclusive bind for a minute (TIME_WAIT); when
        only that is in the way, because listening works, the port is taken beside it.
        """
        try:
            self._hold(address, is_shared=False)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not can_listen(address):
                raise PortError(f"{host_and_port(address)}: {error.strerror}", error.errno) from error
            self._hold(address, is_shared=True)

    def _hold(self, address: SocketAddress, *, is_shared: bool) -> None:
        held = socket.socket(family_of(address), socket.SOCK_STREAM)
        try:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(is_shared))
            held.bind((address.host, address.port))
        except OSError:
            held.close()
            raise
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._held[address.host, address.port] = held

    def release(self, address: SocketAddress) -> None:
        """Give a port back."""
        held = self._held.pop((address.host, address.port), None)
        if held is not None:
            held.close()

    def close(self) -> None:
        """Give everything back."""
        for held in self._held.values():
            held.close()
        self._held.clear()


def can_listen(address: SocketAddress) -> bool:
    """Tell whether a server could listen there now."""
    with socket.socket(family_of(address), socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address.host, address.port))
            probe.listen()
        except OSError:
            return False
    return True


def host_and_port(address: SocketAddress) -> str:
    """Write an address as people and gRPC do: an IPv6 host stands in brackets."""
    host = f"[{address.host}]" if ":" in address.host else address.host
    return f"{host}:{address.port}"


def family_of(address: SocketAddress) -> socket.AddressFamily:
    """Give the address family of a numeric host."""
    return socket.AF_INET6 if ":" in address.host else socket.AF_INET

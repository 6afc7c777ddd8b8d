"""Ports are free, held, and given back."""

import socket
from pathlib import Path

import pytest

from generator.model import SocketAddress
from generator.outputs.local.ports import PORT_MAX, PORT_MIN, PortError, PortPool, can_listen


def plain_bind(address: SocketAddress) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((address.host, address.port))
        except OSError:
            return False
        return True


def listen_as_envoy_does(address: SocketAddress) -> socket.socket:
    server = socket.socket()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    server.bind((address.host, address.port))
    server.listen()
    return server


def test_held_ports_differ_and_are_nobody_elses(tmp_path: Path) -> None:
    ours, other = PortPool(tmp_path), PortPool(tmp_path)
    taken = [ours.take() for _ in range(20)] + [other.take() for _ in range(20)]
    assert len({address.port for address in taken}) == 40
    assert all(PORT_MIN <= address.port <= PORT_MAX for address in taken)
    assert not any(plain_bind(address) for address in taken)
    ours.close()
    other.close()
    assert all(plain_bind(address) for address in taken)


def test_our_envoy_can_listen_on_a_held_port_and_gets_the_connections(tmp_path: Path) -> None:
    pool = PortPool(tmp_path)
    address = pool.take()
    with listen_as_envoy_does(address) as server, socket.create_connection((address.host, address.port), 2):
        server.accept()[0].close()
        assert not can_listen(address)
    pool.close()


def test_a_port_with_a_listener_is_refused(tmp_path: Path) -> None:
    pool = PortPool(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = SocketAddress(host="127.0.0.1", port=server.getsockname()[1])
        with pytest.raises(PortError, match="in use"):
            pool.hold(taken)


def test_remains_of_old_connections_do_not_keep_the_port(tmp_path: Path) -> None:
    pool = PortPool(tmp_path)
    address = pool.take()
    server = listen_as_envoy_does(address)
    client = socket.create_connection((address.host, address.port), 2)
    server.accept()[0].close()  # the server closes first, so TIME_WAIT is on its side
    server.close()
    assert client.recv(1) == b""
    client.close()
    pool.release(address)
    assert not plain_bind(address)
    pool.hold(address)
    listen_as_envoy_does(address).close()
    pool.close()


def test_released_ports_can_be_taken_again(tmp_path: Path) -> None:
    pool = PortPool(tmp_path)
    address = pool.take()
    pool.release(address)
    pool.hold(address)
    pool.close()

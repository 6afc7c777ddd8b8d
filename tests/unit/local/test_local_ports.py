"""Ports are free, held, and given back."""

import errno
import socket
from pathlib import Path

import pytest

from generator.model import Service, SocketAddress
from generator.outputs.local.environment import target
from generator.outputs.local.paths import StatePaths
from generator.outputs.local.placing import Placer
from generator.outputs.local.ports import PORT_MAX, PORT_MIN, PortError, PortPool, can_listen, host_and_port
from generator.outputs.local.running import explain


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


def test_the_true_cause_of_a_refused_port_is_told(tmp_path: Path) -> None:
    pool = PortPool(tmp_path)
    with pytest.raises(PortError) as refused:
        pool.hold(SocketAddress(host="198.51.100.1", port=28_080))
    assert explain(refused.value).startswith("198.51.100.1:28080: ")
    assert "this machine has no such address" in explain(refused.value)
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(PortError) as refused:
        pool.hold(SocketAddress(host="127.0.0.1", port=server.getsockname()[1]))
    assert "another program has this port" in explain(refused.value)


@pytest.mark.parametrize(
    ("number", "words"), [(errno.EACCES, "may not listen"), (errno.EPERM, "refused"), (None, "refused")]
)
def test_only_what_is_known_is_said(number: int | None, words: str) -> None:
    said = explain(PortError("refused", number))
    assert words in said
    assert "another program" not in said


def test_an_ipv6_host_stands_in_brackets() -> None:
    assert host_and_port(SocketAddress(host="::1", port=80)) == target(SocketAddress(host="::1", port=80)) == "[::1]:80"
    assert host_and_port(SocketAddress(host="127.0.0.1", port=80)) == "127.0.0.1:80"


def test_a_removed_replica_leaves_no_socket_folder(short_folder: Path, echo_service: Service) -> None:
    pool = PortPool(short_folder)
    placer = Placer(StatePaths(root=short_folder / "state"), short_folder, pool)
    kept, removed = placer.place_replica(echo_service, 0), placer.place_replica(echo_service, 1)
    (removed.admin.path).touch()
    placer.release(removed)
    assert [path.name for path in short_folder.glob("echo-*")] == [kept.name]
    assert placer.place_replica(echo_service, 1).admin.path.parent.is_dir()
    pool.close()


def test_ports_of_the_manifest_are_nobody_elses(tmp_path: Path) -> None:
    """They are handed to applications, which listen later: until then a bind would work."""
    first = PortPool(tmp_path)
    one, two = first.take(), first.take()
    first.close()
    pool = PortPool(tmp_path, leave={one.port})
    assert pool.take() == two
    assert not pool.holds(one.port)
    assert pool.holds(two.port)
    pool.leave({two.port + 1})
    assert pool.take().port == two.port + 2
    pool.close()

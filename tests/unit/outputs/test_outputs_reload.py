"""A real NATS server is told over its own protocol to take its new certificate, also when the old one's time is over."""

from __future__ import annotations

import datetime as dt
import importlib
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from generator.model import SocketAddress
from generator.model.events import EVENTS
from generator.outputs.compose.layout import ContainerPaths
from generator.outputs.local.binary import find_nats
from generator.outputs.local.event_server import event_users
from generator.outputs.local.processes import end_with_parent
from generator.outputs.nats import AdminConnection, EventsError, reload
from generator.pki import Authority, UserKey, issue_leaf, publish_leaf
from generator.pki.store import DATA_LINK
from generator.render.nats import NatsPlace, accounts, configuration
from support.mesh import free_port

module = importlib.import_module("generator.outputs.nats.reload")
START_S_MAX = 20
LIFETIME = dt.timedelta(minutes=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A running one, with the system's key."""

    paths: ContainerPaths
    certificates: Path
    connection: AdminConnection
    log: Path

    def issue(self, at: dt.datetime) -> None:
        """Give it the certificate of some moment."""
        now = dt.datetime.now(dt.UTC)
        authority = Authority.open(self.paths.authorities, "x", now)
        leaf = issue_leaf(authority, identity=f"spiffe://x/{EVENTS}", lifetime=LIFETIME, now=at, hosts=("127.0.0.1",))
        publish_leaf(self.certificates, leaf)

    def reloads(self) -> int:
        """How often it says that it took its files."""
        return self.log.read_text().count("Reloaded server configuration")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    paths, port = ContainerPaths(root=tmp_path / "state"), free_port()
    certificates = tmp_path / "certificates"
    connection = AdminConnection(
        url=f"tls://127.0.0.1:{port}", key=paths.event_system, authorities=certificates / DATA_LINK / "ca.crt"
    )
    made = Server(paths=paths, certificates=certificates, connection=connection, log=tmp_path / "log")
    made.issue(dt.datetime.now(dt.UTC) - dt.timedelta(hours=1))
    place = NatsPlace(
        listen=SocketAddress(host="127.0.0.1", port=port),
        certificate=certificates / DATA_LINK / "tls.crt",
        private_key=certificates / DATA_LINK / "tls.key",
        store=tmp_path / "store",
        monitor=SocketAddress(host="127.0.0.1", port=free_port()),
    )
    users = event_users(paths, ["nip"], system=UserKey.open(paths.event_system).public)
    (tmp_path / "nats.json").write_bytes(configuration("x", place, accounts("x", {"nip": ()}, users)))
    command = (*end_with_parent(), str(find_nats()), "--config", str(tmp_path / "nats.json"))
    with made.log.open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            until = time.monotonic() + START_S_MAX
            while b"Server is ready" not in made.log.read_bytes():
                assert process.poll() is None, made.log.read_text()
                assert time.monotonic() < until, made.log.read_text()
                time.sleep(0.02)
            yield made
        finally:
            process.terminate()


async def test_an_expired_certificate_is_replaced_by_the_new_one(server: Server) -> None:
    with pytest.raises(EventsError, match="expired"):
        await reload(server.connection)
    server.issue(dt.datetime.now(dt.UTC))
    await reload(replace(server.connection, takes_expired=True))
    assert server.reloads() == 1
    await reload(server.connection)
    assert server.reloads() == 2


async def test_only_the_systems_user_may(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REQUEST_TIMEOUT_S", 1.0)  # nobody answers
    for key in (server.paths.event_admin, server.paths.event_credentials("nip"), server.paths.event_keeper("nip")):
        with pytest.raises(EventsError):
            await reload(replace(server.connection, key=key, takes_expired=True))
    assert server.reloads() == 0


async def test_a_stranger_is_not_taken_for_it_because_time_does_not_count(server: Server, tmp_path: Path) -> None:
    other = Authority.open(tmp_path / "other", "x", dt.datetime.now(dt.UTC))
    (tmp_path / "other.crt").write_bytes(other.bundle_pem)
    with pytest.raises(EventsError):
        await reload(replace(server.connection, authorities=tmp_path / "other.crt", takes_expired=True))


async def test_a_configuration_that_it_refuses_is_told(server: Server, tmp_path: Path) -> None:
    (tmp_path / "nats.json").write_text('{"port": "none"}')
    with pytest.raises(EventsError, match="does not take its files"):
        await reload(replace(server.connection, takes_expired=True))

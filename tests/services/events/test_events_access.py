"""TLS and credentials: what is right connects, what is wrong is told in words, keeps the service alive and is mended without a restart."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.chassis.errors import StartError
from services.chassis.secret import SecretFileError
from services.chassis.server import serve
from services.chassis.service import Application, ServiceDefinition
from services.chassis.settings import ChassisSettings
from services.events.bus import BusSettingsError, open_bus
from services.events.nats.connection import Connection, Server
from services.events.runtime import HEALTH_NAME, open_events
from services.storage.database import Database
from support.events import append, bus_settings, event, new_stream, until, write_secret
from support.nats_server import NatsServer, running_nats, write_certificates


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    return write_certificates(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def guarded(certificates: tuple[Path, Path, Path]) -> Iterator[NatsServer]:
    """A server with TLS that knows one user."""
    _, certificate, key = certificates
    extra = (
        f'tls {{ cert_file: "{certificate}", key_file: "{key}" }}\n'
        'authorization { users: [{ user: invoice, password: "s3cret-of-invoice" }] }\n'
    )
    with running_nats(extra, "tls") as server:
        yield server


async def error_of(settings: ChassisSettings, *, unlike: str = "not connected yet") -> str:
    """What the bus says is wrong, once it has tried."""
    async with open_bus(settings) as bus:
        assert bus is not None
        await until(lambda: bus.health().error != unlike)
        assert not bus.health().connected
        return bus.health().error


async def test_tls_and_a_password(guarded: NatsServer, certificates: tuple[Path, Path, Path], tmp_path: Path) -> None:
    credentials = write_secret(tmp_path / "credentials", "invoice:s3cret-of-invoice\n")
    settings = bus_settings(
        guarded.url, new_stream(), events_ca_file=certificates[0], events_credentials_file=credentials
    )
    async with open_bus(settings) as bus:
        assert bus is not None
        await bus.publish_batch([event(1), event(2)])
        assert bus.health().connected


async def test_what_is_wrong_is_said_in_words_and_without_secrets(
    guarded: NatsServer, certificates: tuple[Path, Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other").mkdir()
    another_authority = write_certificates(tmp_path / "other")[0]
    right = write_secret(tmp_path / "right", "invoice:s3cret-of-invoice")
    wrong = write_secret(tmp_path / "wrong", "invoice:t0tally-wrong")
    values: list[tuple[str, dict[str, Any], str]] = [
        (guarded.url, {"events_ca_file": certificates[0], "events_credentials_file": wrong}, "refuses the credential"),
        (guarded.url, {"events_ca_file": certificates[0]}, "refuses the credential"),
        (
            guarded.url,
            {"events_ca_file": another_authority, "events_credentials_file": right},
            "certificate is not trusted",
        ),
        (guarded.url, {"events_credentials_file": right}, "certificate is not trusted"),
    ]
    for url, given, expected in values:
        assert expected in await error_of(bus_settings(url, new_stream(), **given))
    assert "nobody listens" in await error_of(bus_settings("nats://127.0.0.1:1", new_stream()))
    said = capfd.readouterr()
    assert "s3cret" not in said.out + said.err
    assert "t0tally" not in said.out + said.err
    assert said.out.count("refuses the credential") == 2  # once for each bus, not once for each attempt


async def test_a_credential_is_mended_without_a_restart(
    guarded: NatsServer, certificates: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    credentials = write_secret(tmp_path / "credentials", "invoice:wrong")
    settings = bus_settings(
        guarded.url, new_stream(), events_ca_file=certificates[0], events_credentials_file=credentials
    )
    async with open_bus(settings) as bus:
        assert bus is not None
        await until(lambda: "refuses" in bus.health().error)
        write_secret(credentials, "invoice:s3cret-of-invoice")
        await until(lambda: bus.health().connected)
        credentials.chmod(0o644)
    with pytest.raises(SecretFileError, match="0644"):
        async with open_bus(settings):
            pass


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("user:", "no user:password"),
        ("-----BEGIN NATS USER JWT-----\neyJ\n------END NATS USER JWT------\n", "no NATS user JWT with its seed"),
        (
            "-----BEGIN NATS USER JWT-----\neyJ\n------END NATS USER JWT------\n"
            "-----BEGIN USER NKEY SEED-----\nSU" + "A" * 56 + "\n------END USER NKEY SEED------\n",
            "checksum",
        ),
    ],
)
async def test_a_broken_credential_file_stops_the_start(tmp_path: Path, content: str, message: str) -> None:
    file = write_secret(tmp_path / "credentials", content)
    with pytest.raises(BusSettingsError, match=message) as caught:
        async with open_bus(bus_settings("nats://127.0.0.1:4222", "nip", events_credentials_file=file)):
            pass
    assert "eyJ" not in str(caught.value)


async def test_other_settings_that_cannot_be_right_stop_the_start(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    for values, message in (
        ({"events_ca_file": tmp_path / "ca.pem"}, "cannot read the certificates"),
        ({"events_ca_file": tmp_path / "missing.pem"}, "cannot read the certificates"),
        ({"events_credentials_file": tmp_path / "missing"}, "cannot read the secret file"),
    ):
        with pytest.raises(StartError, match=message):
            async with open_bus(bus_settings("tls://127.0.0.1:4222", "nip", **values)):
                pass
    with pytest.raises(BusSettingsError, match="no bus is known"):
        async with open_bus(bus_settings("smtp://127.0.0.1", "nip")):
            pass
    async with open_bus(bus_settings("", "nip")) as bus:
        assert bus is None


async def test_the_service_serves_without_its_bus_and_its_health_says_so(own_nats: NatsServer, tmp_path: Path) -> None:
    own_nats.stop()
    opened: list[Database] = []

    @asynccontextmanager
    async def lifespan(app: Application[ChassisSettings]) -> Any:
        async with await Database.open(tmp_path / "a.db") as database, open_events(app, database):
            opened.append(database)
            yield

    service = ServiceDefinition(settings=ChassisSettings, access={}, lifespan=lifespan)
    values: dict[str, Any] = {"mesh": new_stream(), "service": "invoice", "events_url": own_nats.url}
    settings = ChassisSettings(**values, listen=f"unix:{tmp_path}/app.sock", drain_grace=1.0)
    tmp_path.chmod(0o700)
    async with serve(service, settings) as app, grpc.aio.insecure_channel(settings.listen) as channel:
        health = health_pb2_grpc.HealthStub(channel)

        async def status(name: str) -> int:
            response = await health.Check(health_pb2.HealthCheckRequest(service=name))
            return int(response.status)

        assert await status("") == health_pb2.HealthCheckResponse.SERVING
        assert await status(HEALTH_NAME) == health_pb2.HealthCheckResponse.NOT_SERVING
        with pytest.raises(grpc.aio.AioRpcError):
            await status("nipmesh.unknown")
        watch = health.Watch(health_pb2.HealthCheckRequest(service=HEALTH_NAME))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        await opened[0].write(lambda connection: append(connection, range(10)))
        own_nats.start()
        assert (await asyncio.wait_for(watch.read(), 20)).status == health_pb2.HealthCheckResponse.SERVING
        await until(lambda: app.registry.get_sample_value("nipmesh_events_published_total") == 10)
        assert not app.failed.is_set()


async def test_a_connection_whose_last_flush_fails_is_made_anew(
    own_nats: NatsServer, stream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nats-py does not tell of the end then: the bus was away for ever."""
    connection = Connection(Server.of(bus_settings(own_nats.url, stream)))
    running = asyncio.create_task(connection.run())
    try:
        link = await connection.link(wait_s=10)

        async def broken() -> None:
            raise ConnectionResetError

        monkeypatch.setattr(link.client._transport, "drain", broken)
        link.client._pending.append(b"PING\r\n")
        link.client._pending_data_size = 6
        own_nats.kill()
        own_nats.start()
        await until(lambda: connection.health.connections == 2, "connected anew", 20)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

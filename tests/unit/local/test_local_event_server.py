"""The server of events with the real NATS: who may do what, deaths, changes of who hears what, and certificates."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import ssl
import stat
from collections.abc import AsyncIterator, Awaitable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from nats.aio.client import Client
from nats.js.api import ConsumerConfig

from generator.model import Events, Hearing, Mesh
from generator.outputs.local.event_server import EventServer
from generator.outputs.nats import topology
from generator.pki import UserKey
from support.event_server import Served, served

pytestmark = [pytest.mark.timeout(60), pytest.mark.filterwarnings("ignore:returning true from eof_received")]

PLACED, PAID = "test.echo.shop.v1.placed", "test.echo.shop.v1.paid"
STREAM_NOT_FOUND = 10059
WAIT_S = 0.3
"""For what must not come; what is refused by name is not waited for."""


def with_events(mesh: Mesh, **hears: tuple[Hearing, ...]) -> Mesh:
    """The mesh of the other tests, with events and with who hears what."""
    services = tuple(replace(service, consumes=hears.get(service.name, ())) for service in mesh.services)
    events = Events(cluster=None, retention_ms=3_600_000, bytes_max=64 * 1024 * 1024)
    return replace(mesh, services=services, events=events)


@pytest.fixture
def hearing(mesh: Mesh) -> Mesh:
    """`foreign` hears one type of `echo`."""
    return with_events(mesh, foreign=(Hearing(publisher="echo", types=("shop.v1.placed",)),))


@pytest_asyncio.fixture
async def running(tmp_path: Path, hearing: Mesh) -> AsyncIterator[Served]:
    async with served(tmp_path, hearing) as found:
        yield found


async def listening(client: Client, name: str = "all", service: str = "foreign", **config: Any) -> None:
    """Make a durable consumer in a service's own stream."""
    await client.jetstream().add_consumer(f"test_{service}", ConsumerConfig(durable_name=name, **config))


async def fetched(client: Client, consumer: str = "all", *, count: int = 10, wait_s: float = WAIT_S) -> list[str]:
    """Take and acknowledge what is there for a consumer: subjects."""
    subscription = await client.jetstream().pull_subscribe_bind(consumer, stream="test_foreign")
    found: list[str] = []
    while len(found) < count:
        try:
            messages = await subscription.fetch(count - len(found), timeout=wait_s)
        except TimeoutError:
            break
        for message in messages:
            await message.ack_sync(timeout=5)
        found += [message.subject for message in messages]
    return found


async def payloads(client: Client) -> set[bytes]:
    """Take and acknowledge what is there: what the events carry."""
    subscription = await client.jetstream().pull_subscribe_bind("all", stream="test_foreign")
    messages = await subscription.fetch(100, timeout=5)
    for message in messages:
        await message.ack_sync(timeout=5)
    return {message.data for message in messages}


async def refused(running: Served, client: Client, work: Awaitable[object]) -> str:
    """Do something that must be refused: the server's words, in lower case."""
    running.refusals.clear()
    await work
    await client.flush(timeout=5)
    async with asyncio.timeout(5):
        while not running.refusals:
            await asyncio.sleep(0.01)
    return running.refusals[0].lower()


async def test_what_is_published_is_heard_by_whom_the_manifest_names(running: Served) -> None:
    echo, foreign = await running.connect("echo"), await running.connect("foreign")
    await listening(foreign)
    for subject in (PLACED, PAID, PLACED):
        await echo.jetstream().publish(subject, b"{}", timeout=5)
    assert await fetched(foreign, count=2, wait_s=5) == [PLACED, PLACED]
    assert await fetched(foreign) == []
    document = await running.server.describe()
    assert document["stream"]["messages"] == 3
    newest = await echo.request("$JS.API.DIRECT.GET.test.test.echo.>", b"", timeout=5)
    assert newest.headers is not None
    assert newest.headers["Nats-Subject"] == PLACED
    assert running.refusals == []
    await echo.close()
    await foreign.close()


async def test_everything_else_is_refused_cell_by_cell(running: Served) -> None:
    echo, foreign = await running.connect("echo"), await running.connect("foreign")
    await echo.jetstream().publish(PAID, b"{}", timeout=5)
    forbidden = {
        "test.foreign.shop.v1.placed": (echo, "under another name"),
        "test.echo.shop.v1.placed": (foreign, "under another name"),
        "other.subject": (echo, "outside of the stream"),
        "$JS.API.STREAM.CREATE.other": (foreign, "a stream"),
        "$JS.API.STREAM.DELETE.test": (foreign, "a stream"),
        "$JS.API.STREAM.PURGE.test": (foreign, "a stream"),
        "$JS.API.STREAM.MSG.GET.test": (foreign, "reading past its stream"),
        "$JS.API.DIRECT.GET.test.test.echo.shop.v1.paid": (foreign, "reading past its stream"),
        "$JS.API.DIRECT.GET.test": (foreign, "reading past its stream"),
        f"MESH.API.CONSUMER.CREATE.test.mine.{PLACED}": (foreign, "a consumer of everybody's events"),
        f"MESH.API.CONSUMER.CREATE.test.mine.{PAID}": (foreign, "a consumer of everybody's events"),
        "$JS.FC.test.x": (foreign, "the flow of others"),
        "$JS.API.STREAM.MSG.GET.test_foreign": (echo, "another's events"),
        "$JS.ACK.test_foreign.all.1.1.1.1.0": (echo, "another's acknowledgements"),
        "$JS.API.STREAM.UPDATE.test_foreign": (foreign, "more sources"),
        "$JS.API.STREAM.CREATE.test_foreign": (foreign, "its stream made anew"),
        "test_foreign": (foreign, "what nobody published"),
        "$SYS.REQ.SERVER.PING": (echo, "the system"),
    }
    for subject, (client, what) in forbidden.items():
        words = await refused(running, client, client.publish(subject, b"{}"))
        assert "permissions violation for publish" in words, what
    for subject in ("test.>", PLACED, ">", "_INBOX_echo.>", "$JS.API.>", "MESH.to.foreign.>"):
        words = await refused(running, foreign, foreign.subscribe(subject))
        assert "permissions violation for subscription" in words, subject
    for stream in ("test", "test_foreign"):  # in its own account there is no such stream
        subject = f"$JS.API.CONSUMER.CREATE.{stream}.mine"
        body = json.dumps({"stream_name": stream, "config": {"name": "mine"}}).encode()
        assert json.loads((await echo.request(subject, body, timeout=5)).data)["error"]["err_code"] == STREAM_NOT_FOUND
    await echo.close()
    await foreign.close()


async def test_a_service_sees_its_own_stream_again_from_any_place(running: Served) -> None:
    echo, foreign = await running.connect("echo"), await running.connect("foreign")
    for subject in (PLACED, PAID, PLACED, PLACED):
        await echo.jetstream().publish(subject, b"{}", timeout=5)
    await listening(foreign)
    assert await fetched(foreign, count=3, wait_s=5) == [PLACED] * 3
    await listening(foreign, "again", deliver_policy="by_start_sequence", opt_start_seq=2)
    assert await fetched(foreign, "again", count=2, wait_s=5) == [PLACED] * 2
    assert await foreign.jetstream().delete_consumer("test_foreign", "again")
    await echo.close()
    await foreign.close()


async def test_answers_that_are_led_astray_reach_nobody_elses_stream_and_api(running: Served) -> None:
    """Whoever asks says where the answer goes: NATS then publishes it there, but in the account of who asked."""
    echo, foreign = await running.connect("echo"), await running.connect("foreign")
    bystander = await echo.subscribe("_INBOX_echo.mine")
    await echo.jetstream().publish(PLACED, b"{}", timeout=5)
    await listening(foreign)
    assert await fetched(foreign, count=1, wait_s=5) == [PLACED]
    own = await foreign.subscribe("_INBOX_foreign.mine")
    targets = ("test.echo.forged", "$JS.API.STREAM.DELETE.test", "_INBOX_echo.mine", "_INBOX_foreign.mine")
    for number, target in enumerate(targets):
        config = {"name": f"p{number}", "deliver_subject": target, "ack_policy": "none", "idle_heartbeat": 100_000_000}
        body = json.dumps({"stream_name": "test_foreign", "config": config}).encode()
        await foreign.request(f"$JS.API.CONSUMER.CREATE.test_foreign.p{number}", body, timeout=5)
        for subject in (
            "$JS.API.CONSUMER.MSG.NEXT.test_foreign.all",
            "$JS.API.STREAM.INFO.test_foreign",
            "$JS.API.INFO",
        ):
            await foreign.publish(subject, b"", reply=target)
    await foreign.flush(timeout=5)
    assert (await own.next_msg(timeout=5)).data is not None  # to itself it gets there, and that was asked for last
    with pytest.raises(TimeoutError):
        await bystander.next_msg(timeout=WAIT_S)
    assert (await running.server.describe())["stream"]["messages"] == 1
    await echo.close()
    await foreign.close()


@pytest.mark.filterwarnings("ignore:unclosed <StreamWriter:ResourceWarning")
async def test_nobody_comes_in_without_a_key_of_the_mesh(running: Served) -> None:
    stranger = UserKey(private_key=Ed25519PrivateKey.generate())
    authorities = running.server.connection().authorities
    context = ssl.create_default_context(cafile=authorities)

    async def quiet(_error: Exception) -> None:
        """What is refused is raised as well."""

    once: dict[str, Any] = {"allow_reconnect": False, "reconnect_time_wait": 0, "error_cb": quiet}
    with pytest.raises(Exception, match=r"(?i)authorization"):
        await running.connect("echo", key=stranger, **once)
    with pytest.raises(Exception, match=r"(?i)authorization"):
        await Client().connect(running.server.url, tls=context, **once)
    with pytest.raises(Exception, match=r"(?i)certificate|ssl|tls"):
        await Client().connect(running.server.url, tls=ssl.create_default_context(), **once)
    gc.collect()  # nats-py leaves the sockets of refused clients to the collector, which would complain in another test


async def test_a_killed_server_comes_back_with_all_that_it_acknowledged(running: Served) -> None:
    echo, foreign = await running.connect("echo"), await running.connect("foreign")
    await asyncio.gather(*(echo.jetstream().publish(PLACED, b"%d" % number, timeout=5) for number in range(50)))
    await listening(foreign)
    assert len(await fetched(foreign, count=20, wait_s=5)) == 20
    pid = running.runner.workload.app.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    await running.until(is_so=False)
    await running.until()
    assert running.runner.workload.app.restarts == 1
    async with asyncio.timeout(10):
        while not (echo.is_connected and foreign.is_connected):
            await asyncio.sleep(0.02)
    await echo.jetstream().publish(PLACED, b"after", timeout=5)
    # Acknowledgements are not forced to the disk: what was done in the last moment comes again, and nothing is missing.
    found: set[bytes] = set()
    async with asyncio.timeout(20):
        while b"after" not in found:
            found |= await payloads(foreign)
    assert {b"%d" % number for number in range(20, 50)} < found
    await echo.close()
    await foreign.close()


async def test_a_change_of_who_hears_what_keeps_connections_and_places(running: Served, hearing: Mesh) -> None:
    echo, foreign = await running.connect("echo"), await running.connect("foreign")
    await listening(foreign)
    for subject in (PAID, PLACED):
        await echo.jetstream().publish(subject, b"1", timeout=5)
    assert await fetched(foreign, count=1, wait_s=5) == [PLACED]
    wider = with_events(hearing, foreign=(Hearing(publisher="echo", types=("shop.v1.paid", "shop.v1.placed")),))
    await running.server.allow(hearing, wider)
    for subject in (PAID, PLACED):
        await echo.jetstream().publish(subject, b"2", timeout=5)
    assert sorted(await fetched(foreign, count=3, wait_s=5)) == [PAID, PAID, PLACED]  # also what was there before
    other = with_events(hearing, foreign=(Hearing(publisher="echo", types=("shop.v1.paid",)),))
    await running.server.allow(other)
    for subject in (PLACED, PAID):
        await echo.jetstream().publish(subject, b"3", timeout=5)
    assert await fetched(foreign, count=1, wait_s=5) == [PAID]
    await running.server.allow(wider)
    assert await fetched(foreign, count=1, wait_s=5) == [PLACED]  # what came meanwhile, and nothing twice
    assert await fetched(foreign) == []
    await running.server.allow(with_events(hearing))
    answer = await foreign.request("$JS.API.STREAM.INFO.test_foreign", b"", timeout=5)
    assert json.loads(answer.data)["error"]["err_code"] == STREAM_NOT_FOUND
    assert echo.stats["reconnects"] == foreign.stats["reconnects"] == 0
    assert running.runner.workload.app.restarts == 0
    await echo.close()
    await foreign.close()


async def test_a_renewed_certificate_is_shown_to_whoever_connects_next(running: Served) -> None:
    echo = await running.connect("echo")
    before = peer_serial(echo)
    running.certificates.issue("events", "spiffe://test.mesh/events", ("127.0.0.1", "localhost"))
    running.server.renewed()
    async with asyncio.timeout(5):
        while True:
            again = await running.connect("echo")
            serial = peer_serial(again)
            await again.close()
            if serial != before:
                break
    await echo.jetstream().publish(PLACED, b"{}", timeout=5)
    assert echo.stats["reconnects"] == 0
    await echo.close()


def peer_serial(client: Client) -> str:
    certificate = client._transport._io_writer.get_extra_info("peercert")
    assert ("IP Address", "127.0.0.1") in certificate["subjectAltName"]
    serial = certificate["serialNumber"]
    assert isinstance(serial, str)
    return serial


async def test_files_are_their_owners_alone_and_the_server_knows_no_secret(running: Served) -> None:
    paths = running.around.paths
    files = [
        paths.event_configuration,
        paths.event_admin,
        *(paths.event_credentials(name) for name in ("echo", "foreign")),
    ]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert stat.S_IMODE(paths.event_store.stat().st_mode) == 0o700
    written = paths.event_configuration.read_text()
    assert not any(path.read_text() in written for path in files[1:])


def test_the_stream_keeps_what_it_acknowledged_until_its_time(hearing: Mesh) -> None:
    wanted = topology(hearing)
    assert (wanted.mesh, wanted.replicas) == ("test", 1)
    assert wanted.inboxes == {"echo": (), "foreign": (PLACED,)}


def test_a_server_without_a_process_is_not_signalled(hearing: Mesh, tmp_path: Path) -> None:
    assert EventServer.__dataclass_fields__["reload"].default() is False

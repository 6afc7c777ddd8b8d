"""The server of events as a part of a running mesh: it is there before the services, survives, changes with the manifest, and goes."""

import asyncio
import base64
import json
import os
import signal
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client
from nats.js.api import ConsumerConfig

from generator.pki import UserKey, installed_leaf
from mesh.runner_support import EchoMesh, is_alive, until

pytestmark = [pytest.mark.mesh, pytest.mark.timeout(90)]

HEARS = "    consumes:\n      echo: [{types}]\n"


def write(mesh: EchoMesh, types: str = "echo.v1.said") -> None:
    """The manifest of the other tests of the runner, with events, of which `front` hears some."""
    mesh.write()
    path = mesh.folder / "mesh.yaml"
    text = path.read_text().replace("services:\n", "events: nats\nservices:\n", 1)
    path.write_text(text.replace("    calls:\n", HEARS.format(types=types) + "    calls:\n", 1))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EchoMesh]:
    mesh = EchoMesh(folder=tmp_path_factory.mktemp("parlour"), echo_replicas=1, lifetime="20s")
    write(mesh)
    mesh.run("up", "--detach")
    traces = mesh.traces()
    pid = mesh.status()["events"]["pid"]
    yield mesh
    mesh.run("down")
    traces.until_gone()
    assert not is_alive(pid)


def told(mesh: EchoMesh, service: str) -> dict[str, str]:
    """What the runner says to a program about events: its environment."""
    environment = Path(f"/proc/{mesh.replicas(service)[0]['pid']}/environ").read_bytes().split(b"\0")
    pairs = (entry.decode().partition("=") for entry in environment)
    return {name: value for name, _, value in pairs if name.startswith("NIPMESH_EVENTS_")}


async def connect(mesh: EchoMesh, service: str) -> Client:
    values = told(mesh, service)
    user = UserKey.load(Path(values["NIPMESH_EVENTS_CREDENTIALS_FILE"]))
    client = Client()
    client._public_nkey = user.public
    await client.connect(
        values["NIPMESH_EVENTS_URL"],
        tls=ssl.create_default_context(cafile=values["NIPMESH_EVENTS_CA_FILE"]),
        signature_cb=lambda nonce: base64.b64encode(user.sign(nonce.encode())),
        reconnect_time_wait=0.05,
        max_reconnect_attempts=400,
    )
    return client


async def say(client: Client, kind: str, text: str) -> None:
    """Publish until it is on the disk: a server that is away is waited for."""
    async with asyncio.timeout(20):
        while True:
            try:
                await client.jetstream().publish(f"parlour.echo.{kind}", text.encode(), timeout=2)
                return
            except Exception:  # noqa: BLE001  # whatever a killed server leads to
                await asyncio.sleep(0.05)


async def heard(client: Client, until_text: str) -> list[str]:
    """What `front` hears, up to this text."""
    jetstream = client.jetstream()
    await jetstream.add_consumer("parlour_front", ConsumerConfig(durable_name="all"))
    found: list[str] = []
    async with asyncio.timeout(20):
        subscription = await jetstream.pull_subscribe_bind("all", stream="parlour_front")
        while until_text not in found:
            try:
                messages = await subscription.fetch(50, timeout=1)
            except TimeoutError:
                continue
            for message in messages:
                await message.ack_sync(timeout=5)
            found += [message.data.decode() for message in messages]
    return found


def events(mesh: EchoMesh) -> dict[str, Any]:
    document = mesh.status(expect=None)["events"]
    assert isinstance(document, dict)
    return document


async def test_programs_are_told_where_events_are_and_reach_each_other(running: EchoMesh) -> None:
    values = told(running, "echo")
    assert (values["NIPMESH_EVENTS_STREAM"], values["NIPMESH_EVENTS_INBOX"]) == ("parlour", "parlour_echo")
    echo, front = await connect(running, "echo"), await connect(running, "front")
    await say(echo, "echo.v1.said", "hello")
    assert (await heard(front, "hello"))[-1] == "hello"
    document = events(running)
    assert document["state"] == "ready"
    assert document["stream"]["messages"] >= 1
    assert "events" in running.run("status").stdout
    assert "Server is ready" in running.run("logs", "events").stdout
    assert "ok    nats" in running.run("doctor", expect=None).stdout
    await echo.close()
    await front.close()


async def test_a_killed_server_is_back_at_once_and_loses_nothing(running: EchoMesh) -> None:
    before = {name: running.replicas(name)[0]["pid"] for name in ("echo", "front")}
    echo, front = await connect(running, "echo"), await connect(running, "front")
    for number in range(20):
        await say(echo, "echo.v1.said", f"before-{number}")
    os.kill(events(running)["pid"], signal.SIGKILL)
    for number in range(20):
        await say(echo, "echo.v1.said", f"after-{number}")
    found = set(await heard(front, "after-19"))
    assert found >= {f"{when}-{number}" for when in ("before", "after") for number in range(20)}
    await until(lambda: events(running)["state"] == "ready" and events(running)["restarts"] >= 1)
    assert {name: running.replicas(name)[0]["pid"] for name in before} == before
    await echo.close()
    await front.close()


async def test_apply_changes_who_hears_what_and_touches_no_process(running: EchoMesh) -> None:
    before = {name: running.replicas(name)[0]["pid"] for name in ("echo", "front")}
    server = events(running)["pid"]
    echo, front = await connect(running, "echo"), await connect(running, "front")
    await say(echo, "echo.v2.said", "unheard, yet kept")
    write(running, "echo.v1.said, echo.v2.*")
    shown = running.run("apply", "--dry-run").stdout
    assert "~ front: hears echo.v2.* of echo" in shown
    running.run("apply")
    await say(echo, "echo.v2.said", "heard")
    assert {"unheard, yet kept", "heard"} <= set(await heard(front, "heard"))
    write(running)
    assert "~ front: hears echo.v2.* of echo no more" in running.run("apply").stdout
    await say(echo, "echo.v2.said", "unheard again")
    await say(echo, "echo.v1.said", "last")
    assert "unheard again" not in await heard(front, "last")
    assert echo.stats["reconnects"] == front.stats["reconnects"] == 0
    assert {name: running.replicas(name)[0]["pid"] for name in before} == before
    assert events(running)["pid"] == server
    await echo.close()
    await front.close()


async def test_an_operator_sees_streams_and_events(running: EchoMesh) -> None:
    echo, front = await connect(running, "echo"), await connect(running, "front")
    await say(echo, "echo.v1.said", "seen")
    await say(echo, "echo.v3.said", "unheard")
    await heard(front, "seen")
    answer = json.loads(running.run("events", "--output", "json").stdout)
    assert answer["services"] == answer["unanswered"] == {}  # no program of this mesh serves EventService
    inbox = answer["streams"]["inboxes"]["front"]
    assert (inbox["name"], inbox["lag"]) == ("parlour_front", 0)
    assert [(one["name"], one["pending"]) for one in inbox["consumers"]] == [("all", 0)]
    assert answer["streams"]["stream"]["messages"] > inbox["messages"]
    assert "parlour_front" in running.run("events").stdout
    last = [
        json.loads(line) for line in running.run("events", "tail", "-n", "2", "--output", "json").stdout.splitlines()
    ]
    assert [(one["publisher"], one["type"], one["bytes"]) for one in last] == [
        ("echo", "echo.v1.said", 4),
        ("echo", "echo.v3.said", 7),
    ]
    begins = ("events", "tail", "--from-sequence", str(last[0]["sequence"]))
    assert len(running.run(*begins).stdout.splitlines()) == 2
    assert len(running.run(*begins, "--type", "echo.v3.*").stdout.splitlines()) == 1
    assert running.run(*begins, "--service", "front").stdout == ""
    assert len(running.run("events", "tail", "-n", "1", "--type", "echo.v1.said").stdout.splitlines()) == 1
    assert "there is no service nobody" in running.run("events", "--service", "nobody", expect=2).stderr
    assert "no service of this mesh answers" in running.run("events", "replay", "echo", expect=1).stderr
    assert "say which" in running.run("events", "discard", "echo", "--consumer", "x", expect=2).stderr
    assert "add --consumer" in running.run("events", "replay", "echo", "--dead", expect=2).stderr
    await echo.close()
    await front.close()


async def test_a_renewed_certificate_reaches_the_server(running: EchoMesh) -> None:
    shown = set()

    async def current() -> bool:
        client = await connect(running, "echo")
        shown.add(int(client._transport._io_writer.get_extra_info("peercert")["serialNumber"], 16))
        await client.close()
        leaf = installed_leaf(running.folder / ".nipmesh" / "pki" / "workloads" / "events")
        return leaf is not None and leaf.serial_number in shown and len(shown) > 1

    async with asyncio.timeout(30):  # half of the lifetime, at most, and a little
        while not await current():
            await asyncio.sleep(0.3)


def test_where_events_are_kept_cannot_change_under_a_running_mesh(running: EchoMesh) -> None:
    path = running.folder / "mesh.yaml"
    text = path.read_text()
    path.write_text(text.replace("events: nats\n", "", 1).replace(HEARS.format(types="echo.v1.said"), "", 1))
    refused = running.run("apply", expect=1)
    assert "NM801" in refused.stderr + refused.stdout
    path.write_text(text)
    assert json.loads(running.run("status", "--output", "json").stdout)["events"]["state"] == "ready"

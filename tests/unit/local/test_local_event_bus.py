"""The services' bus at the runner's own server: what one says with what it is told, another hears, and nobody makes a stream."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import pytest_asyncio

from generator.model import Cluster, Events, Hearing, Mesh
from generator.outputs.local.environment import event_environment
from generator.outputs.nats import AdminConnection, Keepers, ensure, topology
from services.chassis.settings import ChassisSettings
from services.events.bus import BusUnavailableError, EventBus, Start, Subscription, open_bus
from services.events.cloud_event import CloudEvent
from support.event_server import Served, served
from support.nats_server import running_nats

pytestmark = [pytest.mark.timeout(60)]
KIND = "shop.v1.placed"


def made(number: int, kind: str = KIND) -> CloudEvent:
    return CloudEvent(
        event_id=f"event-{number}",
        type=kind,
        source="spiffe://test.mesh/service/echo",
        subject=f"order-{number}",
        time_ms=1_790_000_000_000 + number,
        data=b"%d" % number,
    )


def settings(running: Served, service: str) -> ChassisSettings:
    """As the program reads them from the environment that the runner gives it."""
    told = event_environment(running.around, running.around.mesh.service(service))
    with mock.patch.dict("os.environ", told | {"NIPMESH_SERVICE": service, "NIPMESH_MESH": "test"}):
        return ChassisSettings()


@pytest_asyncio.fixture
async def running(tmp_path: Path, mesh: Mesh) -> AsyncIterator[Served]:
    hears = {"foreign": (Hearing(publisher="echo", types=("shop.v1.*",)),)}
    services = tuple(replace(service, consumes=hears.get(service.name, ())) for service in mesh.services)
    events = Events(cluster=None, retention_ms=3_600_000, bytes_max=64 * 1024 * 1024)
    async with served(tmp_path, replace(mesh, services=services, events=events)) as found:
        yield found


@pytest_asyncio.fixture
async def buses(running: Served) -> AsyncIterator[tuple[EventBus, EventBus]]:
    async with AsyncExitStack() as stack:
        opened = [await stack.enter_async_context(open_bus(settings(running, name))) for name in ("echo", "foreign")]
        echo, foreign = opened
        assert echo is not None
        assert foreign is not None
        yield echo, foreign


async def taken(
    bus: EventBus, count: int, name: str = "mails", kinds: tuple[str, ...] = ("shop.v1.>",)
) -> list[CloudEvent]:
    found: list[CloudEvent] = []
    async with bus.subscribe(Subscription(name=name, types=kinds)) as inflow, asyncio.timeout(20):
        while len(found) < count:
            deliveries = await inflow.fetch(count - len(found))
            found += [delivery.event for delivery in deliveries]
            await inflow.ack(deliveries)
        while await inflow.pending():  # the server takes acknowledgements without an answer
            await asyncio.sleep(0.01)
    return found


async def test_a_batch_is_heard_in_its_order_by_whom_the_manifest_names(buses: tuple[EventBus, EventBus]) -> None:
    echo, foreign = buses
    events = [made(number, KIND if number % 3 else "shop.v1.paid") for number in range(600)]
    receipt = await echo.publish_batch([*events, made(601, "other.v1.unheard")])
    assert receipt.rejections == ()
    assert await taken(foreign, 600) == events
    assert (await echo.publish_batch(events[:5])).duplicates == 5


async def test_a_consumer_begins_anew_from_any_place(buses: tuple[EventBus, EventBus]) -> None:
    echo, foreign = buses
    events = [made(number) for number in range(10)]
    await echo.publish_batch(events)
    assert await taken(foreign, 10) == events
    async with foreign.subscribe(Subscription(name="mails", types=("shop.v1.>",))) as inflow:
        await inflow.rewind(Start(sequence=4))
        again = await inflow.fetch(100)
        assert [delivery.event for delivery in again] == events[3:]


async def test_a_relay_finds_the_end_of_what_it_published(buses: tuple[EventBus, EventBus]) -> None:
    echo, foreign = buses
    receipt = await echo.publish_batch([made(number) for number in range(3)])
    assert receipt.position is not None
    tail = await echo.tail(receipt.position)
    assert tail is not None
    assert (tail.at_position, tail.newest) == ("event-2", "event-2")
    lost = await echo.tail(receipt.position + 5)
    assert lost is not None
    assert (lost.at_position, lost.newest) == ("", "event-2")
    nothing = await foreign.tail(0)
    assert nothing is not None
    assert nothing.newest == ""


async def test_who_hears_nothing_is_told_so(buses: tuple[EventBus, EventBus]) -> None:
    echo, _ = buses
    async with echo.subscribe(Subscription(name="mine", types=("shop.v1.>",))) as inflow:
        with pytest.raises(BusUnavailableError, match="stream not found"):
            await inflow.fetch(1, wait_s=0.1)


async def test_the_bus_survives_a_killed_server(running: Served, buses: tuple[EventBus, EventBus]) -> None:
    echo, foreign = buses
    await echo.publish_batch([made(number) for number in range(100)])
    pid = running.runner.workload.app.pid
    assert pid is not None

    os.kill(pid, signal.SIGKILL)
    await running.until(is_so=False)
    events = [made(number) for number in range(100, 200)]
    async with asyncio.timeout(20):
        while True:
            try:
                await echo.publish_batch(events)
                break
            except BusUnavailableError:
                await asyncio.sleep(0.05)
    found = await taken(foreign, 200)
    assert {event.event_id for event in found} == {f"event-{number}" for number in range(200)}


async def test_streams_are_made_in_a_cluster_of_others_too(mesh: Mesh) -> None:
    """In one account, of the user that may; services find there what they find at the runner's own server."""
    hears = {"foreign": (Hearing(publisher="echo", types=("shop.v1.*",)),)}
    services = tuple(replace(service, consumes=hears.get(service.name, ())) for service in mesh.services)
    with running_nats() as server:
        cluster = Cluster(url=server.url, ca=None, credentials=None, service_credentials=(), admin=None)
        events = Events(cluster=cluster, retention_ms=3_600_000, bytes_max=64 * 1024 * 1024)
        whole = replace(mesh, services=services, events=events)
        keepers = Keepers(mesh=AdminConnection(url=server.url, key=None, authorities=None))
        for _ in range(2):  # the second time all is there
            await ensure(keepers, topology(whole))
        values = {"mesh": "test", "events_url": server.url, "events_stream": "test"}
        async with (
            open_bus(ChassisSettings(service="echo", events_inbox="test_echo", **values)) as echo,
            open_bus(ChassisSettings(service="foreign", events_inbox="test_foreign", **values)) as foreign,
        ):
            assert echo is not None
            assert foreign is not None
            events_made = [made(number) for number in range(20)]
            await echo.publish_batch([*events_made, made(20, "other.v1.unheard")])
            assert await taken(foreign, 20) == events_made
        await ensure(keepers, topology(replace(whole, services=mesh.services)))
        async with keepers.mesh.open() as jetstream:
            assert [info.config.name for info in await jetstream.streams_info()] == ["test"]

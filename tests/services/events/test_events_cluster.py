"""A cluster of three NATS servers, any of which may be killed: a service goes on, no event is lost, none has its effect twice."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest

from services.events.bus import ALL, NEW, BusUnavailableError, EventBus, Inflow, Subscription, open_bus
from services.events.cloud_event import CloudEvent
from services.events.consumer import ConsumerTerms, run_consumer
from services.events.leases import Leasing
from services.events.operations import list_dead_letters, outbox_status
from services.events.relay import run_outbox_relay
from services.storage.database import Database
from services.storage.sql import Connection
from support.events import SOURCE, append, bus_settings, event, events, until
from support.nats_cluster import SERVERS, NatsCluster, running_cluster

ROUND = 1_000
"""Events that are written before each kill, and again while the stream has no leader."""
KILLS = 3
EVENTS = 2 * KILLS * ROUND
PROGRESS_S_MAX = 90

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def cluster() -> Iterator[NatsCluster]:
    with running_cluster() as running:
        yield running


def record(connection: Connection, event: CloudEvent) -> None:
    connection.execute("INSERT INTO effect (event_id, subject) VALUES (?, ?)", (event.event_id, event.subject))


async def effects(database: Database) -> list[tuple[str, str]]:
    rows = await database.read(lambda found: found.execute("SELECT event_id, subject FROM effect").fetchall())
    return [(str(row[0]), str(row[1])) for row in rows]


async def more_than(database: Database, number: int) -> bool:
    return len(await effects(database)) > number


async def write(database: Database, rounds: int) -> None:
    """The events of one round, in the outbox."""
    await database.write(lambda connection: append(connection, range(rounds * ROUND, (rounds + 1) * ROUND)))


async def publish(bus: EventBus, numbers: range) -> None:
    """As often as it takes, as the relay does."""

    async def published() -> bool:
        with contextlib.suppress(BusUnavailableError):
            await bus.publish_batch(events(numbers))
            return True
        return False

    await until(published, "published", PROGRESS_S_MAX)


async def heard(inflow: Inflow, numbers: range) -> list[str]:
    """What comes until all of these events have come."""
    found: list[str] = []

    async def fetched() -> bool:
        with contextlib.suppress(BusUnavailableError):
            deliveries = await inflow.fetch(256, wait_s=1.0)
            found.extend(each.event.event_id for each in deliveries)
            await inflow.ack(deliveries)
        return set(found) >= {event(number).event_id for number in numbers}

    await until(fetched, "events", PROGRESS_S_MAX)
    return found


async def is_there(inflow: Inflow) -> bool:
    """Whether the consumer answers."""
    with contextlib.suppress(BusUnavailableError):
        return await inflow.pending() is not None
    return False


async def repeated(ask: Callable[[], Awaitable[object]]) -> None:
    """Until it raises."""
    async with asyncio.timeout(PROGRESS_S_MAX):
        while True:
            await ask()


@contextlib.asynccontextmanager
async def service(database: Database, cluster: NatsCluster, stream: str) -> AsyncIterator[None]:
    """Its outbox is published, and what it hears has an effect in its database."""
    terms = ConsumerTerms(answer_s_max=1.0, look_s=0.2)
    async with open_bus(bus_settings(cluster.url, stream)) as bus, asyncio.TaskGroup() as group:
        assert bus is not None
        relay = run_outbox_relay(database, bus, service="invoice", source=SOURCE, leasing=Leasing(lease_ms=500))
        consumer = run_consumer(database, bus, name="test", types=["nipmesh.invoice.v1.*"], handle=record, terms=terms)
        tasks = group.create_task(relay), group.create_task(consumer)
        yield
        for task in tasks:
            task.cancel()


async def test_killed_leaders_lose_no_event_and_double_none(
    sqlite: Database, cluster: NatsCluster, stream: str
) -> None:
    await cluster.ready()
    killed: list[str] = []
    async with service(sqlite, cluster, stream):
        for number in range(KILLS):
            leader = await cluster.leader(stream)
            await write(sqlite, 2 * number)
            await until(lambda: more_than(sqlite, 2 * number * ROUND), "effects", PROGRESS_S_MAX)  # noqa: B023
            cluster.kill(leader)
            assert len(await effects(sqlite)) < (2 * number + 1) * ROUND, "it was killed in mid-delivery"
            await write(sqlite, 2 * number + 1)
            assert await cluster.leader(stream) != leader
            if number == KILLS - 1:
                cluster.servers[leader].lose_everything()
            cluster.restart(leader)
            killed.append(leader)
        await until(lambda: more_than(sqlite, EVENTS - 1), "all effects", PROGRESS_S_MAX)
        assert await cluster.leader(stream)  # and a copy of all of it on each server, also the one that lost its disk
        assert await cluster.copies(stream) == SERVERS
    assert len(killed) == KILLS
    rows = await effects(sqlite)
    assert len(rows) == len({event_id for event_id, _ in rows}) == EVENTS
    assert {subject for _, subject in rows} == {f"invoice-{number}" for number in range(EVENTS)}
    assert (await outbox_status(sqlite)).published_sequence == EVENTS
    assert not await list_dead_letters(sqlite)


async def test_without_a_majority_the_bus_is_away_and_comes_back(cluster: NatsCluster, stream: str) -> None:
    await cluster.ready()
    one, *others = cluster.servers
    async with open_bus(bus_settings(cluster.url, stream)) as bus:
        assert bus is not None
        await publish(bus, range(10))
    wanted = Subscription(name="test", types=("nipmesh.invoice.v1.*",), answer_s_max=1.0)
    async with open_bus(bus_settings(cluster.servers[one].url, stream)) as bus:
        assert bus is not None
        async with bus.subscribe(wanted) as inflow:
            await heard(inflow, range(10))
            for name in others:
                cluster.kill(name)
            for ask in (lambda: inflow.fetch(1, wait_s=0.1), inflow.pending, lambda: inflow.rewind(ALL)):
                with pytest.raises(BusUnavailableError):
                    await repeated(ask)
            for name in others:
                cluster.restart(name)
            await cluster.leader(stream)
            await publish(bus, range(10, 20))
            await heard(inflow, range(10, 20))


async def test_a_consumer_of_one_process_goes_on_when_its_server_was_killed(cluster: NatsCluster, stream: str) -> None:
    """It is on one server only; on another it begins after what was fetched, also when it was to hear what is new."""
    await cluster.ready()
    async with open_bus(bus_settings(cluster.url, stream)) as bus:
        assert bus is not None
        await publish(bus, range(10))
        async with bus.subscribe(Subscription(name="", types=("nipmesh.invoice.v1.*",), start=NEW)) as inflow:
            await until(lambda: is_there(inflow), "a consumer", PROGRESS_S_MAX)
            await publish(bus, range(10, 20))
            assert await heard(inflow, range(10, 20)) == [event(number).event_id for number in range(10, 20)]
            cluster.kill(await cluster.keeper_of_only_consumer(stream))
            await publish(bus, range(20, 30))
            assert await heard(inflow, range(20, 30)) == [event(number).event_id for number in range(20, 30)]
            await until(lambda: is_there(inflow), "the consumer on another server", PROGRESS_S_MAX)


async def test_servers_with_little_disk_have_a_smaller_stream_in_as_many_copies(stream: str) -> None:
    with running_cluster(disk="600MB") as cluster:
        await cluster.ready()
        async with open_bus(bus_settings(cluster.url, stream)) as bus:
            assert bus is not None
            await publish(bus, range(10))
        assert await cluster.copies(stream) == SERVERS

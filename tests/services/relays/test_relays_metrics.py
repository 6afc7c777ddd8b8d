"""What is counted of relays is what was done, no more and no less, against real relays and one that lies."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from websockets.asyncio.server import ServerConnection

from services.nostr.event import Event
from services.nostr.event_json import event_of_members
from services.relays import Filter, OutcomeKind, RelayMetrics, RelayOptions, RelayPool
from support.counting import counting
from support.events import until
from support.nostr import User
from support.nostr_relay import running_relay
from support.relay import scripted_relay

QUICK = RelayOptions(private_allowed=True, backoff_s_min=0.01, backoff_s_max=0.1, publish_timeout_s=5.0)
LARGE = "x" * 60_000
"""Some hundreds of such events fill every buffer between a client and a relay that does not read."""


class Counted:
    """A registry, read in few words."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.metrics = RelayMetrics.register(self.registry, "test")

    def __call__(self, name: str, **labels: str) -> float:
        return counting(self.registry, "nipmesh_test_")(name, **labels)

    def by(self, name: str, label: str) -> dict[str, float]:
        """The samples of a counter that moved, by their label."""
        families = [one for one in self.registry.collect() if one.name == f"nipmesh_test_{name}"]
        samples = [sample for family in families for sample in family.samples if sample.name.endswith("_total")]
        return {sample.labels[label]: sample.value for sample in samples if sample.value}


@pytest.fixture
def counted() -> Counted:
    return Counted()


@pytest.fixture
async def pool(counted: Counted) -> AsyncIterator[RelayPool]:
    async with RelayPool(QUICK, metrics=counted.metrics) as made:
        yield made


def note(user: User, content: str) -> Event:
    return event_of_members(user.event(1, [], content=content))


async def taken(subscription: Any, count: int) -> list[str]:
    async with asyncio.timeout(10):
        return [(await anext(subscription))[1].content for _ in range(count)]


def test_every_label_is_there_before_anything_happens(counted: Counted) -> None:
    """Else the first increase of each is not seen: a rate needs a zero before it."""
    for outcome in OutcomeKind:
        assert counted("publishes_total", outcome=outcome.value) == 0
    for result in ("delivered", "invalid", "unasked", "repeated", "dropped"):
        assert counted("events_total", result=result) == 0
    for result in ("opened", "failed", "refused", "lost"):
        assert counted("connects_total", result=result) == 0


async def test_publishes_are_counted_by_outcome_and_events_by_result(counted: Counted, pool: RelayPool) -> None:
    author, elsewhere = User(), Counted()
    notes = [note(author, str(number)) for number in range(4)]
    forged = event_of_members({**User().event(1, []), "content": "another"})
    with running_relay() as relay:
        async with RelayPool(QUICK, metrics=elsewhere.metrics) as reader:
            found = reader.subscribe([relay.url], [Filter(authors=(author.pubkey,))])
            assert await found.following(10)
            for event in (*notes, *notes[:2], forged):
                await pool.publish(event, [relay.url])
            assert len(await taken(found, 4)) == 4
            assert (counted("connections"), elsewhere("connections")) == (1, 1)
    assert counted.by("publishes", "outcome") == {"accepted": 4, "duplicate": 2, "rejected": 1}
    assert counted("publish_seconds_count") == 7
    assert counted.by("events", "result") == {}
    assert elsewhere.by("events", "result") == {"delivered": 4}
    assert elsewhere.by("publishes", "outcome") == {}
    assert elsewhere("connections") == 0, "the pool is closed"
    assert elsewhere.by("connects", "result") == {"opened": 1}, "closed by us: not lost"


async def test_a_killed_relay_is_a_lost_connection_and_failed_attempts(counted: Counted, pool: RelayPool) -> None:
    with running_relay() as relay:
        assert (await pool.publish(note(User(), "before"), [relay.url]))[relay.url].arrived
        relay.kill()
        await until(lambda: counted("connects_total", result="lost") == 1)
        assert counted("connections") == 0
        away = await pool.publish(note(User(), "meanwhile"), [relay.url], timeout_s=0.3)
        assert away[relay.url].kind is OutcomeKind.UNREACHABLE
        await asyncio.to_thread(relay.start)
        assert (await pool.publish(note(User(), "after"), [relay.url]))[relay.url].arrived
        relay.freeze()
        late = await pool.publish(note(User(), "frozen"), [relay.url], timeout_s=0.3)
        assert late[relay.url].kind is OutcomeKind.TIMED_OUT
        relay.thaw()
        connects = counted.by("connects", "result")
        assert connects.pop("failed") >= 1
        assert connects == {"opened": 2, "lost": 1}
    assert counted.by("publishes", "outcome") == {"accepted": 2, "unreachable": 1, "timed_out": 1}


async def test_a_connection_is_lost_once_although_reader_and_writer_notice(counted: Counted, pool: RelayPool) -> None:
    author = User()
    with running_relay() as relay:
        await pool.publish(note(author, "connected"), [relay.url])
        relay.freeze()
        stuck = [event_of_members(author.event(1, [], content=LARGE + str(number))) for number in range(300)]
        publishing = [asyncio.create_task(pool.publish(one, [relay.url], timeout_s=1.0)) for one in stuck]
        await asyncio.sleep(0.5)  # the writer waits for room
        relay.kill()
        await until(lambda: counted("connects_total", result="lost") > 0)
        await asyncio.gather(*publishing)
    assert counted("connects_total", result="lost") == 1


async def test_a_private_address_is_refused(counted: Counted) -> None:
    async with RelayPool(RelayOptions(), metrics=counted.metrics) as guarded:
        await guarded.publish(note(User(), "inside"), ["ws://127.0.0.1:1"])
    assert counted.by("connects", "result") == {"refused": 1}
    assert counted.by("publishes", "outcome") == {"unreachable": 1}


async def test_lies_of_a_relay_are_counted_as_what_they_are(counted: Counted, pool: RelayPool) -> None:
    author = User()
    genuine = author.event(1, [], content="genuine")

    async def lie(connection: ServerConnection, message: list[Any]) -> None:
        kind, name, *_ = message
        if kind == "REQ":
            forged = [{**genuine, "content": "forged"}, {**genuine, "sig": "00" * 64}, {**genuine, "id": "00" * 32}]
            unasked = [("another", genuine), (name, User().event(1, [], content="unasked"))]
            for where, event in [*((name, one) for one in forged), *unasked, (name, genuine)]:
                await connection.send(json.dumps(["EVENT", where, event]))

    async with scripted_relay(lie) as url, pool.subscribe([url], [Filter(authors=(author.pubkey,))]) as found:
        assert await taken(found, 1) == ["genuine"]
    assert counted.by("events", "result") == {"invalid": 3, "unasked": 2, "delivered": 1}


async def test_what_has_no_room_is_dropped_and_not_delivered(counted: Counted, pool: RelayPool) -> None:
    author, room = User(), Counted()
    with running_relay() as relay:
        for number in range(20):
            await pool.publish(note(author, str(number)), [relay.url])
        options = RelayOptions(private_allowed=True, queue_events_max=5)
        async with RelayPool(options, metrics=room.metrics) as reader:
            found = reader.subscribe([relay.url], [Filter(authors=(author.pubkey,))])
            assert await found.following(10)
            assert room.by("events", "result") == {"delivered": 5, "dropped": 15}
            assert set(await taken(found, 20)) == {str(number) for number in range(20)}
            results = room.by("events", "result")
    assert results["delivered"] == 20
    assert results["repeated"] >= 5, "those that came the first time"

"""The relay client against a real relay: what it publishes arrives, what it hands out is genuine, and it comes back after a kill."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve

from services.nostr.event import Event
from services.nostr.event_json import event_of_members
from services.relays import Filter, Outcome, OutcomeKind, RelayOptions, RelayPool
from support.nostr import User
from support.nostr_relay import NostrRelay, running_relay
from support.relay import scripted_relay

QUICK = RelayOptions(private_allowed=True, backoff_s_min=0.01, backoff_s_max=0.1, publish_timeout_s=5.0)


@pytest.fixture(scope="module")
def relay() -> Iterator[NostrRelay]:
    with running_relay() as running:
        yield running


@pytest.fixture
async def pool() -> AsyncIterator[RelayPool]:
    async with RelayPool(QUICK) as made:
        yield made


def note(user: User, content: str, **more: Any) -> Event:
    return event_of_members(user.event(1, [], content=content, **more))


async def taken(subscription: Any, count: int) -> list[str]:
    async with asyncio.timeout(10):
        return [(await anext(subscription))[1].content for _ in range(count)]


async def test_an_event_is_accepted_once_and_then_known(relay: NostrRelay, pool: RelayPool) -> None:
    event = note(User(), "hello")
    assert await pool.publish(event, [relay.url + "/"]) == {relay.url: Outcome(kind=OutcomeKind.ACCEPTED)}
    assert (await pool.publish(event, [relay.url]))[relay.url].kind is OutcomeKind.DUPLICATE


async def test_a_relay_refuses_a_forged_event(relay: NostrRelay, pool: RelayPool) -> None:
    forged = event_of_members({**User().event(1, []), "content": "another"})
    outcome = (await pool.publish(forged, [relay.url]))[relay.url]
    assert outcome.kind is OutcomeKind.REJECTED
    assert outcome.reason


async def test_a_subscription_gets_stored_events_then_new_ones(relay: NostrRelay, pool: RelayPool) -> None:
    author = User()
    await pool.publish(note(author, "stored"), [relay.url])
    async with RelayPool(QUICK) as reader, reader.subscribe([relay.url], [Filter(authors=(author.pubkey,))]) as found:
        assert await taken(found, 1) == ["stored"]
        await pool.publish(note(author, "new"), [relay.url])
        await pool.publish(note(User(), "of another"), [relay.url])
        await pool.publish(note(author, "newer"), [relay.url])
        assert await taken(found, 2) == ["new", "newer"]


async def test_a_subscription_changes_what_it_wants_and_where(relay: NostrRelay, pool: RelayPool) -> None:
    one, two = User(), User()
    await pool.publish(note(two, "second"), [relay.url])
    with running_relay() as other:
        await pool.publish(note(two, "elsewhere"), [other.url])
        async with RelayPool(QUICK) as reader, reader.subscribe([relay.url], [Filter(authors=(one.pubkey,))]) as found:
            await pool.publish(note(one, "first"), [relay.url])
            assert await taken(found, 1) == ["first"]
            found.update([relay.url, other.url], [Filter(authors=(two.pubkey,))])
            assert sorted(await taken(found, 2)) == ["elsewhere", "second"]
            found.update([other.url], [Filter(authors=(two.pubkey,))])
            await pool.publish(note(two, "not here any more"), [relay.url])
            await pool.publish(note(two, "still here"), [other.url])
            assert "still here" in await taken(found, 2)  # the stored one comes again


async def test_a_killed_relay_comes_back_and_nothing_is_missed(pool: RelayPool) -> None:
    author = User()
    with running_relay() as relay:
        async with (
            RelayPool(QUICK) as reader,
            reader.subscribe([relay.url], [Filter(authors=(author.pubkey,))]) as found,
        ):
            await pool.publish(note(author, "before"), [relay.url])
            assert await taken(found, 1) == ["before"]
            relay.kill()
            publishing = asyncio.create_task(pool.publish(note(author, "meanwhile"), [relay.url]))
            await asyncio.sleep(0.05)
            await asyncio.to_thread(relay.start)
            assert (await publishing)[relay.url].arrived
            assert await taken(found, 1) == ["meanwhile"]


async def test_outcomes_of_relays_that_do_not_answer(pool: RelayPool) -> None:
    with running_relay() as frozen, running_relay() as dead:
        await pool.publish(note(User(), "connected"), [frozen.url])
        frozen.freeze()
        dead.kill()
        outcomes = await pool.publish(note(User(), "lost"), [frozen.url, dead.url], timeout_s=0.3)
        frozen.thaw()
    assert outcomes[frozen.url].kind is OutcomeKind.TIMED_OUT
    assert outcomes[dead.url].kind is OutcomeKind.UNREACHABLE


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "[::ffff:10.0.0.1]", "169.254.169.254"])
async def test_a_strangers_relay_never_leads_to_a_private_address(host: str) -> None:
    async with RelayPool(RelayOptions()) as guarded:
        began_s = time.monotonic()
        outcomes = await guarded.publish(note(User(), "inside"), [f"ws://{host}:1"], timeout_s=5)
    (outcome,) = outcomes.values()
    assert outcome == Outcome(kind=OutcomeKind.UNREACHABLE, reason="the relay's address is private")
    assert time.monotonic() - began_s < 4, "known at once"


async def test_a_relay_of_our_own_may_be_at_a_private_address(relay: NostrRelay) -> None:
    async with RelayPool(RelayOptions(trusted_relays=frozenset({relay.url}))) as guarded:
        outcomes = await guarded.publish(note(User(), "ours"), [relay.url])
    assert outcomes[relay.url].arrived


@pytest.mark.parametrize("mode", ["WRITE", "READ", "BOTH"])
async def test_a_relay_that_asks_is_told_who_we_are(mode: str) -> None:
    author, ourselves = User(), User()

    async def sign(url: str, challenge: str) -> Event:
        return event_of_members(ourselves.event(22242, [["relay", url], ["challenge", challenge]]))

    options = RelayOptions(private_allowed=True, authenticator=sign)
    with running_relay(mode) as asking:
        async with (
            RelayPool(options) as known,
            RelayPool(options) as reader,
            reader.subscribe([asking.url], [Filter(authors=(author.pubkey,))]) as found,
        ):
            assert (await known.publish(note(author, "told"), [asking.url]))[asking.url].arrived
            assert await taken(found, 1) == ["told"]


async def test_a_relay_that_asks_a_stranger_refuses() -> None:
    with running_relay("WRITE") as asking:
        async with RelayPool(QUICK) as stranger:
            outcome = (await stranger.publish(note(User(), "no"), [asking.url]))[asking.url]
    assert outcome.kind is OutcomeKind.REJECTED
    assert outcome.reason.startswith("auth-required:")


async def test_a_lying_relay_is_not_believed() -> None:
    """It sends a forged event, one that nobody asked for, junk, and then a genuine one."""
    author = User()
    genuine = author.event(1, [], content="genuine")

    async def lie(connection: ServerConnection, message: list[Any]) -> None:
        kind, name, *_ = message
        if kind != "REQ":
            return
        lies = (
            ["EVENT", name, {**genuine, "content": "forged"}],
            ["EVENT", name, User().event(1, [], content="unasked")],
            ["EVENT", "another", genuine],
            ["EVENT", name, {"id": 1}],
            ["OK"],
            {"not": "a list"},
            ["AUTH", 5],
        )
        for each in lies:
            await connection.send(json.dumps(each))
        await connection.send("[" * 50_000)
        await connection.send(b"\x00")
        await connection.send(json.dumps(["EVENT", name, genuine]))

    wanted = [Filter(authors=(author.pubkey,))]
    async with scripted_relay(lie) as url, RelayPool(QUICK) as pool, pool.subscribe([url], wanted) as found:
        assert await taken(found, 1) == ["genuine"]


async def test_a_message_beyond_the_limit_ends_the_connection_and_no_more() -> None:
    author = User()
    genuine = author.event(1, [], content="genuine")
    visits = 0

    async def flood(connection: ServerConnection) -> None:
        nonlocal visits
        visits += 1
        _, name, *_ = json.loads(await connection.recv())
        await connection.send("x" * 2_000 if visits == 1 else json.dumps(["EVENT", name, genuine]))
        await connection.wait_closed()

    options = RelayOptions(private_allowed=True, message_bytes_max=1_000, backoff_s_min=0.01)
    async with serve(flood, "127.0.0.1", 0) as server, RelayPool(options) as pool:
        url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with pool.subscribe([url], [Filter(authors=(author.pubkey,))]) as found:
            assert await taken(found, 1) == ["genuine"]


async def test_events_that_a_slow_reader_lost_come_again(relay: NostrRelay, pool: RelayPool) -> None:
    author = User()
    wanted = {str(number) for number in range(50)}
    for number in wanted:
        await pool.publish(note(author, number), [relay.url])
    options = RelayOptions(private_allowed=True, queue_events_max=30)
    async with RelayPool(options) as reader, reader.subscribe([relay.url], [Filter(authors=(author.pubkey,))]) as found:
        await asyncio.sleep(0.3)  # the queue overflows
        assert set(await taken(found, 50)) == wanted

"""Calls of one session stay at one replica, by header and by cookie, across versions, until it dies."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio

from support.changing import NEVER, SAY, WATCH, ChangingEnvoys, assert_shares, first, manifest, tally
from support.envoys import call

pytestmark = [pytest.mark.mesh, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]
REPLICAS = ("echo-0", "echo-1", "echo-next-0", "echo-next-1")
HALVES = {"echo": 50, "echo-next": 50}
HEADER: dict[str, Any] = {"header": "x-session"}
COOKIE: dict[str, Any] = {"cookie": {"name": "session", "ttl": "1m"}}
KINDS = pytest.mark.parametrize("kind", [HEADER, COOKIE], ids=["header", "cookie"])
CALLERS = pytest.mark.parametrize("caller", ["front-0", "gateway"])
Metadata = tuple[tuple[str, str], ...]


def sticky(kind: dict[str, Any], split: dict[str, int] | None = None, **traffic: Any) -> str:
    """Two replicas of echo and two of echo-next, which share the calls."""
    rules = [{"headers": {"x-canary": "always"}, "to": "echo-next"}]
    routing = {"split": split or HALVES, "match": rules}
    settings = {"routing": routing, "session_persistence": kind, "outlier_detection": NEVER, **traffic}
    versions = {"echo-next": {"run": "true", "version_of": "echo", "replicas": 2}}
    return manifest({"replicas": 2, "traffic": settings}, services=versions)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def envoys(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ChangingEnvoys]:
    running = ChangingEnvoys(tmp_path_factory.mktemp("sessions"), sticky(HEADER))
    try:
        await running.start()
        yield running
    finally:
        await running.stop()


async def begin(channel: grpc.aio.Channel, metadata: Metadata = ()) -> tuple[str, Metadata]:
    """Where a call goes, and what keeps the session's next calls there."""
    made = channel.unary_unary(SAY)(b"", metadata=metadata, timeout=10)
    headers = dict(await made.initial_metadata())
    return (await made)[2:].decode(), mark_of(headers)


def mark_of(headers: dict[str, Any]) -> Metadata:
    if "x-session" in headers:
        return (("x-session", headers["x-session"]),)
    return (
        (("cookie", f"theme=dark; {headers['set-cookie'].partition(';')[0]}; a=b"),) if "set-cookie" in headers else ()
    )


@KINDS
@CALLERS
async def test_a_session_stays_at_its_replica_whatever_the_version(
    envoys: ChangingEnvoys, kind: dict[str, Any], caller: str
) -> None:
    await envoys.change(sticky(kind))
    async with envoys.channel(caller) as channel:
        begun = dict([await begin(channel) for _ in range(40)])
        assert set(begun) == set(REPLICAS), "the first calls do not spread"
        for place, mark in begun.items():
            assert await tally(channel, 20, metadata=mark) == {place: 20}
            assert await tally(channel, 5, method="EchoService/Once", metadata=mark) == {place: 5}
            assert await first(channel, metadata=mark) == place


@KINDS
async def test_a_session_outlives_changes_around_it(envoys: ChangingEnvoys, kind: dict[str, Any]) -> None:
    """Other weights of versions and of replicas, another balancer, and replicas that come and go."""
    await envoys.change(sticky(kind))
    async with envoys.channel("front-0") as front:
        begun = dict([await begin(front) for _ in range(40)])
        mark = begun["echo-next-0"]
    for manifest_now in (
        sticky(kind, {"echo": 999, "echo-next": 1}),
        sticky(kind, load_balancing={"policy": "round_robin", "weights": [1, 1000]}),
    ):
        await envoys.change(manifest_now)
        async with envoys.channel("front-0") as front:
            assert await tally(front, 20, metadata=mark) == {"echo-next-0": 20}
    async with envoys.channel("front-0") as front:
        for other in ("echo-next-1", "echo-0"):
            await envoys.bring(other, into=False)
            assert await tally(front, 20, metadata=mark) == {"echo-next-0": 20}
        for other in ("echo-next-1", "echo-0"):
            await envoys.bring(other, into=True)
        assert await tally(front, 20, metadata=mark) == {"echo-next-0": 20}


@KINDS
@CALLERS
async def test_a_session_moves_when_its_replica_dies(envoys: ChangingEnvoys, kind: dict[str, Any], caller: str) -> None:
    """No call is lost, and the answer says where the session is now."""
    await envoys.change(sticky(kind))
    async with envoys.channel(caller) as channel:
        place, mark = await begin(channel)
        envoys.processes[place].kill()
        found = await tally(channel, 30, metadata=mark)
        assert sum(found.values()) == 30
        assert place not in found
        now, next_mark = await begin(channel, mark)
        assert await tally(channel, 20, metadata=next_mark) == {now: 20}
    await envoys.restart_envoy(place)


@KINDS
async def test_a_session_leaves_a_replica_that_is_out_of_rotation(envoys: ChangingEnvoys, kind: dict[str, Any]) -> None:
    await envoys.change(sticky(kind))
    async with envoys.channel("front-0") as front:
        place, mark = await begin(front)
        await envoys.bring(place, into=False)
        assert place not in await tally(front, 30, method="EchoService/Once", metadata=mark)
        await envoys.bring(place, into=True)
        assert await tally(front, 10, metadata=mark) == {place: 10}, "the old mark is good again"


async def test_a_stream_begins_a_session_and_follows_one(envoys: ChangingEnvoys) -> None:
    await envoys.change(sticky(HEADER))
    async with envoys.channel("gateway") as client:
        stream = client.unary_stream(WATCH)(b"", timeout=10)
        mark = mark_of(dict(await stream.initial_metadata()))
        place = bytes(await stream.read())[2:].decode()
        stream.cancel()
        assert await tally(client, 10, metadata=mark) == {place: 10}


@KINDS
async def test_a_mark_that_is_nobodys_is_no_session(envoys: ChangingEnvoys, kind: dict[str, Any]) -> None:
    await envoys.change(sticky(kind))
    name, template = ("x-session", "{}") if kind is HEADER else ("cookie", "session={}")
    async with envoys.channel("gateway") as client:
        for value in ("", "garbage", "MTI3LjAuMC4xOjE=", "Cg4xMjcuMC4wLjE6MQ==", "%00", "a" * 500):
            place, mark = await begin(client, ((name, template.format(value)),))
            assert await tally(client, 5, metadata=mark) == {place: 5}, value
        found = await tally(client, 200, metadata=((name, template.format("garbage")),))
        assert_shares(found, dict.fromkeys(REPLICAS, 1))


async def test_a_header_of_a_rule_is_stronger_than_a_session(envoys: ChangingEnvoys) -> None:
    await envoys.change(sticky(HEADER))
    canary = (("x-canary", "always"),)
    async with envoys.channel("front-0") as front:
        begun = dict([await begin(front) for _ in range(40)])
        assert set(await tally(front, 20, metadata=(*begun["echo-0"], *canary))) == {"echo-next-0", "echo-next-1"}


async def test_a_replica_that_refuses_is_left_for_this_call(envoys: ChangingEnvoys) -> None:
    await envoys.change(sticky(HEADER))
    async with envoys.channel("front-0") as front:
        place, mark = await begin(front)
        envoys.applications[place].handlers[SAY] = refuse
        assert place not in await tally(front, 10, metadata=mark)
        assert envoys.applications[place].count(SAY) == 11
        assert (await call(front, "EchoService/Once", metadata=mark))[2:].decode() == place


async def refuse(request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
    await context.abort(grpc.StatusCode.UNAVAILABLE, "busy")
    return b""

"""Equal calls go to the same replica: by header, field, cookie or address; and what happens to them when a replica dies."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio

from support.changing import NEVER, SAY, ChangingEnvoys, assert_shares, first, manifest, owned, tally, text, where
from support.envoys import call

pytestmark = [pytest.mark.mesh, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]
REPLICAS = ("echo-0", "echo-1", "echo-2")
KEYS = tuple(f"user-{number}" for number in range(120))
MOVED_MAX = {"ring_hash": 0.4, "maglev": 0.15}
"""Share of the calls of living replicas that another one's death may move. A ring gives each replica more room when there are
fewer, about a sixth of the calls here; a table of maglev's 65537 places hardly changes."""


def hashed(policy: str = "maglev", **load_balancing: Any) -> str:
    balancing = {"policy": policy, **load_balancing}
    return manifest({"traffic": {"load_balancing": balancing, "outlier_detection": NEVER}})


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def envoys(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ChangingEnvoys]:
    running = ChangingEnvoys(tmp_path_factory.mktemp("hashing"), hashed(hash_on={"header": "x-user"}))
    try:
        await running.start()
        yield running
    finally:
        await running.stop()


async def places(channel: grpc.aio.Channel, keys: tuple[str, ...] = KEYS, **options: Any) -> dict[str, str]:
    """Which replica each key's call goes to."""
    found = await asyncio.gather(*(where(channel, metadata=(("x-user", key),), **options) for key in keys))
    return dict(zip(keys, found, strict=True))


@pytest.mark.parametrize("policy", ["ring_hash", "maglev"])
async def test_calls_of_one_key_stay_together(envoys: ChangingEnvoys, policy: str) -> None:
    await envoys.change(hashed(policy, hash_on={"header": "x-user"}))
    async with envoys.channel("front-0") as front, envoys.channel("gateway") as client:
        found = await places(front)
        assert min(Counter(found.values()).values()) > len(KEYS) / 10, "keys do not spread"
        assert set(found.values()) == set(REPLICAS)
        assert await places(front) == found
        assert await places(client, method="EchoService/Once") == found, "callers and methods do not agree"


@pytest.mark.parametrize("policy", ["ring_hash", "maglev"])
async def test_when_a_replica_dies_its_keys_move_and_come_back(envoys: ChangingEnvoys, policy: str) -> None:
    await envoys.change(hashed(policy, hash_on={"header": "x-user"}))
    async with envoys.channel("front-0") as front:
        before = await places(front)
        await envoys.stop_applications("echo-1", caller="front-0")
        after = await places(front)
        await envoys.start_applications("echo-1")
        assert set(after.values()) == {"echo-0", "echo-2"}
        staying = [key for key, place in before.items() if place != "echo-1"]
        moved = [key for key in staying if after[key] != before[key]]
        assert len(moved) <= MOVED_MAX[policy] * len(staying), (policy, len(moved), len(staying))
        assert await places(front) == before


@pytest.mark.parametrize("policy", ["ring_hash", "maglev"])
async def test_a_repeated_call_goes_to_another_replica(envoys: ChangingEnvoys, policy: str) -> None:
    """Consistent hashing would choose the same one again; each further choice looks elsewhere, and ends after one."""
    await envoys.change(hashed(policy, hash_on={"header": "x-user"}))
    async with envoys.channel("front-0") as front:
        before = await places(front)
        envoys.applications["echo-1"].handlers[SAY] = refuse
        envoys.applications["echo-1"].seen.clear()
        after = await places(front)
    own = [key for key, place in before.items() if place == "echo-1"]
    assert all(after[key] == before[key] for key in KEYS if key not in own), "others moved"
    assert {after[key] for key in own} == {"echo-0", "echo-2"}
    assert envoys.applications["echo-1"].count(SAY) == len(own), "tried twice at the same replica"


async def refuse(request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
    await context.abort(grpc.StatusCode.UNAVAILABLE, "busy")
    return b""


async def test_calls_without_the_header_go_anywhere(envoys: ChangingEnvoys) -> None:
    await envoys.change(hashed(hash_on={"header": "x-user"}))
    async with envoys.channel("front-0") as front:
        assert_shares(await tally(front, 150), dict.fromkeys(REPLICAS, 1))


@pytest.mark.parametrize("policy", ["ring_hash", "maglev"])
async def test_weights_decide_how_many_keys_a_replica_has(envoys: ChangingEnvoys, policy: str) -> None:
    await envoys.change(hashed(policy, hash_on={"header": "x-user"}, weights=[8, 1, 1]))
    async with envoys.channel("front-0") as front:
        found = await places(front)
    assert_shares(Counter(found.values()), {"echo-0": 8, "echo-1": 1, "echo-2": 1})


@pytest.mark.parametrize("caller", ["front-0", "gateway"])
async def test_calls_about_one_thing_stay_together(envoys: ChangingEnvoys, caller: str) -> None:
    """The field is read from the message; a client cannot write the header that carries it, and no application sees it."""
    await envoys.change(hashed(hash_on={"field": "owner.id"}))
    forged = (("x-nipmesh-hash", "forged"),)
    async with envoys.channel(caller) as channel:
        found = {key: await where(channel, request=owned(key)) for key in KEYS[:40]}
        assert set(found.values()) == set(REPLICAS)
        for key, place in found.items():
            assert await where(channel, "EchoService/Once", request=owned(key), metadata=forged) == place
            assert await first(channel, owned(key)) == place
    headers = {name for each in envoys.applications.values() for _, seen in each.seen for name in seen}
    assert not [name for name in headers if name.startswith("x-nipmesh-")]


async def test_a_number_is_a_thing_too(envoys: ChangingEnvoys) -> None:
    await envoys.change(hashed(hash_on={"field": "owner.number"}))
    async with envoys.channel("front-0") as front:
        found = {}
        for number in range(1, 30):
            request = b"\x12\x02\x10" + bytes([number])
            found[number] = await where(front, request=request)
            assert await where(front, request=request) == found[number]
    assert set(found.values()) == set(REPLICAS)


async def test_what_has_no_field_is_called_all_the_same(envoys: ChangingEnvoys) -> None:
    """A message without the field counts as one with an empty field; a method without it goes anywhere."""
    await envoys.change(hashed(hash_on={"field": "owner.id"}))
    async with envoys.channel("front-0") as front:
        assert len(await tally(front, 12, request=text("no owner"))) == 1
        assert await call(front, "EchoService/Bare", b"") == b""
        for _ in range(40):
            await call(front, "EchoService/Bare", b"")
        assert min(envoys.applications[name].count("/echo.v1.EchoService/Bare") for name in REPLICAS) > 0


async def test_what_the_sidecar_cannot_read(envoys: ChangingEnvoys) -> None:
    """Bytes that are no message are the application's to judge; a compressed message is refused, as the manual says."""
    await envoys.change(hashed(hash_on={"field": "owner.id"}))
    async with envoys.channel("front-0") as front:
        assert await where(front, request=b"\xff\xff\xff") in REPLICAS
        compressed = front.unary_unary(SAY)(owned("a" * 100), compression=grpc.Compression.Gzip)
        with pytest.raises(grpc.aio.AioRpcError, match="Compressed-Flag") as caught:
            await compressed
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_the_gateway_makes_a_cookie_that_keeps_a_client_at_its_replica(envoys: ChangingEnvoys) -> None:
    await envoys.change(hashed(hash_on={"cookie": {"name": "shard", "ttl": "1m"}}))
    for _ in range(4):
        async with envoys.channel("gateway") as client:
            made = client.unary_unary(SAY)(b"")
            headers = dict(await made.initial_metadata())
            place = (await made)[2:].decode()
        assert "Max-Age=60" in headers["set-cookie"]
        cookie = (("cookie", f"a=b; {headers['set-cookie'].partition(';')[0]}"),)
        async with envoys.channel("gateway") as client:
            assert await tally(client, 12, metadata=cookie) == {place: 12}


async def test_a_sidecar_makes_no_cookie(envoys: ChangingEnvoys) -> None:
    """It would be the same for all calls of its application, which would all go to one replica."""
    await envoys.change(hashed(hash_on={"cookie": {"name": "shard"}}))
    async with envoys.channel("front-0") as front:
        assert_shares(await tally(front, 150), dict.fromkeys(REPLICAS, 1))
        assert len(await tally(front, 12, metadata=(("cookie", "shard=one"),))) == 1
        assert "set-cookie" not in dict(await front.unary_unary(SAY)(b"").initial_metadata())


async def test_a_client_is_known_by_its_address(envoys: ChangingEnvoys, tmp_path: Path) -> None:
    await envoys.change(hashed(hash_on={"source": "address"}))
    found = set()
    for number in range(1, 21):
        async with from_address(envoys, f"127.0.0.{number}", tmp_path / "s") as client:
            places = await tally(client, 4)
            assert len(places) == 1, number
            found |= set(places)
    assert found == set(REPLICAS)


@asynccontextmanager
async def from_address(envoys: ChangingEnvoys, address: str, path: Path) -> AsyncIterator[grpc.aio.Channel]:
    """A client of the gateway whose connections come from this address."""
    assert envoys.placement.gateway is not None
    port = envoys.placement.gateway.listen.port

    carrying: list[asyncio.Task[None]] = []

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        carrying.append(task)
        there, back = await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0))
        await asyncio.gather(copy(reader, back), copy(there, writer))

    server = await asyncio.start_unix_server(connect, path)
    async with server:
        async with envoys.target(f"unix:{path}") as channel:
            yield channel
        await asyncio.gather(*carrying)


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):  # a reset is an end, too
        while data := await reader.read(65_536):
            writer.write(data)
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()

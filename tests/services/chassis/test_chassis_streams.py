"""How long a stream may last, and how many there may be: tokens expire, users and streams as a whole have limits."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.chassis import ChassisSettings, ServiceDefinition, reason_of, retry_delay_ms_of
from services.chassis import interceptor as border
from services.chassis.streams import STREAMS_PER_SUBJECT_MAX
from services.chassis.testing import as_service, as_user, running

USER, OTHER = "ab" * 32, "cd" * 32
LIFETIME_S = 0.6
Definition = ServiceDefinition[ChassisSettings]
Metadata = tuple[tuple[str, str], ...]


class Client:
    """Opens streams of the echo service."""

    def __init__(self, echo: SimpleNamespace, channel: grpc.aio.Channel) -> None:
        self._request = echo.pb2.EchoRequest
        self.stub = echo.grpc.EchoServiceStub(channel)

    async def open(self, metadata: Metadata, mode: str = "watch") -> Any:
        """A watch that runs: its first message is read."""
        call = self.stub.Count(self._request(text="x", mode=mode), metadata=metadata)
        assert (await call.read()).text == "0"
        return call

    async def refused(self, metadata: Metadata) -> grpc.aio.AioRpcError:
        """Why a watch is refused at its start."""
        return await end_of(self.stub.Count(self._request(text="x", mode="watch"), metadata=metadata))

    async def opens_again(self, metadata: Metadata) -> Any:
        """A watch, as soon as there is a place: the server notices a little later that a client went away."""
        async with asyncio.timeout(5):
            while True:
                try:
                    return await self.open(metadata)
                except grpc.aio.AioRpcError:
                    await asyncio.sleep(0.02)

    async def chat(self, metadata: Metadata) -> Any:
        """A stream in both directions that waits for the client."""
        call = self.stub.Chat(metadata=metadata)
        await call.write(self._request(text="0"))
        assert (await call.read()).text == "0"
        return call

    async def collect(self, metadata: Metadata) -> Any:
        """A stream of requests that waits for the client."""
        call = self.stub.Collect(metadata=metadata)
        await call.write(self._request(text="0"))
        return call

    async def ping(self) -> str:
        """A unary call."""
        return str((await self.stub.Echo(self._request(text="hi"), metadata=as_user(USER), timeout=5)).text)


async def end_of(call: Any) -> grpc.aio.AioRpcError:
    """The error that a stream ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asyncio.wait_for(drained(call), 5)
    return caught.value


async def drained(call: Any) -> None:
    """Read a stream to its end."""
    while await call.read() is not grpc.aio.EOF:
        pass


def soon() -> float:
    """When a short token expires."""
    return time.time() + LIFETIME_S


@pytest.mark.parametrize("kind", ["watch", "chat"])
async def test_a_stream_ends_when_its_token_does(
    definition: Definition, echo: SimpleNamespace, short_path: Path, calls: list[str], kind: str
) -> None:
    async with running(definition, short_path) as (app, channel):
        client = Client(echo, channel)
        expire_time_s = soon()
        metadata = as_user(USER, expire_time_s=expire_time_s)
        call = await (client.open(metadata) if kind == "watch" else client.chat(metadata))
        error = await end_of(call)
        assert -0.01 < time.time() - expire_time_s < 0.5
        assert (error.code(), reason_of(error)) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_INVALID")
        assert error.details() == "the access token expired; log in again and resume"
        labels = {"method": "/chassistest.v1.EchoService/" + ("Count" if kind == "watch" else "Chat")}
        assert app.registry.get_sample_value("nipmesh_server_calls_total", labels | {"code": "UNAUTHENTICATED"}) == 1
        assert ("count closed" in calls) == (kind == "watch")
        assert await client.ping() == "hi"


async def test_a_stream_of_requests_ends_when_its_token_does(
    definition: Definition, echo: SimpleNamespace, short_path: Path
) -> None:
    async with running(definition, short_path) as (_, channel):
        call = await Client(echo, channel).collect(as_user(USER, expire_time_s=soon()))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asyncio.wait_for(call, 5)
    assert reason_of(caught.value) == "TOKEN_INVALID"


async def test_a_client_that_reads_nothing_gathers_no_calls(
    definition: Definition, echo: SimpleNamespace, short_path: Path, calls: list[str]
) -> None:
    """Its streams end inside with the token, but their last bytes wait for the client: until then they keep their places."""
    async with running(definition, short_path) as (_, channel):
        client = Client(echo, channel)
        metadata = as_user(USER, expire_time_s=soon())
        stuck = [await client.open(metadata, mode="flood") for _ in range(STREAMS_PER_SUBJECT_MAX)]
        async with asyncio.timeout(5):
            while calls.count("count closed") < STREAMS_PER_SUBJECT_MAX:
                await asyncio.sleep(0.02)
        assert reason_of(await client.refused(as_user(USER))) == "TOO_MANY_STREAMS"
        for call in stuck:
            call.cancel()
        (await client.opens_again(as_user(USER))).cancel()


async def test_an_expired_token_opens_no_stream(
    definition: Definition, echo: SimpleNamespace, short_path: Path, calls: list[str]
) -> None:
    async with running(definition, short_path) as (_, channel):
        error = await Client(echo, channel).refused(as_user(USER, expire_time_s=time.time() - 1))
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_INVALID")
    assert "count closed" not in calls


@pytest.mark.parametrize("metadata", [as_user(USER), as_user(USER, expire_time_s=9_999_999_999)])
async def test_a_stream_lives_on_while_no_token_expires(
    definition: Definition, echo: SimpleNamespace, short_path: Path, metadata: Metadata
) -> None:
    async with running(definition, short_path) as (_, channel):
        call = await Client(echo, channel).open(metadata)
        await call.read()
        await call.read()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(call.read(), LIFETIME_S)


async def test_a_user_has_a_limit_of_streams_and_no_other_user_has_it(
    definition: Definition, echo: SimpleNamespace, short_path: Path
) -> None:
    async with running(definition, short_path) as (_, channel):
        client = Client(echo, channel)
        mine = [await client.open(as_user(USER)) for _ in range(STREAMS_PER_SUBJECT_MAX)]
        error = await client.refused(as_user(USER))
        assert (error.code(), reason_of(error)) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_STREAMS")
        assert (retry_delay_ms_of(error) or 0) > 0
        assert await client.ping() == "hi"
        theirs = [await client.open(as_user(OTHER)) for _ in range(STREAMS_PER_SUBJECT_MAX)]
        services = [await client.open(as_service("payment")) for _ in range(STREAMS_PER_SUBJECT_MAX + 1)]
        for call in [*mine, *theirs, *services]:
            call.cancel()


async def test_places_come_back_however_streams_end(
    definition: Definition, echo: SimpleNamespace, short_path: Path
) -> None:
    async with running(definition, short_path) as (_, channel):
        client = Client(echo, channel)
        for _ in range(STREAMS_PER_SUBJECT_MAX + 1):
            await end_of(await client.open(as_user(USER), mode="fail_later"))
        short = as_user(USER, expire_time_s=soon())
        for call in [await client.open(short) for _ in range(STREAMS_PER_SUBJECT_MAX)]:
            assert reason_of(await end_of(call)) == "TOKEN_INVALID"
        mine = [await client.open(as_user(USER)) for _ in range(STREAMS_PER_SUBJECT_MAX)]
        assert reason_of(await client.refused(as_user(USER))) == "TOO_MANY_STREAMS"
        mine.pop().cancel()
        mine.append(await client.opens_again(as_user(USER)))
        for call in mine:
            call.cancel()


@pytest.fixture
def four_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server with room for four streams."""
    assert border.STREAMS_MAX == border.IN_FLIGHT_MAX // 2
    monkeypatch.setattr(border, "STREAMS_MAX", 4)


@pytest.mark.usefixtures("four_streams")
async def test_unary_calls_go_on_while_streams_are_at_their_limit(
    definition: Definition, echo: SimpleNamespace, short_path: Path
) -> None:
    async with running(definition, short_path) as (_, channel):
        client = Client(echo, channel)
        watches = [await client.open(as_user(f"{number:064x}")) for number in range(4)]
        error = await client.refused(as_user(USER))
        assert (error.code(), reason_of(error)) == (grpc.StatusCode.UNAVAILABLE, "OVERLOADED")
        assert retry_delay_ms_of(error) == 200
        assert [await client.ping() for _ in range(20)] == ["hi"] * 20
        health = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await health.read()).status == health_pb2.HealthCheckResponse.SERVING
        watches.pop().cancel()
        watches.append(await client.opens_again(as_user(USER)))
        for call in [health, *watches]:
            call.cancel()

"""Deadlines, the limits of streams and circuit breakers on real Envoys: when a call ends, how, and for whom."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from signal import SIGCONT, SIGSTOP

import grpc
import grpc.aio
import pytest
import pytest_asyncio

from support.envoys import Envoys, call
from support.outcomes import Outcome, at_once, attempt, codes, executions

pytestmark = [pytest.mark.mesh, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]
DEADLINE = grpc.StatusCode.DEADLINE_EXCEEDED
TEXT = b"\x0a\x02hi"

PROTO = """
syntax = "proto3";
package echo.v1;
message Text { string text = 1; }
service EchoService {
  rpc Say(Text) returns (Text) { option idempotency_level = NO_SIDE_EFFECTS; }
  rpc Quick(Text) returns (Text) { option idempotency_level = NO_SIDE_EFFECTS; }
  rpc Patient(Text) returns (Text) { option idempotency_level = NO_SIDE_EFFECTS; }
  rpc Hurried(Text) returns (Text) { option idempotency_level = NO_SIDE_EFFECTS; }
  rpc Watch(Text) returns (stream Text) { option idempotency_level = NO_SIDE_EFFECTS; }
  rpc LongWatch(Text) returns (stream Text) { option idempotency_level = NO_SIDE_EFFECTS; }
}
service NarrowService {
  rpc Say(Text) returns (Text) { option idempotency_level = NO_SIDE_EFFECTS; }
  rpc Watch(Text) returns (stream Text) { option idempotency_level = NO_SIDE_EFFECTS; }
}
service SingleService {
  rpc Say(Text) returns (Text) { option idempotency_level = NO_SIDE_EFFECTS; }
}
service FrontService { rpc Say(Text) returns (Text); }
"""
MANIFEST = """
mesh: test
protos: [protos]
services:
  front:
    run: "true"
    replicas: 1
    serves: [FrontService]
    calls:
      echo:
        methods: [EchoService/*]
        traffic:
          methods:
            EchoService/Hurried: {deadline: 500ms}
      narrow:
        methods: [NarrowService/*]
        traffic:
          circuit_breaker: {max_requests: 2}
      single: [SingleService/Say]
  echo:
    run: "true"
    replicas: 1
    serves: [EchoService]
    traffic:
      deadline: 2s
      idle_timeout: 1s
      methods:
        EchoService/Quick: {deadline: 600ms}
        EchoService/Patient: {deadline: 30s}
        EchoService/LongWatch: {max_stream_duration: 1500ms}
  narrow:
    run: "true"
    replicas: 1
    serves: [NarrowService]
    traffic:
      deadline: 30s
      circuit_breaker: {max_requests: 5, max_streams: 3}
  single:
    run: "true"
    replicas: 1
    serves: [SingleService]
    traffic:
      deadline: 30s
      circuit_breaker: {max_connections: 1, max_pending_requests: 4, max_requests: 2000}
gateway:
  listen: 127.0.0.1:8080
  expose:
    echo: [EchoService/*]
    narrow: [NarrowService/*]
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def envoys(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Envoys]:
    running = Envoys(tmp_path_factory.mktemp("limits"), MANIFEST, PROTO)
    try:
        await running.start()
        yield running
    finally:
        await running.stop()


@pytest_asyncio.fixture(loop_scope="module")
async def channel(envoys: Envoys) -> AsyncIterator[grpc.aio.Channel]:
    for application in envoys.applications.values():
        application.handlers.clear()
        application.seen.clear()
        application.tick_s = 60
    async with envoys.channel("front-0") as channel:
        yield channel


class Hold:
    """A handler that keeps calls until they are let go."""

    def __init__(self) -> None:
        self.running = 0
        self.release = asyncio.Event()

    async def __call__(self, request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        self.running += 1
        await asyncio.wait_for(self.release.wait(), 60)
        return request


def hold(envoys: Envoys, replica: str, method: str) -> Hold:
    held = Hold()
    envoys.applications[replica].handlers[f"/echo.v1.{method}"] = held
    return held


async def watch(channel: grpc.aio.Channel, method: str, metadata: tuple[tuple[str, str], ...] = ()) -> Outcome:
    """Follow a stream to its end."""
    started = time.monotonic()
    try:
        async for _ in channel.unary_stream(f"/echo.v1.{method}")(TEXT, metadata=metadata):
            pass
    except grpc.aio.AioRpcError as error:
        return Outcome(code=error.code(), seconds=time.monotonic() - started, details=error.details() or "")
    return Outcome(code=grpc.StatusCode.OK, seconds=time.monotonic() - started)


@contextmanager
def frozen(envoys: Envoys, workload: str) -> Iterator[None]:
    """An Envoy that takes connections (the kernel does) and does nothing with them."""
    envoys.processes[workload].send_signal(SIGSTOP)
    try:
        yield
    finally:
        envoys.processes[workload].send_signal(SIGCONT)


async def test_a_burst_waits_for_its_first_connection(envoys: Envoys, channel: grpc.aio.Channel) -> None:
    """The first test: later ones find a connection."""
    with frozen(envoys, "echo-0"):
        burst = asyncio.create_task(at_once(channel, "EchoService/Patient", 600))
        waiting = "cluster.outbound_echo.upstream_rq_pending_active"
        await envoys.until(lambda: envoys.stat("front-0", waiting) > 500, "nothing waits", 5)
    assert codes(await burst) == {"OK": 600}


@pytest.mark.parametrize(
    ("method", "seconds"), [("EchoService/Say", 2.0), ("EchoService/Quick", 0.6), ("EchoService/Hurried", 0.5)]
)
async def test_the_deadline_of_service_method_and_edge_ends_a_call_that_hangs(
    envoys: Envoys, channel: grpc.aio.Channel, method: str, seconds: float
) -> None:
    hold(envoys, "echo-0", method)
    outcome = await attempt(channel, method)
    assert outcome.code is DEADLINE, outcome
    assert seconds - 0.05 <= outcome.seconds < seconds + 3
    assert executions(envoys.applications.values(), method) == 1
    [(_, metadata)] = [seen for seen in envoys.applications["echo-0"].seen if seen[0].endswith(method)]
    assert seconds / 2 < float(metadata["time-remaining"]) <= seconds, "the service is told when to stop"


async def test_an_edge_tightens_the_deadline_for_its_own_caller_only(envoys: Envoys, channel: grpc.aio.Channel) -> None:
    hold(envoys, "echo-0", "EchoService/Hurried")
    async with envoys.channel("gateway") as outside:
        inner, outer = await asyncio.gather(
            attempt(channel, "EchoService/Hurried"), attempt(outside, "EchoService/Hurried")
        )
    assert (inner.code, outer.code) == (DEADLINE, DEADLINE)
    assert inner.seconds < outer.seconds
    assert outer.seconds > 1.9


async def test_a_caller_may_ask_for_less_time_and_not_for_more(envoys: Envoys, channel: grpc.aio.Channel) -> None:
    hold(envoys, "echo-0", "EchoService/Quick")
    outcome = await attempt(channel, "EchoService/Quick", timeout=30)
    assert outcome.code is DEADLINE
    assert outcome.seconds < 5
    hold(envoys, "echo-0", "EchoService/Say")
    outcome = await attempt(channel, "EchoService/Say", timeout=0.3)
    assert outcome.code is DEADLINE
    assert outcome.seconds < 3


async def test_a_stream_that_is_silent_for_too_long_ends(envoys: Envoys, channel: grpc.aio.Channel) -> None:
    outcome = await watch(channel, "EchoService/Watch")
    assert 0.9 <= outcome.seconds < 10
    assert outcome.code is grpc.StatusCode.INTERNAL, "its answer has begun: Envoy can only reset it"
    hold(envoys, "echo-0", "EchoService/Watch")
    outcome = await watch(channel, "EchoService/Watch")
    assert 0.9 <= outcome.seconds < 10
    assert outcome.code is DEADLINE, "of this one nothing was heard"


async def test_a_stream_that_talks_lives_until_its_longest_duration(envoys: Envoys, channel: grpc.aio.Channel) -> None:
    envoys.applications["echo-0"].tick_s = 0.1
    outcome = await watch(channel, "EchoService/LongWatch")
    assert outcome.code is DEADLINE, outcome
    assert 1.3 <= outcome.seconds < 10
    [(_, metadata)] = [seen for seen in envoys.applications["echo-0"].seen if seen[0].endswith("LongWatch")]
    assert 0 < float(metadata["time-remaining"]) < 1.4, "the service is told to end it before its sidecar has to"


async def overflow(channel: grpc.aio.Channel, method: str, held: Hold, room: int, more: int) -> list[Outcome]:
    """Fill the room, see more calls fail at once, let the others go."""
    inside = [asyncio.create_task(attempt(channel, method)) for _ in range(room)]
    while held.running < room:
        await asyncio.sleep(0.01)
    outcomes = await at_once(channel, method, more)
    held.release.set()
    assert codes(await asyncio.gather(*inside)) == {"OK": room}
    return outcomes


async def test_what_is_beyond_max_requests_fails_at_once_and_an_edge_has_less_room_for_its_caller(
    envoys: Envoys, channel: grpc.aio.Channel
) -> None:
    for caller, room in (("front-0", 2), ("gateway", 5)):
        held = hold(envoys, "narrow-0", "NarrowService/Say")
        async with envoys.channel(caller) as calls:
            outcomes = await overflow(calls, "NarrowService/Say", held, room, 4)
        assert codes(outcomes) == {"UNAVAILABLE": 4}, caller
        assert max(outcome.seconds for outcome in outcomes) < 5
        assert held.running == room, "the application has seen nothing of the others"


async def test_streams_have_a_bulkhead_of_their_own(envoys: Envoys, channel: grpc.aio.Channel) -> None:
    method = "/echo.v1.NarrowService/Watch"
    streams = [channel.unary_stream(method)(TEXT) for _ in range(3)]
    for stream in streams:
        assert await stream.read() == TEXT
    outcome = await watch(channel, "NarrowService/Watch")
    assert outcome.code is grpc.StatusCode.UNAVAILABLE
    assert outcome.seconds < 5
    assert await call(channel, "NarrowService/Say") == TEXT, "unary calls keep their room"
    for stream in streams:
        stream.cancel()
    await envoys.until(
        lambda: envoys.stat("front-0", "cluster.outbound_narrow.circuit_breakers.high.rq_open") == 0, "still open"
    )
    stream = channel.unary_stream(method)(TEXT)
    assert await stream.read() == TEXT
    stream.cancel()


async def test_few_calls_wait_for_a_connection_and_the_rest_fails_at_once(
    envoys: Envoys, channel: grpc.aio.Channel
) -> None:
    with frozen(envoys, "single-0"):
        waiting = [asyncio.create_task(attempt(channel, "SingleService/Say")) for _ in range(12)]
        await envoys.until(lambda: sum(task.done() for task in waiting) == 8, "too many wait", 5)
        refused = [task.result() for task in waiting if task.done()]
    assert codes(refused) == {"UNAVAILABLE": 8}
    assert codes(await asyncio.gather(*waiting)) == {"OK": 4, "UNAVAILABLE": 8}
    assert executions(envoys.applications.values(), "SingleService/Say") == 4


async def test_no_connection_is_opened_beyond_the_limit(envoys: Envoys, channel: grpc.aio.Channel) -> None:
    held = hold(envoys, "single-0", "SingleService/Say")
    async with envoys.channel("front-0") as other:
        running = [
            asyncio.create_task(attempt(half, "SingleService/Say")) for half in (channel, other) for _ in range(514)
        ]
        await envoys.until(lambda: held.running == 1024, "the connection is not full", 30)
        assert envoys.stat("front-0", "cluster.outbound_single.upstream_cx_active") == 1
        assert envoys.stat("front-0", "cluster.outbound_single.upstream_rq_pending_active") == 4
        held.release.set()
        assert codes(await asyncio.gather(*running)) == {"OK": 1028}

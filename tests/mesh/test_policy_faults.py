"""Faults on real Envoys: at their rate, with their code, for the calls and callers that they are meant for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest
import pytest_asyncio

from generator.manifest.policies import GRPC_CODES
from support.envoys import Envoys
from support.outcomes import at_once, attempt, codes, executions

pytestmark = [pytest.mark.mesh, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]
SIGMAS = 5
"""Deviations of the binomial distribution: one run in a million fails by chance."""

CODE_METHODS = "\n".join(f"  rpc Code{code}(Text) returns (Text);" for code in range(1, 17))
PROTO = f"""
syntax = "proto3";
package echo.v1;
message Text {{ string text = 1; }}
service EchoService {{
  rpc Often(Text) returns (Text) {{ option idempotency_level = NO_SIDE_EFFECTS; }}
  rpc Slowed(Text) returns (Text) {{ option idempotency_level = NO_SIDE_EFFECTS; }}
  rpc Both(Text) returns (Text) {{ option idempotency_level = NO_SIDE_EFFECTS; }}
  rpc Late(Text) returns (Text) {{ option idempotency_level = NO_SIDE_EFFECTS; }}
  rpc Gated(Text) returns (Text) {{ option idempotency_level = NO_SIDE_EFFECTS; }}
  rpc Edged(Text) returns (Text) {{ option idempotency_level = NO_SIDE_EFFECTS; }}
  rpc Plain(Text) returns (Text) {{ option idempotency_level = NO_SIDE_EFFECTS; }}
{CODE_METHODS}
}}
service FrontService {{ rpc Say(Text) returns (Text); }}
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
            EchoService/Plain: {faults: {abort: {code: DATA_LOSS}}}
            EchoService/Edged: {faults: {abort: {code: ALREADY_EXISTS}}}
  echo:
    run: "true"
    replicas: 1
    serves: [EchoService]
    traffic:
      methods:
        EchoService/Often: {faults: {abort: {code: UNAVAILABLE, percent: 30}}}
        EchoService/Slowed: {faults: {delay: {duration: 3s, percent: 20}}}
        EchoService/Both: {faults: {delay: {duration: 500ms}, abort: {code: ABORTED}}}
        EchoService/Late: {deadline: 500ms, faults: {delay: {duration: 20s}}}
        EchoService/Gated: {faults: {abort: {code: ABORTED}, headers: {x-chaos: please}}}
        EchoService/Edged: {faults: {abort: {code: NOT_FOUND}}}
""" + "".join(
    f"        EchoService/Code{number}: {{faults: {{abort: {{code: {code}}}}}}}\n"
    for number, code in enumerate(GRPC_CODES, start=1)
)
GATEWAY = """
gateway:
  listen: 127.0.0.1:8080
  expose: {echo: [EchoService/*]}
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def envoys(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Envoys]:
    running = Envoys(tmp_path_factory.mktemp("faults"), MANIFEST + GATEWAY, PROTO)
    try:
        await running.start()
        yield running
    finally:
        await running.stop()


@pytest_asyncio.fixture(loop_scope="module")
async def channel(envoys: Envoys) -> AsyncIterator[grpc.aio.Channel]:
    for application in envoys.applications.values():
        application.seen.clear()
    async with envoys.channel("front-0") as channel:
        yield channel


def within(count: int, share: float, hits: int) -> bool:
    """Whether so many hits of so many calls are what a share of them means."""
    return abs(hits - count * share) <= SIGMAS * (count * share * (1 - share)) ** 0.5


async def test_calls_are_aborted_at_the_rate_and_none_is_repeated(envoys: Envoys, channel: grpc.aio.Channel) -> None:
    outcomes = await at_once(channel, "EchoService/Often", 800)
    aborted = codes(outcomes)["UNAVAILABLE"]
    assert within(800, 0.3, aborted), aborted
    assert codes(outcomes)["OK"] == 800 - aborted
    assert executions(envoys.applications.values(), "EchoService/Often") == 800 - aborted
    assert envoys.stat("front-0", r"http.egress.fault.aborts_injected") >= aborted


async def test_calls_are_delayed_at_the_rate(envoys: Envoys, channel: grpc.aio.Channel) -> None:
    outcomes = await at_once(channel, "EchoService/Slowed", 300)
    assert codes(outcomes) == {"OK": 300}
    delayed = sum(outcome.seconds >= 2.9 for outcome in outcomes)
    assert within(300, 0.2, delayed), delayed


async def test_a_call_may_be_delayed_and_then_aborted(envoys: Envoys, channel: grpc.aio.Channel) -> None:
    outcome = await attempt(channel, "EchoService/Both")
    assert outcome.code is grpc.StatusCode.ABORTED
    assert outcome.seconds >= 0.45
    assert executions(envoys.applications.values(), "EchoService/Both") == 0


async def test_a_delay_beyond_the_deadline_ends_with_it(envoys: Envoys, channel: grpc.aio.Channel) -> None:
    outcome = await attempt(channel, "EchoService/Late")
    assert outcome.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert outcome.seconds < 10
    assert executions(envoys.applications.values(), "EchoService/Late") == 0


async def test_only_calls_with_the_header_are_disturbed(envoys: Envoys, channel: grpc.aio.Channel) -> None:
    for metadata, code in (
        ((), grpc.StatusCode.OK),
        ((("x-chaos", "no"),), grpc.StatusCode.OK),
        ((("x-chaos", "please"),), grpc.StatusCode.ABORTED),
    ):
        outcome = await attempt(channel, "EchoService/Gated", metadata=metadata)
        assert outcome.code is code, metadata


async def test_the_faults_of_an_edge_are_for_its_caller_and_replace_those_of_the_service(
    envoys: Envoys, channel: grpc.aio.Channel
) -> None:
    async with envoys.channel("gateway") as outside:
        for method, inner, outer in (("Plain", "DATA_LOSS", "OK"), ("Edged", "ALREADY_EXISTS", "NOT_FOUND")):
            assert codes(await at_once(channel, f"EchoService/{method}", 5)) == {inner: 5}
            assert codes(await at_once(outside, f"EchoService/{method}", 5)) == {outer: 5}


async def test_every_code_can_be_injected_and_the_service_sees_nothing(
    envoys: Envoys, channel: grpc.aio.Channel
) -> None:
    calls = (attempt(channel, f"EchoService/Code{number}") for number in range(1, 17))
    outcomes = await asyncio.gather(*calls)
    assert [outcome.code.name for outcome in outcomes] == list(GRPC_CODES)
    assert envoys.applications["echo-0"].seen == []

"""Rate limits on real Envoys: each caller's own bucket for each method, and the time after which to come again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from support.envoys import Envoys, failure
from support.outcomes import at_once, attempt, codes, executions

pytestmark = [pytest.mark.mesh, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]
SAY, OTHER, QUICK = "EchoService/Say", "EchoService/Other", "EchoService/Quick"

PROTO = """
syntax = "proto3";
package echo.v1;
message Text { string text = 1; }
service EchoService {
  rpc Say(Text) returns (Text) { option idempotency_level = NO_SIDE_EFFECTS; }
  rpc Other(Text) returns (Text) { option idempotency_level = NO_SIDE_EFFECTS; }
  rpc Quick(Text) returns (Text) { option idempotency_level = NO_SIDE_EFFECTS; }
}
service FrontService { rpc Say(Text) returns (Text); }
service BatchService { rpc Say(Text) returns (Text); }
"""
MANIFEST = """
mesh: test
protos: [protos]
services:
  front:
    run: "true"
    replicas: 1
    serves: [FrontService]
    calls: {echo: [EchoService/*]}
  batch:
    run: "true"
    replicas: 1
    serves: [BatchService]
    calls: {echo: [EchoService/*]}
  echo:
    run: "true"
    replicas: 1
    serves: [EchoService]
    traffic:
      rate_limit:
        requests: 6
        per: 1h
        callers: {batch: {requests: 2, per: 1h, burst: 3}, gateway: {requests: 4, per: 1h}}
      methods:
        EchoService/Quick: {rate_limit: {requests: 20, per: 1s, burst: 5}}
gateway:
  listen: 127.0.0.1:8080
  expose: {echo: [EchoService/*]}
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def envoys(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Envoys]:
    running = Envoys(tmp_path_factory.mktemp("rates"), MANIFEST, PROTO)
    try:
        await running.start()
        yield running
    finally:
        await running.stop()


@pytest.mark.parametrize(
    ("caller", "burst", "wait_s"), [("front-0", 6, 600), ("batch-0", 3, 1800), ("gateway", 4, 900)]
)
async def test_each_caller_has_its_own_bucket_of_each_method_and_is_told_its_own_time(
    envoys: Envoys, caller: str, burst: int, wait_s: int
) -> None:
    async with envoys.channel(caller) as channel:
        for method in (SAY, OTHER):
            before = executions(envoys.applications.values(), method)
            assert codes(await at_once(channel, method, 10)) == {"OK": burst, "RESOURCE_EXHAUSTED": 10 - burst}
            assert executions(envoys.applications.values(), method) == before + burst
            refused = await failure(channel, method)
            assert refused.details() == f"more than {3600 // wait_s} calls of this method in 1h"
            assert dict(refused.trailing_metadata())["grpc-retry-pushback-ms"] == str(wait_s * 1_000)
            assert retry_delay_s(refused) == wait_s


def retry_delay_s(error: grpc.aio.AioRpcError) -> int:
    """The time in google.rpc.RetryInfo, read as clients do."""
    status = rpc_status.from_call(error)
    assert status is not None
    assert status.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
    [detail] = status.details
    retry = error_details_pb2.RetryInfo()
    assert detail.Unpack(retry)
    return int(retry.retry_delay.seconds)


async def test_tokens_come_back_one_by_one_and_not_beyond_the_burst(envoys: Envoys) -> None:
    """A burst below the rate spreads the calls; it does not lower the rate."""
    async with envoys.channel("front-0") as channel:
        for _ in range(2):
            began = time.monotonic()
            outcomes = await at_once(channel, QUICK, 40)
            assert 5 <= codes(outcomes)["OK"] <= 5 + 20 * (time.monotonic() - began) + 1
            await asyncio.sleep(1)  # four times what fills the bucket
        await at_once(channel, QUICK, 20)
        began = time.monotonic()
        outcomes = []
        while time.monotonic() < began + 1.5:
            outcomes.append(await attempt(channel, QUICK))
    assert 10 < codes(outcomes)["OK"] <= 20 * (time.monotonic() - began) + 6, codes(outcomes)


async def test_mesh_callers_do_not_repeat_what_is_beyond_their_rate(envoys: Envoys) -> None:
    retries = envoys.stat("front-0", r"cluster.outbound_echo.upstream_rq_retry$")
    async with envoys.channel("front-0") as channel:
        await at_once(channel, SAY, 20)
        outcomes = await at_once(channel, SAY, 20)
        # A push-back of 50 ms, which would be waited out if it came from the application.
        hasty = await at_once(channel, QUICK, 40)
    assert codes(outcomes) == {"RESOURCE_EXHAUSTED": 20}
    assert codes(hasty)["RESOURCE_EXHAUSTED"] > 10
    assert envoys.stat("front-0", r"cluster.outbound_echo.upstream_rq_retry$") == retries


async def test_nobody_can_take_from_the_bucket_of_another(envoys: Envoys) -> None:
    async with envoys.channel("batch-0") as channel:
        await at_once(channel, SAY, 20)
        forged = (("x-forwarded-client-cert", f"URI={envoys.identity('front-0')}"),)
        assert (await failure(channel, SAY, metadata=forged)).code() is grpc.StatusCode.RESOURCE_EXHAUSTED

"""Where settings are written, on real Envoys: mesh, service, `Service/*`, method and edge; and limits of request sizes."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest
import pytest_asyncio

from support.envoys import Envoys
from support.outcomes import attempt, executions

pytestmark = [pytest.mark.mesh, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
TOO_LONG = "the request is longer than the manifest allows"

PROTO = """
syntax = "proto3";
package echo.v1;
message Text { string text = 1; }
service PlainService { rpc Say(Text) returns (Text) { option idempotency_level = NO_SIDE_EFFECTS; } }
service SideService { rpc Say(Text) returns (Text) { option idempotency_level = NO_SIDE_EFFECTS; } }
service EchoService {
  rpc Wild(Text) returns (Text) { option idempotency_level = NO_SIDE_EFFECTS; }
  rpc Method(Text) returns (Text) { option idempotency_level = NO_SIDE_EFFECTS; }
  rpc Edge(Text) returns (Text) { option idempotency_level = NO_SIDE_EFFECTS; }
  rpc Large(Text) returns (Text) { option idempotency_level = NO_SIDE_EFFECTS; }
  rpc Watch(Text) returns (stream Text) { option idempotency_level = NO_SIDE_EFFECTS; }
}
service TinyService { rpc Say(Text) returns (Text) { option idempotency_level = NO_SIDE_EFFECTS; } }
service FrontService { rpc Say(Text) returns (Text); }
"""
MANIFEST = """
mesh: test
protos: [protos]
traffic:
  deadline: 40s
  retries: {attempts: 0}
  max_request_bytes: 300000
  faults: {abort: {code: DATA_LOSS}, headers: {x-chaos: please}}
  outlier_detection: {max_ejection_percent: 0}
services:
  front:
    run: "true"
    replicas: 1
    serves: [FrontService]
    calls:
      plain: [PlainService/*]
      tiny: [TinyService/*]
      echo:
        methods: [SideService/*, EchoService/*]
        traffic:
          deadline: 20s
          retries: {attempts: 2}
          methods:
            EchoService/Edge: {deadline: 8s, retries: {attempts: 0}}
  plain:
    run: "true"
    replicas: 1
    serves: [PlainService]
  tiny:
    run: "true"
    replicas: 1
    serves: [TinyService]
    traffic: {max_request_bytes: 2}
  echo:
    run: "true"
    replicas: 1
    serves: [SideService, EchoService]
    traffic:
      deadline: 32s
      retries: {attempts: 1}
      faults: {abort: {code: ABORTED}, headers: {x-chaos: please}}
      methods:
        EchoService/*: {deadline: 24s, retries: {attempts: 2}}
        EchoService/Method: {deadline: 16s, retries: {attempts: 3}}
        EchoService/Edge: {deadline: 16s, retries: {attempts: 3}}
        EchoService/Large: {max_request_bytes: 2500000}
gateway:
  listen: 127.0.0.1:8080
  expose: {plain: [PlainService/*], echo: [SideService/*, EchoService/*]}
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def envoys(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Envoys]:
    running = Envoys(tmp_path_factory.mktemp("levels"), MANIFEST, PROTO)
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
    async with envoys.channel("front-0") as channel:
        yield channel


async def unavailable(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
    await context.abort(grpc.StatusCode.UNAVAILABLE, "not now")


@pytest.mark.parametrize(
    ("caller", "method", "deadline_s", "attempts"),
    [
        ("gateway", "PlainService/Say", 40, 1),
        ("gateway", "SideService/Say", 32, 2),
        ("gateway", "EchoService/Wild", 24, 3),
        ("gateway", "EchoService/Method", 16, 4),
        ("gateway", "EchoService/Edge", 16, 4),
        ("front-0", "PlainService/Say", 40, 1),
        ("front-0", "SideService/Say", 20, 2),
        ("front-0", "EchoService/Wild", 20, 3),
        ("front-0", "EchoService/Method", 16, 3),
        ("front-0", "EchoService/Edge", 8, 1),
    ],
)
async def test_the_closest_setting_holds_and_an_edge_only_tightens_it(
    envoys: Envoys, channel: grpc.aio.Channel, caller: str, method: str, deadline_s: int, attempts: int
) -> None:
    for application in envoys.applications.values():
        application.handlers[f"/echo.v1.{method}"] = unavailable
    async with envoys.channel(caller) as calls:
        outcome = await attempt(calls, method)
    assert outcome.code is grpc.StatusCode.UNAVAILABLE
    assert executions(envoys.applications.values(), method) == attempts
    seen = [metadata for application in envoys.applications.values() for _, metadata in application.seen]
    first = float(seen[0]["time-remaining"])
    assert deadline_s - 4 < first <= deadline_s


async def test_the_faults_of_a_service_replace_those_of_the_mesh(envoys: Envoys, channel: grpc.aio.Channel) -> None:
    for method, code in (("PlainService/Say", "DATA_LOSS"), ("SideService/Say", "ABORTED")):
        disturbed = await attempt(channel, method, metadata=(("x-chaos", "please"),))
        assert disturbed.code.name == code
        assert (await attempt(channel, method)).code is grpc.StatusCode.OK


@pytest.mark.parametrize(
    ("method", "size", "code"),
    [
        ("PlainService/Say", 10, grpc.StatusCode.OK),
        ("PlainService/Say", 250_000, grpc.StatusCode.OK),
        ("PlainService/Say", 300_000, grpc.StatusCode.OK),
        ("PlainService/Say", 300_001, EXHAUSTED),
        ("PlainService/Say", 6_000_000, EXHAUSTED),
        ("EchoService/Large", 2_400_000, grpc.StatusCode.OK),
        ("EchoService/Large", 2_600_000, EXHAUSTED),
        ("TinyService/Say", 2, grpc.StatusCode.OK),
        ("TinyService/Say", 3, EXHAUSTED),
    ],
)
async def test_requests_beyond_the_limit_end_before_the_application_sees_them(
    envoys: Envoys, channel: grpc.aio.Channel, method: str, size: int, code: grpc.StatusCode
) -> None:
    outcome = await attempt(channel, method, request=b"x" * size, timeout=20)
    assert outcome.code is code, outcome
    assert code is not EXHAUSTED or outcome.details == TOO_LONG
    assert executions(envoys.applications.values(), method) == (code is grpc.StatusCode.OK)


async def test_a_stream_begins_with_a_request_of_the_same_limit(envoys: Envoys, channel: grpc.aio.Channel) -> None:
    small = channel.unary_stream("/echo.v1.EchoService/Watch")(b"x" * 1_000, timeout=20)
    assert await small.read() == b"x" * 1_000
    small.cancel()
    large = channel.unary_stream("/echo.v1.EchoService/Watch")(b"x" * 400_000, timeout=20)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await large.read()
    assert (caught.value.code(), caught.value.details()) == (EXHAUSTED, TOO_LONG)
    assert executions(envoys.applications.values(), "EchoService/Watch") == 1


async def test_health_checks_have_no_such_limit(envoys: Envoys) -> None:
    assert envoys.stat("front-0", "cluster.outbound_tiny.membership_healthy") == 1, "though 2 bytes are allowed"

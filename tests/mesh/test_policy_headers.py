"""Headers on real Envoys: set, added and removed on the way to a service and back, whatever their values look like."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest
import pytest_asyncio

from support.envoys import Envoys

pytestmark = [pytest.mark.mesh, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]
TEXT = b"\x0a\x02hi"
SENT = (("x-team", "client"), ("x-hop", "client"), ("x-debug", "1"), ("x-kept", "1"))
ANSWERED = (("x-shown", "app"), ("x-more", "app"), ("x-internal", "1"), ("x-kept", "1"))
LAST = (("x-internal", "1"), ("x-kept-trailer", "1"))

PROTO = """
syntax = "proto3";
package echo.v1;
message Text { string text = 1; }
service EchoService {
  rpc Say(Text) returns (Text) { option idempotency_level = NO_SIDE_EFFECTS; }
  rpc Own(Text) returns (Text) { option idempotency_level = NO_SIDE_EFFECTS; }
  rpc Fail(Text) returns (Text) { option idempotency_level = NO_SIDE_EFFECTS; }
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
    calls: {echo: [EchoService/*]}
  echo:
    run: "true"
    replicas: 1
    serves: [EchoService]
    traffic:
      headers:
        request:
          set: {x-team: "orders 100%", x-formula: "%REQ(:path)% %PROTOCOL% 5%%"}
          add: {x-hop: mesh}
          remove: [x-debug]
        response:
          set: {x-shown: "50% off"}
          add: {x-more: mesh}
          remove: [x-internal]
      methods:
        EchoService/Own: {headers: {request: {set: {x-own: "yes"}}}}
gateway:
  listen: 127.0.0.1:8080
  expose: {echo: [EchoService/*]}
"""

Metadata = list[tuple[str, str]]


class Recorder:
    """An application that writes down what it is sent, and answers with headers of its own."""

    def __init__(self) -> None:
        self.sent: Metadata = []

    async def __call__(self, request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        self.sent = [(key, str(value)) for key, value in context.invocation_metadata() or ()]
        await context.send_initial_metadata(ANSWERED)
        context.set_trailing_metadata(LAST)
        return request

    def values(self, name: str) -> list[str]:
        return values(self.sent, name)


def values(metadata: Metadata, name: str) -> list[str]:
    """All values of a header, however they came."""
    return [part for key, value in metadata if key == name for part in value.split(",")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def envoys(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Envoys]:
    running = Envoys(tmp_path_factory.mktemp("headers"), MANIFEST, PROTO)
    try:
        await running.start()
        yield running
    finally:
        await running.stop()


async def exchange(envoys: Envoys, caller: str, method: str) -> tuple[Recorder, Metadata, Metadata]:
    """One call: what the service was sent, and the headers and trailers that came back."""
    recorder = Recorder()
    envoys.applications["echo-0"].handlers[f"/echo.v1.EchoService/{method}"] = recorder
    async with envoys.channel(caller) as channel:
        running = channel.unary_unary(f"/echo.v1.EchoService/{method}")(TEXT, metadata=SENT, timeout=10)
        assert await running == TEXT
        return recorder, list(await running.initial_metadata()), list(await running.trailing_metadata())


@pytest.mark.parametrize("caller", ["front-0", "gateway"])
async def test_headers_of_requests_are_set_added_and_removed(envoys: Envoys, caller: str) -> None:
    recorder, _, _ = await exchange(envoys, caller, "Say")
    assert recorder.values("x-team") == ["orders 100%"]
    assert recorder.values("x-formula") == ["%REQ(:path)% %PROTOCOL% 5%%"], "values are taken literally"
    assert recorder.values("x-hop") == ["client", "mesh"]
    assert recorder.values("x-debug") == []
    assert recorder.values("x-kept") == ["1"]


@pytest.mark.parametrize("caller", ["front-0", "gateway"])
async def test_headers_of_answers_are_set_added_and_removed_also_behind_the_last_message(
    envoys: Envoys, caller: str
) -> None:
    _, headers, trailers = await exchange(envoys, caller, "Say")
    assert values(headers, "x-shown") == ["50% off"]
    assert values(headers, "x-more") == ["app", "mesh"]
    assert values(headers, "x-internal") == []
    assert values(headers, "x-kept") == ["1"]
    assert values(trailers, "x-internal") == []
    assert values(trailers, "x-kept-trailer") == ["1"]


async def test_an_answer_that_is_nothing_but_a_status_is_treated_alike(envoys: Envoys) -> None:
    async def fail(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        await context.abort(grpc.StatusCode.NOT_FOUND, "nothing", LAST)

    envoys.applications["echo-0"].handlers["/echo.v1.EchoService/Fail"] = fail
    async with envoys.channel("front-0") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/echo.v1.EchoService/Fail")(TEXT, timeout=10)
    metadata = [*caught.value.initial_metadata(), *caught.value.trailing_metadata()]
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.NOT_FOUND, "nothing")
    assert values(metadata, "x-internal") == []
    assert values(metadata, "x-kept-trailer") == ["1"]
    assert values(metadata, "x-shown") == ["50% off"]


async def test_what_a_method_sets_replaces_what_its_service_sets_and_leaves_the_rest(envoys: Envoys) -> None:
    recorder, headers, _ = await exchange(envoys, "front-0", "Own")
    assert recorder.values("x-own") == ["yes"]
    assert recorder.values("x-team") == ["client"]
    assert recorder.values("x-hop") == ["client", "mesh"]
    assert values(headers, "x-shown") == ["50% off"]


async def test_the_headers_of_the_mesh_itself_reach_no_caller(envoys: Envoys) -> None:
    for caller in ("front-0", "gateway"):
        _, headers, trailers = await exchange(envoys, caller, "Say")
        assert [key for key, _ in (*headers, *trailers) if key.startswith(("x-nipmesh-", "x-envoy-"))] == []

"""What a client sees of the chassis: answers, errors, rules, deadlines; over a Unix socket."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.chassis import ChassisSettings, ServiceDefinition, reason_of, rich_status
from services.chassis.testing import as_gateway, as_service, as_user, running

USER = "ab" * 32
Definition = ServiceDefinition[ChassisSettings]


def field_violations(error: grpc.aio.AioRpcError) -> dict[str, str]:
    status = rich_status(error)
    assert status is not None
    bad = error_details_pb2.BadRequest()
    assert any(detail.Unpack(bad) for detail in status.details if detail.Is(bad.DESCRIPTOR))
    return {violation.field: violation.reason for violation in bad.field_violations}


async def consume(call: Any) -> list[Any]:
    return [each async for each in call]


async def failing(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asyncio.wait_for(call, 5)
    return caught.value


async def test_a_call_of_each_kind(definition: Definition, echo: SimpleNamespace, short_path: Path) -> None:
    request = echo.pb2.EchoRequest
    async with running(definition, short_path) as (_, channel):
        stub = echo.grpc.EchoServiceStub(channel)
        assert (await stub.Echo(request(text="hi"))).text == "hi"
        assert [each.text async for each in stub.Count(request(text="x"), metadata=as_user(USER))] == ["0", "1", "2"]
        assert (await stub.Collect(iter([request(text="a"), request(text="b")]))).text == "ab"
        assert [each.text async for each in stub.Chat(iter([request(text="a"), request(text="b")]))] == ["a", "b"]


async def test_every_answer_says_how_busy_the_replica_is(
    definition: Definition, echo: SimpleNamespace, short_path: Path
) -> None:
    async with running(definition, short_path) as (_, channel):
        stub = echo.grpc.EchoServiceStub(channel)
        unary, stream = stub.Echo(echo.pb2.EchoRequest(text="x")), stub.Chat(iter([echo.pb2.EchoRequest(text="a")]))
        await unary
        await consume(stream)
        trailers = [dict(await call.trailing_metadata() or ()) for call in (unary, stream)]
        error = await failing(stub.Echo(echo.pb2.EchoRequest(text="x", mode="error")))
        check = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        await check
        quiet = dict(await check.trailing_metadata() or ())
    for trailer in (*trailers, dict(error.trailing_metadata() or ())):
        assert str(trailer["endpoint-load-metrics"]).startswith("TEXT cpu_utilization=")
    assert "endpoint-load-metrics" not in quiet


async def test_an_uncaught_exception_says_nothing(
    definition: Definition, echo: SimpleNamespace, short_path: Path
) -> None:
    async with running(definition, short_path) as (_, channel):
        stub = echo.grpc.EchoServiceStub(channel)
        error = await failing(stub.Echo(echo.pb2.EchoRequest(text="x", mode="crash")))
    assert error.code() is grpc.StatusCode.INTERNAL
    assert reason_of(error) == "INTERNAL"
    assert "nsec" not in str(error)
    assert "ValueError" not in str(error)


async def test_a_stream_that_fails_later_says_nothing(
    definition: Definition, echo: SimpleNamespace, short_path: Path
) -> None:
    async with running(definition, short_path) as (_, channel):
        call = echo.grpc.EchoServiceStub(channel).Count(
            echo.pb2.EchoRequest(text="x", mode="fail_later"), metadata=as_user(USER)
        )
        assert [(await call.read()).text for _ in range(3)] == ["0", "1", "2"]
        error = await failing(call.read())
    assert error.code() is grpc.StatusCode.INTERNAL
    assert "boom" not in str(error)


async def test_a_service_error_arrives_whole(definition: Definition, echo: SimpleNamespace, short_path: Path) -> None:
    async with running(definition, short_path) as (_, channel):
        error = await failing(echo.grpc.EchoServiceStub(channel).Echo(echo.pb2.EchoRequest(text="x", mode="error")))
    status = rich_status(error)
    info = error_details_pb2.ErrorInfo()
    assert status is not None
    assert status.details[0].Unpack(info)
    assert (error.code(), info.domain, info.reason, dict(info.metadata)) == (
        grpc.StatusCode.NOT_FOUND,
        "nipmesh",
        "INVOICE_NOT_FOUND",
        {"invoice": "7"},
    )


async def test_a_failed_dependency_is_told_to_the_sidecars(
    definition: Definition, echo: SimpleNamespace, short_path: Path
) -> None:
    async with running(definition, short_path) as (_, channel):
        error = await failing(
            echo.grpc.EchoServiceStub(channel).Echo(echo.pb2.EchoRequest(text="x", mode="dependency"))
        )
        own = await failing(echo.grpc.EchoServiceStub(channel).Echo(echo.pb2.EchoRequest(text="x", mode="error")))
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.UNAVAILABLE, "BACKEND_UNAVAILABLE")
    assert dict(error.trailing_metadata() or ())["x-nipmesh-dependency-failed"] == "true"
    assert dict(error.trailing_metadata() or ())["grpc-retry-pushback-ms"] == "-1"
    assert "x-nipmesh-dependency-failed" not in dict(own.trailing_metadata() or ())


async def test_violations_name_their_fields(definition: Definition, echo: SimpleNamespace, short_path: Path) -> None:
    request = echo.pb2.EchoRequest(sleep_ms=-1, items=[{"name": "ok"}, {"name": "long"}], named={"k": {"name": "long"}})
    async with running(definition, short_path) as (_, channel):
        error = await failing(echo.grpc.EchoServiceStub(channel).Echo(request))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert reason_of(error) == "REQUEST_INVALID"
    assert field_violations(error) == {
        "text": "STRING_MIN_LEN",
        "sleep_ms": "INT64_GTE",
        "items[1].name": "STRING_MAX_LEN",
        'named["k"].name': "STRING_MAX_LEN",
    }


async def test_messages_inside_a_stream_are_validated(
    definition: Definition, echo: SimpleNamespace, short_path: Path
) -> None:
    request = echo.pb2.EchoRequest
    async with running(definition, short_path) as (_, channel):
        error = await failing(echo.grpc.EchoServiceStub(channel).Collect(iter([request(text="a"), request()])))
    assert reason_of(error) == "REQUEST_INVALID"


@pytest.mark.parametrize("method", ["Echo", "Collect", "Count", "Chat"])
async def test_bytes_that_are_no_message_are_refused_at_once(
    definition: Definition, short_path: Path, method: str
) -> None:
    path = f"/chassistest.v1.EchoService/{method}"
    async with running(definition, short_path) as (_, channel):
        call: Any = channel.stream_stream(path)(iter([b"\x0a\xff"]), metadata=as_user(USER))
        error = await failing(consume(call))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("method", ["Echo", "Count"])
async def test_a_call_without_a_body_is_refused_at_once(definition: Definition, short_path: Path, method: str) -> None:
    async with running(definition, short_path) as (_, channel):
        call: Any = channel.stream_stream(f"/chassistest.v1.EchoService/{method}")(iter(()), metadata=as_user(USER))
        error = await failing(consume(call))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_an_oversized_message_is_refused(definition: Definition, echo: SimpleNamespace, short_path: Path) -> None:
    async with running(definition, short_path) as (_, channel):
        error = await failing(echo.grpc.EchoServiceStub(channel).Echo(echo.pb2.EchoRequest(text="x" * 4_300_000)))
        assert error.code() in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INVALID_ARGUMENT)
        assert (await echo.grpc.EchoServiceStub(channel).Echo(echo.pb2.EchoRequest(text="y"))).text == "y"


async def test_a_stray_cancellation_is_answered(
    definition: Definition, echo: SimpleNamespace, short_path: Path
) -> None:
    async with running(definition, short_path) as (_, channel):
        error = await failing(echo.grpc.EchoServiceStub(channel).Echo(echo.pb2.EchoRequest(text="x", mode="stray")))
    assert error.code() is grpc.StatusCode.INTERNAL


async def test_a_cancelled_call_cancels_the_servicer(
    definition: Definition, echo: SimpleNamespace, short_path: Path, calls: list[str]
) -> None:
    async with running(definition, short_path) as (app, channel):
        call = echo.grpc.EchoServiceStub(channel).Echo(echo.pb2.EchoRequest(text="x", mode="sleep", sleep_ms=9_000))
        while "echo sleep" not in calls:
            await asyncio.sleep(0.01)
        call.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await call
        while "cancelled" not in calls:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        labels = {"method": "/chassistest.v1.EchoService/Echo", "code": "CANCELLED"}
        assert app.registry.get_sample_value("nipmesh_server_calls_total", labels) == 1


async def test_a_passed_deadline_ends_the_servicer(
    definition: Definition, echo: SimpleNamespace, short_path: Path, calls: list[str]
) -> None:
    async with running(definition, short_path) as (_, channel):
        stub = echo.grpc.EchoServiceStub(channel)
        error = await failing(stub.Echo(echo.pb2.EchoRequest(text="x", mode="sleep", sleep_ms=9_000), timeout=0.2))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        while "cancelled" not in calls:
            await asyncio.sleep(0.01)
        assert (await stub.Echo(echo.pb2.EchoRequest(text="x"), timeout=3)).remaining_s == pytest.approx(3, abs=0.5)


@pytest.mark.parametrize(
    ("method", "metadata", "reason"),
    [
        ("Count", (), "NOT_AUTHENTICATED"),
        ("Count", as_gateway(), "NOT_AUTHENTICATED"),
        ("Count", (("x-nipmesh-subject", USER),), "NOT_AUTHENTICATED"),
        ("Count", (*as_service("payment"), ("x-nipmesh-subject", USER)), None),
        ("Count", as_service("nip"), "CALLER_NOT_ALLOWED"),
        ("Count", as_user(USER), None),
        ("Count", (*as_user(USER), ("x-nipmesh-subject", "cd" * 32)), "NOT_AUTHENTICATED"),
        ("Operate", as_user(USER), "OPERATOR_REQUIRED"),
        ("Operate", as_user(USER, role="operator"), None),
        ("Operate", (*as_service("payment"), ("x-nipmesh-role", "operator")), "CALLER_NOT_ALLOWED"),
        ("Internal", as_user(USER, role="operator"), "CALLER_NOT_ALLOWED"),
        ("Internal", as_service("payment"), None),
    ],
)
async def test_who_may_call(
    definition: Definition, echo: SimpleNamespace, short_path: Path, method: str, metadata: Any, reason: str | None
) -> None:
    async with running(definition, short_path) as (_, channel):
        stub = getattr(echo.grpc.EchoServiceStub(channel), method)
        call = stub(echo.pb2.EchoRequest(text="x"), metadata=metadata)
        try:
            _ = [each async for each in call] if method == "Count" else await call
            got = None
        except grpc.aio.AioRpcError as error:
            got = reason_of(error)
    assert got == reason


async def test_a_denied_call_is_not_even_decoded(definition: Definition, short_path: Path) -> None:
    async with running(definition, short_path) as (_, channel):
        call = channel.unary_unary("/chassistest.v1.EchoService/Operate")(b"\x0a\xff", metadata=as_user(USER))
        assert (await failing(call)).code() is grpc.StatusCode.PERMISSION_DENIED


async def test_an_unknown_method_is_unimplemented(definition: Definition, short_path: Path) -> None:
    async with running(definition, short_path) as (_, channel):
        error = await failing(channel.unary_unary("/chassistest.v1.EchoService/Nothing")(b""))
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_errors_before_the_first_message_are_trailers_only(
    definition: Definition, echo: SimpleNamespace, short_path: Path
) -> None:
    """Retries and outlier detection see only Trailers-Only errors: then the client gets no initial metadata of its own."""
    async with running(definition, short_path) as (_, channel):
        stub = echo.grpc.EchoServiceStub(channel)
        for mode in ("error", "crash"):
            call = stub.Echo(echo.pb2.EchoRequest(text="x", mode=mode))
            await failing(call)
            assert tuple(await call.initial_metadata()) == ()
        stream = stub.Count(echo.pb2.EchoRequest(text="x", mode="fail_first"), metadata=as_user(USER))
        with pytest.raises(grpc.aio.AioRpcError):
            await stream.read()
        assert tuple(await stream.initial_metadata()) == ()


async def test_health_per_service(definition: Definition, short_path: Path) -> None:
    async with running(definition, short_path) as (_, channel):
        stub = health_pb2_grpc.HealthStub(channel)
        for name in ("", "chassistest.v1.EchoService"):
            reply = await stub.Check(health_pb2.HealthCheckRequest(service=name))
            assert reply.status == health_pb2.HealthCheckResponse.SERVING
        error = await failing(stub.Check(health_pb2.HealthCheckRequest(service="other")))
        assert error.code() is grpc.StatusCode.NOT_FOUND


async def test_a_cancelled_stream_closes_its_generator_at_once(
    definition: Definition, echo: SimpleNamespace, short_path: Path, calls: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    async with running(definition, short_path) as (app, channel):
        call = echo.grpc.EchoServiceStub(channel).Count(
            echo.pb2.EchoRequest(text="x", mode="watch"), metadata=as_user(USER)
        )
        for _ in range(3):
            await call.read()
        call.cancel()
        async with asyncio.timeout(2):
            while "count closed" not in calls:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        labels = {"method": "/chassistest.v1.EchoService/Count"}
        assert app.registry.get_sample_value("nipmesh_server_calls_in_flight", labels) == 0
        assert app.registry.get_sample_value("nipmesh_server_calls_total", labels | {"code": "CANCELLED"}) == 1
    assert caplog.records == [], "no complaint about contexts that were left elsewhere"

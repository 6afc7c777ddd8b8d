"""An application's call through its sidecar and the callee's: what arrives, what is refused, what is repeated."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest
import pytest_asyncio

from support.envoys import Envoys, call, failure

pytestmark = [pytest.mark.mesh, pytest.mark.asyncio(loop_scope="module")]
SAY, ONCE = "/echo.v1.EchoService/Say", "/echo.v1.EchoService/Once"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def envoys(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Envoys]:
    running = Envoys(tmp_path_factory.mktemp("pair"))
    try:
        await running.start()
        yield running
    finally:
        await running.stop()


@pytest_asyncio.fixture(loop_scope="module")
async def front(envoys: Envoys) -> AsyncIterator[grpc.aio.Channel]:
    for application in envoys.applications.values():
        application.seen.clear()
        application.handlers.clear()
    active = "outbound_echo.outlier_detection.ejections_active"
    await envoys.until(lambda: envoys.stat("front-0", active) == 0, "ejected", 20)
    async with envoys.channel("front-0") as channel:
        yield channel


async def test_a_call_crosses_the_pair(envoys: Envoys, front: grpc.aio.Channel) -> None:
    for _ in range(20):
        assert await call(front, "EchoService/Say") == b"\x0a\x02hi"
    counts = [envoys.applications[name].count(SAY) for name in ("echo-0", "echo-1")]
    assert sum(counts) == 20
    assert min(counts) > 0, "one replica got every call"


async def test_the_application_sees_who_calls_and_nothing_that_was_made_up(
    envoys: Envoys, front: grpc.aio.Channel
) -> None:
    forged = (
        ("x-forwarded-client-cert", "URI=spiffe://test.mesh/gateway"),
        ("x-nipmesh-subject", "a" * 64),
        ("x-nipmesh-role", "operator"),
        ("x-envoy-max-retries", "9"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("x-custom", "kept"),
    )
    await call(front, "EchoService/Say", metadata=forged)
    _, metadata = next(seen for name in ("echo-0", "echo-1") for seen in envoys.applications[name].seen)
    element = dict(pair.split("=", 1) for pair in metadata["x-forwarded-client-cert"].split(";"))
    assert element["URI"] == "spiffe://test.mesh/service/front"
    assert metadata["x-custom"] == "kept"
    assert metadata["traceparent"].startswith("00-0af7651916cd43dd8448eb211c80319c-")
    assert not [name for name in metadata if name.startswith(("x-nipmesh-", "x-envoy-"))]


async def test_a_method_that_the_manifest_does_not_list_is_refused(front: grpc.aio.Channel) -> None:
    for method in ("EchoService/Hidden", "DeepService/Say", "/other.v1.Service/Method"):
        error = await failure(front, method)
        assert error.code() is grpc.StatusCode.PERMISSION_DENIED, method
        assert error.details() == "the manifest does not allow front to call this method"


async def test_a_dead_application_behind_a_living_sidecar_costs_no_call(
    envoys: Envoys, front: grpc.aio.Channel
) -> None:
    await envoys.applications["echo-0"].stop()
    try:
        for method in ("EchoService/Say", "EchoService/Once"):
            for _ in range(10):
                await call(front, method)
    finally:
        await envoys.applications["echo-0"].start()
        await envoys.until(lambda: envoys.healthy("front-0"), "echo-0 is not back", 20)
    assert envoys.applications["echo-1"].count(SAY) == 10
    assert envoys.applications["echo-1"].count(ONCE) == 10


async def refuse(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
    await context.abort(grpc.StatusCode.UNAVAILABLE, "busy")
    return b""


async def refuse_for_a_dependency(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
    await context.abort(
        grpc.StatusCode.UNAVAILABLE, "backend", trailing_metadata=(("x-nipmesh-dependency-failed", "true"),)
    )
    return b""


def executions(envoys: Envoys, path: str) -> int:
    return sum(envoys.applications[name].count(path) for name in ("echo-0", "echo-1"))


async def test_an_idempotent_method_is_repeated_elsewhere_when_a_replica_says_unavailable(
    envoys: Envoys, front: grpc.aio.Channel
) -> None:
    envoys.applications["echo-0"].handlers[SAY] = refuse
    for _ in range(4):
        await call(front, "EchoService/Say")
    assert envoys.applications["echo-1"].count(SAY) == 4


async def test_a_method_that_may_not_run_twice_runs_once(envoys: Envoys, front: grpc.aio.Channel) -> None:
    for name in ("echo-0", "echo-1"):
        envoys.applications[name].handlers[ONCE] = refuse
    error = await failure(front, "EchoService/Once")
    assert (error.code(), error.details()) == (grpc.StatusCode.UNAVAILABLE, "busy")
    assert executions(envoys, ONCE) == 1


async def test_unavailable_because_of_a_dependency_is_not_repeated(envoys: Envoys, front: grpc.aio.Channel) -> None:
    for name in ("echo-0", "echo-1"):
        envoys.applications[name].handlers[SAY] = refuse_for_a_dependency
    for count in range(1, 4):
        error = await failure(front, "EchoService/Say")
        assert (error.code(), error.details()) == (grpc.StatusCode.UNAVAILABLE, "backend")
        assert executions(envoys, SAY) == count


async def test_what_happened_between_sidecars_stays_between_them(envoys: Envoys, front: grpc.aio.Channel) -> None:
    for name in ("echo-0", "echo-1"):
        envoys.applications[name].handlers[ONCE] = lie
    error = await failure(front, "EchoService/Once")
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert executions(envoys, ONCE) == 1, "an application's own marker was believed"
    assert not [key for key, _ in error.trailing_metadata() or () if key.startswith("x-nipmesh-")]


async def lie(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
    await context.abort(
        grpc.StatusCode.UNAVAILABLE,
        "x",
        trailing_metadata=(
            ("x-nipmesh-not-delivered", "true"),
            ("x-nipmesh-reset", "true"),
            ("x-nipmesh-status", "14"),
        ),
    )
    return b""


async def hang(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
    await asyncio.sleep(30)
    return request


async def test_a_hang_ends_at_the_deadline_after_one_execution(envoys: Envoys, front: grpc.aio.Channel) -> None:
    for name in ("echo-0", "echo-1"):
        envoys.applications[name].handlers[SAY] = hang
    started = time.monotonic()
    error = await failure(front, "EchoService/Say", timeout=None)
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert 2.8 < time.monotonic() - started < 4
    assert executions(envoys, SAY) == 1


async def test_the_service_learns_the_callers_deadline_or_the_manifests(
    envoys: Envoys, front: grpc.aio.Channel
) -> None:
    for timeout, at_most in ((1.5, 1.5), (None, 3.0)):
        await call(front, "EchoService/Say", timeout=timeout)
        seen = [metadata for name in ("echo-0", "echo-1") for _, metadata in envoys.applications[name].seen]
        assert at_most - 0.5 < float(seen[-1]["time-remaining"]) < at_most + 0.1
        for name in ("echo-0", "echo-1"):
            envoys.applications[name].seen.clear()


async def test_a_replica_that_leaves_the_endpoints_gets_no_more_calls(envoys: Envoys, front: grpc.aio.Channel) -> None:
    envoys.rotate("echo-0", into=False)
    try:
        await envoys.until(lambda: envoys.stat("front-0", "outbound_echo.membership_total") == 1, "still two")
        for _ in range(10):
            await call(front, "EchoService/Say")
        assert envoys.applications["echo-0"].count(SAY) == 0
    finally:
        envoys.rotate("echo-0", into=True)
    await envoys.until(lambda: envoys.stat("front-0", "outbound_echo.membership_healthy") == 2, "not back")


async def test_a_sidecar_that_is_told_to_fail_its_health_checks_gets_no_more_calls(
    envoys: Envoys, front: grpc.aio.Channel
) -> None:
    envoys.admin("echo-0", "/healthcheck/fail", "POST")
    try:
        await envoys.until(lambda: envoys.stat("front-0", "outbound_echo.membership_healthy") == 1, "still healthy")
        for _ in range(10):
            await call(front, "EchoService/Say")
        assert envoys.applications["echo-0"].count(SAY) == 0
    finally:
        envoys.admin("echo-0", "/healthcheck/ok", "POST")
    await envoys.until(lambda: envoys.stat("front-0", "outbound_echo.membership_healthy") == 2, "not back")


async def test_one_of_two_replicas_that_fails_its_calls_is_ejected(envoys: Envoys, front: grpc.aio.Channel) -> None:
    envoys.applications["echo-0"].handlers[ONCE] = refuse
    answers = [await outcome(front) for _ in range(60)]
    assert 5 <= answers.count("UNAVAILABLE") <= 10
    assert answers[-10:] == ["OK"] * 10, answers
    assert envoys.stat("front-0", "outbound_echo.outlier_detection.ejections_active") == 1
    await envoys.until(
        lambda: envoys.stat("front-0", "outbound_echo.outlier_detection.ejections_active") == 0, "ejected for ever", 15
    )


async def outcome(channel: grpc.aio.Channel) -> str:
    try:
        await call(channel, "EchoService/Once")
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "OK"


async def test_access_logs_say_who_called_what_and_how_it_ended(envoys: Envoys, front: grpc.aio.Channel) -> None:
    await call(front, "EchoService/Say", metadata=(("authorization", "Bearer secret-token"),))
    await failure(front, "EchoService/Hidden")
    lines = [line for name in ("echo-0", "echo-1", "front-0") for line in envoys.log(name).splitlines()]
    assert any('"peer":"spiffe://test.mesh/service/front"' in line and SAY in line for line in lines)
    assert any('"grpc_status":"PermissionDenied"' in line for line in lines)
    assert not any("secret-token" in line for line in lines)
    assert not any("Health/Check" in line for line in lines)


async def test_calls_are_counted_per_method(envoys: Envoys, front: grpc.aio.Channel) -> None:
    await call(front, "EchoService/Say")
    assert envoys.stat("front-0", "grpc.echo.v1.EchoService.Say.total") >= 1
    await failure(front, "/made.up.Service/Method")
    assert envoys.stat("front-0", "made") == 0


async def test_a_message_that_is_too_large_is_refused_by_the_application(
    envoys: Envoys, front: grpc.aio.Channel
) -> None:
    size = 4 * 1024 * 1024
    assert len(await call(front, "EchoService/Once", b"a" * (size - 1024))) == size - 1024
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(front, "EchoService/Once", b"a" * (size + 1024))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_stream_outlives_the_deadlines_of_unary_calls(envoys: Envoys, front: grpc.aio.Channel) -> None:
    stream = front.unary_stream("/echo.v1.EchoService/Watch")(b"x")
    assert await stream.read() == b"x"
    await asyncio.sleep(4)
    assert not stream.done()
    stream.cancel()


async def test_envoy_has_nothing_to_complain_about(envoys: Envoys, front: grpc.aio.Channel) -> None:
    """Warnings at start (a deprecated field, a missing limit) and refused files would show here."""
    for name in ("front-0", "echo-0", "echo-1"):
        complaints = [line for line in envoys.log(name).splitlines() if line.startswith("[")]
        assert complaints == []
        counted = envoys.admin(name, "/stats?usedonly&filter=update_rejected|update_failure")
        assert [line for line in counted.splitlines() if not line.endswith(": 0")] == []

"""Start, drain and end: in this process, and as a process of its own that gets signals."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from services.chassis import ChassisSettings, ListenError, ServiceDefinition, reason_of
from services.chassis.testing import as_user, running

USER = "ab" * 32
Definition = ServiceDefinition[ChassisSettings]


async def test_in_flight_finishes_and_watches_end(
    definition: Definition, echo: SimpleNamespace, short_path: Path, calls: list[str]
) -> None:
    health: list[int] = []
    async with grpc.aio.insecure_channel(f"unix:{short_path}/app.sock") as channel:
        async with running(definition, short_path, drain_grace=5.0):
            stub = echo.grpc.EchoServiceStub(channel)
            slow = asyncio.ensure_future(stub.Echo(echo.pb2.EchoRequest(text="x", mode="sleep", sleep_ms=600)))
            watch = stub.Count(echo.pb2.EchoRequest(text="x", mode="watch"), metadata=as_user(USER))
            for _ in range(3):
                await watch.read()
            states = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            health.append((await states.read()).status)
            while "echo sleep" not in calls:
                await asyncio.sleep(0.01)
            start_s = time.monotonic()
        assert time.monotonic() - start_s < 2.0
        assert (await slow).text == "x"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await watch.read()
        assert reason_of(caught.value) == "SERVICE_DRAINING"
        while (state := await states.read()) is not grpc.aio.EOF:
            health.append(state.status)
    assert health == [1, 2]
    assert calls[-1] == "lifespan over"
    assert not (short_path / "app.sock").exists()


async def test_callers_that_heed_not_serving_lose_no_call(
    definition: Definition, echo: SimpleNamespace, short_path: Path
) -> None:
    stopped = asyncio.Event()
    finished: list[str] = []

    async def caller(stub: Any) -> None:
        while not stopped.is_set():
            finished.append((await stub.Echo(echo.pb2.EchoRequest(text="x", mode="sleep", sleep_ms=3))).text)

    async def heed(states: Any) -> None:
        while await states.read() is not grpc.aio.EOF:
            pass
        await asyncio.sleep(0.3)  # a health check's interval
        stopped.set()

    async with grpc.aio.insecure_channel(f"unix:{short_path}/app.sock") as channel:
        async with running(definition, short_path, drain_grace=5.0):
            stub = echo.grpc.EchoServiceStub(channel)
            states = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            work = [asyncio.ensure_future(caller(stub)) for _ in range(16)] + [asyncio.ensure_future(heed(states))]
            await asyncio.sleep(0.3)
            count = len(finished)
        await asyncio.gather(*work)
    assert len(finished) > count > 0


async def test_what_outlives_the_grace_is_cut(
    definition: Definition, echo: SimpleNamespace, short_path: Path, calls: list[str]
) -> None:
    async with grpc.aio.insecure_channel(f"unix:{short_path}/app.sock") as channel:
        async with running(definition, short_path, drain_grace=0.3):
            stub = echo.grpc.EchoServiceStub(channel)
            slow = asyncio.ensure_future(stub.Echo(echo.pb2.EchoRequest(text="x", mode="sleep", sleep_ms=60_000)))
            while "echo sleep" not in calls:
                await asyncio.sleep(0.01)
            start_s = time.monotonic()
        assert 0.2 < time.monotonic() - start_s < 2.0
        with pytest.raises(grpc.aio.AioRpcError):
            await slow
    assert "cancelled" in calls


async def test_background_tasks_are_closed_and_lose_the_call(
    definition: Definition, echo: SimpleNamespace, short_path: Path
) -> None:
    seen: list[str] = []

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            seen.append("closed")

    async with running(definition, short_path) as (app, _):
        app.spawn(work(), name="work")
        await asyncio.sleep(0)
    assert seen == ["closed"]


async def test_a_failed_background_task_is_noticed(definition: Definition, short_path: Path) -> None:
    async def work() -> None:
        raise ValueError("broken")

    async with running(definition, short_path) as (app, _):
        app.spawn(work(), name="work")
        await asyncio.wait_for(app.failed.wait(), 2)


async def test_no_task_is_left(definition: Definition, echo: SimpleNamespace, short_path: Path) -> None:
    before = asyncio.all_tasks()
    async with running(definition, short_path) as (_, channel):
        await echo.grpc.EchoServiceStub(channel).Echo(echo.pb2.EchoRequest(text="x"))
    await asyncio.sleep(0.05)
    assert asyncio.all_tasks() == before


async def test_the_socket_is_private(definition: Definition, short_path: Path) -> None:
    async with running(definition, short_path):
        assert stat.S_IMODE((short_path / "app.sock").stat().st_mode) == 0o600


async def test_a_live_socket_is_respected(definition: Definition, echo: SimpleNamespace, short_path: Path) -> None:
    async with running(definition, short_path) as (_, channel):
        with pytest.raises(ListenError, match="another process listens"):
            async with running(definition, short_path):
                raise AssertionError("listened twice")
        assert (await echo.grpc.EchoServiceStub(channel).Echo(echo.pb2.EchoRequest(text="x"))).text == "x"


async def test_an_open_directory_is_refused(definition: Definition, short_path: Path) -> None:
    (short_path / "open").mkdir(mode=0o755)
    (short_path / "open").chmod(0o755)
    with pytest.raises(ListenError, match="chmod 700"):
        async with running(definition, short_path, listen=f"unix:{short_path}/open/app.sock"):
            raise AssertionError("listened")


async def test_a_gap_in_the_access_table_stops_the_start(definition: Definition, short_path: Path) -> None:
    gap = ServiceDefinition(
        settings=definition.settings,
        access={key: value for key, value in definition.access.items() if not key.endswith("Chat")},
        lifespan=definition.lifespan,
    )
    with pytest.raises(Exception, match="EchoService/Chat"):
        async with running(gap, short_path):
            raise AssertionError("started")


@asynccontextmanager
async def process(echo: SimpleNamespace, folder: Path, **environment: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """The echo service as a process; killed at the end if it still runs."""
    folder.chmod(0o700)
    program = Path(__file__).parent / "echo_process.py"
    values = {"NIPMESH_LISTEN": f"unix:{folder}/app.sock", "NIPMESH_SERVICE": "echo", "NIPMESH_DRAIN_GRACE": "5"}
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        str(program),
        str(Path(echo.pb2.__file__).parent),
        env=dict(os.environ) | {"PYTHONPATH": f"{Path.cwd()}/protos:{Path.cwd()}"} | values | environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield child
    finally:
        if child.returncode is None:
            child.kill()
        await child.communicate()


async def call_when_up(echo: SimpleNamespace, channel: grpc.aio.Channel, **fields: Any) -> Any:
    stub = echo.grpc.EchoServiceStub(channel)
    return await stub.Echo(echo.pb2.EchoRequest(text="x", **fields), wait_for_ready=True, timeout=20)


async def test_sigterm_drains_and_exits_0(echo: SimpleNamespace, short_path: Path) -> None:
    target = f"unix:{short_path}/app.sock"
    async with process(echo, short_path) as child, grpc.aio.insecure_channel(target) as channel:
        await call_when_up(echo, channel)
        slow = asyncio.ensure_future(call_when_up(echo, channel, mode="sleep", sleep_ms=700))
        await asyncio.sleep(0.2)
        child.send_signal(signal.SIGTERM)
        assert (await slow).text == "x"
        out, err = await asyncio.wait_for(child.communicate(), 5)
    assert child.returncode == 0
    assert err == b""
    lines = [json.loads(line) for line in out.decode().splitlines()]
    logged = [line for line in lines if line["event"] == "call"]
    assert {line["code"] for line in logged} == {"OK"}
    assert all(
        len(line["trace_id"]) == 32 and len(line["span_id"]) == 16 and line["duration_ms"] >= 0 for line in logged
    )
    assert [line["event"] for line in lines if line["component"] == "chassis"] == ["serving", "draining", "stopped"]


async def test_a_second_signal_cuts_the_grace(echo: SimpleNamespace, short_path: Path) -> None:
    target = f"unix:{short_path}/app.sock"
    async with (
        process(echo, short_path, NIPMESH_DRAIN_GRACE="30") as child,
        grpc.aio.insecure_channel(target) as channel,
    ):
        await call_when_up(echo, channel)
        slow = asyncio.ensure_future(call_when_up(echo, channel, mode="sleep", sleep_ms=60_000))
        await asyncio.sleep(0.2)
        child.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.2)
        assert child.returncode is None
        child.send_signal(signal.SIGINT)
        await asyncio.wait_for(child.communicate(), 15)  # half of the grace, and enough for a busy machine
        await asyncio.gather(slow, return_exceptions=True)
    assert child.returncode == 0


async def test_wrong_settings_exit_2_and_name_the_variable(echo: SimpleNamespace, short_path: Path) -> None:
    async with process(echo, short_path, NIPMESH_DRAIN_GRACE="soon", NIPMESH_REPLICA="-1") as child:
        _, err = await child.communicate()
    assert child.returncode == 2
    assert b"NIPMESH_DRAIN_GRACE" in err
    assert b"NIPMESH_REPLICA" in err
    assert b"Traceback" not in err


async def test_a_killed_process_leaves_a_socket_that_the_next_removes(echo: SimpleNamespace, short_path: Path) -> None:
    for _ in range(2):
        async with (
            process(echo, short_path) as child,
            grpc.aio.insecure_channel(f"unix:{short_path}/app.sock") as channel,
        ):
            await call_when_up(echo, channel)
            child.kill()
            await child.wait()
        assert (short_path / "app.sock").exists()


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """A real OTLP receiver that keeps what it gets."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.service = ""

    async def Export(self, request: Any, context: Any) -> Any:
        for resource in request.resource_spans:
            attributes = {each.key: each.value.string_value for each in resource.resource.attributes}
            self.service = attributes["service.name"]
            self.names += [span.name for scope in resource.scope_spans for span in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()


async def test_spans_are_flushed_at_the_end(echo: SimpleNamespace, short_path: Path) -> None:
    collector, server = Collector(), grpc.aio.server()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    target = f"unix:{short_path}/app.sock"
    endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}", "OTEL_SERVICE_NAME": "echo"}
    async with process(echo, short_path, **endpoint) as child, grpc.aio.insecure_channel(target) as channel:
        await call_when_up(echo, channel)
        child.send_signal(signal.SIGTERM)
        await asyncio.wait_for(child.communicate(), 5)
    await server.stop(0)
    assert child.returncode == 0
    assert any(name.endswith("EchoService/Echo") for name in collector.names)
    assert collector.service == "echo"


async def test_an_absent_collector_does_not_hold_up_the_end(echo: SimpleNamespace, short_path: Path) -> None:
    target = f"unix:{short_path}/app.sock"
    endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
    async with process(echo, short_path, **endpoint) as child, grpc.aio.insecure_channel(target) as channel:
        await call_when_up(echo, channel)
        start_s = time.monotonic()
        child.send_signal(signal.SIGTERM)
        await asyncio.wait_for(child.communicate(), 20)
        assert time.monotonic() - start_s < 6
    assert child.returncode == 0

"""The runner when something goes wrong, each test with a mesh of its own: kills, taken ports, crashes, renewals."""

import asyncio
import datetime as dt
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from mesh.runner_support import EchoMesh, Load, is_alive, say, until

pytestmark = [pytest.mark.mesh, pytest.mark.timeout(60)]


@pytest.fixture
def stopped(tmp_path: Path) -> Iterator[EchoMesh]:
    """A mesh that the test starts itself."""
    mesh = EchoMesh(folder=tmp_path)
    mesh.write()
    yield mesh
    mesh.run("down", expect=None)


def test_a_killed_supervisor_leaves_nothing_and_the_next_up_works(stopped: EchoMesh) -> None:
    stopped.run("up", "--detach")
    traces = stopped.traces()
    os.kill(stopped.status()["pid"], signal.SIGKILL)
    traces.until_gone()
    assert stopped.status(expect=3)["state"] == "not running"
    stopped.run("up", "--detach")
    traces = stopped.traces()
    stopped.run("down")
    assert traces.left() == []
    assert "not running" in stopped.run("down").stdout


def test_supervisor_and_reaper_killed_together_are_swept_by_the_next_up(stopped: EchoMesh) -> None:
    stopped.run("up", "--detach")
    traces = stopped.traces()
    supervisor = stopped.status()["pid"]
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    reapers = [int(pid) for pid in children if b"reaper.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert len(reapers) == 1
    os.kill(reapers[0], signal.SIGKILL)
    os.kill(supervisor, signal.SIGKILL)
    time.sleep(0.5)
    assert not any(is_alive(pid) for pid in traces.pids), "the kernel ends children with their parent"
    assert traces.left(), "without the reaper the folder stays"
    stopped.run("up", "--detach")
    stopped.run("down")
    assert traces.left() == []


def test_a_taken_gateway_port_is_a_clear_error_and_can_be_overridden(stopped: EchoMesh) -> None:
    with socket.create_server(("127.0.0.1", stopped.port)):
        started = time.monotonic()
        refused = stopped.run("up", "--detach", expect=1).stderr
        assert time.monotonic() - started < 10
        assert f"127.0.0.1:{stopped.port}" in refused
        assert "--gateway-listen" in refused
        assert not list((stopped.folder / ".nipmesh" / "runs").glob("*"))
        other = EchoMesh(folder=stopped.folder)
        stopped.run("up", "--detach", "--gateway-listen", f"127.0.0.1:{other.port}")
        assert stopped.status()["gateway"]["address"] == f"127.0.0.1:{other.port}"
    stopped.run("down")


def test_an_application_that_dies_at_start_fails_the_up_with_its_last_words(tmp_path: Path) -> None:
    mesh = EchoMesh(folder=tmp_path, echo_env={"ECHO_CRASH": "1"})
    mesh.write()
    refused = mesh.run("up", "--detach", expect=1).stderr
    assert "echo crashes on request" in refused
    assert "echo-" in refused
    assert mesh.status(expect=3)["state"] == "not running"
    assert not list((tmp_path / ".nipmesh" / "runs").glob("*"))


def test_an_application_that_is_too_slow_fails_the_up(tmp_path: Path) -> None:
    mesh = EchoMesh(folder=tmp_path, echo_env={"ECHO_DELAY_S": "30"})
    mesh.write()
    refused = mesh.run("up", "--detach", "--timeout", "2", expect=1).stderr
    assert "not ready within 2 s" in refused
    assert "its app is starting" in refused


def test_a_manifest_with_errors_starts_nothing(tmp_path: Path) -> None:
    (tmp_path / "mesh.yaml").write_text("mesh: x\nservicse: {}\n")
    mesh = EchoMesh(folder=tmp_path)
    refused = mesh.run("up", "--detach", expect=1).stderr
    assert "mesh.yaml:2:1: error[NM" in refused


def test_in_the_foreground_each_event_is_a_line_and_ctrl_c_drains(stopped: EchoMesh) -> None:
    process = subprocess.Popen(stopped.command("up"), stdout=subprocess.PIPE, text=True, env=stopped.environment)
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "ready: all replicas are ready" in line:
            break
    traces = stopped.traces()
    process.send_signal(signal.SIGINT)
    rest = process.stdout.read()
    process.stdout.close()
    assert process.wait(20) == 0
    assert traces.left() == []
    assert "nothing is left behind" in rest
    assert sum("sidecar" in line and "ready: after" in line for line in lines) == 4


async def test_a_second_ctrl_c_does_not_wait(stopped: EchoMesh) -> None:
    stopped.run("up", "--detach")
    traces = stopped.traces()
    pid = stopped.status()["pid"]
    async with stopped.channel() as channel:
        call = asyncio.create_task(say(channel, "sleep 8000", timeout_s=20))
        await asyncio.sleep(0.3)
        os.kill(pid, signal.SIGINT)
        await asyncio.sleep(0.3)
        os.kill(pid, signal.SIGINT)
        started = time.monotonic()
        with pytest.raises(grpc.aio.AioRpcError):
            await call
    traces.until_gone(3)
    assert time.monotonic() - started < 5


async def test_certificates_are_renewed_under_load(tmp_path: Path) -> None:
    mesh = EchoMesh(folder=tmp_path, lifetime="10s")
    mesh.write()
    await asyncio.to_thread(mesh.run, "up", "--detach")
    first = mesh.status()
    async with Load(mesh=mesh, callers=4) as load:
        await asyncio.sleep(13)
    second = mesh.status()
    await asyncio.to_thread(mesh.run, "down")
    assert load.failed == []
    for name in ("echo", "front"):
        before, after = (document["services"][name]["replicas"][0] for document in (first, second))
        assert after["certificate_expiry"] > before["certificate_expiry"]
        assert dt.datetime.fromisoformat(before["certificate_expiry"]) < dt.datetime.now(dt.UTC)
        assert (after["pid"], after["sidecar_pid"]) == (before["pid"], before["sidecar_pid"])


async def test_a_replica_that_cannot_start_is_rolled_back(tmp_path: Path) -> None:
    mesh = EchoMesh(folder=tmp_path, echo_env={"ECHO_CRASH_FROM": "2"})
    mesh.write()
    await asyncio.to_thread(mesh.run, "up", "--detach")
    async with Load(mesh=mesh, callers=4) as load:
        failed = await asyncio.to_thread(mesh.run, "scale", "echo", "3", expect=1)
    assert "echo crashes on request" in failed.stderr
    assert load.failed == []
    assert [replica["name"] for replica in mesh.replicas()] == ["echo-0", "echo-1"]
    assert mesh.status()["state"] == "ready"
    traces = mesh.traces()
    os.kill(mesh.status()["pid"], signal.SIGTERM)
    await asyncio.to_thread(traces.until_gone)


async def test_a_restart_takes_nothing_away_while_another_replica_is_broken(tmp_path: Path) -> None:
    mesh = EchoMesh(folder=tmp_path)
    mesh.write()
    await asyncio.to_thread(mesh.run, "up", "--detach")
    broken = mesh.replicas()[0]
    os.kill(broken["pid"], signal.SIGSTOP)
    await until(lambda: not mesh.replicas()[0]["in_rotation"], timeout_s=30)
    async with mesh.channel() as channel:
        assert (await say(channel, "hello")).startswith("echo-1 ")
    assert mesh.status(expect=1)["state"] == "not ready"
    healthy = mesh.replicas()[1]["pid"]
    restarted = await asyncio.to_thread(mesh.run, "restart", "echo")
    assert "echo restarted" in restarted.stdout
    assert mesh.replicas()[0]["pid"] != broken["pid"]
    assert mesh.replicas()[1]["pid"] != healthy
    assert mesh.status()["state"] == "ready"
    mesh.run("down")

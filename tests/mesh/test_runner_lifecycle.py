"""The runner with real Envoys: up, status, deaths, and that nothing is ever left behind."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from mesh.runner_support import RELAY, EchoMesh, Load, is_alive, say, until

pytestmark = [pytest.mark.mesh, pytest.mark.timeout(60)]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EchoMesh]:
    """A mesh that several tests look at and leave as it was."""
    mesh = EchoMesh(folder=tmp_path_factory.mktemp("parlour"))
    mesh.write()
    mesh.run("up", "--detach")
    traces = mesh.traces()
    yield mesh
    mesh.run("down")
    traces.until_gone()


async def test_calls_cross_the_mesh(running: EchoMesh) -> None:
    async with running.channel() as channel:
        answered = set()
        for _ in range(200):
            answered.add((await say(channel, "hello", RELAY)).rpartition("-> ")[2].split(" ")[0])
        assert answered == {"echo-0", "echo-1"}
        assert (await say(channel, "peer")).endswith("URI=spiffe://parlour.mesh/gateway")
        assert (await say(channel, "peer", RELAY)).endswith("URI=spiffe://parlour.mesh/service/front")


def test_status_names_everything(running: EchoMesh) -> None:
    document = running.status()
    assert document["state"] == "ready"
    assert {name: len(service["replicas"]) for name, service in document["services"].items()} == {"echo": 2, "front": 1}
    for replica in document["services"]["echo"]["replicas"]:
        assert (replica["app"], replica["sidecar"], replica["in_rotation"], replica["restarts"]) == ("ready",) * 2 + (
            True,
            0,
        )
        assert is_alive(replica["pid"])
        assert is_alive(replica["sidecar_pid"])
        assert Path(replica["admin_socket"]).is_socket()
        assert replica["certificate_expiry"].endswith("+00:00")
    assert document["gateway"]["address"] == f"127.0.0.1:{running.port}"
    assert document["gateway"]["state"] == "ready"
    table = running.run("status").stdout
    assert "echo-1" in table
    assert "gateway" in table


def test_processes_and_files_are_private(running: EchoMesh) -> None:
    state = running.folder / ".nipmesh"
    loose = [path for path in (state, *state.rglob("*")) if not path.is_symlink() and path.stat().st_mode & 0o077]
    assert loose == []
    assert Path(running.replicas()[0]["admin_socket"]).parent.stat().st_mode & 0o077 == 0


def test_every_scrape_listener_is_discovered_and_answers(running: EchoMesh) -> None:
    entries = json.loads((running.folder / ".nipmesh" / "prometheus" / "file_sd.json").read_text())
    seen = {(entry["labels"]["service"], entry["labels"]["replica"], entry["labels"]["part"]) for entry in entries}
    replicas = {("echo", "0"), ("echo", "1"), ("front", "0")}
    assert seen == {(*replica, part) for replica in replicas for part in ("app", "envoy")} | {("gateway", "0", "envoy")}
    for entry in entries:
        url = f"http://{entry['targets'][0]}{entry['labels']['__metrics_path__']}"
        with urllib.request.urlopen(url, timeout=5) as answer:
            body = answer.read().decode()
        assert ("echo_up" if entry["labels"]["part"] == "app" else "envoy_server_live") in body


def test_logs_of_both_processes(running: EchoMesh) -> None:
    both = running.run("logs", "echo", "-n", "5").stdout
    assert "echo-0 | echo-0 serves" in both
    assert "echo-1 | echo-1 serves" in both
    assert running.run("logs", "echo", "--replica", "1", "-n", "1").stdout == "echo-1 serves\n"
    assert running.run("logs", "supervisor").stdout.count("ready: all replicas are ready") == 1
    running.run("logs", "echo", "--sidecar")
    assert "no logs of nobody" in running.run("logs", "nobody", expect=1).stderr


def test_a_second_up_names_the_first(running: EchoMesh) -> None:
    pid = running.status()["pid"]
    for words in (("up", "--detach"), ("up",)):
        refused = running.run(*words, expect=1).stderr
        assert f"already running (process {pid}, gateway 127.0.0.1:{running.port})" in refused
    assert running.status()["pid"] == pid


def test_the_doctor_is_content_while_it_runs(running: EchoMesh) -> None:
    report = running.run("doctor").stdout
    assert "fail" not in report
    assert "held by this mesh" in report


@pytest.mark.skipif(shutil.which("grpcurl") is None, reason="needs grpcurl on PATH")
def test_grpcurl_lists_describes_and_calls(running: EchoMesh) -> None:
    def grpcurl(*words: str) -> str:
        command = ["grpcurl", "-plaintext", *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout

    target = f"127.0.0.1:{running.port}"
    assert "echo.v1.EchoService" in grpcurl(target, "list")
    assert "rpc Say" in grpcurl(target, "describe", "echo.v1.EchoService")
    assert "hi" in grpcurl("-d", '"hi"', target, "echo.v1.EchoService/Say")
    assert "SERVING" in grpcurl("-d", '{"service": "front.v1.FrontService"}', target, "grpc.health.v1.Health/Check")


@pytest.mark.parametrize("victim", ["pid", "sidecar_pid"])
async def test_a_killed_process_costs_no_call_and_comes_back(running: EchoMesh, victim: str) -> None:
    before = next(replica for replica in running.replicas() if replica["replica"] == 1)
    async with Load(mesh=running) as load:
        os.kill(before[victim], signal.SIGKILL)
        await until(
            lambda: any(r[victim] not in {None, before[victim]} for r in running.replicas() if r["replica"] == 1)
        )
        await asyncio.to_thread(running.until_ready)
        seen = load.answered.get("echo-1", 0)
        await until(lambda: load.answered.get("echo-1", 0) > seen)
    assert load.failed == []
    after = next(replica for replica in running.replicas() if replica["replica"] == 1)
    restarts = "restarts" if victim == "pid" else "sidecar_restarts"
    assert after[restarts] == before[restarts] + 1
    assert (after["inbound"], after["admin_socket"]) == (before["inbound"], before["admin_socket"])

"""Changes to a running mesh under load: scale, restart, certificate renewal. No call may fail because of them."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from mesh.runner_support import SAY, EchoMesh, Load, until

pytestmark = [pytest.mark.mesh, pytest.mark.timeout(90)]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EchoMesh]:
    mesh = EchoMesh(folder=tmp_path_factory.mktemp("parlour"))
    mesh.write()
    mesh.run("up", "--detach")
    traces = mesh.traces()
    yield mesh
    mesh.run("down")
    traces.until_gone()


async def test_scaling_up_and_down_costs_no_call(running: EchoMesh) -> None:
    async with Load(mesh=running) as load:
        done = await asyncio.to_thread(running.run, "scale", "echo", "4")
        assert "echo runs 4 replicas" in done.stdout
        assert [replica["in_rotation"] for replica in running.replicas()] == [True] * 4
        await until(lambda: {"echo-0", "echo-1", "echo-2", "echo-3"} <= load.answered.keys())
        traces = running.traces()
        gone = {replica["pid"] for replica in running.replicas()[2:]}
        await asyncio.to_thread(running.run, "scale", "echo", "2")
        assert [replica["name"] for replica in running.replicas()] == ["echo-0", "echo-1"]
        assert not any(Path(f"/proc/{pid}").exists() for pid in gone)
    assert load.failed == []
    assert load.count > 200
    assert not (running.folder / ".nipmesh" / "envoy" / "echo-3").exists()
    assert len(running.traces().ports) == len(traces.ports) - 4


@pytest.mark.parametrize("service", ["echo", "front"])
async def test_a_rolling_restart_costs_no_call(running: EchoMesh, service: str) -> None:
    before = {replica["name"]: replica for replica in running.replicas(service)}
    async with Load(mesh=running) as load:
        await asyncio.to_thread(running.run, "restart", service)
    assert load.failed == []
    after = {replica["name"]: replica for replica in running.replicas(service)}
    assert before.keys() == after.keys()
    for name, replica in after.items():
        assert replica["pid"] != before[name]["pid"]
        assert replica["sidecar_pid"] != before[name]["sidecar_pid"]
        assert replica["inbound"] == before[name]["inbound"]
    assert running.status()["state"] == "ready"


async def test_long_calls_survive_a_rolling_restart(running: EchoMesh) -> None:
    async with Load(mesh=running, path=SAY, text="sleep 700", callers=8) as load:
        await asyncio.to_thread(running.run, "restart", "echo")
    assert load.failed == []


def test_what_cannot_be_done_says_why(running: EchoMesh) -> None:
    assert "there is no service nobody" in running.run("scale", "nobody", "2", expect=1).stderr
    assert "there is no service nobody" in running.run("restart", "nobody", expect=1).stderr
    assert "not in the range" in running.run("scale", "echo", "0", expect=2).stderr
    manifest = running.folder / "mesh.yaml"
    original = manifest.read_text()
    manifest.write_text(original + "# changed\n")
    assert "have changed since" in running.run("scale", "echo", "3", expect=1).stderr
    manifest.write_text(original)
    assert running.status()["state"] == "ready"

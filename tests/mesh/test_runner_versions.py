"""The runner and a version of a service: both get calls, and each is scaled and restarted on its own."""

import asyncio
from collections import Counter
from collections.abc import Iterator

import pytest

from mesh.runner_support import RELAY, ROOT, EchoMesh, Load, say, until

pytestmark = [pytest.mark.mesh, pytest.mark.timeout(90)]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EchoMesh]:
    mesh = EchoMesh(folder=tmp_path_factory.mktemp("versions"), echo_replicas=1)
    mesh.write()
    path = mesh.folder / "mesh.yaml"
    app = ROOT / "tests" / "mesh" / "echo_app.py"
    version = f"  echo-next: {{run: python {app}, version_of: echo, replicas: 1}}\n"
    split = "    traffic: {routing: {split: {echo: 50, echo-next: 50}}}\n"
    text = path.read_text().replace("  front:\n", f"{split}{version}  front:\n")
    path.write_text(text)
    mesh.run("up", "--detach")
    traces = mesh.traces()
    yield mesh
    mesh.run("down")
    traces.until_gone()


async def who(mesh: EchoMesh, calls: int = 60) -> Counter[str]:
    async with mesh.channel() as channel:
        answers = [await say(channel, "hello", RELAY) for _ in range(calls)]
    return Counter(answer.rpartition("-> ")[2].split(" ")[0] for answer in answers)


async def test_both_versions_get_calls(running: EchoMesh) -> None:
    assert set(running.status()["services"]) == {"echo", "echo-next", "front"}
    assert "echo-next-0" in running.run("status").stdout
    found = await who(running)
    assert set(found) == {"echo-0", "echo-next-0"}
    assert min(found.values()) > 10


async def test_a_version_is_scaled_and_restarted_on_its_own(running: EchoMesh) -> None:
    """Under load, without a lost call."""
    before = {replica["replica"]: replica["pid"] for replica in running.replicas("echo")}
    async with Load(mesh=running) as load:
        await asyncio.to_thread(running.run, "scale", "echo-next", "2")
        await until(lambda: load.answered.get("echo-next-1", 0) > 0)
        old = {replica["pid"] for replica in running.replicas("echo-next")}
        await asyncio.to_thread(running.run, "restart", "echo-next")
        assert not old & {replica["pid"] for replica in running.replicas("echo-next")}
        await asyncio.to_thread(running.run, "scale", "echo-next", "1")
        seen = load.answered["echo-next-0"]
        await until(lambda: load.answered["echo-next-0"] > seen)
    assert load.failed == []
    assert {replica["replica"]: replica["pid"] for replica in running.replicas("echo")} == before
    assert set(await who(running)) == {"echo-0", "echo-next-0"}

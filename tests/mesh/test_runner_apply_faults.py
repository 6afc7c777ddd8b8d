"""`nipmesh apply` when something goes wrong on the way, and what it means for the other commands."""

import asyncio
import os
import re
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mesh.apply_support import ChangingMesh, Watch, are_current, faulty_mesh, running_state, start
from mesh.runner_support import until

pytestmark = [pytest.mark.mesh, pytest.mark.timeout(180)]
REVERT_MS_MAX = 5_000
"""It is a quarter of a second on an idle machine; tests run beside others."""


@pytest.fixture
def stopped(tmp_path: Path) -> Iterator[ChangingMesh]:
    mesh = ChangingMesh(folder=tmp_path)
    mesh.write()
    yield mesh
    mesh.run("down", expect=None)


@pytest.fixture
async def changing(stopped: ChangingMesh) -> ChangingMesh:
    await asyncio.to_thread(stopped.run, "up", "--detach")
    return stopped


@pytest.fixture
async def faulty(stopped: ChangingMesh) -> AsyncIterator[ChangingMesh]:
    """A mesh that publishes something that a running Envoy refuses, on request."""
    async with faulty_mesh(stopped):
        yield stopped


@pytest.mark.parametrize(("deadline", "who"), [("7777ms", "echo-"), ("3333ms", "(front-0|gateway)")])
async def test_what_a_running_envoy_refuses_is_taken_back_at_once(
    faulty: ChangingMesh, deadline: str, who: str
) -> None:
    before = running_state(await faulty.ask("status"))
    text = faulty.manifest.read_text()
    async with Watch(mesh=faulty) as watch:
        faulty.manifest.write_text(text.replace("deadline: 5s", f"deadline: {deadline}"))
        refused = await asyncio.to_thread(faulty.run, "apply", expect=1)
    line = r"mesh\.yaml:\d+:\d+: error\[NM802\] the Envoy of " + who + r".* refuses its routes \w+\n"
    assert re.search(line, refused.stderr), refused.stderr
    assert "cause: Only a single wildcard domain is permitted" in refused.stderr, refused.stderr
    reverted = next(line for line in refused.stdout.splitlines() if "reverted: " in line)
    assert int(reverted.rpartition("after ")[2].split()[0]) < REVERT_MS_MAX
    assert watch.failed == []
    document = await faulty.ask("status")
    assert running_state(document) == before
    assert are_current(document)
    faulty.manifest.write_text(text)
    assert "is what the manifest says" in (await asyncio.to_thread(faulty.run, "apply")).stdout


async def test_a_dry_run_shows_and_changes_nothing(changing: ChangingMesh) -> None:
    before = running_state(await changing.ask("status"))
    changing.wish = replace(changing.wish, echo_replicas=3, extra_replicas=2, front_env="b", deadline="3s")
    changing.write()
    shown = (await asyncio.to_thread(changing.run, "apply", "--dry-run")).stdout.splitlines()
    assert shown[-1] == "nothing was changed: this was a dry run"
    assert "+ extra: service, 2 replicas" in shown
    assert "~ echo: replicas 2 -> 3" in shown
    assert "~ front: restarts (env FRONT)" in shown
    assert any(line.startswith("~ gateway: new listeners") for line in shown)
    assert running_state(await changing.ask("status")) == before


async def test_scale_and_apply_know_of_each_other(changing: ChangingMesh) -> None:
    await asyncio.to_thread(changing.run, "scale", "echo", "3")
    kept = (await changing.become(replace(changing.wish, deadline="4s")))[-1]
    assert kept == "  echo: keeps the 3 replicas of `nipmesh scale`; the manifest says 2"
    assert len(changing.replicas()) == 3
    changing.wish = replace(changing.wish, deadline="6s")
    changing.write()
    refused = await asyncio.to_thread(changing.run, "scale", "echo", "4", expect=1)
    assert "apply that first with `nipmesh apply`" in refused.stderr
    plan = await changing.become(replace(changing.wish, echo_replicas=1))
    assert "~ echo: replicas 3 -> 1" in plan, "the manifest's number has changed: it wins"
    assert len(changing.replicas()) == 1


async def test_a_client_that_goes_away_stops_nothing(changing: ChangingMesh) -> None:
    changing.wish = replace(changing.wish, front_env="b")
    changing.write()
    before = (await changing.ask("status"))["services"]["front"]["replicas"][0]["pid"]
    process = start(changing, changing.command("apply"))
    assert process.stdout is not None
    await asyncio.to_thread(process.stdout.readline)
    process.send_signal(signal.SIGINT)
    await asyncio.to_thread(process.communicate, timeout=20)
    scaled = await asyncio.to_thread(changing.run, "scale", "echo", "1")  # waits for the apply
    assert "echo runs 1 replicas" in scaled.stdout
    assert "applied: applied in " in changing.run("logs", "supervisor", "-n", "200").stdout
    document = changing.until_ready()
    (replica,) = document["services"]["front"]["replicas"]
    assert replica["pid"] != before
    assert b"FRONT=b" in Path(f"/proc/{replica['pid']}/environ").read_bytes().split(b"\0")


async def test_a_mesh_that_is_stopped_in_the_middle_is_stopped(changing: ChangingMesh) -> None:
    traces = changing.traces()
    changing.wish = replace(changing.wish, front_env="b", echo_env="b", extra_replicas=1)
    changing.write()
    applying = start(changing, changing.command("apply"))
    await until(lambda: any("echo-2" in replica["name"] for replica in changing.replicas()), timeout_s=30)
    await asyncio.to_thread(changing.run, "down")
    _, error = await asyncio.to_thread(applying.communicate, timeout=20)
    assert applying.returncode == 1
    assert "Traceback" not in error
    await asyncio.to_thread(traces.until_gone)


async def test_a_supervisor_killed_in_the_middle_leaves_nothing(changing: ChangingMesh) -> None:
    traces = changing.traces()
    changing.wish = replace(changing.wish, echo_env="b")
    changing.write()
    applying = start(changing, changing.command("apply"))
    await until(lambda: len(changing.replicas()) == 3, timeout_s=30)
    os.kill(changing.status(expect=None)["pid"], signal.SIGKILL)
    _, error = await asyncio.to_thread(applying.communicate, timeout=20)
    assert applying.returncode == 1
    assert "ended before it answered" in error
    await asyncio.to_thread(traces.until_gone)
    await asyncio.to_thread(changing.run, "up", "--detach")
    assert b"ECHO=b" in Path(f"/proc/{changing.replicas()[0]['pid']}/environ").read_bytes().split(b"\0")


def test_without_a_mesh_there_is_nothing_to_apply_to(stopped: ChangingMesh) -> None:
    assert "not running" in stopped.run("apply", expect=3).stderr


async def test_a_mesh_that_crashes_is_mended_by_an_apply(stopped: ChangingMesh) -> None:
    good = stopped.wish
    stopped.manifest.write_text(good.text(stopped.port).replace('"FRONT": "a"', '"ECHO_CRASH": "1"'))
    log = (stopped.folder / "up.log").open("wb")
    process = start(stopped, stopped.command("up"), log)
    await until(lambda: b"crash-loop" in (stopped.folder / "up.log").read_bytes(), timeout_s=60)
    stopped.write()
    await asyncio.to_thread(stopped.run, "apply")
    assert stopped.until_ready()["services"]["front"]["replicas"][0]["app"] == "ready"
    process.send_signal(signal.SIGTERM)
    await asyncio.to_thread(process.wait, 30)
    log.close()


def test_the_status_names_what_is_refused(stopped: ChangingMesh) -> None:
    stopped.run("up", "--detach")
    path = stopped.folder / ".nipmesh" / "envoy" / "front-0" / "rds" / "egress.json"
    text = path.read_text().replace('"version_info":"', '"version_info":"0').replace('"domains":["*"]', '"domains":[]')
    path.with_name(".new").write_text(text)
    path.with_name(".new").replace(path)
    entry = stopped.replicas("front")[0]["configuration"]
    assert entry["state"] == "refused"
    assert entry["routes"]["egress"]["state"] == "refused"
    assert entry["routes"]["egress"]["running"] == entry["routes"]["egress"]["published"][1:]
    assert entry["routes"]["inbound"]["state"] == "current"
    table = subprocess.run(
        stopped.command("status"),
        capture_output=True,
        text=True,
        env=stopped.environment | {"COLUMNS": "140"},
        check=False,
    ).stdout
    assert "routes refused" in table
    assert table.count(" current") == 3

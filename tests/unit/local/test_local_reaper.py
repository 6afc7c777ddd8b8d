"""Whoever kills the supervisor: what it started is ended, and nothing else is."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from generator.outputs.local import reaper, running
from generator.outputs.local.events import Journal
from generator.outputs.local.record import Reaper, RunRecord, sweep_old_runs


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "60"], start_new_session=True)
    yield process
    process.kill()
    process.wait()


def sockets_in(folder: Path) -> Path:
    made = folder / "nipmesh-test"
    (made / "nip-0").mkdir(parents=True)
    return made


def test_sweeping_kills_what_is_recorded_and_removes_the_sockets(
    tmp_path: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    record = RunRecord(tmp_path / "run.json", sockets=sockets_in(tmp_path), current=tmp_path / "current.json")
    record.add(sleeper.pid)
    assert sweep_old_runs(tmp_path) == 1
    assert sleeper.wait(5) == -signal.SIGKILL
    assert not (tmp_path / "nipmesh-test").exists()
    assert not record.path.exists()
    assert sweep_old_runs(tmp_path) == 0


def test_another_process_with_a_recycled_id_is_left_alone(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    started = reaper.start_time(sleeper.pid)
    assert started is not None
    assert reaper.kill_recorded(sleeper.pid, started - 1) == []
    assert sleeper.poll() is None


def test_a_group_is_killed_when_its_leader_is_gone(tmp_path: Path) -> None:
    leader = subprocess.Popen(
        ["sh", "-c", "sleep 60 & echo $!; sleep 0.3"], start_new_session=True, stdout=subprocess.PIPE
    )
    started = reaper.start_time(leader.pid)
    assert started is not None
    assert leader.stdout is not None
    child = int(leader.stdout.readline())
    leader.stdout.close()
    leader.wait()
    assert reaper.start_time(child) is not None
    assert reaper.kill_recorded(leader.pid, started) == [child]
    gone_by = time.monotonic() + 5
    while reaper.start_time(child) is not None:
        assert time.monotonic() < gone_by
        time.sleep(0.01)


def test_a_folder_that_is_not_ours_is_not_removed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (tmp_path / "current.json").write_text('{"pid": 2}')
    (tmp_path / "run.json").write_text(
        json.dumps(
            {"sockets": str(precious), "processes": [], "supervisor": 1, "current": str(tmp_path / "current.json")}
        )
    )
    reaper.sweep(tmp_path / "run.json")
    assert precious.exists()
    assert (tmp_path / "current.json").exists(), "it speaks of another supervisor"


def test_the_reaper_acts_when_its_supervisor_is_killed(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    sockets_in(tmp_path)
    program = (
        "import sys, os, time\nfrom pathlib import Path\n"
        "from generator.outputs.local.record import Reaper, RunRecord\n"
        "here = Path(sys.argv[1])\n"
        "record = RunRecord(here / 'run.json', sockets=here / 'nipmesh-test', current=here / 'current.json')\n"
        "record.add(int(sys.argv[2]))\nreaper = Reaper(record.path)\nprint(reaper.pid, flush=True)\ntime.sleep(60)\n"
    )
    words = [sys.executable, "-c", program, str(tmp_path), str(sleeper.pid)]
    supervisor = subprocess.Popen(
        words, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    )
    assert supervisor.stdout is not None
    reaper_pid = int(supervisor.stdout.readline())
    supervisor.stdout.close()
    supervisor.kill()
    supervisor.wait()
    assert sleeper.wait(5) == -signal.SIGKILL
    gone_by = time.monotonic() + 5
    while reaper.start_time(reaper_pid) is not None or (tmp_path / "run.json").exists():
        assert time.monotonic() < gone_by
        time.sleep(0.01)
    assert not (tmp_path / "nipmesh-test").exists()


def test_after_a_clean_end_the_reaper_has_nothing_to_do(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    record = RunRecord(tmp_path / "run.json", sockets=sockets_in(tmp_path), current=tmp_path / "current.json")
    watcher = Reaper(record.path)
    record.add(sleeper.pid)
    record.remove(sleeper.pid)
    record.close()
    watcher.close()
    assert sleeper.poll() is None
    assert reaper.start_time(watcher.pid) is None


DAMAGED = [
    "",
    '{"trunc',
    "[]",
    "{}",
    '{"supervisor": 1, "current": "", "sockets": "", "processes": [{"pid": "1", "started": 1}]}',
    '{"supervisor": 1, "current": "", "sockets": 3, "processes": []}',
    '{"supervisor": 1, "current": "", "sockets": "", "processes": [1]}',
    "[" * 60_000,
]


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_record_is_set_aside_and_the_others_are_swept(
    tmp_path: Path, sleeper: subprocess.Popen[bytes], content: str
) -> None:
    record = RunRecord(tmp_path / "run.json", sockets=sockets_in(tmp_path), current=tmp_path / "current.json")
    record.add(sleeper.pid)
    (tmp_path / "a.json").write_text(content)
    told: list[Path] = []
    assert sweep_old_runs(tmp_path, told.append) == 1
    assert told == [tmp_path / "a.json.damaged"]
    assert told[0].read_text() == content
    assert sweep_old_runs(tmp_path, told.append) == 0
    assert len(told) == 1


def test_the_end_of_a_run_does_not_depend_on_its_record(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    record = RunRecord(tmp_path / "run.json", sockets=sockets_in(tmp_path), current=tmp_path / "current.json")
    record.add(sleeper.pid)
    record.path.write_text("{}")
    record.close()
    assert sleeper.wait(5) == -signal.SIGKILL
    assert not record.path.exists()
    assert not (tmp_path / "nipmesh-test").exists()


@pytest.mark.parametrize("content", ["[]", "null", "[" * 60_000])
def test_a_damaged_pointer_is_left_alone(tmp_path: Path, content: str) -> None:
    (tmp_path / "current.json").write_text(content)
    reaper.remove_pointer(tmp_path / "current.json", 1)
    assert (tmp_path / "current.json").exists()


def test_a_killed_reaper_is_replaced_by_one_that_works(tmp_path: Path) -> None:
    record = RunRecord(tmp_path / "run.json", sockets=sockets_in(tmp_path), current=tmp_path / "current.json")
    watcher = Reaper(record.path)
    assert not watcher.replace_dead()
    killed = watcher.pid
    os.kill(killed, signal.SIGKILL)
    gone_by = time.monotonic() + 5
    while not watcher.replace_dead():
        assert time.monotonic() < gone_by
        time.sleep(0.01)
    assert watcher.pid != killed
    assert reaper.start_time(watcher.pid) is not None
    watcher.close()
    assert not record.path.exists(), "the end of its input is the end of the supervisor: it sweeps"


async def test_the_supervisor_notices_that_its_reaper_is_gone_and_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "REAPER_CHECK_S", 0.01)
    watcher, journal = Reaper(tmp_path / "run.json"), Journal()
    happenings = journal.subscribe()
    guarding = asyncio.create_task(running.keep_reaper(watcher, journal))
    os.kill(watcher.pid, signal.SIGKILL)
    happening = await asyncio.wait_for(happenings.get(), 5)
    guarding.cancel()
    assert (happening.kind, f"process {watcher.pid}" in happening.text) == ("reaper", True)
    assert not watcher.replace_dead()
    watcher.close()


async def test_a_reaper_that_cannot_be_replaced_now_is_replaced_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "REAPER_CHECK_S", 0.01)
    watcher, journal = mock.Mock(pid=7), Journal()
    watcher.replace_dead.side_effect = [OSError("no room"), *([True] * 1_000)]
    happenings = journal.subscribe()
    guarding = asyncio.create_task(running.keep_reaper(watcher, journal))
    kinds = [(await asyncio.wait_for(happenings.get(), 5)).kind for _ in range(2)]
    guarding.cancel()
    assert kinds == ["reaper-failed", "reaper"]

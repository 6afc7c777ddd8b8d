"""Whoever kills the supervisor: what it started is ended, and nothing else is."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from generator.outputs.local import reaper
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

"""Children: their logs, groups, ends, and that they never outlive their parent."""

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from generator.outputs.local import processes, reaper
from generator.outputs.local.logs import follow, rotate, tail
from generator.outputs.local.processes import Command, describe_exit, spawn


def command(tmp_path: Path, *words: str) -> Command:
    return Command(
        arguments=words, environment=dict(os.environ), working_directory=tmp_path, log=tmp_path / "process.log"
    )


async def test_output_goes_to_a_private_log_and_input_is_empty(tmp_path: Path) -> None:
    child = await spawn(command(tmp_path, "sh", "-c", "cat; echo out; echo err >&2; umask; exit 3"))
    assert await child.wait() == "exited with code 3"
    assert tail(tmp_path / "process.log", 10) == ["out", "err", "0077"]
    assert (tmp_path / "process.log").stat().st_mode & 0o077 == 0


async def test_a_child_leads_a_group_and_the_whole_group_is_signalled(tmp_path: Path) -> None:
    child = await spawn(command(tmp_path, "sh", "-c", "sleep 60 & sleep 61 & wait"))
    await asyncio.sleep(0.2)
    started = reaper.start_time(child.pid)
    assert started is not None
    members = reaper.group_members(child.pid, started)
    assert len(members) == 3
    child.terminate()
    assert await child.wait() == "was killed by SIGTERM"
    await asyncio.sleep(0.1)
    assert reaper.group_members(child.pid, started) == []


async def test_what_a_dead_leader_left_of_its_group_is_killed(tmp_path: Path) -> None:
    child = await spawn(command(tmp_path, "sh", "-c", "sleep 60 & echo started"))
    started = reaper.start_time(child.pid) or 0
    await child.wait()
    await asyncio.sleep(0.1)
    assert reaper.group_members(child.pid, started) == []


async def test_a_program_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no-such-program: no such program"):
        await spawn(command(tmp_path, "no-such-program"))


@pytest.mark.parametrize("with_setpriv", [True, False])
def test_children_die_with_their_parent(tmp_path: Path, with_setpriv: bool) -> None:
    hide = (
        ""
        if with_setpriv
        else "processes.shutil.which = lambda name, path=None: None if name == 'setpriv' else '/bin/' + name\n"
    )
    program = (
        "import asyncio, os, sys, time\nfrom pathlib import Path\n"
        f"from generator.outputs.local import processes\n{hide}"
        "here = Path(sys.argv[1])\n"
        "words = processes.Command(arguments=('sleep', '60'), environment=dict(os.environ), working_directory=here,"
        " log=here / 'log')\n"
        "async def main():\n"
        "    child = await processes.spawn(words)\n"
        "    await asyncio.sleep(0.5)\n    print(child.pid, flush=True)\n    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.stdout.close()
    assert reaper.start_time(child) is not None
    parent.kill()
    parent.wait()
    gone_by = time.monotonic() + 5
    while reaper.start_time(child) is not None:
        assert time.monotonic() < gone_by
        time.sleep(0.01)


def test_exits_are_described() -> None:
    assert describe_exit(0) == "exited with code 0"
    assert describe_exit(-9) == "was killed by SIGKILL"
    assert describe_exit(-63) == "was killed by signal 63"
    assert processes.UMASK == 0o077


def test_a_log_is_bounded_and_its_writer_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "process.log"
    writer = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(writer, b"old\n" * 100)
    assert not rotate(path, bytes_max=400)
    os.write(writer, b"x\n")
    assert rotate(path, bytes_max=400)
    os.write(writer, b"new\n")
    os.close(writer)
    assert path.read_bytes() == b"new\n"
    assert (tmp_path / "process.log.1").stat().st_size == 402
    assert not rotate(tmp_path / "nothing.log")


def test_tail_and_follow(tmp_path: Path) -> None:
    path = tmp_path / "process.log"
    assert tail(path, 3) == []
    path.write_text("a\nb\nc\n")
    assert tail(path, 2) == ["b", "c"]
    assert tail(path, 0) == []
    lines = follow(path)
    assert next(lines) is None
    with path.open("a") as file:
        file.write("d\ne")
    assert next(lines) == "d"
    assert next(lines) is None
    with path.open("a") as file:
        file.write("e\n")
    assert next(lines) == "ee"
    os.truncate(path, 0)
    with path.open("a") as file:
        file.write("f\n")
    assert next(lines) == "f"

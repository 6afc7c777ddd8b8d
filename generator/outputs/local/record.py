"""The record of a run, for whoever cleans up after it, and the reaper that does so at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from generator.outputs.local import reaper
from generator.pki import write_private

DAMAGED_SUFFIX = ".damaged"
"""Of a record that cannot be read: kept for whoever wants to look, and in nobody's way."""


class RunRecord:
    """Which processes live and where the sockets are; on disk after each change."""

    def __init__(self, path: Path, *, sockets: Path, current: Path) -> None:
        self.path = path
        self._current = current
        self._sockets = sockets
        self._processes: dict[int, int] = {}
        self._write()

    def add(self, pid: int) -> None:
        """Note a process that was just started; one that is gone already is not noted."""
        started = reaper.start_time(pid)
        if started is not None:
            self._processes[pid] = started
            self._write()

    def remove(self, pid: int) -> None:
        """Forget a process that has ended."""
        if self._processes.pop(pid, None) is not None:
            self._write()

    def kill_all(self) -> None:
        """Kill everything that is still recorded, groups included."""
        for pid, started in self._processes.items():
            reaper.kill_recorded(pid, started)

    def close(self) -> None:
        """Kill what is left, remove the socket folder and the record."""
        try:
            reaper.sweep(self.path)
        except reaper.DamagedRecordError:
            self._write()  # we know better than the file
            reaper.sweep(self.path)

    def _write(self) -> None:
        processes = [{"pid": pid, "started": started} for pid, started in self._processes.items()]
        document = {"supervisor": os.getpid(), "current": str(self._current), "sockets": str(self._sockets)}
        write_private(self.path, json.dumps(document | {"processes": processes}).encode())


class Reaper:
    """The process that cleans up when this one is killed."""

    def __init__(self, record: Path) -> None:
        self._record = record
        self._process, self._write_end = _start_reaper(record)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def replace_dead(self) -> bool:
        """Start another one when it has ended, and tell whether that was so. Raises OSError."""
        if self._process.poll() is None:
            return False
        before = self._write_end
        self._process, self._write_end = _start_reaper(self._record)
        os.close(before)
        return True

    def close(self) -> None:
        """Let it go; it ends by itself, with nothing to do once the record is gone."""
        os.close(self._write_end)
        self._process.wait()


def _start_reaper(record: Path) -> tuple[subprocess.Popen[bytes], int]:
    """Start the process; give it and the end of the pipe that we hold for as long as we live. Raises OSError."""
    read_end, write_end = os.pipe()
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", reaper.__file__, str(record)],
            stdin=read_end,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
        )
    except OSError:
        os.close(write_end)
        raise
    finally:
        os.close(read_end)
    return process, write_end


def sweep_old_runs(runs: Path, on_damaged: Callable[[Path], None] = lambda _: None) -> int:
    """Clean up after every supervisor that left a record; give how many processes were killed. Needs the lock.

    A record that cannot be read is renamed, and `on_damaged` gets its new name.
    """
    killed = 0
    for record in sorted(runs.glob("*.json")):
        try:
            killed += reaper.sweep(record)
        except reaper.DamagedRecordError:
            on_damaged(record.replace(record.with_name(record.name + DAMAGED_SUFFIX)))
    return killed

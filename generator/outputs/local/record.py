"""The record of a run, for whoever cleans up after it, and the reaper that does so at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from generator.outputs.local import reaper
from generator.pki import write_private


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
        reaper.sweep(self.path)

    def _write(self) -> None:
        processes = [{"pid": pid, "started": started} for pid, started in self._processes.items()]
        document = {"supervisor": os.getpid(), "current": str(self._current), "sockets": str(self._sockets)}
        write_private(self.path, json.dumps(document | {"processes": processes}).encode())


class Reaper:
    """The process that cleans up when this one is killed."""

    def __init__(self, record: Path) -> None:
        read_end, self._write_end = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", reaper.__file__, str(record)],
            stdin=read_end,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
        )
        os.close(read_end)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def close(self) -> None:
        """Let it go; it ends by itself, with nothing to do once the record is gone."""
        os.close(self._write_end)
        self._process.wait()


def sweep_old_runs(runs: Path) -> int:
    """Clean up after every supervisor that left a record; give how many processes were killed. Needs the lock."""
    return sum(reaper.sweep(record) for record in sorted(runs.glob("*.json")))

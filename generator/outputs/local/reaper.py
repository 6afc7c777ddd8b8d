"""Cleans up after a supervisor that was killed. Runs alone, with nothing but the standard library.

`python -I -S reaper.py RECORD` blocks on its standard input, whose other end only the supervisor holds. When the
supervisor is gone, however it went, the read ends; then every recorded process that still is the same one (process id
and start time) is killed with its group, and the socket folder removed. After a clean stop there is no record and
nothing to do.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

WAIT_S_MAX = 5.0
"""How long killed processes may take to disappear; the kernel needs milliseconds."""
POLL_S = 0.01
STAT_GROUP = 2
STAT_START = 19
"""Positions in /proc/<pid>/stat after the command's closing parenthesis (proc_pid_stat(5): fields 5 and 22)."""


class DamagedRecordError(Exception):
    """A record is not what a supervisor writes; nothing was done about it."""


def stat_fields(pid: int) -> list[str] | None:
    """Read the fields of /proc/<pid>/stat that follow the command; None when there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text.rpartition(")")[2].split()


def start_time(pid: int) -> int | None:
    """Read when a process started, in clock ticks since boot; None when there is none, or only its corpse."""
    fields = stat_fields(pid)
    return None if fields is None or fields[0] in {"Z", "X"} else int(fields[STAT_START])


def group_members(group: int, started: int) -> list[int]:
    """Find the processes of a group that are not older than its leader was: the group is still the one we made."""
    members = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := stat_fields(int(entry.name))) is not None:
            alive = fields[0] not in {"Z", "X"}
            if alive and int(fields[STAT_GROUP]) == group and int(fields[STAT_START]) >= started:
                members.append(int(entry.name))
    return members


def kill_recorded(pid: int, started: int) -> list[int]:
    """Kill a recorded process and its group; give the processes whose end is to be awaited."""
    now_started = start_time(pid)
    if now_started is not None and now_started != started:
        return []
    victims = group_members(pid, started)
    for victim in victims:
        try:
            os.kill(victim, signal.SIGKILL)
        except ProcessLookupError:
            continue
    return victims


def sweep(record: Path) -> int:
    """Kill what the record names, remove its socket folder and the record; give how many processes were killed.

    Raises DamagedRecordError.
    """
    try:
        document = read_record(record)
    except FileNotFoundError:
        return 0
    victims = [victim for entry in document["processes"] for victim in kill_recorded(entry["pid"], entry["started"])]
    deadline = time.monotonic() + WAIT_S_MAX
    while time.monotonic() < deadline and any(start_time(victim) is not None for victim in victims):
        time.sleep(POLL_S)
    sockets = Path(document["sockets"])
    if sockets.name.startswith("nipmesh-") and sockets.is_dir() and sockets.stat().st_uid == os.getuid():
        shutil.rmtree(sockets, ignore_errors=True)
    remove_pointer(Path(document["current"]), document["supervisor"])
    record.unlink(missing_ok=True)
    return len(victims)


def read_record(record: Path) -> dict[str, Any]:
    """Read a record whole or not at all. Raises FileNotFoundError and DamagedRecordError."""
    try:
        document = json.loads(record.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DamagedRecordError(f"{record} is no JSON") from error
    if not isinstance(document, dict) or not _is_record(document):
        raise DamagedRecordError(f"{record} lacks what a record holds")
    return document


def _is_record(document: dict[str, Any]) -> bool:
    processes, texts = document.get("processes"), (document.get("sockets"), document.get("current"))
    numbers: list[object] = [document.get("supervisor")]
    if not isinstance(processes, list) or not all(isinstance(entry, dict) for entry in processes):
        return False
    for entry in processes:
        numbers += [entry.get("pid"), entry.get("started")]
    return all(isinstance(text, str) for text in texts) and all(type(number) is int for number in numbers)


def remove_pointer(current: Path, supervisor: int) -> None:
    """Remove the file that says how to reach the supervisor, unless it speaks of another one by now."""
    try:
        document = json.loads(current.read_text(encoding="utf-8"))
        if isinstance(document, dict) and document.get("pid") == supervisor:
            current.unlink()
    except (FileNotFoundError, ValueError, RecursionError):
        return


def main() -> None:
    """Wait for the supervisor's end, then sweep."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while os.read(0, 4096):
        pass
    sweep(Path(sys.argv[1]))


if __name__ == "__main__":
    main()

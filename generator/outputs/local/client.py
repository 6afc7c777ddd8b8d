"""Talks to a running supervisor. Standard library only: `status` and `down` must be quick."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

CONNECT_TIMEOUT_S = 5.0
EXIT_TIMEOUT_S = 10.0
EXIT_POLL_S = 0.02


class NotRunningError(Exception):
    """No supervisor runs for this manifest."""


class ControlError(Exception):
    """The supervisor refused; the message is its own."""


def current_file(manifest: Path) -> Path:
    """Give the file in which a running supervisor says how to reach it."""
    return manifest.resolve().parent / ".nipmesh" / "current.json"


def read_current(manifest: Path) -> dict[str, Any]:
    """Read how to reach the supervisor of a manifest.

    Raises NotRunningError, and ControlError when one runs and the file that tells how to reach it is damaged.
    """
    path = current_file(manifest)
    try:
        current = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise NotRunningError("the mesh is not running") from error
    except (ValueError, RecursionError) as error:
        raise _damaged(path) from error
    if not isinstance(current, dict) or type(current.get("pid")) is not int or not _is_path(current.get("control")):
        raise _damaged(path)
    return current


def call(
    manifest: Path, request: dict[str, Any], *, on_event: Callable[[dict[str, Any]], None] = lambda _: None
) -> Any:  # JSON has no better type
    """Send a request and give its result; events on the way go to `on_event`.

    Raises NotRunningError when nobody listens, ControlError when the supervisor refuses or dies on the way.
    """
    for message in _messages(manifest, request):
        if "event" in message:
            on_event(message["event"])
        elif "error" in message:
            raise ControlError(message["error"])
        else:
            return message["result"]
    raise ControlError("the supervisor ended before it answered")


def stop(manifest: Path) -> str:
    """Stop the mesh and return when its supervisor is gone. Raises NotRunningError and ControlError."""
    pid: int = read_current(manifest)["pid"]
    result = str(call(manifest, {"command": "down"}))
    for _ in range(int(EXIT_TIMEOUT_S / EXIT_POLL_S)):
        if not is_alive(pid):
            return result
        time.sleep(EXIT_POLL_S)
    raise ControlError(f"the mesh is down, but its supervisor (process {pid}) does not end")


def is_alive(pid: int) -> bool:
    """Tell whether a process runs; one that waits to be buried does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in {"Z", "X"}


def _is_path(value: object) -> bool:
    return isinstance(value, str) and bool(value) and "\0" not in value


def _damaged(path: Path) -> NotRunningError | ControlError:
    """Say what a damaged file means; the lock tells whether there is a supervisor that it should lead to."""
    if not _is_locked(path.with_name("lock")):
        return NotRunningError(f"the mesh is not running; {path} is damaged: remove it, or let `nipmesh up` replace it")
    pids = " ".join(map(str, _recorded_supervisors(path.with_name("runs")))) or "PID"
    return ControlError(
        f"{path} is damaged, and a supervisor runs that cannot be reached without it: "
        f"end it with `kill {pids}`, it stops the mesh in good order; then `nipmesh up` again"
    )


def _is_locked(lock: Path) -> bool:
    """Tell whether a supervisor holds the lock of the mesh."""
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _recorded_supervisors(runs: Path) -> list[int]:
    """Find the living supervisors that the records of runs name."""
    found = []
    for record in sorted(runs.glob("*.json")):
        try:
            pid = json.loads(record.read_text(encoding="utf-8"))["supervisor"]
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            continue
        if type(pid) is int and is_alive(pid):
            found.append(pid)
    return found


def _messages(manifest: Path, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(CONNECT_TIMEOUT_S)
    with connection:
        try:
            connection.connect(read_current(manifest)["control"])
        except OSError as error:
            raise NotRunningError("the mesh is not running (its supervisor is gone)") from error
        connection.settimeout(None)
        connection.sendall(json.dumps(request).encode() + b"\n")
        with connection.makefile("rb") as lines:
            for line in lines:
                yield json.loads(line)

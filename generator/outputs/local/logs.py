"""Log files of processes: appended by the process itself, bounded here.

The process writes straight into its file (O_APPEND), so that neither a slow nor a dead supervisor can block it.
Rotation copies the file away and cuts it to nothing in place; a line written in between is lost, which a bound is
worth.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

LOG_BYTES_MAX = 16 * 1024 * 1024
"""Of one file; with its predecessor a process keeps at most twice this, and what it writes in one check interval."""
CHECK_INTERVAL_S = 5.0
TAIL_BYTES_MAX = 1024 * 1024
"""How far back `tail` looks."""
FOLLOW_POLL_S = 0.2
LOG_MODE = 0o600


def open_log(path: Path) -> BinaryIO:
    """Open a log for a process to append to. Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, LOG_MODE)
    return os.fdopen(descriptor, "ab", buffering=0)


def rotate(path: Path, bytes_max: int = LOG_BYTES_MAX) -> bool:
    """Move the content away when there is too much of it; true when that was so."""
    try:
        if path.stat().st_size <= bytes_max:
            return False
    except FileNotFoundError:
        return False
    shutil.copyfile(path, path.with_name(f"{path.name}.1"))
    os.truncate(path, 0)
    return True


def size_of(path: Path) -> int:
    """Give the bytes of a log; 0 when there is no file."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def tail(path: Path, lines: int, *, since: int = 0) -> list[str]:
    """Read the last lines of a log, from byte `since` on; none when there is no file."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(since if since <= size else 0, size - TAIL_BYTES_MAX))
            content = file.read()
    except FileNotFoundError:
        return []
    return content.decode("utf-8", errors="replace").splitlines()[-lines:] if lines > 0 else []


def follow(path: Path) -> Iterator[str | None]:
    """Give each line that is added from now on, for ever; None when there is nothing new at the moment."""
    position = path.stat().st_size if path.exists() else 0
    rest = b""
    while True:
        size = path.stat().st_size if path.exists() else 0
        if size < position:
            position, rest = 0, b""
        if size == position:
            yield None
            continue
        with path.open("rb") as file:
            file.seek(position)
            content = file.read()
        position += len(content)
        *complete, rest = (rest + content).split(b"\n")
        for line in complete:
            yield line.decode("utf-8", errors="replace")


def follow_all(paths: dict[str, Path]) -> Iterator[tuple[str, str]]:
    """Give (label, line) of several logs as they grow, for ever."""
    followers = {label: follow(path) for label, path in paths.items()}
    while True:
        quiet = True
        for label, lines in followers.items():
            while (line := next(lines)) is not None:
                quiet = False
                yield label, line
        if quiet:
            time.sleep(FOLLOW_POLL_S)

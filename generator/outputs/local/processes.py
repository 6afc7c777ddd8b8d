"""Child processes: each leads a process group, with a log file, and with an end when this process ends.

Linux sends them SIGKILL when their parent dies (PR_SET_PDEATHSIG). It is set between fork and exec by `setpriv` of
util-linux where that exists, else by a few lines of Python: a `preexec_fn` would run Python in a forked multi-threaded
process, which may deadlock.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from generator.outputs.local.logs import open_log

UMASK = 0o077
"""Whatever a child makes is its owner's alone."""
PDEATHSIG_PROGRAM = (
    "import ctypes, os, sys\n"
    "ctypes.CDLL(None, use_errno=True).prctl(1, 9, 0, 0, 0)\n"
    "os.execvp(sys.argv[1], sys.argv[1:])\n"
)
"""1 is PR_SET_PDEATHSIG (prctl(2)), 9 is SIGKILL."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What to run, with what around it."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    working_directory: Path
    log: Path
    """Where standard output and standard error go."""


class Child:
    """A running process and its group."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        """Its process id, which is also its group's."""
        return self._process.pid

    async def wait(self) -> str:
        """Wait for its end, kill what it left of its group, and say how it ended."""
        code = await self._process.wait()
        self.signal_group(signal.SIGKILL)
        return describe_exit(code)

    def terminate(self) -> None:
        """Ask it to end (SIGTERM to the group: the command may be a shell around the application)."""
        self.signal_group(signal.SIGTERM)

    def kill(self) -> None:
        """End it (SIGKILL to the group)."""
        self.signal_group(signal.SIGKILL)

    def signal_group(self, number: signal.Signals) -> None:
        """Send a signal to the whole group; nothing happens when it is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


async def spawn(command: Command) -> Child:
    """Start a process. Raises OSError when it cannot be started."""
    program = shutil.which(command.arguments[0], path=command.environment.get("PATH"))
    candidate = command.working_directory / command.arguments[0]
    if program is None and not (os.sep in command.arguments[0] and os.access(candidate, os.X_OK)):
        raise FileNotFoundError(f"{command.arguments[0]}: no such program")
    with open_log(command.log) as log:
        process = await asyncio.create_subprocess_exec(
            *end_with_parent(),
            *command.arguments,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=command.working_directory,
            env=dict(command.environment),
            start_new_session=True,
            umask=UMASK,
        )
    return Child(process)


@functools.cache
def end_with_parent() -> tuple[str, ...]:
    """Give the words in front of a command that make it end when its parent does; none where that is unknown."""
    if not sys.platform.startswith("linux"):
        return ()
    setpriv = shutil.which("setpriv")
    if setpriv is not None:
        words = (setpriv, "--pdeathsig", "KILL", "--")
        if subprocess.run([*words, "true"], capture_output=True, check=False).returncode == 0:
            return words
    return (sys.executable, "-I", "-S", "-c", PDEATHSIG_PROGRAM)


def describe_exit(code: int) -> str:
    """Say how a process ended, from asyncio's return code (negative: minus the signal)."""
    if code >= 0:
        return f"exited with code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"

"""`nipmesh up --detach`: a supervisor of its own, and the word it sends once the mesh is ready or cannot be."""

from __future__ import annotations

import json
import os
import select
import subprocess
from dataclasses import dataclass
from pathlib import Path

from generator.outputs.local.logs import tail
from generator.outputs.local.paths import StatePaths
from nipmesh_home import module_command

MARGIN_S = 60.0
"""Beyond the ready time: for the orderly stop of a mesh that did not start."""
MESSAGE_BYTES_MAX = 256 * 1024
LOG_LINES_SHOWN = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How the start ended."""

    is_ready: bool
    reason: str


def start_detached(manifest: Path, words: tuple[str, ...], timeout_s: float) -> Outcome:
    """Start a supervisor that outlives this terminal and wait for its word. `words`: further options of `up`."""
    paths = StatePaths.beside(manifest)
    paths.make()
    log = paths.logs / "supervisor.log"
    read_end, write_end = os.pipe()
    with os.fdopen(read_end, "rb") as reader:
        command = [*module_command("generator"), "--file", str(manifest), "up", "--ready-fd", str(write_end)]
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "ab") as output:
            process = subprocess.Popen(
                [*command, *words],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                pass_fds=(write_end,),
            )
        os.close(write_end)
        message = _read_all(reader.fileno(), timeout_s + MARGIN_S)
    if message:
        document = json.loads(message)
        outcome = Outcome(is_ready=document["ready"], reason=document["reason"])
    else:
        last = "\n".join(tail(log, LOG_LINES_SHOWN))
        outcome = Outcome(is_ready=False, reason=f"the supervisor ended without a word; the end of {log}:\n{last}")
    if not outcome.is_ready:
        process.wait()
    process.returncode = process.returncode if process.returncode is not None else 0
    return outcome


def send_outcome(descriptor: int, outcome: Outcome) -> None:
    """Tell the waiting command how the start ended; nobody may be listening any more."""
    message = json.dumps({"ready": outcome.is_ready, "reason": outcome.reason[-MESSAGE_BYTES_MAX:]}).encode()
    try:
        with os.fdopen(descriptor, "wb") as pipe:
            pipe.write(message)
    except BrokenPipeError:
        return


def _read_all(descriptor: int, timeout_s: float) -> bytes:
    """Read until the other end closes, at most so long."""
    content = b""
    while select.select([descriptor], [], [], timeout_s)[0]:
        part = os.read(descriptor, 65536)
        if not part:
            break
        content += part
    return content

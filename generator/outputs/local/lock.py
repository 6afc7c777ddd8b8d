"""One supervisor per mesh: a file lock that the kernel takes back when its holder dies."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator

from generator.outputs.local.paths import StatePaths


class UpError(Exception):
    """The mesh cannot run; the message says why and what to do."""


@contextlib.contextmanager
def locked(paths: StatePaths) -> Iterator[None]:
    """Hold the mesh's lock. Raises UpError that names the running supervisor when somebody else holds it."""
    paths.make()
    descriptor = os.open(paths.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UpError(f"this mesh is already running{_who_runs(paths)}; stop it with `nipmesh down`") from error
    else:
        yield
    finally:
        os.close(descriptor)


def _who_runs(paths: StatePaths) -> str:
    try:
        current = json.loads(paths.current.read_text(encoding="utf-8"))
        return f" (process {current['pid']}, gateway {current['gateway']})"
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return ""  # damaged: `nipmesh status` says so

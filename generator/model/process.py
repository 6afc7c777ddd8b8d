"""What a service asks of whoever runs its processes: folders, limits, and when a process counts as ready or dead."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

PROBE_INTERVAL_MS = 1_000
"""Between two probes of what runs: the callers' sidecars check much more often."""
PROBE_TIMEOUT_MS = 2_000
PROBE_FAILURES = 5
"""So many probes without any answer, and the replica leaves the rotation; its callers' own checks are faster."""
START_PERIOD_MS = 60_000
"""A process that is not ready by then is killed and started again: a hang at start looks like this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """A folder that a process sees."""

    source: str | Path
    """The name of one of the mesh's volumes, or a folder of the host."""
    target: PurePosixPath
    """Where the process sees it, absolute."""
    is_read_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What one process may use at most; None: as much as there is."""

    cpu_millis: int | None = None
    """Thousandths of a core."""
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """How an application is asked whether it is ready: over gRPC's health protocol, or by a command inside its container."""

    interval_ms: int = PROBE_INTERVAL_MS
    timeout_ms: int = PROBE_TIMEOUT_MS
    failures: int = PROBE_FAILURES
    start_period_ms: int = START_PERIOD_MS
    command: tuple[str, ...] = ()
    """Empty: gRPC's health protocol."""

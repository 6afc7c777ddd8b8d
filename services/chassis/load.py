"""How busy this process is, told to its callers' sidecars with each answer (ORCA): they send less to whoever is fuller.

What is measured: CPU time of the process, running calls and ended calls, over a sliding window of a second. A sample costs a system call,
a report in between is a string that is there already.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc

LOAD_KEY: Final = "endpoint-load-metrics"
"""Trailing metadata with a load report (xds.data.orca.v3.OrcaLoadReport as text); sidecars read it, the gateway removes it."""
SAMPLE_S: Final = 0.1
"""A new sample at most this often; Envoy looks at the weights that follow from it once a second."""
WINDOW_S: Final = 1.0
CPU_QUOTA_FILE: Final = Path("/sys/fs/cgroup/cpu.max")
FAULTS: Final = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)
"""Codes that say that the server is not well; the others are the caller's mistakes, or answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What has summed up so far."""

    at_s: float
    cpu_s: float
    running_s: float
    """Running calls times the seconds for which they ran."""
    ended: int
    failed: int


class LoadMeter:
    """Told of each call when it begins and ends, with the time; reports the load of the last second."""

    def __init__(
        self, *, calls_max: int, cores: float, now_s: float, cpu_clock: Callable[[], float] = time.process_time
    ) -> None:
        """`calls_max`: how many calls may run at once. Times are those of one monotonic clock."""
        self._calls_max, self._cores, self._cpu_clock = calls_max, cores, cpu_clock
        self._running = self._ended = self._failed = 0
        self._running_s = 0.0
        self._changed_s = now_s
        self._samples = deque([self._sample(now_s)])
        self._text = _report(cpu=0.0, application=0.0, ended=0.0, failed=0.0)

    def began(self, now_s: float) -> None:
        """A call began."""
        self._advance(now_s)
        self._running += 1

    def ended(self, now_s: float, *, failed: bool) -> None:
        """A call ended; `failed`: by this server's fault."""
        self._advance(now_s)
        self._running -= 1
        self._ended += 1
        self._failed += failed

    def report(self, now_s: float) -> str:
        """The value of the header."""
        if now_s - self._samples[-1].at_s >= SAMPLE_S:
            self._advance(now_s)
            self._text = self._since(self._sample(now_s))
        return self._text

    def _advance(self, now_s: float) -> None:
        """Count the time since the number of running calls has changed."""
        self._running_s += self._running * (now_s - self._changed_s)
        self._changed_s = now_s

    def _sample(self, now_s: float) -> Sample:
        return Sample(
            at_s=now_s, cpu_s=self._cpu_clock(), running_s=self._running_s, ended=self._ended, failed=self._failed
        )

    def _since(self, last: Sample) -> str:
        """What happened within the window; after a pause longer than it, since the sample before the pause."""
        while len(self._samples) > 1 and self._samples[0].at_s < last.at_s - WINDOW_S:
            self._samples.popleft()
        first = self._samples[0]
        self._samples.append(last)
        seconds = last.at_s - first.at_s
        busy = (last.cpu_s - first.cpu_s) / seconds
        occupied = (last.running_s - first.running_s) / seconds / self._calls_max
        return _report(
            cpu=busy / self._cores,
            # One event loop has one core, whatever the machine has: it is full when either that or the room for calls is.
            application=max(busy, occupied),
            ended=(last.ended - first.ended) / seconds,
            failed=(last.failed - first.failed) / seconds,
        )


def _report(*, cpu: float, application: float, ended: float, failed: float) -> str:
    """The report as text, which is the shortest of Envoy's three formats to write."""
    return (
        f"TEXT cpu_utilization={cpu:.4f},application_utilization={application:.4f},"
        f"rps_fractional={ended:.2f},eps={failed:.2f}"
    )


def available_cores(quota_file: Path = CPU_QUOTA_FILE) -> float:
    """How many cores this process may keep busy: those that it may run on, or the container's quota if that is less."""
    cores = float(len(os.sched_getaffinity(0)))
    try:
        quota, _, period = quota_file.read_text().strip().partition(" ")
    except OSError:  # no container, or an older kind
        return cores
    return cores if quota == "max" else min(cores, int(quota) / int(period))

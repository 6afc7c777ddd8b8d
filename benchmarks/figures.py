"""Timing that survives a shared machine: interleaved rounds, medians, ratios of one run."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

Call = Callable[[], Awaitable[object]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Percentiles of one kind of call, in milliseconds."""

    p50_ms: float
    p99_ms: float


def latency(seconds: Sequence[float]) -> Latency:
    """The percentiles of measured times."""
    ranked = sorted(seconds)
    at_99 = ranked[min(len(ranked) - 1, int(len(ranked) * 0.99))]
    return Latency(p50_ms=statistics.median(ranked) * 1e3, p99_ms=at_99 * 1e3)


async def interleaved(calls: dict[str, Call], *, rounds: int, per_round: int) -> dict[str, Latency]:
    """Time each call alone, in turn: round after round, so that a slow moment of the machine hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            for _ in range(per_round):
                start = time.perf_counter()
                await call()
                times[name].append(time.perf_counter() - start)
    return {name: latency(seconds) for name, seconds in times.items()}


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used, to the nanosecond: the clock ticks of `stat` are coarser than a round."""
    tasks = Path(f"/proc/{pid}/task")
    return sum(int((task / "schedstat").read_text(encoding="ascii").split()[0]) for task in tasks.iterdir()) / 1e9


def command_ms(*arguments: str, runs: int, cwd: str | None = None) -> float:
    """Median wall time of a `nipmesh` command as a whole process."""
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "generator", *arguments], cwd=cwd, check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3

"""Timing that survives a shared machine: interleaved rounds, medians, ratios of one run."""

from __future__ import annotations

import asyncio
import json
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

Call = Callable[[], Awaitable[object]]
Figures = dict[str, float | str | None]
"""Values by name; a text describes, None is what could not be measured."""


def end_whole() -> None:
    """SIGTERM ends the benchmark as Ctrl-C does, with all that it started. Left as it is, it would end at once and leave a mesh behind."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """One kind of call, and how many of them a round makes."""

    call: Call
    calls: int


async def per_second(load: Load, *, callers: int) -> float:
    """Calls per second of `callers` loops that share the load's calls."""
    left = iter(range(load.calls))

    async def loop() -> None:
        for _ in left:
            await load.call()

    start = time.perf_counter()
    await asyncio.gather(*(loop() for _ in range(callers)))
    return load.calls / (time.perf_counter() - start)


def median_ratio(one: Sequence[float], other: Sequence[float]) -> float:
    """The median of the ratios of each round's two figures: a slow moment of the machine hits both of one round."""
    return statistics.median(first / second for first, second in zip(one, other, strict=True))


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


def print_figures(figures: Figures | dict[str, Figures], output: str, *, part: str = "") -> None:
    """Print what a command measured, `json` as it is or as a table; `part` names figures that are of one part alone."""
    if output == "json":
        print(json.dumps(figures, indent=2))
        return
    parts = cast("dict[str, Figures]", {part: figures} if part else figures)
    print(f"Python {platform.python_version()}, {platform.machine()}\n\n{table(parts)}")


def table(parts: dict[str, Figures]) -> str:
    """The figures of each part as Markdown."""
    rows = ["| part | figure | value |", "|---|---|---:|"]
    for part, values in parts.items():
        rows += [f"| {part} | {name} | {_cell(value)} |" for name, value in values.items()]
    return "\n".join(rows)


def _cell(value: float | str | None) -> str:
    """A number with two places, a text as it is, a dash for what could not be measured."""
    if value is None:
        return "-"
    return value if isinstance(value, str) else f"{value:,.2f}"

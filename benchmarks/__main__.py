"""`python -m benchmarks [PART ...] [--output json]`: measure everything, or some parts, in one run."""

from __future__ import annotations

import argparse
import asyncio
import json
import platform

from benchmarks import calls, envoys, payments, render
from benchmarks.mesh import running_mesh

PARTS = ("render", "envoys", "start", "calls", "payments")


def measure(parts: list[str]) -> dict[str, dict[str, float]]:
    """The figures of each part, in PARTS' order."""
    figures: dict[str, dict[str, float]] = {}
    if "render" in parts:
        figures["render"] = render.measure()
    if "envoys" in parts:
        figures["envoys"] = envoys.measure()
    if set(parts) & {"start", "calls", "payments"}:
        with running_mesh() as mesh:
            figures["start"] = {"up_to_ready_s": mesh.ready_s}
            if "calls" in parts:
                figures["calls"] = asyncio.run(calls.measure(mesh))
            if "payments" in parts:
                figures["payments"] = asyncio.run(payments.measure(mesh))
    return figures


def table(figures: dict[str, dict[str, float]]) -> str:
    """The figures as Markdown."""
    rows = ["| part | figure | value |", "|---|---|---:|"]
    for part, values in figures.items():
        rows += [f"| {part} | {name} | {value:,.2f} |" for name, value in values.items()]
    return "\n".join(rows)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=[], metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--output", choices=["table", "json"], default="table")
    arguments = parser.parse_args()
    figures = measure(arguments.parts or list(PARTS))
    if arguments.output == "json":
        print(json.dumps(figures, indent=2))
    else:
        print(f"Python {platform.python_version()}, {platform.machine()}\n\n{table(figures)}")


if __name__ == "__main__":
    main()

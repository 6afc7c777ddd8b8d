"""`python -m benchmarks [PART ...] [--output json]`: measure everything, or some parts, in one run."""

from __future__ import annotations

import argparse
import asyncio

from benchmarks import calls, envoys, render
from benchmarks.figures import Figures, end_whole, print_figures
from benchmarks.mesh import running_mesh
from benchmarks.services.measure import measure as measure_services

PARTS = ("render", "envoys", "start", "calls", "services")


def measure(parts: list[str]) -> dict[str, Figures]:
    """The figures of each part, in PARTS' order."""
    figures: dict[str, Figures] = {}
    if "render" in parts:
        figures["render"] = dict(render.measure())
    if "envoys" in parts:
        figures["envoys"] = dict(envoys.measure())
    if set(parts) & {"start", "calls", "services"}:
        with running_mesh() as mesh:
            figures["start"] = {"up_to_ready_s": mesh.ready_s}
            if "calls" in parts:
                figures["calls"] = dict(asyncio.run(calls.measure(mesh)))
            if "services" in parts:
                figures["services"] = measure_services(mesh)
    return figures


def main() -> None:
    """Measure and print."""
    end_whole()
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=[], metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--output", choices=["table", "json"], default="table")
    arguments = parser.parse_args()
    figures = measure(arguments.parts or list(PARTS))
    print_figures(figures, arguments.output)


if __name__ == "__main__":
    main()

"""`python -m benchmarks.services [PART ...] [--output json]`: all figures of the services, or some parts."""

from __future__ import annotations

import argparse
import asyncio

from benchmarks import services
from benchmarks.figures import Figures, end_whole, print_figures
from benchmarks.mesh import running_mesh
from benchmarks.services import ciphers, remote_signer
from benchmarks.services.measure import ROUNDS, measure_calls, measure_crypto, measure_stores

PARTS = ("calls", "lnbits", "stores", "crypto", "ciphers", "remote_signer")


def measure(parts: list[str], *, rounds: int, by_process: bool) -> Figures:
    """The figures of the parts; LNbits is measured beside the calls."""
    figures: Figures = {}
    if set(parts) & {"calls", "lnbits"}:
        with running_mesh() as mesh:
            lnbits = "lnbits" in parts
            figures |= asyncio.run(measure_calls(mesh, rounds=rounds, lnbits=lnbits, by_process=by_process))
    if "stores" in parts:
        figures |= measure_stores(rounds=rounds)
    if "crypto" in parts:
        figures |= measure_crypto(rounds=rounds)
    if "ciphers" in parts:
        figures |= ciphers.measure(rounds=rounds)
    if "remote_signer" in parts:
        figures |= remote_signer.measure(rounds=rounds)
    return figures


def main() -> None:
    """Measure and print."""
    end_whole()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.services",
        description=services.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=[], metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--processes", action="store_true", help="processor time of each part of the mesh as well")
    parser.add_argument("--output", choices=["table", "json"], default="table")
    arguments = parser.parse_args()
    figures = measure(arguments.parts or list(PARTS), rounds=arguments.rounds, by_process=arguments.processes)
    print_figures(figures, arguments.output, part="services")


if __name__ == "__main__":
    main()

"""All figures in one run: rounds in which each load has its turn."""

from __future__ import annotations

import asyncio
import math
import statistics
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager
from pathlib import Path
from typing import Final

from benchmarks.figures import Figures, Load, median_ratio, per_second
from benchmarks.mesh import BenchmarkMesh
from benchmarks.services import crypto
from benchmarks.services.calls import mesh_loads
from benchmarks.services.lnbits import DESCRIPTION, VERSION, LnbitsMissingError, cache_folder, running_lnbits
from benchmarks.services.postgresql import PostgresqlMissingError, Server, running_postgresql
from benchmarks.services.processes import Meter
from benchmarks.services.reserves import Round, running_writers

CALLERS: Final = 64
ROUNDS: Final = 5

RATIOS: Final = {
    "create_to_echo": ("create_invoice", "echo"),
    "pay_to_echo": ("pay_invoice", "echo"),
    "pay_to_nest": ("pay_invoice", "nest"),
    "sign_to_echo": ("sign_event", "echo"),
    "verify_to_echo": ("verify_events", "echo"),
    "create_to_lnbits": ("create_invoice", "lnbits_create"),
    "pay_to_lnbits": ("pay_invoice", "lnbits_pay"),
}
METERED: Final = {name: RATIOS[name] for name in ("create_to_echo", "pay_to_nest", "sign_to_echo", "verify_to_echo")}
"""Ratios that are told by processor time as well."""
QUIET_CORES: Final = 0.05
"""LNbits is at rest when it uses no more processors than this."""
QUIET_LOOK_S: Final = 0.25
QUIET_S_MAX: Final = 30.0
ENGINES: Final = ("sqlite", "postgresql")


async def measure_calls(
    mesh: BenchmarkMesh, *, rounds: int = ROUNDS, lnbits: bool = True, by_process: bool = False
) -> Figures:
    """Calls through the sidecars, and LNbits beside them; None where it cannot be had, with the reason on stderr."""
    async with AsyncExitStack() as stack:
        loads = await stack.enter_async_context(mesh_loads(mesh))
        meters = dict.fromkeys(loads, Meter.of(mesh))
        if lnbits:
            try:
                peer = await stack.enter_async_context(running_lnbits(cache_folder()))
                loads |= peer.loads
                meters |= dict.fromkeys(peer.loads, Meter(pids={"lnbits": peer.pids}))
            except LnbitsMissingError as error:
                print(f"LNbits cannot be had: {error}", file=sys.stderr)
        rates: dict[str, list[float]] = {name: [] for name in loads}
        for number in range(rounds + 1):
            await _round(loads, rates if number else None, meters)
    return _of_rates(rates) | _of_processors(meters, by_process=by_process) | _about_lnbits(loads)


def _of_processors(meters: Mapping[str, Meter], *, by_process: bool) -> Figures:
    """Processor time per call, and the ratios that the rates would have were this mesh alone on the machine and kept it busy."""
    found: dict[str, float] = {}
    for meter in {id(meter): meter for meter in meters.values()}.values():
        found |= meter.figures(by_part=by_process)
    ratios = {
        f"{ratio}_by_cpu": found[f"{other}_cpu_ms"] / found[f"{one}_cpu_ms"] for ratio, (one, other) in METERED.items()
    }
    return {**found, **ratios}


async def _round(
    loads: Mapping[str, Load], rates: Mapping[str, list[float]] | None, meters: Mapping[str, Meter]
) -> None:
    """Each load in turn; without `rates` to warm up only."""
    for name, load in loads.items():
        before = meters[name].read()
        rate = await per_second(load, callers=CALLERS)
        if rates is not None:
            meters[name].add(name, before, load.calls)
            rates[name].append(rate)
        if meters[name] is not meters["echo"]:
            await _at_rest(meters[name])


async def _at_rest(peer: Meter) -> None:
    """Wait until a peer has ended what it does after its answers: whoever is next would share the processors with it.

    Raises TimeoutError when it never rests.
    """
    async with asyncio.timeout(QUIET_S_MAX):
        used_s = math.inf
        while used_s > QUIET_CORES * QUIET_LOOK_S:
            before_s = sum(peer.read().values())
            await asyncio.sleep(QUIET_LOOK_S)
            used_s = sum(peer.read().values()) - before_s


def _of_rates(rates: Mapping[str, list[float]]) -> Figures:
    """Medians and ratios; None for what was not measured."""
    names = dict.fromkeys(name for pair in RATIOS.values() for name in (pair[1], pair[0], *rates))
    figures: Figures = {f"{name}_per_s": statistics.median(rates[name]) if rates.get(name) else None for name in names}
    for ratio, (one, other) in RATIOS.items():
        both = rates.get(one) and rates.get(other)
        figures[ratio] = median_ratio(rates[one], rates[other]) if both else None
    return figures


def _about_lnbits(loads: Mapping[str, Load]) -> Figures:
    """Which LNbits it was, and how it was set up."""
    there = "lnbits_create" in loads
    return {"lnbits_version": VERSION if there else None, "lnbits_settings": DESCRIPTION if there else None}


def measure_stores(*, rounds: int = ROUNDS) -> Figures:
    """Reserves per second on each engine, in turn; None where the engine cannot be had, with the reason on stderr."""
    figures: Figures = {}
    with tempfile.TemporaryDirectory(prefix="nipmesh-benchmark-") as folder, ExitStack() as stack:
        writers = [stack.enter_context(running_writers("sqlite", str(Path(folder) / "payment.sqlite3")))]
        if server := stack.enter_context(_postgresql()):
            writers.append(stack.enter_context(running_writers("postgresql", server.url, server_pid=server.pid)))
        for each in writers:
            each.warm_up()
        for _ in range(rounds):
            for each in writers:
                each.round()
        found = {each.name: each.rounds for each in writers}
        for engine in ENGINES:
            figures |= _of_engine(engine, found.get(engine, []))
    return figures


def _of_engine(engine: str, rounds: Sequence[Round]) -> Figures:
    """Medians of the rounds; processor time tells what a store costs, also on a machine that has other work."""

    def median(values: Iterable[float]) -> float | None:
        return statistics.median(values) if rounds else None

    figures: Figures = {
        f"{engine}_reserve_per_s": median(each.per_second for each in rounds),
        f"{engine}_reserve_p99_ms": median(each.p99_ms for each in rounds),
        f"{engine}_reserve_cpu_us": median(each.writers_cpu_us + each.server_cpu_us for each in rounds),
    }
    if engine == "postgresql":
        figures[f"{engine}_reserve_cpu_us_of_server"] = median(each.server_cpu_us for each in rounds)
    return figures


def measure_crypto(*, rounds: int = ROUNDS) -> Figures:
    """What BOLT11 costs, inline and in a thread."""
    found = asyncio.run(crypto.measure(callers=CALLERS, rounds=rounds))
    return {name: statistics.median(values) for name, values in found.items()}


@contextmanager
def _postgresql() -> Iterator[Server | None]:
    """A server, or None with the reason on stderr."""
    with ExitStack() as stack:
        server = None
        try:
            server = stack.enter_context(running_postgresql())
        except PostgresqlMissingError as error:
            print(f"PostgreSQL cannot be had: {error}", file=sys.stderr)
        yield server


def measure(mesh: BenchmarkMesh, *, rounds: int = ROUNDS, by_process: bool = False) -> Figures:
    """Calls first, the stores and the cryptography alone after them."""
    figures = asyncio.run(measure_calls(mesh, rounds=rounds, by_process=by_process))
    return figures | measure_stores(rounds=rounds) | measure_crypto(rounds=rounds)

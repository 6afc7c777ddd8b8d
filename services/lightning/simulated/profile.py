"""How the simulated network behaves: what NIPMESH_LIGHTNING_SIMULATION says.

    seed=7,failures=0.1,hangs=0.01,delay_ms=50

Empty: one hub between us and everybody, channels that are never short, 1,000 msat and 0.1 % of fee, no delay, no fault. With `seed` or
`nodes`: a network of nodes whose channels have capacities, fees, time locks and hidden balances, all of them drawn from the seed. The
same profile and the same payments in the same order give the same outcomes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Final

NODES_DEFAULT: Final = 24
"""Enough for several routes to each node."""
NODES_MIN: Final = 6
NODES_MAX: Final = 200
"""Routing over more takes longer than a payment may hold up the others."""
SEED_MAX: Final = 2**63 - 1
TIME_MS_MAX: Final = 86_400_000
"""A day."""
BLOCK_MS_DEFAULT: Final = 600_000
"""Ten minutes, as bitcoin aims at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """The parts of a profile."""

    seed: int = 0
    nodes: int = 0
    """How many nodes the network has; 0: one hub, see the module."""
    failures: float = 0.0
    """Probability that a try to pay over a route fails on its way, beyond what lacks liquidity."""
    hangs: float = 0.0
    """Probability that a payment hangs on its way until its time lock passes."""
    lost: float = 0.0
    """Probability that a payment begins and the caller gets no answer."""
    delay_ms: int = 0
    """Time for each hop, there and back each."""
    block_ms: int = BLOCK_MS_DEFAULT
    """Time between two blocks: time locks and deadlines are counted in blocks."""
    down_ms: int = 0
    """The node answers nothing for this long, once in each `down_every_ms`."""
    down_every_ms: int = 60_000


def profile_of(text: str) -> Profile:
    """Read a profile. Raises ValueError that says what is wrong."""
    values: dict[str, int | float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = part.partition("=")
        if name not in _READERS or not equals:
            raise ValueError(f"write name=value,… with the names {', '.join(_READERS)}")
        if name in values:
            raise ValueError(f"{name} is there twice")
        values[name] = _READERS[name](name, value)
    if "seed" in values:
        values.setdefault("nodes", NODES_DEFAULT)
    profile = Profile(**values)  # type: ignore[arg-type]  # the readers make each part what it must be
    if profile.down_ms > profile.down_every_ms:
        raise ValueError("down_ms is more than down_every_ms")
    return profile


def _number(least: int, most: int) -> Callable[[str, str], int]:
    def read(name: str, value: str) -> int:
        if not (value.isascii() and value.isdigit() and len(value) <= len(str(most)) and least <= int(value) <= most):
            raise ValueError(f"{name} must be {least} to {most}")
        return int(value)

    return read


def _probability(name: str, value: str) -> float:
    try:
        probability = float(value)
    except ValueError:
        probability = -1.0
    if not 0 <= probability <= 1:
        raise ValueError(f"{name} must be 0 to 1")
    return probability


_READERS: Final[dict[str, Callable[[str, str], int | float]]] = {
    "seed": _number(0, SEED_MAX),
    "nodes": _number(NODES_MIN, NODES_MAX),
    "failures": _probability,
    "hangs": _probability,
    "lost": _probability,
    "delay_ms": _number(0, TIME_MS_MAX),
    "block_ms": _number(1, TIME_MS_MAX),
    "down_ms": _number(0, TIME_MS_MAX),
    "down_every_ms": _number(1, TIME_MS_MAX),
}
assert set(_READERS) == {part.name for part in fields(Profile)}

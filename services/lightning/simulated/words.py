"""What the description of an invoice asks the simulated network to do with its payment; deterministic.

    simulated:fail          fails for certain, as if no route were found
    simulated:hang          stays in flight until somebody rules otherwise or its time lock passes
    simulated:delay=1500    decides after 1,500 ms
    simulated:fee=2500      costs 2,500 msat of routing fee

Words are separated by blanks; the last one of a kind counts, unknown ones do not.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

DELAY_MS_MAX: Final = 3_600_000
"""An hour; `hang` is for longer."""
FEE_MSAT_MAX: Final = 1_000_000_000
"""A hundredth of a bitcoin: enough to break any fee limit."""
WORD: Final = re.compile(r"simulated:(fail|hang|delay=([0-9]{1,9})|fee=([0-9]{1,12}))\Z")


class Behaviour(StrEnum):
    """What becomes of a payment."""

    PAY = "pay"
    FAIL = "fail"
    HANG = "hang"


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """What the description asks for. `behaviour` and `fee_msat` None: as the network decides."""

    behaviour: Behaviour | None = None
    delay_ms: int = 0
    fee_msat: int | None = None


def words_of(description: str) -> Words:
    """Read the words of a description."""
    behaviour, delay_ms, fee_msat = None, 0, None
    for word in description.split():
        match = WORD.match(word)
        if match is None:
            continue
        if match[2] is not None:
            delay_ms = min(int(match[2]), DELAY_MS_MAX)
        elif match[3] is not None:
            fee_msat = min(int(match[3]), FEE_MSAT_MAX)
        else:
            behaviour = Behaviour(match[1])
    return Words(behaviour=behaviour, delay_ms=delay_ms, fee_msat=fee_msat)

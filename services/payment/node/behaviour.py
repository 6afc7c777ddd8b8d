"""How the simulated node behaves: read from the invoice's description, deterministic.

    simulated:fail          fails for certain, as if no route were found
    simulated:hang          stays in flight until the control file says otherwise
    simulated:delay=1500    decides after 1,500 ms
    simulated:fee=2500      costs 2,500 msat of routing fee

Words are separated by blanks; anything else pays at once for 1,000 msat and 0.1 % of the amount. A fee above the limit fails.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

BASE_FEE_MSAT = 1_000
FEE_DIVISOR = 1_000
"""0.1 %: with the base, close to what a payment over three hops costs."""
DELAY_MS_MAX = 3_600_000
"""An hour; `hang` is for longer."""
FEE_MSAT_MAX = 1_000_000_000
"""A hundredth of a bitcoin: enough to break any fee limit."""
WORD = re.compile(r"simulated:(fail|hang|delay=(\d{1,9})|fee=(\d{1,12}))\Z")


class Behaviour(StrEnum):
    """What becomes of a simulated payment."""

    PAY = "pay"
    FAIL = "fail"
    HANG = "hang"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the description asks for. `fee_msat` None: the usual fee."""

    behaviour: Behaviour = Behaviour.PAY
    delay_ms: int = 0
    fee_msat: int | None = None


def plan_of(description: str) -> Plan:
    """Read the words of a description; the last one of a kind counts, unknown ones do not."""
    behaviour, delay_ms, fee_msat = Behaviour.PAY, 0, None
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
    return Plan(behaviour=behaviour, delay_ms=delay_ms, fee_msat=fee_msat)


def fee_msat_of(plan: Plan, amount_msat: int) -> int:
    """The routing fee of a payment."""
    return BASE_FEE_MSAT + amount_msat // FEE_DIVISOR if plan.fee_msat is None else plan.fee_msat

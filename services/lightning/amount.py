"""The human-readable part of a BOLT11 payment request: `ln`, the currency, and perhaps an amount with a multiplier."""

from __future__ import annotations

import re
from typing import Final

from services.lightning.payment_request import AMOUNT_MSAT_MAX, CURRENCIES, Bolt11Error

MSAT_PER_BITCOIN: Final = 100_000_000_000
MSAT_PER_UNIT: Final = {"": MSAT_PER_BITCOIN, "m": 100_000_000, "u": 100_000, "n": 100}
"""Millisatoshi of one unit, largest first; `p` is a tenth of a millisatoshi and stands apart."""
PICO_PER_MSAT: Final = 10
_CURRENCY_THEN_AMOUNT: Final = re.compile(r"ln(bcrt|bc|tbs|tb|sb)(?:([0-9]+)(.?))?", re.DOTALL)


def encode_prefix(currency: str, amount_msat: int | None) -> str:
    """Return the human-readable part, with the largest multiplier that divides the amount. Raises Bolt11Error."""
    if currency not in CURRENCIES:
        raise Bolt11Error("currency", f"must be one of {', '.join(CURRENCIES)}")
    if amount_msat is None:
        return f"ln{currency}"
    if not 0 < amount_msat <= AMOUNT_MSAT_MAX:
        raise Bolt11Error("amount", f"must be 1 to {AMOUNT_MSAT_MAX} msat")
    for multiplier, unit_msat in MSAT_PER_UNIT.items():
        if amount_msat % unit_msat == 0:
            return f"ln{currency}{amount_msat // unit_msat}{multiplier}"
    return f"ln{currency}{amount_msat * PICO_PER_MSAT}p"


def decode_prefix(prefix: str) -> tuple[str, int | None]:
    """Currency and amount in millisatoshi (None: the payer chooses). Raises Bolt11Error."""
    match = _CURRENCY_THEN_AMOUNT.fullmatch(prefix)
    if match is None:
        raise Bolt11Error("prefix", "must be ln, a known currency (bc, tb, tbs, bcrt, sb), and perhaps an amount")
    currency, digits, multiplier = match.groups()
    return currency, None if digits is None else _amount_msat(digits, multiplier)


def _amount_msat(digits: str, multiplier: str) -> int:
    """Return the amount of decimal digits and a multiplier letter, which may be empty."""
    if digits.startswith("0"):
        raise Bolt11Error("amount", "must not begin with 0")
    value = int(digits)
    if multiplier == "p":
        amount_msat, rest = divmod(value, PICO_PER_MSAT)
        if rest:
            raise Bolt11Error("amount", "has a fraction of a millisatoshi")
    elif multiplier in MSAT_PER_UNIT:
        amount_msat = value * MSAT_PER_UNIT[multiplier]
    else:
        raise Bolt11Error("amount", "has an unknown multiplier; known are m, u, n and p")
    if amount_msat > AMOUNT_MSAT_MAX:
        raise Bolt11Error("amount", f"is more than {AMOUNT_MSAT_MAX} msat, all bitcoin that can exist")
    return amount_msat

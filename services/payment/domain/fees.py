"""How much a payment may cost on top of its amount."""

from __future__ import annotations

FEE_LIMIT_FLOOR_MSAT = 10_000
"""Small payments need a few satoshi of routing fee whatever their amount; 10 sat is the design's floor."""
FEE_LIMIT_DIVISOR = 100
"""The default limit is 1 % of the amount."""


def fee_limit_msat(amount_msat: int, named_msat: int | None) -> int:
    """The fee limit to reserve and to pass on: the caller's when named (0 means zero), else max(1 %, 10,000 msat).

    Without a limit that is reserved and passed on, a payee can steal through routing fees (LNbits#440).
    """
    assert amount_msat > 0
    if named_msat is not None:
        assert named_msat >= 0
        return named_msat
    return max(-(-amount_msat // FEE_LIMIT_DIVISOR), FEE_LIMIT_FLOOR_MSAT)

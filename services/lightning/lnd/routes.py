"""The ways to a payee for an estimate: lnd knows the public graph, the payment request may hint at the way behind it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from services.lightning.payment_request import PaymentRequest, RouteHop

MSAT_PER_SAT: Final = 1_000
MILLION: Final = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """The part of a way that lnd is asked for, and what the rest of it, behind `destination`, costs."""

    destination: str
    amount_msat: int
    rest_fee_msat: int = 0
    rest_delay_blocks: int = 0

    @property
    def amount_sat(self) -> int:
        """Whole satoshis, upwards: the estimate is never too low for that."""
        return -(-self.amount_msat // MSAT_PER_SAT)


def stretches(request: PaymentRequest, amount_msat: int, own_key: str) -> Iterator[Stretch]:
    """The payee itself, and the first node of every hint."""
    yield Stretch(destination=request.payee_pubkey, amount_msat=amount_msat)
    for hint in request.route_hints:
        yield _before(hint, amount_msat, own_key)


def _before(hint: tuple[RouteHop, ...], amount_msat: int, own_key: str) -> Stretch:
    """The way to a hint's first node; a channel of our own at its beginning costs nothing."""
    due_msat, delay = amount_msat, 0
    for hop in reversed(hint[1:] if hint[0].pubkey == own_key else hint):
        due_msat += hop.fee_base_msat + due_msat * hop.fee_proportional_millionths // MILLION
        delay += hop.cltv_expiry_delta
    return Stretch(
        destination=hint[0].pubkey, amount_msat=due_msat, rest_fee_msat=due_msat - amount_msat, rest_delay_blocks=delay
    )

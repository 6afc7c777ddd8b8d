"""What the payment service asks of a Lightning node, whatever its make.

The node keeps its own records by payment hash. Its promise, as lnd's: a second `pay` for one hash joins the attempt that runs or ran
and never pays twice; only after a definite failure a further `pay` begins a new attempt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from services.payment.domain.invoice import read_invoice
from services.payment.domain.model import Payment
from services.payment.domain.saga import NodeFailed, NodeFree, NodeHolds, NodePaid, NodePending, NodeUnknown


class NodeUnavailableError(Exception):
    """The node does not answer: what it did with the request is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentOrder:
    """What the node is to pay. Amounts in millisatoshi; it spends at most `fee_limit_msat` on routing."""

    payment_hash: str
    payment_request: str
    description: str
    amount_msat: int
    fee_limit_msat: int


def order_of(payment: Payment) -> PaymentOrder:
    """The order for a payment; its payment request was read before, when it was recorded."""
    return PaymentOrder(
        payment_hash=payment.payment_hash,
        payment_request=payment.payment_request,
        description=read_invoice(payment.payment_request).description,
        amount_msat=payment.amount_msat,
        fee_limit_msat=payment.fee_limit_msat,
    )


class LightningNode(Protocol):
    """A node. Every method raises NodeUnavailableError when the node does not answer."""

    @property
    def simulated(self) -> bool:
        """Whether no bitcoin moves: said in every payment that this node made."""

    async def pay(self, order: PaymentOrder) -> NodePaid | NodeFailed | NodePending:
        """Begin to pay, or join what began before; returns soon, with or without the outcome."""

    async def track(self, payment_hash: str) -> NodePaid | NodeFailed | NodePending | NodeUnknown:
        """What became of the payment of this hash."""

    async def cancel(self, payment_hash: str) -> NodeFree | NodeHolds:
        """See to it that nobody outside pays this invoice of ours any more, or say that somebody does."""

    async def close(self) -> None:
        """Let go of everything."""

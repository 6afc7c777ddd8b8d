"""lnd's messages in the words of the port."""

from __future__ import annotations

from typing import Final

from services.lightning.lnd.wire import lightning_pb2 as lnrpc
from services.lightning.node import (
    NodeFailed,
    NodeFailure,
    NodePaid,
    NodePending,
    NodeUnavailableError,
    Received,
    ReceivedState,
)

BLOCK_MS: Final = 600_000
"""Ten minutes, on every network: where blocks come faster, a test mines them."""
LND_MARGIN_BLOCKS: Final = 12
"""So many blocks before an HTLC expires lnd cancels the invoice by itself (its `invoices.holdexpirydelta`)."""
CHANCE_MARGIN_BLOCKS: Final = 24
"""Blocks come by chance: in the time of 47 of them there are 24 more with odds of 1 to 1,500."""

STATES: Final = {
    lnrpc.Invoice.OPEN: ReceivedState.OPEN,
    lnrpc.Invoice.SETTLED: ReceivedState.SETTLED,
    lnrpc.Invoice.CANCELED: ReceivedState.CANCELED,
    lnrpc.Invoice.ACCEPTED: ReceivedState.ACCEPTED,
}
FAILURES: Final = {
    lnrpc.FAILURE_REASON_TIMEOUT: NodeFailure.TIMEOUT,
    lnrpc.FAILURE_REASON_NO_ROUTE: NodeFailure.NO_ROUTE,
    lnrpc.FAILURE_REASON_INCORRECT_PAYMENT_DETAILS: NodeFailure.INCORRECT_PAYMENT_DETAILS,
    lnrpc.FAILURE_REASON_INSUFFICIENT_BALANCE: NodeFailure.INSUFFICIENT_BALANCE,
}
"""The rest is ERROR."""


def received(invoice: lnrpc.Invoice) -> Received:
    """The state of an invoice. Raises NodeUnavailableError for a state that is not known."""
    state = STATES.get(invoice.state)
    if state is None:
        raise NodeUnavailableError(f"lnd says an unknown invoice state, {invoice.state}")
    held = [part for part in invoice.htlcs if part.state == lnrpc.ACCEPTED]
    accepted = state is ReceivedState.ACCEPTED
    paid_msat = invoice.amt_paid_msat if state is ReceivedState.SETTLED else 0
    return Received(
        payment_hash=invoice.r_hash.hex(),
        state=state,
        amount_msat=sum(part.amt_msat for part in held) if accepted else paid_msat,
        settle_deadline_ms=min((_deadline_ms(part) for part in held), default=None) if accepted else None,
    )


def _deadline_ms(part: lnrpc.InvoiceHTLC) -> int:
    """When a part must be settled: the blocks that it is given, less the margins, from when it came. The same in every answer."""
    blocks = part.expiry_height - part.accept_height - LND_MARGIN_BLOCKS - CHANCE_MARGIN_BLOCKS
    return part.accept_time * 1_000 + max(blocks, 0) * BLOCK_MS


def outcome(payment: lnrpc.Payment) -> NodePaid | NodeFailed | NodePending:
    """What has become of a payment. lnd calls it failed only when none of its parts is on its way any more."""
    match payment.status:
        case lnrpc.Payment.SUCCEEDED:
            return NodePaid(payment.payment_preimage, payment.fee_msat)
        case lnrpc.Payment.FAILED:
            return NodeFailed(FAILURES.get(payment.failure_reason, NodeFailure.ERROR))
        case lnrpc.Payment.IN_FLIGHT | lnrpc.Payment.INITIATED:
            return NodePending()
    raise NodeUnavailableError(f"lnd says an unknown payment status, {payment.status}")

"""Applying the tables: pure functions from what is stored and a call to what is to be stored.

Refusals are raised as RefusedError; the caller's transaction is undone and nothing was changed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from services.chassis.errors import Reason
from services.invoice.domain.invoice import Hold, HoldState, Invoice, State
from services.invoice.domain.transitions import HOLD_STEPS, TRANSITIONS, Call, Event, Move, Refuse, Step

TEXTS: Final = {
    Reason.INVOICE_ALREADY_SETTLED: "the invoice is paid",
    Reason.INVOICE_ALREADY_CANCELED: "the invoice was canceled",
    Reason.INVOICE_EXPIRED: "the time to pay the invoice is over",
    Reason.INVOICE_LOCKED: "a payment holds the invoice",
    Reason.INVOICE_NOT_LOCKED: "the payment holds no invoice",
    Reason.INVOICE_AMOUNT_MISMATCH: "the amount is not the one that the invoice asks for",
}
"""What a refusal says to people."""


class RefusedError(Exception):
    """The state does not allow it; `subject` is the id of what stands in the way."""

    def __init__(self, reason: Reason, subject: str) -> None:
        super().__init__(f"{reason}: {subject}")
        self.reason = reason
        self.subject = subject


class OtherInvoiceError(Exception):
    """The payment_id was used to lock another invoice: one payment pays one invoice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LockOrder:
    """A payment that wants to hold an invoice."""

    payment_id: str
    amount_msat: int
    actor_pubkey: str


def apply(invoice: Invoice, event: Event, now_ms: int, *, hold: Hold | None = None) -> Invoice:
    """Return the invoice after the event: the same object when nothing changes. Raises RefusedError."""
    outcome = TRANSITIONS[invoice.state, event]
    if isinstance(outcome, Refuse):
        raise RefusedError(outcome.reason, invoice.invoice_id)
    if not isinstance(outcome, Move):
        return invoice
    update_time_ms = max(now_ms, invoice.update_time_ms)  # the clock may have been set back
    holder = hold if outcome.to in (State.ACCEPTED, State.SETTLED) else None
    settled = outcome.to is State.SETTLED
    moved = replace(
        invoice,
        state=outcome.to,
        update_time_ms=update_time_ms,
        locked_by=holder.payment_id if holder else None,
        settle_time_ms=update_time_ms if settled else None,
        amount_paid_msat=holder.amount_msat if holder and settled else 0,
    )
    moved.check()
    return moved


def cancel(invoice: Invoice, now_ms: int) -> Invoice:
    """Return the invoice taken back. Raises RefusedError."""
    return apply(invoice, Event.CANCEL, now_ms)


def expire(invoice: Invoice, now_ms: int) -> Invoice:
    """Return the invoice expired, when its time has passed and nobody holds it; else as it is."""
    return apply(invoice, Event.EXPIRE, now_ms) if now_ms >= invoice.expire_time_ms else invoice


def lock(invoice: Invoice, hold: Hold | None, order: LockOrder, now_ms: int) -> tuple[Invoice, Hold]:
    """Return invoice and hold once the payment holds the invoice. Raises RefusedError and OtherInvoiceError."""
    step = _step(hold, Call.LOCK, order.payment_id)
    if hold is not None and step is Step.REPEAT:
        if hold.invoice_id != invoice.invoice_id:
            raise OtherInvoiceError(order.payment_id)
        if hold.amount_msat != order.amount_msat:
            raise RefusedError(Reason.INVOICE_AMOUNT_MISMATCH, invoice.invoice_id)
        return invoice, hold
    held = Hold(
        payment_id=order.payment_id,
        invoice_id=invoice.invoice_id,
        state=HoldState.HELD,
        amount_msat=order.amount_msat,
        actor_pubkey=order.actor_pubkey,
        update_time_ms=now_ms,
    )
    event = Event.LOCK_LATE if now_ms >= invoice.expire_time_ms else Event.LOCK
    locked = apply(invoice, event, now_ms, hold=held)
    if invoice.amount_msat not in (None, order.amount_msat):
        raise RefusedError(Reason.INVOICE_AMOUNT_MISMATCH, invoice.invoice_id)
    return locked, held


def commit(invoice: Invoice, hold: Hold, now_ms: int) -> tuple[Invoice, Hold]:
    """Return the settled invoice and the hold that settled it. Raises RefusedError."""
    if _step(hold, Call.COMMIT, hold.payment_id) is Step.REPEAT:
        return invoice, hold
    _check_holds(invoice, hold)
    settled = apply(invoice, Event.COMMIT, now_ms, hold=hold)
    return settled, replace(hold, state=HoldState.COMMITTED, update_time_ms=now_ms)


def release(invoice: Invoice, hold: Hold, now_ms: int) -> tuple[Invoice, Hold]:
    """Return the freed invoice, open or expired, and the hold's tombstone. Raises RefusedError."""
    if _step(hold, Call.RELEASE, hold.payment_id) is Step.REPEAT:
        return invoice, hold
    _check_holds(invoice, hold)
    event = Event.RELEASE_LATE if now_ms >= invoice.expire_time_ms else Event.RELEASE
    return apply(invoice, event, now_ms), replace(hold, state=HoldState.RELEASED, update_time_ms=now_ms)


def tombstone(payment_id: str, now_ms: int) -> Hold:
    """Return what remembers a payment that was released before it ever locked."""
    assert HOLD_STEPS[None, Call.RELEASE] is Step.BURY
    return Hold(
        payment_id=payment_id,
        invoice_id=None,
        state=HoldState.RELEASED,
        amount_msat=0,
        actor_pubkey="",
        update_time_ms=now_ms,
    )


def _step(hold: Hold | None, call: Call, payment_id: str) -> Step:
    """Return the cell of the hold's table. Raises RefusedError."""
    step = HOLD_STEPS[hold.state if hold else None, call]
    if isinstance(step, Refuse):
        raise RefusedError(step.reason, payment_id)
    return step


def _check_holds(invoice: Invoice, hold: Hold) -> None:
    """Assert that the hold and the invoice speak of each other."""
    assert invoice.state is State.ACCEPTED
    assert invoice.invoice_id == hold.invoice_id
    assert invoice.locked_by == hold.payment_id

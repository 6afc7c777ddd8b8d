"""Applying the tables: pure functions from what is stored and a call to what is to be stored.

Refusals are raised as RefusedError; the caller's transaction is undone and nothing was changed.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any, Final

from services.chassis.errors import Reason
from services.chassis.secret import SecretBytes
from services.invoice.domain.invoice import (
    AT_WORK,
    DECIDABLE,
    FINAL,
    NODE,
    AtNode,
    Hold,
    HoldState,
    Invoice,
    Phase,
    State,
)
from services.invoice.domain.transitions import HOLD_STEPS, TRANSITIONS, Call, Event, Move, Refuse, Step

LEASE_MS: Final = 2_000
"""Whoever moves an invoice to a phase with work does the work at once; after this time any replica does it."""
NODE_MARGIN_MS: Final = 600_000
"""The owner's time to decide ends a block before the node gives the money back by itself; or in half of what is left, if that is less."""
MS_PER_SECOND: Final = 1_000

TEXTS: Final = {
    Reason.INVOICE_ALREADY_SETTLED: "the invoice is paid",
    Reason.INVOICE_ALREADY_CANCELED: "the invoice was canceled",
    Reason.INVOICE_EXPIRED: "the time to pay the invoice is over",
    Reason.INVOICE_LOCKED: "a payment holds the invoice",
    Reason.INVOICE_NOT_LOCKED: "the payment holds no invoice",
    Reason.INVOICE_AMOUNT_MISMATCH: "the amount is not the one that the invoice asks for",
    Reason.INVOICE_NOT_ACCEPTED: "no money is held for the invoice",
    Reason.PREIMAGE_MISMATCH: "the preimage is not the one of the payment hash",
}
"""What a refusal says to people."""

_CLOSED_AT_NODE: Final = frozenset({Phase.RESERVED, Phase.POSTING, Phase.VOIDING, Phase.SETTLED})
"""Who gets there has been settled or canceled at the node before."""


class RefusedError(Exception):
    """The state does not allow it; `subject` is the id of what stands in the way."""

    def __init__(self, reason: Reason, subject: str) -> None:
        super().__init__(f"{reason}: {subject}")
        self.reason = reason
        self.subject = subject


class OtherInvoiceError(Exception):
    """The payment_id was used to lock another invoice: one payment pays one invoice."""


class PreimageMissingError(Exception):
    """Only the owner knows the preimage, and did not say it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LockOrder:
    """A payment that wants to hold an invoice."""

    payment_id: str
    amount_msat: int
    actor_pubkey: str


def apply(invoice: Invoice, event: Event, now_ms: int, **facts: Any) -> Invoice:
    """Return the invoice after the event: the same object when nothing changes. Raises RefusedError.

    `facts`: fields of the invoice that the event brings along.
    """
    outcome = TRANSITIONS[invoice.phase, event]
    if isinstance(outcome, Refuse):
        raise RefusedError(outcome.reason, invoice.invoice_id)
    if not isinstance(outcome, Move):
        return invoice
    state = outcome.to.state
    moved_ms = max(now_ms, invoice.update_time_ms)  # the clock may have been set back
    moved = replace(
        invoice,
        phase=outcome.to,
        amount_held_msat=invoice.amount_held_msat if state is State.ACCEPTED else 0,
        amount_paid_msat=invoice.amount_held_msat if state is State.SETTLED else 0,
        locked_by=invoice.locked_by if state in (State.ACCEPTED, State.SETTLED) else None,
        at_node=AtNode.CLOSED if outcome.to in _CLOSED_AT_NODE else invoice.at_node,
        settle_time_ms=moved_ms if state is State.SETTLED else None,
        attempt=0,
    )
    moved = replace(moved, **facts)
    moved = replace(
        moved,
        update_time_ms=moved_ms if is_announced(invoice, moved) else invoice.update_time_ms,
        next_run_ms=next_run_ms(moved, now_ms),
    )
    moved.check()
    return moved


def is_announced(before: Invoice, after: Invoice) -> bool:
    """Whether watchers are told: of another state, and that the owner may decide now."""
    return before.state is not after.state or (after.phase in DECIDABLE and before.phase not in DECIDABLE)


def next_run_ms(invoice: Invoice, now_ms: int) -> int | None:
    """Return when some replica has to look at the invoice, beside its expiry; None: there is nothing to do."""
    if invoice.phase in DECIDABLE:
        return invoice.settle_deadline_ms
    if invoice.phase in AT_WORK:
        return now_ms + LEASE_MS
    return now_ms if invoice.state in FINAL and invoice.at_node is AtNode.LISTED else None


# ---- the owner and the clocks


def cancel(invoice: Invoice, now_ms: int) -> Invoice:
    """Return the invoice taken back, or about to be. Raises RefusedError."""
    return apply(invoice, Event.CANCEL, now_ms)


def settle(invoice: Invoice, preimage: SecretBytes | None, now_ms: int) -> Invoice:
    """Return the invoice settled by its owner, or about to be. Raises RefusedError and PreimageMissingError."""
    if preimage is not None and hashlib.sha256(preimage.reveal()).hexdigest() != invoice.payment_hash:
        raise RefusedError(Reason.PREIMAGE_MISMATCH, invoice.invoice_id)
    known = invoice.preimage or preimage
    if known is None and not isinstance(TRANSITIONS[invoice.phase, Event.SETTLE], Refuse):
        raise PreimageMissingError(invoice.invoice_id)
    return apply(invoice, Event.SETTLE, now_ms, preimage=known)


def miss_deadline(invoice: Invoice, now_ms: int) -> Invoice:
    """Return the hold invoice canceled, or about to be, when its owner did not decide in time; else as it is."""
    late = invoice.settle_deadline_ms is not None and now_ms >= invoice.settle_deadline_ms
    return apply(invoice, Event.DEADLINE, now_ms) if late else invoice


def expire(invoice: Invoice, now_ms: int) -> Invoice:
    """Return the invoice expired, when its time has passed and nobody holds it; else as it is."""
    return apply(invoice, Event.EXPIRE, now_ms) if now_ms >= invoice.expire_time_ms else invoice


# ---- payments inside


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
    check_free(invoice, event)
    if invoice.amount_msat not in (None, order.amount_msat):
        raise RefusedError(Reason.INVOICE_AMOUNT_MISMATCH, invoice.invoice_id)
    return apply(invoice, event, now_ms, locked_by=order.payment_id, amount_held_msat=order.amount_msat), held


def check_free(invoice: Invoice, event: Event) -> None:
    """Raise RefusedError when the table refuses the event, before anything else is looked at."""
    outcome = TRANSITIONS[invoice.phase, event]
    if isinstance(outcome, Refuse):
        raise RefusedError(outcome.reason, invoice.invoice_id)


def commit(invoice: Invoice, hold: Hold, now_ms: int) -> tuple[Invoice, Hold]:
    """Return the settled invoice and the hold that settled it; of a hold invoice, both reserved. Raises RefusedError."""
    if _step(hold, Call.COMMIT, hold.payment_id) is Step.REPEAT:
        return invoice, hold
    _check_holds(invoice, hold)
    if not invoice.hold:
        settled = apply(invoice, Event.COMMIT, now_ms)
        return settled, replace(hold, state=HoldState.COMMITTED, update_time_ms=now_ms)
    deadline_ms = now_ms + invoice.settle_duration_s * MS_PER_SECOND
    reserved = apply(invoice, Event.COMMIT_HOLD, now_ms, accept_time_ms=now_ms, settle_deadline_ms=deadline_ms)
    return reserved, replace(hold, state=HoldState.RESERVED, update_time_ms=now_ms)


def decided_hold(hold: Hold, invoice: Invoice, now_ms: int) -> Hold:
    """Return the hold of a payment once the owner, or the deadline, decided its hold invoice."""
    assert hold.state is HoldState.RESERVED
    assert hold.invoice_id == invoice.invoice_id
    states = {Phase.SETTLED: HoldState.COMMITTED, Phase.CANCELED: HoldState.RETURNED}
    return replace(hold, state=states[invoice.phase], update_time_ms=now_ms)


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
    assert invoice.phase is Phase.LOCKED
    assert invoice.invoice_id == hold.invoice_id
    assert invoice.locked_by == hold.payment_id


# ---- payments from outside


def arrive(invoice: Invoice, amount_msat: int, now_ms: int) -> Invoice:
    """Return the invoice for which the node holds `amount_msat`. Raises RefusedError when it is to be given back."""
    assert amount_msat > 0
    event = Event.ARRIVE
    check_free(invoice, event)
    if invoice.outside:
        return apply(invoice, event, now_ms)
    if now_ms >= invoice.expire_time_ms:
        raise RefusedError(Reason.INVOICE_EXPIRED, invoice.invoice_id)
    if invoice.amount_msat not in (None, amount_msat):
        raise RefusedError(Reason.INVOICE_AMOUNT_MISMATCH, invoice.invoice_id)
    return apply(invoice, event, now_ms, locked_by=NODE, amount_held_msat=amount_msat)


def credited(invoice: Invoice, node_deadline_ms: int | None, now_ms: int) -> Invoice:
    """Return the invoice whose credit the ledger has reserved; of a hold invoice, with the time its owner has."""
    if not invoice.hold:
        return apply(invoice, Event.CREDIT, now_ms)
    if invoice.phase is not Phase.ARRIVED:
        return invoice
    deadline_ms = now_ms + invoice.settle_duration_s * MS_PER_SECOND
    if node_deadline_ms is not None:
        left_ms = max(0, node_deadline_ms - now_ms)
        deadline_ms = min(deadline_ms, node_deadline_ms - min(NODE_MARGIN_MS, left_ms // 2))
    return apply(invoice, Event.CREDIT_HOLD, now_ms, accept_time_ms=now_ms, settle_deadline_ms=deadline_ms)

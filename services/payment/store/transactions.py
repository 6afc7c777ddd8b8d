"""The transactions of payments: each function writes ledger, payment, saga and outbox together, or nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from services.payment.domain import transfers
from services.payment.domain.ledger import net_deltas, refusal
from services.payment.domain.model import (
    Account,
    AccountState,
    Failure,
    Payment,
    PaymentState,
    Reason,
    Refused,
    Transfer,
)
from services.payment.domain.saga import Decision, Saga
from services.payment.domain.saga_words import (
    Dispatch,
    Fail,
    HoldForPayee,
    Park,
    PostHeld,
    PostTransfer,
    SaveReceipt,
    Settle,
    Succeed,
)
from services.payment.store import changes, decisions, ledger, payments, sagas
from services.storage.idempotency import RequestKey
from services.storage.sql import Connection


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """What a request for a payment came to. `fresh`: this request began it; it may have failed at once, for want of money."""

    payment: Payment
    fresh: bool


def begin_payment(
    connection: Connection,
    key: RequestKey,
    draft: Payment,
    saga: Saga,
    lease: sagas.Lease,
    lease_until_ms: int,
) -> Begun:
    """Reserve the amount and take the lease, or find what an earlier request with this id did.

    `draft` is the payment as RESERVED. Raises ServiceError REQUEST_ID_REUSED, and Refused: ACCOUNT_NOT_FOUND, ACCOUNT_FROZEN,
    BALANCE_LIMIT_EXCEEDED, PAYMENT_IN_FLIGHT, PAYMENT_ALREADY_PAID. A balance that does not suffice is recorded as a FAILED payment.
    """
    earlier = payments.find_begun(connection, key)
    if earlier is not None:
        return Begun(payment=earlier, fresh=False)
    now_ms = draft.create_time_ms
    draft = replace(draft, update_time_ms=now_ms)
    hold = transfers.hold(draft, now_ms)
    if not _covers(owned_account(connection, draft.account_id, draft.actor), hold):
        failed = replace(draft, state=PaymentState.FAILED, failure=Failure.INSUFFICIENT_BALANCE)
        payments.insert_payment(connection, failed, key.sha256)
        return Begun(payment=_changed(connection, failed, None), fresh=True)
    payments.insert_payment(connection, draft, key.sha256)
    ledger.post(connection, (hold,))
    sagas.insert_saga(connection, saga, lease, lease_until_ms, now_ms)
    return Begun(payment=_changed(connection, draft, None), fresh=True)


def owned_account(connection: Connection, account_id: str, owner: str) -> Account:
    """The account, when it is the owner's. Raises Refused ACCOUNT_NOT_FOUND, whether it is somebody else's or nobody's."""
    account = ledger.find_account(connection, account_id)
    if account is None or account.owner != owner or not owner:
        raise Refused(Reason.ACCOUNT_NOT_FOUND, "no such account")
    return account


def _covers(account: Account, hold: Transfer) -> bool:
    """Whether the balance suffices; raises what else stands in the way. The UPDATE's WHERE clause checks again."""
    (delta,) = (delta for delta in net_deltas((hold,), {}) if delta.account_id == account.account_id)
    refused = refusal(account, delta)
    if refused is None:
        return True
    if refused.reason is Reason.INSUFFICIENT_BALANCE:
        return False
    raise refused


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What a driver writes at once: its decision, the payment as it knows it, and the steps since its last write."""

    lease: sagas.Lease
    decision: Decision
    payment: Payment
    simulated: bool
    steps: Sequence[sagas.StepRecord]
    now_ms: int
    two_phase: bool = False
    """Whether decisions of two-phase commits are logged."""


def advance(connection: Connection, progress: Progress) -> Payment:
    """Write one decision; the payment after it. Raises LeaseLostError, and Refused when the ledger says no."""
    commit, saga, now_ms = progress.decision.commit, progress.decision.saga, progress.now_ms
    if isinstance(commit, Park):
        due = now_ms + commit.delay_ms
        sagas.park_saga(connection, progress.lease, saga, next_run_at_ms=due, patient=commit.patient)
    else:
        sagas.save_saga(connection, progress.lease, saga)
    sagas.add_steps(connection, saga.payment_id, progress.steps)
    if progress.two_phase:
        _log_decision(connection, progress)
    payment = progress.payment
    if isinstance(
        commit, SaveReceipt
    ):  # a refund may have come in between: only here somebody else writes the row as well
        payment = payments.find_payment(connection, payment.payment_id) or payment
    after = _after(connection, payment, progress)
    return payment if after is None else _changed(connection, after, payment)


def _log_decision(connection: Connection, progress: Progress) -> None:
    """Keep the recovery log of two-phase commits. Raises Refused when the invoice service was told to roll back."""
    if isinstance(progress.decision.commit, PostTransfer):
        decisions.decide_commit(connection, progress.payment.payment_id, progress.now_ms)
    elif isinstance(progress.decision.commit, Succeed):
        decisions.finish(connection, progress.payment.payment_id, progress.now_ms)


def _after(connection: Connection, payment: Payment, progress: Progress) -> Payment | None:
    """Move the money of a commit; the payment after it, or None when the commit does not touch it."""
    now_ms = progress.now_ms
    match progress.decision.commit:
        case PostTransfer(payee_account_id):
            _check_payee(connection, payee_account_id)
            ledger.post(connection, transfers.post_inside(payment, payee_account_id, now_ms))
            return _inside(payment, payee_account_id, now_ms)
        case HoldForPayee(payee_account_id):
            _check_payee(connection, payee_account_id)
            ledger.post(connection, transfers.hold_for_payee(payment, payee_account_id, now_ms))
            return _inside(payment, payee_account_id, now_ms)
        case Dispatch():
            ledger.post(connection, transfers.fee_hold(payment, now_ms))
            simulated = progress.simulated
            return replace(payment, state=PaymentState.IN_FLIGHT, simulated=simulated, update_time_ms=now_ms)
        case Succeed(preimage, receipt_json):
            moved_ms = progress.decision.saga.moved_time_ms or now_ms
            return _paid(payment, preimage, now_ms, settle_time_ms=moved_ms, receipt_json=receipt_json)
        case PostHeld(preimage):
            ledger.post(connection, (transfers.post_held(payment, now_ms),))
            return _paid(payment, preimage, now_ms)
        case Settle(preimage, fee_msat):
            ledger.post(connection, transfers.settle_outside(payment, fee_msat, now_ms))
            return _paid(payment, preimage, now_ms, fee_msat=fee_msat)
        case Fail(failure):
            ledger.post(connection, transfers.release(payment, now_ms))
            return replace(payment, state=PaymentState.FAILED, failure=failure, update_time_ms=now_ms)
        case SaveReceipt(receipt_json):
            return replace(payment, receipt_json=receipt_json, update_time_ms=now_ms)
        case _:
            return None


def _inside(payment: Payment, payee_account_id: str, now_ms: int) -> Payment:
    """The payment once its payee is known to be an account of ours."""
    return replace(
        payment,
        internal=True,
        payee_account_id=payee_account_id,
        fee_limit_msat=0,
        state=PaymentState.IN_FLIGHT,
        update_time_ms=now_ms,
    )


def _paid(
    payment: Payment,
    preimage: str,
    now_ms: int,
    *,
    settle_time_ms: int | None = None,
    fee_msat: int = 0,
    receipt_json: str = "",
) -> Payment:
    """The payment once the preimage proves it; it settled now unless another time is given."""
    return replace(
        payment,
        state=PaymentState.SUCCEEDED,
        preimage=preimage,
        fee_msat=fee_msat,
        receipt_json=receipt_json,
        settle_time_ms=now_ms if settle_time_ms is None else settle_time_ms,
        update_time_ms=now_ms,
    )


def _check_payee(connection: Connection, account_id: str) -> None:
    """Raise Refused ACCOUNT_NOT_FOUND unless the account can get money; a frozen one can."""
    account = ledger.find_account(connection, account_id)
    if account is None or account.state is AccountState.CLOSED:
        raise Refused(Reason.ACCOUNT_NOT_FOUND, "the payee has no such account")


def _changed(connection: Connection, payment: Payment, before: Payment | None) -> Payment:
    """Number the change and write the row."""
    sequence = changes.record(connection, payment, before.state if before is not None else 0)
    payment = replace(payment, sequence=sequence)
    payments.update_payment(connection, payment)
    return payment


@dataclass(frozen=True, slots=True, kw_only=True)
class RefundOrder:
    """What is to be given back, and who asks. `amount_msat` None: all that is left."""

    payment_id: str
    transfer_id: str
    amount_msat: int | None
    reference: str
    subject: str
    operator: bool
    now_ms: int


def refund(connection: Connection, order: RefundOrder) -> tuple[Transfer, Payment]:
    """Move money back by a new transfer; the transfer and the payment after it.

    Raises Refused: PAYMENT_NOT_FOUND, REFUND_NOT_ALLOWED, PAYMENT_NOT_SUCCEEDED, REFUND_EXCEEDS_PAYMENT, and the ledger's reasons.
    """
    payment = payments.find_payment(connection, order.payment_id)
    if payment is None:
        raise Refused(Reason.PAYMENT_NOT_FOUND, "no such payment")
    _check_refunder(connection, payment, order)
    if payment.state not in (PaymentState.SUCCEEDED, PaymentState.REFUNDED):
        raise Refused(Reason.PAYMENT_NOT_SUCCEEDED, "the payment did not succeed: there is nothing to refund")
    left_msat = payment.amount_msat - payment.refunded_msat
    amount_msat = left_msat if order.amount_msat is None else order.amount_msat
    if amount_msat == 0 or amount_msat > left_msat:
        raise Refused(Reason.REFUND_EXCEEDS_PAYMENT, f"{left_msat} msat of the payment are left")
    transfer = transfers.refund(payment, order.transfer_id, amount_msat, order.reference, order.now_ms)
    (transfer,) = ledger.post(connection, (transfer,))
    state = PaymentState.REFUNDED if amount_msat == left_msat else PaymentState.SUCCEEDED
    refunded_msat = payment.refunded_msat + amount_msat
    after = replace(payment, refunded_msat=refunded_msat, state=state, update_time_ms=order.now_ms)
    return transfer, _changed(connection, after, payment)


def _check_refunder(connection: Connection, payment: Payment, order: RefundOrder) -> None:
    """Inside the mesh the owner of the credited account, outside an operator. Who may not even see the payment learns nothing."""
    payee = ledger.find_account(connection, payment.payee_account_id) if payment.internal else None
    owns_credit = payee is not None and payee.owner == order.subject
    if owns_credit or (order.operator and not payment.internal):
        return
    payer = ledger.find_account(connection, payment.account_id)
    if order.operator or (payer is not None and payer.owner == order.subject):
        raise Refused(Reason.REFUND_NOT_ALLOWED, "a refund belongs to the owner of the credited account")
    raise Refused(Reason.PAYMENT_NOT_FOUND, "no such payment")

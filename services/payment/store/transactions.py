"""The transactions of payments: each function writes ledger, payment, saga, idempotency and outbox together, or nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import apsw

from nipmesh.payment.v1 import payment_service_pb2
from services.payment.domain import transfers
from services.payment.domain.ledger import net_deltas, refusal
from services.payment.domain.model import (
    FINAL_STATES,
    Account,
    Failure,
    Payment,
    PaymentState,
    Reason,
    Refused,
    Transfer,
)
from services.payment.domain.saga import (
    Decision,
    Dispatch,
    Fail,
    Park,
    PostTransfer,
    Saga,
    SaveReceipt,
    Settle,
    Succeed,
)
from services.payment.store import changes, ledger, payments, sagas
from services.payment.wire import payment_message
from services.storage.idempotency import InProgress, Replay, RequestKey, begin, complete

PAY_INVOICE = "/nipmesh.payment.v1.PaymentService/PayInvoice"
"""The method's name among the stored requests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """What a request for a payment came to. `fresh`: this request began it; it may have failed at once, for want of money."""

    payment: Payment
    fresh: bool


def begin_payment(
    connection: apsw.Connection,
    key: RequestKey,
    draft: Payment,
    saga: Saga,
    lease: sagas.Lease,
    lease_until_ms: int,
) -> Begun | Replay:
    """Reserve the amount and take the lease, or find what an earlier request with this id did.

    `draft` is the payment as RESERVED. Raises ServiceError REQUEST_ID_REUSED, and Refused: ACCOUNT_NOT_FOUND, ACCOUNT_FROZEN,
    BALANCE_LIMIT_EXCEEDED, PAYMENT_IN_FLIGHT, PAYMENT_ALREADY_PAID. A balance that does not suffice is recorded as a FAILED payment.
    """
    earlier = begin(connection, key)
    if isinstance(earlier, Replay):
        return earlier
    if isinstance(earlier, InProgress):
        running = payments.find_payment_by_request(connection, key.scope, key.request_id)
        assert running is not None, "a request that runs has a payment"
        return Begun(payment=running, fresh=False)
    now_ms = draft.create_time_ms
    hold = transfers.hold(draft, now_ms)
    if not _covers(owned_account(connection, draft.account_id, draft.scope), hold):
        failed = replace(draft, state=PaymentState.FAILED, failure=Failure.INSUFFICIENT_BALANCE)
        payments.insert_payment(connection, failed)
        return Begun(payment=_changed(connection, failed, None, now_ms), fresh=True)
    payments.insert_payment(connection, draft)
    ledger.post(connection, (hold,))
    sagas.insert_saga(connection, saga, lease, lease_until_ms, now_ms)
    reserved = sagas.StepRecord(
        step="reserve_balance", state=sagas.STEP_DONE, attempt=1, start_time_ms=now_ms, end_time_ms=now_ms
    )
    sagas.add_steps(connection, draft.payment_id, (reserved,))
    return Begun(payment=_changed(connection, draft, None, now_ms), fresh=True)


def owned_account(connection: apsw.Connection, account_id: str, owner: str) -> Account:
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


def advance(connection: apsw.Connection, progress: Progress) -> Payment:
    """Write one decision; the payment after it. Raises LeaseLostError, and Refused when the ledger says no."""
    commit, saga, now_ms = progress.decision.commit, progress.decision.saga, progress.now_ms
    if isinstance(commit, Park):
        due = now_ms + commit.delay_ms
        sagas.save_saga(connection, progress.lease, saga, lease_until_ms=0, next_run_at_ms=due)
    else:
        sagas.save_saga(connection, progress.lease, saga)
    sagas.add_steps(connection, saga.payment_id, progress.steps)
    payment = progress.payment
    if isinstance(
        commit, SaveReceipt
    ):  # a refund may have come in between: only here somebody else writes the row as well
        payment = payments.find_payment(connection, payment.payment_id) or payment
    after = _after(connection, payment, progress)
    return payment if after is None else _changed(connection, after, payment, now_ms)


def _after(connection: apsw.Connection, payment: Payment, progress: Progress) -> Payment | None:
    """Move the money of a commit; the payment after it, or None when the commit does not touch it."""
    now_ms = progress.now_ms
    match progress.decision.commit:
        case PostTransfer(payee_account_id):
            ledger.post(connection, transfers.post_inside(payment, payee_account_id, now_ms))
            inside = replace(payment, internal=True, payee_account_id=payee_account_id, fee_limit_msat=0)
            return replace(inside, state=PaymentState.IN_FLIGHT)
        case Dispatch():
            ledger.post(connection, transfers.fee_hold(payment, now_ms))
            return replace(payment, state=PaymentState.IN_FLIGHT, simulated=progress.simulated)
        case Succeed(preimage):
            return replace(payment, state=PaymentState.SUCCEEDED, preimage=preimage, settle_time_ms=now_ms)
        case Settle(preimage, fee_msat):
            ledger.post(connection, transfers.settle_outside(payment, fee_msat, now_ms))
            paid = replace(payment, preimage=preimage, fee_msat=fee_msat, settle_time_ms=now_ms)
            return replace(paid, state=PaymentState.SUCCEEDED)
        case Fail(failure):
            ledger.post(connection, transfers.release(payment, now_ms))
            return replace(payment, state=PaymentState.FAILED, failure=failure)
        case SaveReceipt(receipt_json):
            return replace(payment, receipt_json=receipt_json)
        case _:
            return None


def _changed(connection: apsw.Connection, payment: Payment, before: Payment | None, now_ms: int) -> Payment:
    """Number the change, write the row, and store the response of a payment that is final. A refund is no news to who paid."""
    payment = replace(payment, update_time_ms=now_ms)
    sequence = changes.record(connection, payment, before.state if before is not None else 0)
    payment = replace(payment, sequence=sequence)
    payments.update_payment(connection, payment)
    refunded = before is not None and payment.refunded_msat != before.refunded_msat
    if payment.state in FINAL_STATES and not refunded:
        response = payment_service_pb2.PayInvoiceResponse(payment=payment_message(payment))
        key = RequestKey(scope=payment.scope, method=PAY_INVOICE, request_id=payment.request_id, sha256=b"")
        complete(connection, key, response)
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


def refund(connection: apsw.Connection, order: RefundOrder) -> tuple[Transfer, Payment]:
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
    ledger.post(connection, (transfer,))
    state = PaymentState.REFUNDED if amount_msat == left_msat else PaymentState.SUCCEEDED
    after = replace(payment, refunded_msat=payment.refunded_msat + amount_msat, state=state)
    return transfer, _changed(connection, after, payment, order.now_ms)


def _check_refunder(connection: apsw.Connection, payment: Payment, order: RefundOrder) -> None:
    """Inside the mesh the owner of the credited account, outside an operator. Who may not even see the payment learns nothing."""
    payee = ledger.find_account(connection, payment.payee_account_id) if payment.internal else None
    owns_credit = payee is not None and payee.owner == order.subject
    if owns_credit or (order.operator and not payment.internal):
        return
    payer = ledger.find_account(connection, payment.account_id)
    if order.operator or (payer is not None and payer.owner == order.subject):
        raise Refused(Reason.REFUND_NOT_ALLOWED, "a refund belongs to the owner of the credited account")
    raise Refused(Reason.PAYMENT_NOT_FOUND, "no such payment")

"""The payment saga as a pure function: (saga, event, time) -> (next saga, one commit, next actions).

    inside    lock_invoice -> [post_transfer] -> commit_invoice and sign_receipt in parallel -> [succeed, with the receipt]
    hold      lock_invoice -> [hold_for_payee] -> commit_invoice -> get_hold until decided -> [post_held] -> sign_receipt -> [receipt]
    outside   lock_invoice -> [dispatch] -> process_payment -> [settle] -> sign_receipt -> [receipt]
    undo      release_invoice -> [fail]

Brackets are commits in the payment database; each writes the payment, the ledger, the outbox and the saga's next step at once.
`post_transfer` is the pivot: before it `ReleaseInvoice` and a void undo everything, after it there is only forward. The invoice
service cancels the invoice at its Lightning node inside `LockInvoice`, so what is locked cannot be paid outside as well.

A payment through a node stays in flight whenever its outcome is not known: a refund on "unknown" would pay twice.

A hold invoice, crash by crash. Before `hold_for_payee` is on disk the saga locks again, or undoes. After it the lock belongs to the
invoice's owner, so there is no Release any more: `CommitInvoice` is repeated until it is answered, whatever the owner decided by then,
and `GetHold` is asked until it says settled (the reservation is posted: no rule can refuse that, nothing is spent that was not
reserved) or released (it is voided). The decision is the invoice service's row; all that a crash here can cost is time.

After the pivot the receipt says nothing that only `CommitInvoice` knows: it is signed meanwhile, and waited for only for a moment.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from services.lightning.node import NodeFailed, NodeFailure, NodePaid, NodePending, NodeUnknown
from services.payment.domain.model import Failure
from services.payment.domain.saga_words import (
    ANSWERED,
    RECEIPT_GRACE_MS,
    SAGA_SECONDS,
    STEP_LIMITS,
    Accepted,
    Action,
    Commit,
    Committed,
    Dispatch,
    Event,
    Fail,
    GraceOver,
    HoldEnded,
    HoldForPayee,
    Locked,
    LockRefused,
    NotOurs,
    Park,
    Passed,
    PostHeld,
    PostTransfer,
    Released,
    Remember,
    Resumed,
    SaveReceipt,
    Settle,
    Signed,
    Step,
    Succeed,
    Unavailable,
    Undecided,
    WriteRefused,
    Written,
    look_delay_ms,
    retry_delay_ms,
)

NODE_FAILURES = {
    NodeFailure.NO_ROUTE: Failure.NO_ROUTE,
    NodeFailure.TIMEOUT: Failure.TIMEOUT,
    NodeFailure.INCORRECT_PAYMENT_DETAILS: Failure.INCORRECT_PAYMENT_DETAILS,
    NodeFailure.INSUFFICIENT_BALANCE: Failure.NODE_ERROR,
    NodeFailure.ERROR: Failure.NODE_ERROR,
}
"""A node's words in a payment's. That the node lacks money says nothing about the payer's balance."""
PATIENT_STEPS = frozenset({Step.AWAIT_DECISION, Step.PROCESS_PAYMENT, Step.SIGN_RECEIPT})
"""Parked there, a saga waits for somebody else; there may be thousands of them."""
NONE_OUTSTANDING: frozenset[Action] = frozenset()
WANTED = {
    Step.LOCK_INVOICE: frozenset({Action.LOCK}),
    Step.COMMIT_INVOICE: frozenset({Action.COMMIT}),
    Step.AWAIT_DECISION: frozenset({Action.LOOK}),
    Step.PROCESS_PAYMENT: frozenset({Action.TRACK}),
    Step.RELEASE_INVOICE: frozenset({Action.RELEASE}),
    Step.SIGN_RECEIPT: frozenset({Action.SIGN}),
    Step.DONE: NONE_OUTSTANDING,
}
"""What each step needs done, unless one of these is better known."""
COMMIT_AND_SIGN = frozenset({Action.COMMIT, Action.SIGN})
"""After the pivot: no owner decides, so that the receipt can be signed beside the commit."""
PAY_FIRST = frozenset({Action.PAY})
"""Of a payment that was just dispatched."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Saga:
    """What the decisions need to know; `attempt` counts failures of the current step, or looks, in a row.

    The last three are not stored: what a dead driver had under way is done again.
    """

    payment_id: str
    payer_account_id: str
    step: Step = Step.LOCK_INVOICE
    attempt: int = 0
    give_up_time_ms: int
    """Until the pivot or the dispatch, a step that cannot be done is retried this long; then the payment is undone."""
    payee_account_id: str = ""
    failure: Failure = Failure.NONE
    hold: bool = False
    step_time_ms: int = 0
    """Since when it has been in this step; while an owner decides, since that was last heard."""
    moved_time_ms: int = 0
    """When the pivot was: the receipt's time."""
    error: str = ""
    """Why the step is not done yet: a word for operators."""
    outstanding: frozenset[Action] = NONE_OUTSTANDING
    preimage: str = ""
    receipt_json: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Write `commit` together with `saga`, or else begin `actions` beside those that are outstanding, and wait for the first answer.

    `grace_ms`: when no answer comes so long, that is an event as well. Neither a commit nor anything outstanding: the saga is done.
    """

    saga: Saga
    commit: Commit | None = None
    actions: frozenset[Action] = NONE_OUTSTANDING
    grace_ms: int | None = None


def overdue(saga: Saga, now_ms: int, create_time_ms: int) -> bool:
    """Whether the step, or the saga as a whole, takes longer than it may: to be shown to operators."""
    if saga.step is Step.DONE:
        return False
    if now_ms >= saga.step_time_ms + STEP_LIMITS[saga.step].seconds * 1_000:
        return True
    return saga.step not in PATIENT_STEPS and now_ms >= create_time_ms + SAGA_SECONDS * 1_000


def decide(saga: Saga, event: Event, now_ms: int) -> Decision:
    """What to do after `event`. Events that cannot happen in this step are programming errors."""
    match event:
        case Resumed():
            forgotten = replace(saga, outstanding=NONE_OUTSTANDING, preimage="", receipt_json="")
            return _go_on(forgotten, fresh=False)
        case Written():
            return _go_on(saga, fresh=True)
        case Unavailable(action, reason):
            return _unavailable(replace(saga, outstanding=saga.outstanding - {action}), action, reason, now_ms)
        case WriteRefused() | GraceOver():
            pass
        case _:
            saga = replace(saga, outstanding=saga.outstanding - ANSWERED[type(event)])
    match saga.step:
        case Step.LOCK_INVOICE:
            return _while_locking(saga, event, now_ms)
        case Step.COMMIT_INVOICE if not saga.hold:
            return _while_committing(saga, event, now_ms)
        case Step.COMMIT_INVOICE | Step.AWAIT_DECISION:
            return _while_held(saga, event, now_ms)
        case Step.PROCESS_PAYMENT:
            return _while_processing(saga, event, now_ms)
        case _:
            return _while_finishing(saga, event, now_ms)


def _go_on(saga: Saga, *, fresh: bool) -> Decision:
    """Do what the step needs and is not under way. A node payment that we did not just dispatch ourselves is tracked, not paid."""
    wanted = WANTED[saga.step]
    if saga.step is Step.COMMIT_INVOICE and not saga.hold:
        wanted = COMMIT_AND_SIGN
    elif saga.step is Step.PROCESS_PAYMENT and fresh:
        wanted = PAY_FIRST
    assert saga.outstanding <= wanted, "what a step does not want is not under way"
    return Decision(saga=replace(saga, outstanding=wanted), actions=wanted - saga.outstanding)


def _unavailable(saga: Saga, action: Action, reason: str, now_ms: int) -> Decision:
    """Retry with a growing pause; before the pivot only until the time to give up. The lock may exist: undo releases it."""
    if saga.step is Step.COMMIT_INVOICE and action is Action.SIGN:
        return _succeed(saga, now_ms) if saga.preimage else Decision(saga=saga)
    if saga.step is Step.LOCK_INVOICE and now_ms >= saga.give_up_time_ms:
        assert STEP_LIMITS[saga.step].then is Passed.UNDO
        return _undo(saga, Failure.TIMEOUT, now_ms)
    return _again_later(saga, reason, now_ms)


def _again_later(saga: Saga, reason: str, now_ms: int) -> Decision:
    """Park, and give up what may still run beside it."""
    late = saga.step is Step.PROCESS_PAYMENT and now_ms >= saga.give_up_time_ms
    delay_ms = retry_delay_ms(saga.attempt, patient=late or saga.step is Step.SIGN_RECEIPT)
    return _park(replace(saga, error=reason), delay_ms)


def _park(saga: Saga, delay_ms: int) -> Decision:
    parked = replace(saga, attempt=saga.attempt + 1, outstanding=NONE_OUTSTANDING)
    return Decision(saga=parked, commit=Park(delay_ms, patient=saga.step in PATIENT_STEPS))


def _undo(saga: Saga, failure: Failure, now_ms: int) -> Decision:
    assert saga.step is Step.LOCK_INVOICE, "after the pivot there is only forward"
    return _move(replace(saga, failure=failure), Step.RELEASE_INVOICE, Remember(), now_ms)


def _move(saga: Saga, step: Step, commit: Commit, now_ms: int) -> Decision:
    """The next step; a signature that is under way goes on when that is what is left to do."""
    kept = saga.outstanding & {Action.SIGN} if step is Step.SIGN_RECEIPT else NONE_OUTSTANDING
    moved = replace(saga, step=step, attempt=0, error="", step_time_ms=now_ms, outstanding=kept)
    return Decision(saga=moved, commit=commit)


def _impossible(saga: Saga, event: Event) -> AssertionError:
    return AssertionError(f"{type(event).__name__} cannot happen in step {saga.step}")


def _while_locking(saga: Saga, event: Event, now_ms: int) -> Decision:
    match event:
        case Locked(payee_account_id) if payee_account_id == saga.payer_account_id:
            return _undo(saga, Failure.SAME_ACCOUNT, now_ms)
        case Locked(payee_account_id, hold=True):
            held = replace(saga, payee_account_id=payee_account_id, hold=True)
            return _move(held, Step.COMMIT_INVOICE, HoldForPayee(payee_account_id), now_ms)
        case Locked(payee_account_id):
            moved = replace(saga, payee_account_id=payee_account_id, moved_time_ms=now_ms)
            return _move(moved, Step.COMMIT_INVOICE, PostTransfer(payee_account_id), now_ms)
        case WriteRefused(failure, PostTransfer() | HoldForPayee()):
            return _undo(saga, failure, now_ms)
        case LockRefused(failure) | WriteRefused(failure, Dispatch()):
            return _move(saga, Step.DONE, Fail(failure), now_ms)
        case NotOurs():
            return _move(saga, Step.PROCESS_PAYMENT, Dispatch(), now_ms)
        case _:
            raise _impossible(saga, event)


def _while_committing(saga: Saga, event: Event, now_ms: int) -> Decision:
    """Two answers in either order; the payment succeeds with the first of them that matters."""
    match event:
        case Committed(preimage):
            known = replace(saga, preimage=preimage)
            if Action.SIGN in saga.outstanding:
                return Decision(saga=known, grace_ms=RECEIPT_GRACE_MS)
            return _succeed(known, now_ms)
        case Signed(receipt_json):
            known = replace(saga, receipt_json=receipt_json)
            return _succeed(known, now_ms) if saga.preimage else Decision(saga=known)
        case GraceOver() if saga.preimage:
            return _succeed(saga, now_ms)
        case _:
            raise _impossible(saga, event)


def _succeed(saga: Saga, now_ms: int) -> Decision:
    assert saga.preimage
    step = Step.DONE if saga.receipt_json else Step.SIGN_RECEIPT
    return _move(saga, step, Succeed(saga.preimage, saga.receipt_json), now_ms)


def _while_held(saga: Saga, event: Event, now_ms: int) -> Decision:
    match event:
        case Accepted():
            waiting = replace(saga, step=Step.AWAIT_DECISION, attempt=0, step_time_ms=now_ms, error="OWNER_DECIDES")
            return _park(waiting, look_delay_ms(0))
        case Undecided():
            heard = replace(saga, step_time_ms=now_ms, error="OWNER_DECIDES")
            return _park(heard, look_delay_ms(saga.attempt))
        case Committed(preimage):
            return _move(saga, Step.SIGN_RECEIPT, PostHeld(preimage), now_ms)
        case HoldEnded():
            return _move(saga, Step.DONE, Fail(Failure.INVOICE_CANCELED), now_ms)
        case _:
            raise _impossible(saga, event)


def _while_processing(saga: Saga, event: Event, now_ms: int) -> Decision:
    match event:
        case NodePaid(preimage, fee_msat):
            return _move(saga, Step.SIGN_RECEIPT, Settle(preimage, fee_msat), now_ms)
        case NodeFailed(failure):
            return _move(saga, Step.DONE, Fail(NODE_FAILURES[failure]), now_ms)
        case NodeUnknown() if now_ms < saga.give_up_time_ms:
            # The node's contract: a second `pay` for the same hash joins the first and never pays twice.
            return Decision(saga=replace(saga, outstanding=frozenset({Action.PAY})), actions=frozenset({Action.PAY}))
        case NodePending():
            return _again_later(saga, "NODE_PENDING", now_ms)
        case NodeUnknown():
            return _again_later(saga, "NODE_UNKNOWN", now_ms)
        case _:
            raise _impossible(saga, event)


def _while_finishing(saga: Saga, event: Event, now_ms: int) -> Decision:
    match saga.step, event:
        case Step.RELEASE_INVOICE, Released():
            return _move(saga, Step.DONE, Fail(saga.failure), now_ms)
        case Step.SIGN_RECEIPT, Signed(receipt_json):
            return _move(saga, Step.DONE, SaveReceipt(receipt_json), now_ms)
        case _:
            raise _impossible(saga, event)

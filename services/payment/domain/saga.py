"""The payment saga as a pure function: (saga, event, time) -> (next saga, one commit, next action).

    internal  lock_invoice -> cancel at node -> [post_transfer] -> commit_invoice -> [succeed] -> sign_receipt -> [receipt]
    outside   lock_invoice -> [dispatch] -> process_payment -> [settle] -> sign_receipt -> [receipt]
    undo      release_invoice -> [fail]

Brackets are commits in the payment database; each writes the payment, the ledger, the outbox and the saga's next step at once.
`post_transfer` is the pivot: before it `ReleaseInvoice` and a void undo everything, after it there is only forward. A payment
through a node stays in flight whenever its outcome is not known: a refund on "unknown" would pay twice.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from services.payment.domain.model import Failure

RETRY_DELAY_MS_MIN = 100
"""First pause after a failed step: a restarted sidecar needs about this long."""
RETRY_DELAY_MS_MAX = 5_000
"""While money is held, a dependency that is back is noticed within 5 s."""
RETRY_DELAY_MS_MAX_PATIENT = 60_000
"""For what holds up nobody's call: receipts, and outcomes that the node has not known for longer than the time to give up."""
RETRY_DOUBLINGS_MAX = 10
"""100 ms doubled 10 times is above the longest pause; more would only grow the number."""


class Step(StrEnum):
    """Where a saga stands: what has to be done next. Stored by name."""

    LOCK_INVOICE = "lock_invoice"
    COMMIT_INVOICE = "commit_invoice"
    PROCESS_PAYMENT = "process_payment"
    RELEASE_INVOICE = "release_invoice"
    SIGN_RECEIPT = "sign_receipt"
    DONE = "done"


@dataclass(frozen=True, slots=True, kw_only=True)
class Saga:
    """What the decisions need to know; `attempt` counts failures of the current step in a row."""

    payment_id: str
    payer_account_id: str
    step: Step = Step.LOCK_INVOICE
    attempt: int = 0
    give_up_time_ms: int
    """Until the pivot or the dispatch, a step that cannot be done is retried this long; then the payment is undone."""
    payee_account_id: str = ""
    failure: Failure = Failure.NONE


class Action(StrEnum):
    """What the shell does next; its answer is the next event."""

    LOCK = "lock_invoice"
    CANCEL_AT_NODE = "cancel_at_node"
    COMMIT = "commit_invoice"
    RELEASE = "release_invoice"
    PAY = "process_payment"
    TRACK = "track_payment"
    SIGN = "sign_receipt"


# ---- events


@dataclass(frozen=True, slots=True)
class Resumed:
    """A driver took the saga up from the database: what was under way before is not known."""


@dataclass(frozen=True, slots=True)
class Written:
    """The commit that was decided is on disk."""


@dataclass(frozen=True, slots=True)
class WriteRefused:
    """The ledger's rules refused the commit; nothing was written."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class Locked:
    """The invoice is of this mesh and held for this payment."""

    payee_account_id: str


@dataclass(frozen=True, slots=True)
class LockRefused:
    """The invoice is of this mesh and cannot be paid; it is not held for this payment."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class NotOurs:
    """The invoice is not of this mesh: only a Lightning node can pay it."""


@dataclass(frozen=True, slots=True)
class NodeFree:
    """The node does not hold this invoice and will not accept it any more."""


@dataclass(frozen=True, slots=True)
class NodeHolds:
    """Somebody outside has paid the invoice, or is paying it, through the node."""


@dataclass(frozen=True, slots=True)
class Committed:
    """The invoice is settled; 32 bytes of hex prove it."""

    preimage: str


@dataclass(frozen=True, slots=True)
class Released:
    """The invoice is not held for this payment any more."""


@dataclass(frozen=True, slots=True)
class NodePaid:
    """The node says that the payment arrived, with this routing fee."""

    preimage: str
    fee_msat: int


@dataclass(frozen=True, slots=True)
class NodeFailed:
    """The node says for certain that nothing was and nothing will be paid."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class NodePending:
    """The node is still trying."""


@dataclass(frozen=True, slots=True)
class NodeUnknown:
    """The node has never heard of the payment: it may have crashed, or we did before the call reached it."""


@dataclass(frozen=True, slots=True)
class Signed:
    """The receipt, as the JSON of a Nostr event."""

    receipt_json: str


@dataclass(frozen=True, slots=True)
class Unavailable:
    """The call could not be made, or nobody knows what it did."""


Event = (
    Resumed
    | Written
    | WriteRefused
    | Locked
    | LockRefused
    | NotOurs
    | NodeFree
    | NodeHolds
    | Committed
    | Released
    | NodePaid
    | NodeFailed
    | NodePending
    | NodeUnknown
    | Signed
    | Unavailable
)


# ---- commits


@dataclass(frozen=True, slots=True)
class PostTransfer:
    """The pivot: move the reserved amount from payer to payee."""

    payee_account_id: str


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Reserve the fee limit and mark the payment in flight, before the node hears of it."""


@dataclass(frozen=True, slots=True)
class Succeed:
    """The payee's invoice is settled: the internal payment succeeded."""

    preimage: str


@dataclass(frozen=True, slots=True)
class Settle:
    """Post amount and fee of a payment through the node and release the rest of the fee limit."""

    preimage: str
    fee_msat: int


@dataclass(frozen=True, slots=True)
class Fail:
    """Release what was reserved; the payment failed."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class SaveReceipt:
    """Keep the signed receipt."""

    receipt_json: str


@dataclass(frozen=True, slots=True)
class Remember:
    """Only the saga's own row."""


@dataclass(frozen=True, slots=True)
class Park:
    """Give the lease back; any replica may go on after `delay_ms`."""

    delay_ms: int


Commit = PostTransfer | Dispatch | Succeed | Settle | Fail | SaveReceipt | Remember | Park


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Write `commit` together with `saga` (None: nothing to write), or do `action`; neither means that the saga is done."""

    saga: Saga
    commit: Commit | None = None
    action: Action | None = None


def retry_delay_ms(attempt: int, *, patient: bool = False) -> int:
    """The pause before attempt number `attempt` + 1: doubling from 100 ms to 5 s, or to a minute where nobody waits."""
    longest = RETRY_DELAY_MS_MAX_PATIENT if patient else RETRY_DELAY_MS_MAX
    return min(RETRY_DELAY_MS_MIN << min(attempt, RETRY_DOUBLINGS_MAX), longest)


def decide(saga: Saga, event: Event, now_ms: int) -> Decision:
    """What to do after `event`. Events that cannot happen in this step are programming errors."""
    match event:
        case Resumed() | Written():
            return _go_on(saga, fresh=isinstance(event, Written))
        case Unavailable():
            return _again_later(saga, now_ms)
    match saga.step:
        case Step.LOCK_INVOICE:
            return _while_locking(saga, event)
        case Step.PROCESS_PAYMENT:
            return _while_processing(saga, event, now_ms)
        case _:
            return _while_finishing(saga, event)


def _go_on(saga: Saga, *, fresh: bool) -> Decision:
    """Do the current step. A node payment that we did not just dispatch ourselves is tracked, not paid."""
    actions = {
        Step.LOCK_INVOICE: Action.LOCK,
        Step.COMMIT_INVOICE: Action.COMMIT,
        Step.PROCESS_PAYMENT: Action.PAY if fresh else Action.TRACK,
        Step.RELEASE_INVOICE: Action.RELEASE,
        Step.SIGN_RECEIPT: Action.SIGN,
        Step.DONE: None,
    }
    return Decision(saga=saga, action=actions[saga.step])


def _again_later(saga: Saga, now_ms: int) -> Decision:
    """Retry with a growing pause; before the pivot only until the time to give up. The lock may exist: undo releases it."""
    if saga.step is Step.LOCK_INVOICE and now_ms >= saga.give_up_time_ms:
        return _undo(saga, Failure.TIMEOUT)
    overdue = saga.step is Step.PROCESS_PAYMENT and now_ms >= saga.give_up_time_ms
    delay_ms = retry_delay_ms(saga.attempt, patient=overdue or saga.step is Step.SIGN_RECEIPT)
    return Decision(saga=replace(saga, attempt=saga.attempt + 1), commit=Park(delay_ms))


def _undo(saga: Saga, failure: Failure) -> Decision:
    assert saga.step is Step.LOCK_INVOICE, "after the pivot there is only forward"
    undone = replace(saga, step=Step.RELEASE_INVOICE, attempt=0, failure=failure)
    return Decision(saga=undone, commit=Remember())


def _move(saga: Saga, step: Step, commit: Commit) -> Decision:
    return Decision(saga=replace(saga, step=step, attempt=0), commit=commit)


def _while_locking(saga: Saga, event: Event) -> Decision:
    match event:
        case Locked(payee_account_id) if payee_account_id == saga.payer_account_id:
            return _undo(saga, Failure.SAME_ACCOUNT)
        case Locked(payee_account_id):
            return Decision(saga=replace(saga, payee_account_id=payee_account_id), action=Action.CANCEL_AT_NODE)
        case WriteRefused(failure) if saga.payee_account_id:
            return _undo(saga, failure)
        case LockRefused(failure) | WriteRefused(failure):
            return _move(saga, Step.DONE, Fail(failure))
        case NotOurs():
            return _move(saga, Step.PROCESS_PAYMENT, Dispatch())
        case NodeFree():
            assert saga.payee_account_id
            return _move(saga, Step.COMMIT_INVOICE, PostTransfer(saga.payee_account_id))
        case NodeHolds():
            return _undo(saga, Failure.INVOICE_NOT_PAYABLE)
        case _:
            raise AssertionError(f"{type(event).__name__} cannot happen while locking")


def _while_processing(saga: Saga, event: Event, now_ms: int) -> Decision:
    match event:
        case NodePaid(preimage, fee_msat):
            return _move(saga, Step.SIGN_RECEIPT, Settle(preimage, fee_msat))
        case NodeFailed(failure):
            return _move(saga, Step.DONE, Fail(failure))
        case NodeUnknown() if now_ms < saga.give_up_time_ms:
            # The node's contract: a second `pay` for the same hash joins the first and never pays twice.
            return Decision(saga=saga, action=Action.PAY)
        case NodePending() | NodeUnknown():
            return _again_later(saga, now_ms)
        case _:
            raise AssertionError(f"{type(event).__name__} cannot happen while the node pays")


def _while_finishing(saga: Saga, event: Event) -> Decision:
    match saga.step, event:
        case Step.COMMIT_INVOICE, Committed(preimage):
            return _move(saga, Step.SIGN_RECEIPT, Succeed(preimage))
        case Step.RELEASE_INVOICE, Released():
            return _move(saga, Step.DONE, Fail(saga.failure))
        case Step.SIGN_RECEIPT, Signed(receipt_json):
            return _move(saga, Step.DONE, SaveReceipt(receipt_json))
        case _:
            raise AssertionError(f"{type(event).__name__} cannot happen in step {saga.step}")

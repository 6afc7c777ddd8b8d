"""The words of the payment saga: steps, actions, events, commits, and how long each may take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Final

from services.lightning.node import NodeFailed, NodePaid, NodePending, NodeUnknown
from services.payment.domain.model import Failure


class Step(StrEnum):
    """Where a saga stands: what has to be done next. Stored by name."""

    LOCK_INVOICE = "lock_invoice"
    COMMIT_INVOICE = "commit_invoice"
    AWAIT_DECISION = "await_decision"
    PROCESS_PAYMENT = "process_payment"
    RELEASE_INVOICE = "release_invoice"
    SIGN_RECEIPT = "sign_receipt"
    DONE = "done"


class Action(StrEnum):
    """A call that the shell makes; its answer is an event. Those of one decision do not depend on each other: they run in parallel."""

    LOCK = "lock_invoice"
    COMMIT = "commit_invoice"
    LOOK = "get_hold"
    RELEASE = "release_invoice"
    PAY = "process_payment"
    TRACK = "track_payment"
    SIGN = "sign_receipt"


# ---- time limits

CALL_SECONDS: Final[Mapping[Action, float]] = {
    Action.LOCK: 2.0,
    Action.COMMIT: 2.0,
    Action.LOOK: 2.0,
    Action.RELEASE: 2.0,
    Action.PAY: 15.0,
    Action.TRACK: 15.0,
    Action.SIGN: 2.0,
}
"""What one attempt may take; then its outcome is not known. A healthy call takes milliseconds, and a lost one is repeated well within a
caller's 10 s; a node may think longer, and its adapter has deadlines of its own."""


class Passed(Enum):
    """What it means that a step's time is over."""

    UNDO = "the payment is undone"
    STUCK = "it goes on, and is shown to operators as stuck"


@dataclass(frozen=True, slots=True)
class Limit:
    """What a step may take, attempts and pauses and all."""

    seconds: float
    then: Passed


STEP_LIMITS: Final[Mapping[Step, Limit]] = {
    Step.LOCK_INVOICE: Limit(60.0, Passed.UNDO),  # at most until the invoice expires
    Step.COMMIT_INVOICE: Limit(10.0, Passed.STUCK),  # the payer's money is gone, and the payer has no proof
    Step.AWAIT_DECISION: Limit(
        60.0, Passed.STUCK
    ),  # since the invoice service last said that the owner has not decided
    Step.PROCESS_PAYMENT: Limit(60.0, Passed.STUCK),  # only the node, or an operator, can say how it ended
    Step.RELEASE_INVOICE: Limit(10.0, Passed.STUCK),  # the payer's money is held
    Step.SIGN_RECEIPT: Limit(600.0, Passed.STUCK),  # nobody's money depends on it
}
"""Every step but the last. After the pivot, or the dispatch, there is no way back: time can only make a step visible."""
SAGA_SECONDS: Final = 120.0
"""A saga that is older and still at work (not awaiting an owner's or a node's decision, nor a signature) is shown as stuck."""

RECEIPT_GRACE_MS: Final = 200
"""A payment that succeeded waits so long for the receipt that is being signed: both in one commit is the usual case."""
RETRY_DELAY_MS_MIN: Final = 100
"""First pause after a failed step: a restarted sidecar needs about this long."""
RETRY_DELAY_MS_MAX: Final = 5_000
"""While money is held, a dependency that is back is noticed within 5 s."""
RETRY_DELAY_MS_MAX_PATIENT: Final = 60_000
"""For what holds up nobody's call: receipts, and outcomes that the node has not known for longer than the time to give up."""
RETRY_DOUBLINGS_MAX: Final = 10
"""100 ms doubled 10 times is above the longest pause; more would only grow the number."""
LOOK_DELAY_MS_MIN: Final = 1_000
"""First pause between two looks at an owner's decision, of which the invoice service also tells by itself."""
LOOK_DELAY_MS_MAX: Final = 5_000
"""Should that word be lost, the decision is noticed within 5 s."""


def retry_delay_ms(attempt: int, *, patient: bool = False) -> int:
    """The pause before attempt number `attempt` + 1: doubling from 100 ms to 5 s, or to a minute where nobody waits."""
    longest = RETRY_DELAY_MS_MAX_PATIENT if patient else RETRY_DELAY_MS_MAX
    return min(RETRY_DELAY_MS_MIN << min(attempt, RETRY_DOUBLINGS_MAX), longest)


def look_delay_ms(looks: int) -> int:
    """The pause after look number `looks` + 1 at a hold: doubling from 1 s to 5 s."""
    return min(LOOK_DELAY_MS_MIN << min(looks, RETRY_DOUBLINGS_MAX), LOOK_DELAY_MS_MAX)


# ---- commits


@dataclass(frozen=True, slots=True)
class PostTransfer:
    """The pivot: move the reserved amount from payer to payee."""

    payee_account_id: str


@dataclass(frozen=True, slots=True)
class HoldForPayee:
    """Reserve the amount for the payee instead of for the node: the owner of a hold invoice will decide."""

    payee_account_id: str


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Reserve the fee limit and mark the payment in flight, before the node hears of it."""


@dataclass(frozen=True, slots=True)
class Succeed:
    """The payee's invoice is settled: the internal payment succeeded. The receipt may be there already, or come later."""

    preimage: str
    receipt_json: str = ""


@dataclass(frozen=True, slots=True)
class PostHeld:
    """The owner settled the hold invoice: move what is reserved for the payee."""

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
    """Give the lease back; any replica may go on after `delay_ms`. Calls that still run are dropped: each can be repeated.

    `patient`: nothing that we do ourselves is late, so what is urgent is claimed before it.
    """

    delay_ms: int
    patient: bool = False


Commit = PostTransfer | HoldForPayee | Dispatch | Succeed | PostHeld | Settle | Fail | SaveReceipt | Remember | Park


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
    commit: Commit


@dataclass(frozen=True, slots=True)
class Locked:
    """The invoice is of this mesh and held for this payment; the node accepts nothing for it any more."""

    payee_account_id: str
    hold: bool = False


@dataclass(frozen=True, slots=True)
class LockRefused:
    """The invoice is of this mesh and cannot be paid; it is not held for this payment."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class NotOurs:
    """The invoice is not of this mesh: only a Lightning node can pay it."""


@dataclass(frozen=True, slots=True)
class Committed:
    """The invoice is settled; 32 bytes of hex prove it."""

    preimage: str


@dataclass(frozen=True, slots=True)
class Accepted:
    """The hold invoice is its owner's to decide on."""


@dataclass(frozen=True, slots=True)
class Undecided:
    """The owner of the hold invoice has not decided yet."""


@dataclass(frozen=True, slots=True)
class HoldEnded:
    """The hold invoice was canceled: it is not held for this payment any more, and never will be."""


@dataclass(frozen=True, slots=True)
class Released:
    """The invoice is not held for this payment any more."""


@dataclass(frozen=True, slots=True)
class Signed:
    """The receipt, as the JSON of a Nostr event."""

    receipt_json: str


@dataclass(frozen=True, slots=True)
class Unavailable:
    """The call could not be made, or nobody knows what it did; `reason` is for operators."""

    action: Action
    reason: str = ""


@dataclass(frozen=True, slots=True)
class GraceOver:
    """The receipt is not there within its grace."""


Answer = (
    Locked
    | LockRefused
    | NotOurs
    | Committed
    | Accepted
    | Undecided
    | HoldEnded
    | Released
    | NodePaid
    | NodeFailed
    | NodePending
    | NodeUnknown
    | Signed
    | Unavailable
)
Event = Resumed | Written | WriteRefused | GraceOver | Answer

ANSWERED: Final[Mapping[type[Event], frozenset[Action]]] = {
    Locked: frozenset({Action.LOCK}),
    LockRefused: frozenset({Action.LOCK}),
    NotOurs: frozenset({Action.LOCK}),
    Committed: frozenset({Action.COMMIT, Action.LOOK}),
    Accepted: frozenset({Action.COMMIT}),
    Undecided: frozenset({Action.LOOK}),
    HoldEnded: frozenset({Action.LOOK}),
    Released: frozenset({Action.RELEASE}),
    NodePaid: frozenset({Action.PAY, Action.TRACK}),
    NodeFailed: frozenset({Action.PAY, Action.TRACK}),
    NodePending: frozenset({Action.PAY, Action.TRACK}),
    NodeUnknown: frozenset({Action.TRACK}),
    Signed: frozenset({Action.SIGN}),
}
"""Whose answer an event is; an Unavailable says it itself."""

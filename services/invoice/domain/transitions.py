"""The state tables, as data: what each event does to an invoice, and what each call does with a payment's hold.

Time enters as an event of its own kind (LOCK or LOCK_LATE): the tables know no clock. Every cell is filled; a test walks them all.

    inside    OPEN -> LOCKED -> SETTLED                   commit: the payment has moved the money
              OPEN -> LOCKED -> RESERVED -> SETTLED       a hold invoice: its owner decides, or lets it end CANCELED
    outside   OPEN -> ARRIVED -> SETTLING -> POSTING -> SETTLED
              OPEN -> ARRIVED -> HELD -> SETTLING …       a hold invoice: its owner decides
              … CANCELING -> VOIDING -> CANCELED          canceled, too late, or no account to credit
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from services.chassis.errors import Reason
from services.invoice.domain.invoice import HoldState, Phase


class Event(enum.Enum):
    """What can happen to an invoice. LATE: its expire time has passed. HOLD: it is a hold invoice."""

    LOCK = "lock"
    LOCK_LATE = "lock late"
    COMMIT = "commit"
    COMMIT_HOLD = "commit hold"
    RELEASE = "release"
    RELEASE_LATE = "release late"
    SETTLE = "settle"
    """The owner takes the money, with the right preimage."""
    CANCEL = "cancel"
    DEADLINE = "deadline"
    """The owner of a hold invoice did not decide in time."""
    EXPIRE = "expire"
    ARRIVE = "arrive"
    """The node holds the whole amount."""
    CREDIT = "credit"
    """The ledger has reserved the credit."""
    CREDIT_HOLD = "credit hold"
    CREDIT_REFUSED = "credit refused"
    """The ledger will not reserve it: the account is closed, or too full."""
    TAKEN = "taken"
    """The node has taken the money."""
    GONE = "gone"
    """The node has given the money back, by itself or on our word."""
    POSTED = "posted"
    VOIDED = "voided"


class Call(enum.Enum):
    """What a payment asks for."""

    LOCK = "lock"
    COMMIT = "commit"
    RELEASE = "release"


@dataclass(frozen=True, slots=True)
class Move:
    """The invoice changes to this phase; a change of state is recorded, with its event, once."""

    to: Phase


@dataclass(frozen=True, slots=True)
class Stay:
    """Success without a change: it is so already, or another replica was faster."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """An error, and no change."""

    reason: Reason


Outcome = Move | Stay | Refuse


class Step(enum.Enum):
    """What a call does with a hold: touch the invoice too, or only the hold, or nothing."""

    APPLY = "apply the event to the invoice, then record the hold"
    BURY = "record a tombstone"
    REPEAT = "answer as the first time"


STAY: Final = Stay()
_LOCKED: Final = Refuse(Reason.INVOICE_LOCKED)
_SETTLED: Final = Refuse(Reason.INVOICE_ALREADY_SETTLED)
_CANCELED: Final = Refuse(Reason.INVOICE_ALREADY_CANCELED)
_EXPIRED: Final = Refuse(Reason.INVOICE_EXPIRED)
_NOT_LOCKED: Final = Refuse(Reason.INVOICE_NOT_LOCKED)
_NOT_ACCEPTED: Final = Refuse(Reason.INVOICE_NOT_ACCEPTED)


def _go(phase: Phase) -> Move:
    """Return the cell of a change."""
    return Move(phase)


_P: Final = Phase
_INSIDE: Final[Mapping[Phase, tuple[Outcome, ...]]] = {
    #              LOCK             LOCK_LATE  COMMIT           COMMIT_HOLD        RELEASE        RELEASE_LATE
    _P.OPEN:      (_go(_P.LOCKED), _EXPIRED,  _NOT_LOCKED,     _NOT_LOCKED,       _NOT_LOCKED,   _NOT_LOCKED),
    _P.LOCKED:    (_LOCKED,        _LOCKED,   _go(_P.SETTLED), _go(_P.RESERVED),  _go(_P.OPEN),  _go(_P.EXPIRED)),
    _P.RESERVED:  (_LOCKED,        _LOCKED,   STAY,            STAY,              _LOCKED,       _LOCKED),
    **dict.fromkeys(
        (_P.ARRIVED, _P.HELD, _P.SETTLING, _P.POSTING, _P.CANCELING, _P.VOIDING),
                  (_LOCKED,        _LOCKED,   _NOT_LOCKED,     _NOT_LOCKED,       _NOT_LOCKED,   _NOT_LOCKED),
    ),
    _P.SETTLED:   (_SETTLED,       _SETTLED,  STAY,            STAY,              _SETTLED,      _SETTLED),
    _P.CANCELED:  (_CANCELED,      _CANCELED, _NOT_LOCKED,     _NOT_LOCKED,       _NOT_LOCKED,   _NOT_LOCKED),
    _P.EXPIRED:   (_EXPIRED,       _EXPIRED,  _NOT_LOCKED,     _NOT_LOCKED,       _NOT_LOCKED,   _NOT_LOCKED),
}  # fmt: skip
"""What payments of this mesh do. LOCK is another payment's; the same payment's is answered from its hold."""

_OWNER: Final[Mapping[Phase, tuple[Outcome, ...]]] = {
    #              SETTLE             CANCEL             DEADLINE           EXPIRE
    _P.OPEN:      (_NOT_ACCEPTED,     _go(_P.CANCELED),  STAY,              _go(_P.EXPIRED)),
    _P.LOCKED:    (_NOT_ACCEPTED,     _LOCKED,           STAY,              STAY),  # money may be on its way
    _P.RESERVED:  (_go(_P.SETTLED),   _go(_P.CANCELED),  _go(_P.CANCELED),  STAY),
    _P.ARRIVED:   (_NOT_ACCEPTED,     _LOCKED,           STAY,              STAY),
    _P.HELD:      (_go(_P.SETTLING),  _go(_P.CANCELING), _go(_P.CANCELING), STAY),
    _P.SETTLING:  (STAY,              _LOCKED,           STAY,              STAY),
    _P.POSTING:   (STAY,              _SETTLED,          STAY,              STAY),
    _P.CANCELING: (_CANCELED,         STAY,              STAY,              STAY),
    _P.VOIDING:   (_CANCELED,         STAY,              STAY,              STAY),
    _P.SETTLED:   (STAY,              _SETTLED,          STAY,              STAY),
    _P.CANCELED:  (_CANCELED,         STAY,              STAY,              STAY),
    _P.EXPIRED:   (_EXPIRED,          STAY,              STAY,              STAY),
}  # fmt: skip
"""What the owner and the clocks do."""

_OUTSIDE: Final[Mapping[tuple[Phase, Event], Outcome]] = {
    (_P.OPEN, Event.ARRIVE): _go(_P.ARRIVED),
    (_P.LOCKED, Event.ARRIVE): _LOCKED,
    (_P.RESERVED, Event.ARRIVE): _LOCKED,
    (_P.SETTLED, Event.ARRIVE): _SETTLED,
    (_P.CANCELED, Event.ARRIVE): _CANCELED,
    (_P.EXPIRED, Event.ARRIVE): _EXPIRED,
    (_P.ARRIVED, Event.CREDIT): _go(_P.SETTLING),
    (_P.ARRIVED, Event.CREDIT_HOLD): _go(_P.HELD),
    (_P.ARRIVED, Event.CREDIT_REFUSED): _go(_P.CANCELING),
    (_P.SETTLING, Event.TAKEN): _go(_P.POSTING),
    (_P.ARRIVED, Event.GONE): _go(_P.VOIDING),
    (_P.HELD, Event.GONE): _go(_P.VOIDING),
    (_P.SETTLING, Event.GONE): _go(_P.VOIDING),
    (_P.CANCELING, Event.GONE): _go(_P.VOIDING),
    (_P.POSTING, Event.POSTED): _go(_P.SETTLED),
    (_P.VOIDING, Event.VOIDED): _go(_P.CANCELED),
}
"""What comes of payments through the node. In every other cell another replica was faster: nothing is to be done."""

_INSIDE_EVENTS: Final = tuple(Event)[:6]
_OWNER_EVENTS: Final = tuple(Event)[6:10]
_OUTSIDE_EVENTS: Final = tuple(Event)[10:]

TRANSITIONS: Final[Mapping[tuple[Phase, Event], Outcome]] = {
    **{(phase, event): cell for phase in Phase for event, cell in zip(_INSIDE_EVENTS, _INSIDE[phase], strict=True)},
    **{(phase, event): cell for phase in Phase for event, cell in zip(_OWNER_EVENTS, _OWNER[phase], strict=True)},
    **{(phase, event): _OUTSIDE.get((phase, event), STAY) for phase in Phase for event in _OUTSIDE_EVENTS},
}
"""(phase, event) -> what happens."""

HOLD_STEPS: Final[Mapping[tuple[HoldState | None, Call], Step | Refuse]] = {
    (None, Call.LOCK): Step.APPLY,
    (None, Call.COMMIT): _NOT_LOCKED,
    (None, Call.RELEASE): Step.BURY,
    (HoldState.HELD, Call.LOCK): Step.REPEAT,
    (HoldState.HELD, Call.COMMIT): Step.APPLY,
    (HoldState.HELD, Call.RELEASE): Step.APPLY,
    (HoldState.COMMITTED, Call.LOCK): Step.REPEAT,
    (HoldState.COMMITTED, Call.COMMIT): Step.REPEAT,
    (HoldState.COMMITTED, Call.RELEASE): _SETTLED,
    (HoldState.RELEASED, Call.LOCK): _NOT_LOCKED,
    (HoldState.RELEASED, Call.COMMIT): _NOT_LOCKED,
    (HoldState.RELEASED, Call.RELEASE): Step.REPEAT,
    (HoldState.RESERVED, Call.LOCK): Step.REPEAT,
    (HoldState.RESERVED, Call.COMMIT): Step.REPEAT,
    (HoldState.RESERVED, Call.RELEASE): _LOCKED,  # the payer promised: from here on the owner decides, or the deadline
    (HoldState.RETURNED, Call.LOCK): _NOT_LOCKED,
    (HoldState.RETURNED, Call.COMMIT): Step.REPEAT,
    (HoldState.RETURNED, Call.RELEASE): Step.REPEAT,
}
"""(hold, call) -> what happens. A payment without a hold has None."""

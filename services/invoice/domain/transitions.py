"""The two state tables, as data: what each event does to an invoice, and what each call does with a payment's hold.

Time enters as an event of its own kind (LOCK or LOCK_LATE): the tables know no clock. Every cell is filled; a test walks them all.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from services.chassis.errors import Reason
from services.invoice.domain.invoice import HoldState, State


class Event(enum.Enum):
    """What can happen to an invoice. LATE: its expire time has passed."""

    LOCK = "lock"
    LOCK_LATE = "lock late"
    COMMIT = "commit"
    RELEASE = "release"
    RELEASE_LATE = "release late"
    CANCEL = "cancel"
    EXPIRE = "expire"


class Call(enum.Enum):
    """What a payment asks for."""

    LOCK = "lock"
    COMMIT = "commit"
    RELEASE = "release"


@dataclass(frozen=True, slots=True)
class Move:
    """The invoice changes to this state; to be recorded, with its event, once."""

    to: State


@dataclass(frozen=True, slots=True)
class Stay:
    """Success without a change: it is so already."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """An error, and no change."""

    reason: Reason


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

_ROWS: Final[Mapping[State, tuple[Move | Stay | Refuse, ...]]] = {
    #                LOCK                  LOCK_LATE    COMMIT                RELEASE           RELEASE_LATE
    #                CANCEL                EXPIRE
    State.OPEN: (
        Move(State.ACCEPTED), _EXPIRED, _NOT_LOCKED, _NOT_LOCKED, _NOT_LOCKED,
        Move(State.CANCELED), Move(State.EXPIRED),
    ),
    State.ACCEPTED: (
        _LOCKED, _LOCKED, Move(State.SETTLED), Move(State.OPEN), Move(State.EXPIRED),
        _LOCKED, STAY,  # money may be on its way: a held invoice never expires under its holder
    ),
    State.SETTLED: (_SETTLED, _SETTLED, STAY, _SETTLED, _SETTLED, _SETTLED, STAY),
    State.CANCELED: (_CANCELED, _CANCELED, _NOT_LOCKED, _NOT_LOCKED, _NOT_LOCKED, STAY, STAY),
    State.EXPIRED: (_EXPIRED, _EXPIRED, _NOT_LOCKED, _NOT_LOCKED, _NOT_LOCKED, STAY, STAY),
}  # fmt: skip

TRANSITIONS: Final[Mapping[tuple[State, Event], Move | Stay | Refuse]] = {
    (state, event): outcome for state, row in _ROWS.items() for event, outcome in zip(Event, row, strict=True)
}
"""(state, event) -> what happens. LOCK here is another payment's; the same payment's is answered from its hold."""

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
}
"""(hold, call) -> what happens. A payment without a hold has None."""

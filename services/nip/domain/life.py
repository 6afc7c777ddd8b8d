"""The life of a held key: in which condition what may be done with it, and what becomes of it then. A table, and nothing else.

"Unlocked" is no condition of its own in the database: it is LOCKED with an unlocking whose time is not over. So it ends by itself, on every
replica at once and whether or not anybody looks.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

_US_PER_SECOND: Final = 1_000_000
UNLOCK_US_MAX: Final = 24 * 3_600 * _US_PER_SECOND
"""Longest unlocking: a day, as the longest access token."""


class Condition(enum.StrEnum):
    """What stands in the row."""

    ACTIVE = "ACTIVE"
    LOCKED = "LOCKED"
    DISABLED = "DISABLED"
    DISABLED_LOCKED = "DISABLED_LOCKED"
    """Disabled, with a password: enabled, it is LOCKED."""
    DELETED = "DELETED"


class State(enum.Enum):
    """A condition as of a moment: LOCKED may be unlocked."""

    ACTIVE = enum.auto()
    LOCKED = enum.auto()
    UNLOCKED = enum.auto()
    DISABLED = enum.auto()
    DISABLED_LOCKED = enum.auto()
    DELETED = enum.auto()


class Action(enum.Enum):
    """What is asked of a key."""

    USE = enum.auto()
    """Sign, encrypt or decrypt."""
    SEAL = enum.auto()
    """LockKey with a password."""
    RELOCK = enum.auto()
    """LockKey without one: end an unlocking."""
    UNLOCK = enum.auto()
    """UnlockKey for a time, with the right password."""
    UNSEAL = enum.auto()
    """UnlockKey for good, with the right password."""
    DISABLE = enum.auto()
    ENABLE = enum.auto()
    EXPORT = enum.auto()
    DELETE = enum.auto()


class Refusal(enum.Enum):
    """Why not."""

    LOCKED = enum.auto()
    NOT_LOCKED = enum.auto()
    NOT_ACTIVE = enum.auto()
    DELETED = enum.auto()
    """Said as "no such key"."""


@dataclass(frozen=True, slots=True)
class Stays:
    """It is done, and the key is what it was: also where it had been done before."""


STAYS: Final = Stays()
Outcome = State | Stays | Refusal


def _row(*outcomes: Outcome) -> Mapping[State, Outcome]:
    """One action's outcomes, in the order of the states."""
    return dict(zip(State, outcomes, strict=True))


_S, _R = State, Refusal
TABLE: Final[Mapping[Action, Mapping[State, Outcome]]] = {
    #                     ACTIVE         LOCKED         UNLOCKED       DISABLED           DISABLED_LOCKED     DELETED
    Action.USE: _row(STAYS, _R.LOCKED, STAYS, _R.NOT_ACTIVE, _R.NOT_ACTIVE, _R.DELETED),
    Action.SEAL: _row(_S.LOCKED, _R.LOCKED, _R.LOCKED, _R.NOT_ACTIVE, _R.NOT_ACTIVE, _R.DELETED),
    Action.RELOCK: _row(_R.NOT_LOCKED, STAYS, _S.LOCKED, _R.NOT_ACTIVE, _R.NOT_ACTIVE, _R.DELETED),
    Action.UNLOCK: _row(_R.NOT_LOCKED, _S.UNLOCKED, _S.UNLOCKED, _R.NOT_ACTIVE, _R.NOT_ACTIVE, _R.DELETED),
    Action.UNSEAL: _row(_R.NOT_LOCKED, _S.ACTIVE, _S.ACTIVE, _R.NOT_ACTIVE, _R.NOT_ACTIVE, _R.DELETED),
    Action.DISABLE: _row(_S.DISABLED, _S.DISABLED_LOCKED, _S.DISABLED_LOCKED, STAYS, STAYS, _R.DELETED),
    Action.ENABLE: _row(STAYS, STAYS, STAYS, _S.ACTIVE, _S.LOCKED, _R.DELETED),
    Action.EXPORT: _row(STAYS, STAYS, STAYS, _R.NOT_ACTIVE, _R.NOT_ACTIVE, _R.DELETED),
    Action.DELETE: _row(_S.DELETED, _S.DELETED, _S.DELETED, _S.DELETED, _S.DELETED, STAYS),
}
"""What each action does in each state. Doing again what is done already succeeds."""


def state_of(condition: Condition, unlock_expire_time_us: int | None, now_us: int) -> State:
    """Return the state at this moment; an unlocking ends when its time is reached."""
    if condition is Condition.LOCKED and unlock_expire_time_us is not None and now_us < unlock_expire_time_us:
        return State.UNLOCKED
    return State[condition.name]


def condition_of(state: State) -> Condition:
    """Return what is written down for a state."""
    return Condition.LOCKED if state is State.UNLOCKED else Condition[state.name]


def decide(state: State, action: Action) -> Outcome:
    """Return what an action does to a key in this state."""
    return TABLE[action][state]

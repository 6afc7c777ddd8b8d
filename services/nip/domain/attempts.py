"""How often a password may be tried: a few wrong ones are free, then each costs a pause that doubles.

An attempt is written down as wrong before the password is looked at, and taken back when it was right: attempts at the same time, on
any replica, cannot outrun the count.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

_US_PER_SECOND: Final = 1_000_000
FREE_ATTEMPTS: Final = 5
"""Wrong passwords without a pause: people mistype."""
PAUSE_US_MIN: Final = 30 * _US_PER_SECOND
PAUSE_US_MAX: Final = 3_600 * _US_PER_SECOND
"""24 guesses a day at the end; the owner who is kept out by a thief's guesses waits an hour at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempts:
    """Wrong (or running) attempts since the last right one, and until when there may be no other."""

    wrong: int = 0
    blocked_until_us: int = 0


def pause_us(wrong: int) -> int:
    """Return the pause after so many wrong passwords in microseconds."""
    over = wrong - FREE_ATTEMPTS
    if over < 0:
        return 0
    return min(PAUSE_US_MAX, PAUSE_US_MIN << min(over, 32))


def wait_us(attempts: Attempts, now_us: int) -> int:
    """Return how long to wait before another attempt; 0: it may be made."""
    return max(0, attempts.blocked_until_us - now_us)


def counted(attempts: Attempts, now_us: int) -> Attempts:
    """Return what is written down when an attempt begins."""
    wrong = attempts.wrong + 1
    return Attempts(wrong=wrong, blocked_until_us=now_us + pause_us(wrong))

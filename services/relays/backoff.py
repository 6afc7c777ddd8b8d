"""How long to wait before the next attempt: full jitter, so that the clients of a relay that died do not come back all at once.

https://aws.amazon.com/builders-library/timeouts-retries-and-backoff-with-jitter
"""

from __future__ import annotations

import random
from typing import Final

DOUBLINGS_MAX: Final = 16
"""Beyond that the longest wait is reached with any sensible numbers."""


def delay_s(attempt: int, *, least_s: float, most_s: float, chance: float | None = None) -> float:
    """Return a time between 0 and the bound of this attempt (0: the first), which doubles up to `most_s`; `chance` in 0..1 is for tests."""
    bound_s = min(most_s, least_s * 2.0 ** min(attempt, DOUBLINGS_MAX))
    return bound_s * (random.random() if chance is None else chance)  # noqa: S311  # no secret

"""How long whoever works in batches rests after one that was not full: what arrives meanwhile is one batch, with one transaction.

Under load each event would be a batch of its own otherwise, and its bookkeeping cost more than its effect. On an idle machine a batch is
quick and the rest short; on a busy one both are longer, so that the work in between stays a tenth of the time.
"""

from __future__ import annotations

from typing import Final

REST_S_MIN: Final = 0.05
REST_S_MAX: Final = 0.5
REST_OF_WORK: Final = 9.0
"""Rest for each second of work."""


def rest_s(worked_s: float) -> float:
    """Seconds to rest after a batch that took `worked_s`."""
    return min(max(REST_OF_WORK * worked_s, REST_S_MIN), REST_S_MAX)

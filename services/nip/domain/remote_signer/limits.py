"""How often an app may ask: a bucket of tokens for each, refilled evenly. Times in seconds of any steady clock."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

BUCKETS_MAX: Final = 10_000
"""Apps that are remembered at once; the one that was quiet the longest is forgotten, its bucket full by then or soon."""


class Buckets:
    """One bucket for each name, full at first."""

    def __init__(self, *, per_second: float, burst: int) -> None:
        """`burst`: how many tokens a full bucket has, at least 1."""
        assert per_second > 0, "a bucket that never fills"
        assert burst >= 1, "a bucket for nothing"
        self._per_second = per_second
        self._burst = burst
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, name: str, now_s: float) -> bool:
        """Take a token; False when there is none."""
        tokens, last_s = self._buckets.pop(name, (float(self._burst), now_s))
        tokens = min(float(self._burst), tokens + (now_s - last_s) * self._per_second)
        enough = tokens >= 1
        self._buckets[name] = (tokens - 1 if enough else tokens, now_s)
        while len(self._buckets) > BUCKETS_MAX:
            self._buckets.popitem(last=False)
        return enough

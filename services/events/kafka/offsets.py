"""How far a partition is done with: Kafka knows one position for each, so what is acknowledged out of order waits for what is not."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class Progress:
    """One partition while this process has it. `committed`: Kafka knows that all before it are done with.

    `attempts_before`: how often others got the event at this position, and did not come further.
    """

    committed: int
    attempts_before: int = 0
    is_noted: bool = False
    """Whether Kafka knows of this attempt."""
    _began: int = -1
    _open: dict[int, None] = field(default_factory=dict)
    _after_last: int = 0
    _attempts: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._began = self.committed

    def delivered(self, offset: int) -> int:
        """An event is on its way to a handler; which time it is, at most."""
        self._open[offset] = None
        self._after_last = max(self._after_last, offset + 1)
        self._attempts[offset] = self._attempts.get(offset, 0) + 1
        return self._attempts[offset] + (self.attempts_before if self.committed == self._began else 0)

    def skipped(self, offset: int) -> None:
        """An event that nobody here wants."""
        self._after_last = max(self._after_last, offset + 1)

    def done(self, offset: int) -> None:
        """An event is done with."""
        self._open.pop(offset, None)
        self._attempts.pop(offset, None)

    def back_to(self, offset: int) -> None:
        """All from there on are delivered again."""
        self._open = dict.fromkeys(each for each in self._open if each < offset)
        self._after_last = min(self._after_last, offset)

    @property
    def position(self) -> int:
        """All before it are done with."""
        return min(self._open, default=max(self._after_last, self.committed))

    @property
    def in_flight(self) -> int:
        """How many are with handlers."""
        return len(self._open)

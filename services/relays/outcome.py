"""What became of an event at one relay."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class OutcomeKind(enum.StrEnum):
    """How publishing ended."""

    ACCEPTED = "accepted"
    """The relay said that it took the event."""
    DUPLICATE = "duplicate"
    """The relay has the event already."""
    REJECTED = "rejected"
    """The relay will not have the event; the reason is the relay's."""
    TIMED_OUT = "timed_out"
    """The event was sent and the relay did not answer in time: whether it has it is not known."""
    UNREACHABLE = "unreachable"
    """The event was not sent: there was no connection in time, the address is refused, or too many events wait already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How publishing ended and, where the relay or this client gave one, why; a relay's text is cut and may say anything."""

    kind: OutcomeKind
    reason: str = ""

    @property
    def arrived(self) -> bool:
        """Whether the relay has the event."""
        return self.kind in (OutcomeKind.ACCEPTED, OutcomeKind.DUPLICATE)

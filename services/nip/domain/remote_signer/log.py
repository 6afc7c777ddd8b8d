"""A request as it is recorded: by which it is answered once, audited, and taken over when a replica dies."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from services.nip.domain.remote_signer.connection import Step, Will


class Outcome(enum.StrEnum):
    """How a request stands; RUNNING and ASKED are on the way, the others are terminal and written once."""

    RUNNING = "RUNNING"
    ASKED = "ASKED"
    DONE = "DONE"
    DENIED = "DENIED"
    FAILED = "FAILED"
    IGNORED = "IGNORED"

    @property
    def final(self) -> bool:
        """Whether it is answered for good."""
        return self not in (Outcome.RUNNING, Outcome.ASKED)


OUTCOMES: Final = {
    Step.IGNORE: Outcome.IGNORED,
    Step.ASK: Outcome.ASKED,
    Step.REFUSE: Outcome.DENIED,
    Step.UNKNOWN: Outcome.FAILED,
}
"""What becomes of a request by what was decided; everything else is DONE, unless it fails."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """A recorded request. `message` is encrypted, `answer` an event as JSON; times in microseconds, but for `message_time_s`."""

    approval_id: str
    connection_id: str
    owner: str
    client_pubkey: str
    request_id: str
    method: str
    kind: int | None
    outcome: Outcome
    will: Will
    message: str | None
    message_time_s: int
    relay: str
    answer: str | None
    unpublished: bool
    attempts: int
    create_time_us: int
    update_time_us: int

"""The audit of held keys: who did what with which key, and what came of it; never what was signed, encrypted or decrypted.

Each event is appended in the transaction that decides about the use, so that no signature leaves without its record.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from nipmesh.events.v1 import key_events_pb2
from services.storage.events import append_event
from services.storage.sql import Connection

KIND_PREFIX: Final = "nipmesh.audit.key."
"""What the types of these events begin with; their end is the outcome."""


class Outcome(enum.Enum):
    """What came of it; the values are those of nipmesh.events.v1.KeyUsed."""

    DONE = key_events_pb2.KeyUsed.OUTCOME_DONE
    REFUSED = key_events_pb2.KeyUsed.OUTCOME_REFUSED
    FAILED = key_events_pb2.KeyUsed.OUTCOME_FAILED


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """One use. `actor` is who used it when it was not the owner; `method` the full name of the method."""

    owner: str
    key_id: str
    method: str
    actor: str = ""
    outcome: Outcome = Outcome.DONE


def append_audit(connection: Connection, done: Done) -> None:
    """Record a use, in the transaction that decides about it."""
    event = key_events_pb2.KeyUsed(
        key_id=done.key_id,
        owner=done.owner,
        actor=done.actor or done.owner,
        method=done.method,
        outcome=done.outcome.value,
    )
    kind = KIND_PREFIX + done.outcome.name.lower()
    append_event(connection, kind=kind, subject=done.key_id, payload=event.SerializeToString(deterministic=True))

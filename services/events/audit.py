"""The audit stream: one line in the transaction of a change says who called what, on what.

    append_audit(connection, object_id=key_id)                                # inside database.write, within the call
    append_audit(connection, object_id=key_id, outcome="KEY_NOT_ACTIVE")      # a refusal, in a write of its own

Who and what come from the running call. The event goes the way of all events: the outbox, the bus, whoever listens to `nipmesh.audit.>`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from nipmesh.events.v1 import audit_events_pb2
from services.chassis.caller import current_call
from services.storage.events import append_event
from services.storage.sql import Connection

SUCCEEDED: Final = "nipmesh.audit.v1.succeeded"
REFUSED: Final = "nipmesh.audit.v1.refused"
OK: Final = "OK"
"""The outcome of what had its effect."""
DETAILS_MAX: Final = 16
"""Details of one event; their texts are cut at DETAIL_CHARACTERS_MAX."""
DETAIL_CHARACTERS_MAX: Final = 200


def append_audit(
    connection: Connection,
    *,
    object_id: str,
    outcome: str = OK,
    request_id: str = "",
    actor: str = "",
    method: str = "",
    details: Mapping[str, str] | None = None,
) -> int:
    """Record the running call in the outbox; return the event's sequence.

    `actor` and `method` say it where no call runs, or where a service acts for a user. `details` are names and kinds, never secrets and
    never content.
    """
    call = current_call()
    assert len(details or {}) <= DETAILS_MAX, "an audit event is no log"
    audited = audit_events_pb2.CallAudited(
        actor=actor or call.caller.scope,
        peer=call.caller.peer,
        operator=call.caller.operator,
        method=method or call.method,
        object_id=object_id,
        outcome=outcome,
        request_id=request_id,
        details={name: text[:DETAIL_CHARACTERS_MAX] for name, text in (details or {}).items()},
    )
    kind = SUCCEEDED if outcome == OK else REFUSED
    return append_event(connection, kind=kind, subject=object_id, payload=audited.SerializeToString(deterministic=True))

"""The outbox rows of payments: written in the transaction of the change, read by WatchPayments and by whoever relays events."""

from __future__ import annotations

import apsw

from services.payment.domain.model import Payment
from services.payment.wire import changed_message
from services.storage.events import append_event

KIND_PREFIX = "nipmesh.payment.v1."


def record(connection: apsw.Connection, payment: Payment, previous_state: int) -> int:
    """Add the event of a change; its sequence."""
    payload = changed_message(payment, previous_state).SerializeToString()
    kind = KIND_PREFIX + payment.state.name.lower()
    return append_event(connection, kind=kind, subject=payment.payment_id, payload=payload)

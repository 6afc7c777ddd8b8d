"""The outbox rows of payments: written in the transaction of the change, read by WatchPayments and by whoever relays events."""

from __future__ import annotations

from services.payment.domain.model import Payment, PaymentState
from services.payment.wire import changed_message
from services.storage.events import append_event
from services.storage.sql import Connection

KIND_PREFIX = "nipmesh.payment.v1."


def kind_name(state: PaymentState) -> str:
    """The name of the event that a payment came to a state."""
    return KIND_PREFIX + state.name.lower()


def record(connection: Connection, payment: Payment, previous_state: int) -> int:
    """Add the event of a change; its sequence."""
    payload = changed_message(payment, previous_state).SerializeToString()
    return append_event(connection, kind=kind_name(payment.state), subject=payment.payment_id, payload=payload)

"""What the NIP service does when invoices and payments change: zap receipts, wallets' budgets and notifications.

One consumer for all of it: each event comes once, and its effects are one transaction. Without a bus there are no receipts and no
notifications, and budgets are settled by asking alone.
"""

from __future__ import annotations

from typing import Final

from nipmesh.events.v1.events_pb2 import InvoiceChanged, PaymentChanged
from services.events.cloud_event import CloudEvent
from services.nip.wallet.notifying import Listener
from services.nip.zaps.receipts import Receipts
from services.storage.sql import Connection

CONSUMER: Final = "money"
"""The consumer's name at the bus: all replicas share it."""
SETTLED: Final = "nipmesh.invoice.v1.settled"
INVOICE_TYPES: Final = (SETTLED, "nipmesh.invoice.v1.held")
"""Types whose payload is an InvoiceChanged; zap receipts follow from settled ones."""
PAYMENT_TYPES: Final = (
    "nipmesh.payment.v1.succeeded",
    "nipmesh.payment.v1.failed",
    "nipmesh.payment.v1.refunded",
)
"""Types whose payload is a PaymentChanged."""
TYPES: Final = INVOICE_TYPES + PAYMENT_TYPES
"""What the service wants to hear."""


class Follower:
    """The consumer's handler: it changes nothing but the database."""

    def __init__(self, receipts: Receipts, listener: Listener) -> None:
        """Who makes receipts, and who tells wallets."""
        self._receipts = receipts
        self._listener = listener

    def handle(self, connection: Connection, event: CloudEvent) -> None:
        """Handle one event, in the transaction that marks it as handled. Raises PayloadError."""
        if event.type in PAYMENT_TYPES:
            self._listener.on_payment(connection, event.unpack(PaymentChanged), event.time_ms)
            return
        changed = event.unpack(InvoiceChanged)
        if event.type == SETTLED:
            self._receipts.on_settled(connection, changed)
        self._listener.on_invoice(connection, changed, event.time_ms)

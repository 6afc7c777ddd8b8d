"""What apps are told without asking: from the events of invoice and payment alone, once for each change (a choreographed saga).

The consumer's transaction settles the budget, wakes the request that waits for its payment, and writes down whom to tell; the engine then
asks for what events do not say (the preimage), signs, and publishes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from nipmesh.events.v1 import events_pb2
from nipmesh.invoice.v1 import invoice_pb2
from nipmesh.invoice.v1 import invoice_service_pb2 as invoices
from nipmesh.payment.v1 import payment_pb2
from nipmesh.payment.v1 import payment_service_pb2 as payments
from services.nip.domain.nip47 import results
from services.nip.domain.nip47.connection import WalletConnection
from services.nip.domain.nip47.words import Topic
from services.nip.wallet import store
from services.nip.wallet.backend import Backend
from services.nip.wallet.tasks import Task, TaskKind, add_task, nudge
from services.nip.wallet.transactions import transaction_of_invoice, transaction_of_payment
from services.storage.database import Database
from services.storage.sql import Connection

_Invoice = invoice_pb2.Invoice
_Payment = payment_pb2.Payment
_PAID: Final = frozenset({_Payment.STATE_SUCCEEDED, _Payment.STATE_REFUNDED})


class Listener:
    """What events of the mesh do to connections, inside the transaction that remembers the event as handled."""

    def __init__(self, clock: Callable[[], int]) -> None:
        """`clock`: milliseconds since 1970."""
        self._clock = clock

    def on_payment(self, connection: Connection, changed: events_pb2.PaymentChanged, time_ms: int) -> None:
        """A payment is final: the budget is settled, and who waits for it is told; `time_ms` is when it was."""
        payment, now_ms = changed.payment, self._clock()
        row = store.find_spend_of_payment(connection, payment.request_id)
        if row is not None:
            spent = payment.amount_msat + payment.fee_msat if payment.state in _PAID else None
            store.settle_spend(connection, row.event_id, spent, now_ms)
            nudge(connection, row.event_id, now_ms)
        if payment.state == _Payment.STATE_SUCCEEDED and changed.previous_state != payment.state:
            self._tell(connection, payment.account_id, Topic.PAYMENT_SENT, payment.payment_id, time_ms)

    def on_invoice(self, connection: Connection, changed: events_pb2.InvoiceChanged, time_ms: int) -> None:
        """An invoice is paid, or its owner may decide from now on; `time_ms` is when that happened."""
        invoice = changed.invoice
        if invoice.state == _Invoice.STATE_SETTLED:
            self._tell(connection, invoice.account_id, Topic.PAYMENT_RECEIVED, invoice.invoice_id, time_ms)
        elif invoice.state == _Invoice.STATE_ACCEPTED:
            self._tell(connection, invoice.account_id, Topic.HOLD_INVOICE_ACCEPTED, invoice.invoice_id, time_ms)

    def _tell(self, connection: Connection, account_id: str, topic: Topic, subject: str, time_ms: int) -> None:
        """Write down whom to tell: each connection of the account that allows it, once; none that was made after it happened."""
        now_ms = self._clock()
        for wallet in store.live_connections_of_account(connection, account_id, now_ms):
            if topic in wallet.terms.topics and wallet.create_time_ms <= time_ms:
                add_task(connection, notification_task(wallet, topic, subject, now_ms))


def notification_task(wallet: WalletConnection, topic: Topic, subject: str, now_ms: int) -> Task:
    """Return the row of a notification; its id makes it one, however often the event comes."""
    return Task(
        task_id=f"{topic}:{subject}:{wallet.connection_id}",
        connection_id=wallet.connection_id,
        kind=TaskKind.NOTIFICATION,
        input=f"{topic} {subject}",
        method=topic,
        next_run_ms=now_ms,
        create_time_ms=now_ms,
    )


async def notification_of(
    backend: Backend, database: Database, wallet: WalletConnection, task: Task
) -> tuple[Topic, str]:
    """Return the topic and the JSON of a notification, with what the event did not say. Raises what the backend raises."""
    word, _, subject = task.input.partition(" ")
    topic, owner = Topic(word), wallet.owner_pubkey
    transaction: dict[str, Any]
    if topic is Topic.PAYMENT_SENT:
        payment = await backend.payment(owner, payments.GetPaymentRequest(payment_id=subject))
        kept = await database.read(lambda found: store.metadata_of(found, owner, [payment.payment_hash]))
        transaction = transaction_of_payment(payment, kept.get(payment.payment_hash, ""))
    else:
        invoice = await backend.invoice(owner, invoices.GetInvoiceRequest(invoice_id=subject))
        transaction = transaction_of_invoice(invoice)
        if topic is Topic.HOLD_INVOICE_ACCEPTED:
            transaction["state"] = "accepted"  # what is told is that it was; its owner may have decided meanwhile
    return topic, results.notification_text(topic, transaction)

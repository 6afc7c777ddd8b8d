"""WatchInvoices: the outbox as a stream, for one caller and one choice of invoices."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass

from nipmesh.events.v1 import events_pb2
from nipmesh.invoice.v1 import invoice_service_pb2 as pb
from services.chassis.draining import Draining
from services.invoice.domain.invoice import Invoice
from services.invoice.store import Key, find_invoice
from services.invoice.wire import KIND_PREFIX, invoice_message, timestamp_of_ms
from services.storage.database import Database
from services.storage.events import HEARTBEAT_S, Event, Heartbeat, watch
from services.storage.sequence import newest_sequence
from services.storage.sql import Connection


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """Which invoices; None or empty: any. `owner_pubkey` None is an operator's view."""

    owner_pubkey: str | None
    account_id: str = ""
    payment_hash: str = ""
    resume_after_sequence: int | None = None

    def matches(self, event: Event) -> bool:
        """Whether the watcher may see the event, and wants to."""
        if not event.kind.startswith(KIND_PREFIX):
            return False
        changed = events_pb2.InvoiceChanged.FromString(event.payload)
        return (
            self.owner_pubkey in (None, changed.owner_pubkey)
            and self.account_id in ("", changed.invoice.account_id)
            and self.payment_hash in ("", changed.invoice.payment_hash)
        )


class Watcher:
    """Makes the streams of one replica."""

    def __init__(self, database: Database, draining: Draining, *, heartbeat_s: float = HEARTBEAT_S) -> None:
        """`draining` ends all streams."""
        self._database = database
        self._draining = draining
        self._heartbeat_s = heartbeat_s

    async def stream(self, watched: Watched) -> AsyncIterator[pb.WatchInvoicesResponse]:
        """Yield changes and heartbeats without end.

        The first message says where the stream is: the current state of a single invoice, or a heartbeat. Raises
        InvoiceNotFoundError, RESUME_POINT_EXPIRED and SERVICE_DRAINING.
        """
        position = watched.resume_after_sequence
        current = None
        if watched.payment_hash:
            invoice, newest = await self._database.read(lambda connection: _snapshot(connection, watched))
            if position is None:
                current, position = _current(invoice, newest), newest
                yield current
        events = watch(
            self._database,
            draining=self._draining,
            resume_after_sequence=position,
            matches=watched.matches,
            heartbeat_s=self._heartbeat_s,
        )
        async with aclosing(events):  # type: ignore[type-var]  # it is an async generator
            if current is not None:
                await anext(events)  # the heartbeat that says where the stream begins: just said
            async for event in events:
                yield _message(event)


def _snapshot(connection: Connection, watched: Watched) -> tuple[Invoice, int]:
    """Return the invoice and the newest sequence of the same moment. Raises InvoiceNotFoundError."""
    key = Key(column="payment_hash", value=watched.payment_hash)
    return find_invoice(connection, key, watched.owner_pubkey), newest_sequence(connection)


def _current(invoice: Invoice, position: int) -> pb.WatchInvoicesResponse:
    """Return the current state as the first message of a stream at `position`."""
    return pb.WatchInvoicesResponse(
        sequence=position, invoice=invoice_message(invoice), event_time=timestamp_of_ms(invoice.update_time_ms)
    )


def _message(event: Event | Heartbeat) -> pb.WatchInvoicesResponse:
    """Return an event or heartbeat as the stream's message."""
    if isinstance(event, Heartbeat):
        return pb.WatchInvoicesResponse(sequence=event.sequence, event_time=timestamp_of_ms(event.time_ms))
    changed = events_pb2.InvoiceChanged.FromString(event.payload)
    changed.invoice.sequence = event.sequence
    return pb.WatchInvoicesResponse(
        sequence=event.sequence,
        invoice=changed.invoice,
        previous_state=changed.previous_state,
        event_time=timestamp_of_ms(event.create_time_ms),
    )

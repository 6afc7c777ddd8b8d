"""Every change of the node's hold invoices, by one subscription per open invoice.

lnd's SubscribeInvoices tells of invoices that are added and settled, and not of those that are accepted or canceled (0.20.1 leaves them out
on purpose); SubscribeHtlcEvents is silent about an HTLC that is held; HtlcModifier sees it, for one client at a time, and holds every
payment up while that client is away. What remains:

| with 10,000 open invoices, on 2 busy cores | set up | memory in lnd / here | idle | told of |
|---|---|---|---|---|
| ListInvoices(pending_only), polled | - | - | 0.18 ms of lnd's CPU per invoice and poll | with the next poll |
| SubscribeSingleInvoice for each | 14 s, 0.5 ms of lnd's CPU each | 28 KB / 22 KB each | nothing | at once |

So each open invoice has its stream, which begins with the invoice's state: nothing is missed between listing and watching. New ones come
from SubscribeInvoices, which takes up after the newest invoice that was listed. Beyond WATCHES_MAX open invoices the further ones wait for
a place, and are told of late rather than never.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final

from services.lightning.lnd.connection import (
    CALL_S,
    LndConnection,
    LndRefusal,
    answer,
    messages,
    unavailable,
)
from services.lightning.lnd.translation import received
from services.lightning.lnd.wire.invoices_pb2 import SubscribeSingleInvoiceRequest
from services.lightning.lnd.wire.lightning_pb2 import Invoice, InvoiceSubscription, ListInvoiceRequest
from services.lightning.node import NodeUnavailableError, Received, ReceivedState

WATCHES_MAX: Final = 20_000
"""Open invoices that are watched at a time: some 1 GB in both processes together."""
PAGE_INVOICES: Final = 500
"""Invoices per answer: at 2 KB each well below the 4 MiB of a message."""
FIRST_INVOICE_S: Final = 0.5
"""How often a node without any invoice is asked for one: lnd can take up after an invoice only."""
PROBE_S: Final = 0.5
"""lnd refuses a macaroon in milliseconds, and otherwise is silent."""
LAST_STATES: Final = frozenset({ReceivedState.SETTLED, ReceivedState.CANCELED})


async def invoice_changes(connection: LndConnection) -> AsyncIterator[Received]:
    """Every change from now on, and first what is held now. Raises NodeUnavailableError when a stream breaks."""
    feed = _Feed(connection)
    feed.begin()
    try:
        while True:
            change = await feed.changes.get()
            if isinstance(change, Exception):
                raise change
            yield change
    finally:
        await feed.end()


async def probe_subscription(connection: LndConnection) -> None:
    """Subscribe for a moment: only an error is an answer. Raises what `messages` raises."""
    stream = connection.lightning.SubscribeInvoices(InvoiceSubscription(), timeout=CALL_S)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(PROBE_S):
            async for _ in messages(stream):
                break
    stream.cancel()


class _Feed:
    """The tasks behind one subscription."""

    def __init__(self, connection: LndConnection) -> None:
        self.changes: asyncio.Queue[Received | Exception] = asyncio.Queue()
        self._connection = connection
        self._tasks: set[asyncio.Task[None]] = set()
        self._watched: set[bytes] = set()
        self._places = asyncio.Semaphore(WATCHES_MAX)

    def begin(self) -> None:
        """Start to list and to watch."""
        task = asyncio.create_task(self._follow())
        self._tasks.add(task)
        task.add_done_callback(self._done)

    async def end(self) -> None:
        """End all tasks and their streams."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _done(self, task: asyncio.Task[None]) -> None:
        """Forget a task that ended; what it died of ends the subscription."""
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if isinstance(error, LndRefusal):
            self.changes.put_nowait(unavailable(error))
        elif isinstance(error, Exception):
            self.changes.put_nowait(error)

    async def _follow(self) -> None:
        """Watch what is pending, then what is added."""
        newest = await self._newest()
        await self._watch_pending()
        stream = self._connection.lightning.SubscribeInvoices(InvoiceSubscription(add_index=newest))
        async for invoice in messages(stream):
            if invoice.add_index > newest:
                newest = invoice.add_index
                self._watch(invoice)
        raise NodeUnavailableError("lnd ended the stream of invoices")

    async def _newest(self) -> int:
        """The index of the newest invoice, once there is one."""
        request = ListInvoiceRequest(reversed=True, num_max_invoices=1)
        while True:
            page = await answer(self._connection.lightning.ListInvoices(request, timeout=CALL_S))
            if page.last_index_offset:
                return page.last_index_offset
            await asyncio.sleep(FIRST_INVOICE_S)

    async def _watch_pending(self) -> None:
        """Watch all that is open or held, page by page."""
        after = 0
        while True:
            request = ListInvoiceRequest(pending_only=True, index_offset=after, num_max_invoices=PAGE_INVOICES)
            page = await answer(self._connection.lightning.ListInvoices(request, timeout=CALL_S))
            for invoice in page.invoices:
                self._watch(invoice)
            if not page.invoices:
                return
            after = page.last_index_offset

    def _watch(self, invoice: Invoice) -> None:
        """Watch a hold invoice; others are the node's own and have their preimage from the beginning."""
        plain = bool(invoice.r_preimage) and invoice.state != Invoice.SETTLED
        if plain or invoice.r_hash in self._watched:
            return
        self._watched.add(invoice.r_hash)
        task = asyncio.create_task(self._told(invoice.r_hash))
        self._tasks.add(task)
        task.add_done_callback(self._done)

    async def _told(self, payment_hash: bytes) -> None:
        """Tell of one invoice until it is settled or canceled."""
        async with self._places:
            request = SubscribeSingleInvoiceRequest(r_hash=payment_hash)
            async for invoice in messages(self._connection.invoices.SubscribeSingleInvoice(request)):
                change = received(invoice)
                if change.state is not ReceivedState.OPEN:
                    self.changes.put_nowait(change)
                if change.state in LAST_STATES:
                    self._watched.discard(payment_hash)
                    return
        raise NodeUnavailableError("lnd ended the stream of an invoice before its end")

"""Being paid from outside: what the Lightning node says about invoices becomes work, whichever replica hears it first.

Each replica subscribes to the node. What was missed (before the start, while the node was away) is asked for, invoice by invoice.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, Final

from services.chassis.errors import ServiceError
from services.chassis.failpoints import failpoint
from services.chassis.logs import get_logger
from services.invoice import work
from services.invoice.domain import rules
from services.invoice.domain.invoice import AtNode, Invoice, Phase, State
from services.invoice.domain.rules import RefusedError
from services.invoice.domain.transitions import Event
from services.invoice.store import InvoiceNotFoundError, Key, find_invoice
from services.invoice.worker import NODE_S, Spawn, Worker
from services.lightning.node import NodeUnavailableError, Received, ReceivedState, ReceivingNode
from services.storage.database import Database

TAKEN_MAX: Final = 64
"""Words of the node that are worked on at once: the node waits when they are more."""
TRIES_MAX: Final = 20
"""How often a word is tried again; then all invoices are looked at."""
RETRY_S: Final = 0.25
"""Pause after a failure: of the database, or of the subscription."""
LOOK_S: Final = 600.0
"""A look at all that wait at the node at least this often. Subscriptions tell everything; this is for what nobody thought of."""
LOOK_PAUSE_S: Final = 0.25
"""Pause between two pages of a look: it must not hold up the others."""
LOOKS_MAX: Final = 8
"""Invoices that the node is asked for at once."""

_log = get_logger("invoice")
_GIVEN_BACK: Final = frozenset({Phase.ARRIVED, Phase.HELD, Phase.SETTLING, Phase.CANCELING})
"""Where it matters that the node has given the money back."""


class Receiver:
    """See the module. `follow` and `look` belong in background tasks."""

    def __init__(
        self, database: Database, node: ReceivingNode, worker: Worker, clock: Callable[[], int], spawn: Spawn
    ) -> None:
        """`clock`: milliseconds since 1970."""
        self._database = database
        self._node = node
        self._worker = worker
        self._clock = clock
        self._spawn = spawn
        self._room = asyncio.Semaphore(TAKEN_MAX)
        self._missed = asyncio.Event()

    async def follow(self) -> None:
        """Take the node's words for ever; subscribe again after an interruption."""
        while True:
            try:
                async with aclosing(_closable(self._node.subscribe())) as words:  # type: ignore[type-var]
                    self._missed.set()
                    async for received in words:
                        await self._take(received)
            except NodeUnavailableError as error:
                _log.warning("the node tells nothing", error=str(error))
            await asyncio.sleep(RETRY_S)

    async def look(self) -> None:
        """Ask for ever for what no subscription told."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._missed.wait()
            self._missed.clear()
            try:
                await self._look_at_all()
            except (NodeUnavailableError, ServiceError, TimeoutError) as error:
                _log.warning("look postponed", error=str(error))
                self._missed.set()
                await asyncio.sleep(RETRY_S)

    async def _look_at_all(self) -> None:
        """Ask the node for each invoice that it may have news of."""
        after = ""
        while True:
            start = after
            page = await self._database.read(lambda connection: work.waiting_at_node(connection, start))  # noqa: B023
            for at in range(0, len(page), LOOKS_MAX):
                await asyncio.gather(*(self._ask(payment_hash) for _, payment_hash in page[at : at + LOOKS_MAX]))
            if len(page) < work.LOOKED_AT_MAX:
                return
            after = page[-1][0]
            await asyncio.sleep(LOOK_PAUSE_S)

    async def _ask(self, payment_hash: str) -> None:
        """Ask for one invoice, and take the answer as a word."""
        async with asyncio.timeout(NODE_S):
            received = await self._node.lookup(payment_hash)
        if received is not None:
            await self._take(received)

    async def _take(self, received: Received) -> None:
        """Work on a word in a task of its own, once there is room."""
        if received.state is ReceivedState.OPEN:
            return
        await self._room.acquire()
        task = self._spawn(self._until_done(received), name="word of the node")
        task.add_done_callback(self._leave)

    def _leave(self, _: asyncio.Task[Any]) -> None:
        """There is room for one more."""
        self._room.release()

    async def _until_done(self, received: Received) -> None:
        """Work on a word until it is written down; what is written down is the worker's."""
        for _ in range(TRIES_MAX):
            try:
                await self._work(received)
                return
            except InvoiceNotFoundError:
                return  # an invoice of somebody else at this node
            except (ServiceError, NodeUnavailableError) as error:
                _log.warning("word of the node postponed", payment_hash=received.payment_hash, error=str(error))
                await asyncio.sleep(RETRY_S)
        self._missed.set()

    async def _work(self, received: Received) -> None:
        """Work on a word once."""
        invoice = await self._find(received.payment_hash)
        if received.state is ReceivedState.ACCEPTED:
            await self._arrived(received)
        elif received.state is ReceivedState.CANCELED:
            await self._canceled(invoice)
        elif invoice.phase is Phase.OPEN and invoice.preimage is not None:
            await self._arrived(received)  # taken by hand, at the node: to be credited all the same

    async def _find(self, payment_hash: str) -> Invoice:
        """Return the invoice as it is now. Raises InvoiceNotFoundError."""
        key = Key(column="payment_hash", value=payment_hash)
        return await self._database.read(lambda connection: find_invoice(connection, key))

    async def _arrived(self, received: Received) -> None:
        """Give the invoice to the money that the node holds, or the money back."""
        failpoint("arrive")
        amount_msat, now_ms = received.amount_msat, self._clock()
        try:
            before, after = await self._database.write(
                lambda connection: work.arrive(connection, received.payment_hash, amount_msat, now_ms)
            )
        except RefusedError as error:
            await self._give_back(await self._find(received.payment_hash), error)
            return
        failpoint("arrive.done")
        if after is not before:
            await self._drive(after)

    async def _give_back(self, invoice: Invoice, error: RefusedError) -> None:
        """Cancel at the node what must not be paid there, unless that is done already."""
        if invoice.at_node is AtNode.CLOSED:
            return
        _log.info("money given back", invoice_id=invoice.invoice_id, reason=error.reason)
        await self._worker.close_at_node(invoice)
        if invoice.state is not State.ACCEPTED:  # a payment inside that holds it writes that down by itself
            await self._database.write(lambda connection: work.close(connection, invoice.invoice_id))

    async def _canceled(self, invoice: Invoice) -> None:
        """The node has given the money back, or takes none any more."""
        if invoice.phase in _GIVEN_BACK:
            before, after = await self._database.write(
                lambda connection: work.advance(connection, invoice.invoice_id, _gone, self._clock())
            )
            if after is not before:
                await self._drive(after)
        elif invoice.at_node is AtNode.LISTED and invoice.state is not State.ACCEPTED:
            await self._database.write(lambda connection: work.close(connection, invoice.invoice_id))

    async def _drive(self, invoice: Invoice) -> None:
        """Do what is next. What cannot be done now the worker does later."""
        with contextlib.suppress(ServiceError):  # logged where it is postponed
            await self._worker.drive(invoice)


def _gone(invoice: Invoice, now_ms: int) -> Invoice:
    """Return the invoice whose money the node gave back."""
    return rules.apply(invoice, Event.GONE, now_ms)


async def _closable(words: AsyncIterator[Received]) -> AsyncIterator[Received]:
    """Yield the words; a generator can be closed, whatever the node's iterator is."""
    async for received in words:
        yield received

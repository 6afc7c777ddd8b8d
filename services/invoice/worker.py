"""The worker of a replica: does what is to be done for invoices at the node and in the ledger, and again what another left undone.

Every step is safe to repeat and is written down before the next begins; which step comes next stands in the invoice's phase. Whoever
moves an invoice on drives it; after a lease without news any replica does.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, Final, Protocol, TypeVar

from services.chassis.errors import ServiceError, dependency_failed
from services.chassis.failpoints import failpoint
from services.chassis.logs import get_logger
from services.invoice import work
from services.invoice.domain import rules
from services.invoice.domain.invoice import AT_WORK, DECIDABLE, Invoice, Phase
from services.invoice.domain.transitions import Event
from services.invoice.ledger import Ledger, LedgerUnavailableError
from services.invoice.work import Rule
from services.lightning.node import NodeRefusedError, NodeUnavailableError, ReceivedState, ReceivingNode
from services.storage.database import Database

T = TypeVar("T")

NODE_S: Final = 5.0
"""Deadline of each call of the node: what takes longer is repeated."""
LOOK_S_MAX: Final = 0.5
"""A look for work at least this often: another replica may have died and left some."""
RETRY_S: Final = 0.25
"""Pause when the database does not answer."""
STEPS_MAX: Final = 8
"""More steps than any invoice has: a drive ends."""
TOLD_MAX: Final = 256
"""Payments that are being told at once; others look by themselves."""
MS_PER_SECOND: Final = 1_000
ALWAYS_MS: Final = 2**63
"""Later than every time."""

_log = get_logger("invoice")


class Spawn(Protocol):
    """Application.spawn."""

    def __call__(self, work: Coroutine[Any, Any, Any], *, name: str) -> asyncio.Task[Any]:
        """Run a background task."""


class StuckError(Exception):
    """A step cannot be done as things are; the text is for the log."""


class Worker:
    """See the module. `run` belongs in a background task; `note` hastens it; `drive` is for whoever just moved an invoice."""

    def __init__(
        self, database: Database, node: ReceivingNode, ledger: Ledger, clock: Callable[[], int], spawn: Spawn
    ) -> None:
        """`clock`: milliseconds since 1970."""
        self._database = database
        self._node = node
        self._ledger = ledger
        self._clock = clock
        self._spawn = spawn
        self._sooner = asyncio.Event()
        self._wake_time_ms = ALWAYS_MS
        self._telling: set[asyncio.Task[Any]] = set()

    def note(self, run_ms: int | None) -> None:
        """Say that an invoice is to be looked at then."""
        if run_ms is not None and run_ms < self._wake_time_ms:
            self._sooner.set()

    async def run(self) -> None:
        """Work for ever. A database that is busy or locked is tried again."""
        while True:
            self._sooner.clear()
            self._wake_time_ms = ALWAYS_MS  # until the pause is known, each note ends it
            try:
                more = await self._sweep()
                pause_s = 0.0 if more else await self._pause_s()
            except ServiceError as error:
                _log.warning("work postponed", reason=error.reason)
                pause_s = RETRY_S
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._sooner.wait()

    async def _sweep(self) -> bool:
        """Do what is due; whether there may be more."""
        if await self._due_in_ms() > 0:
            return False
        due = await self._database.write(lambda connection: work.claim(connection, self._clock()))
        for outcome in await asyncio.gather(*(self.drive(invoice) for invoice in due), return_exceptions=True):
            if isinstance(outcome, BaseException) and not isinstance(outcome, ServiceError):
                raise outcome
        return len(due) == work.CLAIMS_MAX

    async def _due_in_ms(self) -> int:
        """Return how long until the next invoice is due, at most LOOK_S_MAX."""
        next_ms = await self._database.read(work.next_run_ms)
        longest_ms = int(LOOK_S_MAX * MS_PER_SECOND)
        return longest_ms if next_ms is None else min(longest_ms, next_ms - self._clock())

    async def _pause_s(self) -> float:
        """Return how long to sleep, and remember until when."""
        due_in_ms = max(0, await self._due_in_ms())
        self._wake_time_ms = self._clock() + due_in_ms
        return due_in_ms / MS_PER_SECOND

    async def drive(self, invoice: Invoice) -> Invoice:
        """Do all that is to be done for an invoice now; return it afterwards.

        Raises BACKEND_UNAVAILABLE when a step could not be done: it is tried again, by any replica.
        """
        for _ in range(STEPS_MAX):
            if invoice.next_run_ms is None:
                return invoice
            try:
                rule = await self._step(invoice)
            except (NodeUnavailableError, LedgerUnavailableError, StuckError) as error:
                await self._postpone(invoice, error)
                raise dependency_failed("the Lightning node or the ledger does not answer") from error
            if rule is None:
                return invoice
            before, invoice = await self._advance(invoice.invoice_id, rule)
            self.tell(before, invoice)
            if invoice.phase in DECIDABLE:
                return invoice
        raise AssertionError(f"invoice {invoice.invoice_id} does not come to an end")

    async def _advance(self, invoice_id: str, rule: Rule) -> tuple[Invoice, Invoice]:
        """Write a step down; return the invoice before and after."""
        return await self._database.write(lambda connection: work.advance(connection, invoice_id, rule, self._clock()))

    async def _postpone(self, invoice: Invoice, error: Exception) -> None:
        """Note when to try again."""
        _log.warning("step postponed", invoice_id=invoice.invoice_id, phase=invoice.phase.name, error=str(error))
        await self._database.write(lambda connection: work.postpone(connection, invoice, self._clock()))

    async def _step(self, invoice: Invoice) -> Rule | None:
        """Do the next step; return what it makes of the invoice, None when nothing is left to do."""
        if invoice.phase in AT_WORK:
            names = {
                Phase.ARRIVED: ("hold_credit", self._hold_credit),
                Phase.SETTLING: ("settle_at_node", self._settle_at_node),
                Phase.POSTING: ("post_credit", self._post_credit),
                Phase.CANCELING: ("cancel_at_node", self._cancel_at_node),
                Phase.VOIDING: ("void_credit", self._void_credit),
            }
            name, action = names[invoice.phase]
            return await _between_failpoints(name, lambda: action(invoice))
        if invoice.phase in DECIDABLE:
            return rules.miss_deadline
        await _between_failpoints("close_at_node", lambda: self.close_at_node(invoice))
        await self._database.write(lambda connection: work.close(connection, invoice.invoice_id))
        return None

    async def _hold_credit(self, invoice: Invoice) -> Rule:
        """Reserve the credit; for a hold invoice, find out how long the node will hold the money."""
        if not await self._ledger.hold_credit(invoice):
            return partial(_happen, Event.CREDIT_REFUSED)
        if not invoice.hold:
            return partial(_happen, Event.CREDIT)
        received = await self._at_node(self._node.lookup(invoice.payment_hash))
        if received is None or received.state is ReceivedState.CANCELED:
            return partial(_happen, Event.GONE)
        deadline_ms = received.settle_deadline_ms
        return lambda now, now_ms: rules.credited(now, deadline_ms, now_ms)

    async def _settle_at_node(self, invoice: Invoice) -> Rule:
        """Take the money."""
        assert invoice.preimage is not None
        try:
            await self._at_node(self._node.settle(invoice.preimage.reveal()))
        except NodeRefusedError as error:
            received = await self._at_node(self._node.lookup(invoice.payment_hash))
            if received is not None and received.state is ReceivedState.ACCEPTED:
                raise StuckError(f"the node holds the money and does not settle: {error}") from error
            if received is None or received.state is not ReceivedState.SETTLED:
                _log.warning("the node gave the money back", invoice_id=invoice.invoice_id, reason=error.reason)
                return partial(_happen, Event.GONE)
        return partial(_happen, Event.TAKEN)

    async def _post_credit(self, invoice: Invoice) -> Rule:
        """Credit the account."""
        await self._ledger.post_credit(invoice)
        return partial(_happen, Event.POSTED)

    async def _cancel_at_node(self, invoice: Invoice) -> Rule:
        """Give the money back."""
        try:
            await self._at_node(self._node.cancel(invoice.payment_hash))
        except NodeRefusedError as error:
            raise StuckError(f"the node settled what was to be canceled: {error}") from error
        return partial(_happen, Event.GONE)

    async def _void_credit(self, invoice: Invoice) -> Rule:
        """Free the reserved credit."""
        await self._ledger.void_credit(invoice)
        return partial(_happen, Event.VOIDED)

    async def close_at_node(self, invoice: Invoice) -> bool:
        """Let nobody outside pay the invoice any more; False when the node has settled it. Raises NodeUnavailableError."""
        try:
            await self._at_node(self._node.cancel(invoice.payment_hash))
        except NodeRefusedError as error:
            _log.error("settled at the node by somebody else", invoice_id=invoice.invoice_id, reason=error.reason)
            return False
        return True

    async def _at_node(self, call: Awaitable[T]) -> T:
        """Await a call of the node, not for ever."""
        try:
            async with asyncio.timeout(NODE_S):
                return await call
        except TimeoutError as error:
            raise NodeUnavailableError(f"no answer within {NODE_S} s") from error

    def tell(self, before: Invoice, after: Invoice) -> None:
        """Tell the payment that waits for a decision which was just made."""
        if before.phase is not Phase.RESERVED or after.phase is Phase.RESERVED or len(self._telling) >= TOLD_MAX:
            return
        assert before.locked_by is not None
        task = self._spawn(self._ledger.resume_payment(before.locked_by), name="tell a payment")
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)


async def _between_failpoints(name: str, action: Callable[[], Awaitable[T]]) -> T:
    """Run an action of this name."""
    failpoint(name)
    result = await action()
    failpoint(f"{name}.done")
    return result


def _happen(event: Event, invoice: Invoice, now_ms: int) -> Invoice:
    """Return the invoice after an event."""
    return rules.apply(invoice, event, now_ms)

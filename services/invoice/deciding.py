"""An owner's decision on an invoice: written down, carried out, and answered once, however often it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from nipmesh.invoice.v1 import invoice_service_pb2 as pb
from services.chassis.failpoints import failpoint
from services.invoice import wire
from services.invoice.domain.invoice import AT_WORK, Invoice
from services.invoice.worker import Worker
from services.storage.database import Database
from services.storage.idempotency import Replay, RequestKey, find, run_once
from services.storage.sql import Connection

ResponseT = TypeVar("ResponseT", pb.SettleInvoiceResponse, pb.CancelInvoiceResponse)
Decide = Callable[[Connection, int], tuple[Invoice, Invoice]]
"""Inside a write, at a time: the invoice before and after the decision."""


class Deciding:
    """Carries decisions out. What is held inside the mesh is decided in one transaction; the node's money takes some steps."""

    def __init__(self, database: Database, worker: Worker, clock: Callable[[], int]) -> None:
        """`clock`: milliseconds since 1970."""
        self._database = database
        self._worker = worker
        self._clock = clock

    async def run(self, key: RequestKey, response_type: type[ResponseT], decide: Decide) -> ResponseT:
        """Decide, wait until it is carried out, answer. Raises what `decide` raises, and BACKEND_UNAVAILABLE: the decision stands then."""
        failpoint("decide")
        response, moved = await self._write(key, response_type, decide)
        failpoint("decide.done")
        if response is None:
            assert moved is not None
            await self._worker.drive(moved)
            response, _ = await self._write(key, response_type, decide)  # decided already: it says what came of it
        assert response is not None, "a driven invoice is not at work"
        return response

    async def _write(
        self, key: RequestKey, response_type: type[ResponseT], decide: Decide
    ) -> tuple[ResponseT | None, Invoice | None]:
        """Decide in one transaction, unless it was answered before; no response yet while there is something to carry out."""
        now_ms = self._clock()

        def work(connection: Connection) -> tuple[ResponseT | None, Invoice | None, Invoice | None]:
            earlier = find(connection, key)
            if isinstance(earlier, Replay):
                response = response_type.FromString(earlier.response)
                response.replayed = True
                return response, None, None
            before, after = decide(connection, now_ms)
            if after.phase in AT_WORK:
                return None, before, after
            message = wire.invoice_message(after, reveal=True)
            response, _ = run_once(connection, key, response_type, lambda: response_type(invoice=message))
            return response, before, after

        response, before, after = await self._database.write(work)
        if before is not None and after is not None:
            self._worker.tell(before, after)
            self._worker.note(after.next_run_ms)
        return response, after

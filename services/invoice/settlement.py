"""The gRPC methods for payments inside the mesh: lock, commit, release, and what became of a hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import grpc

from nipmesh.invoice.v1 import invoice_service_pb2 as pb
from nipmesh.invoice.v1 import invoice_service_pb2_grpc
from services.chassis.caller import SERVICE, Access
from services.chassis.errors import Reason, dependency_failed
from services.chassis.failpoints import failpoint
from services.invoice import holds, preparing, wire
from services.invoice.domain.invoice import AtNode, Hold, Invoice, Phase
from services.invoice.domain.rules import LockOrder, RefusedError
from services.invoice.errors import domain_errors
from services.invoice.parts import Parts
from services.lightning.node import NodeUnavailableError
from services.storage.sql import Connection

ACCESS: Final[Mapping[str, Access]] = {
    f"/nipmesh.invoice.v1.InvoiceSettlementService/{method}": SERVICE("payment")
    for method in ("LockInvoice", "CommitInvoice", "GetHold", "FindInvoice", "ReleaseInvoice")
}
"""Who may call what: the payment service, under its own SPIFFE id."""

Context = grpc.aio.ServicerContext


class InvoiceSettlementServicer(invoice_service_pb2_grpc.InvoiceSettlementServiceServicer):
    """nipmesh.invoice.v1.InvoiceSettlementService: for the payment service alone."""

    def __init__(self, parts: Parts) -> None:
        """Share one database with every other replica."""
        self._parts = parts
        self._two_phase = parts.two_phase

    async def LockInvoice(
        self, request: pb.LockInvoiceRequest, context: Context[pb.LockInvoiceRequest, pb.LockInvoiceResponse]
    ) -> pb.LockInvoiceResponse:
        """Let a payment hold an invoice."""
        order = LockOrder(
            payment_id=request.payment_id, amount_msat=request.amount_msat, actor_pubkey=request.actor_pubkey
        )
        payment_request, now_ms = wire.lowered(request.payment_request), self._parts.clock()
        with domain_errors():
            failpoint("lock")
            invoice, hold = await self._parts.database.write(
                lambda connection: holds.lock_invoice(connection, payment_request, order, now_ms)
            )
            failpoint("lock.done")
            await self._close_at_node(invoice, hold)
            prepared = request.prepare and await self._prepare(invoice, hold)
        return pb.LockInvoiceResponse(
            invoice_id=invoice.invoice_id,
            account_id=invoice.account_id,
            payment_hash=invoice.payment_hash,
            amount_msat=hold.amount_msat,
            hold=invoice.hold,
            prepared=prepared,
        )

    async def _prepare(self, invoice: Invoice, hold: Hold) -> bool:
        """Promise the settlement, where that is on; the owner of a hold invoice decides, so that nothing can be promised."""
        if self._two_phase is None or invoice.hold:
            return False
        await self._two_phase.prepare(hold.payment_id)
        return True

    async def _close_at_node(self, invoice: Invoice, hold: Hold) -> None:
        """Let nobody outside pay what a payment inside has just locked. Raises BACKEND_UNAVAILABLE and RefusedError."""
        if invoice.phase is not Phase.LOCKED or invoice.at_node is AtNode.CLOSED:
            return
        failpoint("lock_at_node")
        try:
            closed = await self._parts.worker.close_at_node(invoice)
        except NodeUnavailableError as error:
            raise dependency_failed("the Lightning node does not answer") from error
        failpoint("lock_at_node.done")
        if not closed:
            now_ms = self._parts.clock()
            await self._parts.database.write(
                lambda connection: holds.release_invoice(connection, hold.payment_id, now_ms)
            )
            raise RefusedError(Reason.INVOICE_ALREADY_SETTLED, invoice.invoice_id)

    async def CommitInvoice(
        self, request: pb.CommitInvoiceRequest, context: Context[pb.CommitInvoiceRequest, pb.CommitInvoiceResponse]
    ) -> pb.CommitInvoiceResponse:
        """Settle the invoice that a payment holds, and reveal the preimage to the payer's side; or let its owner decide."""
        now_ms = self._parts.clock()
        with domain_errors():
            failpoint("commit")
            if self._two_phase is not None:
                await self._two_phase.commit(request.payment_id)
            invoice, _ = await self._parts.database.write(
                lambda connection: self._commit(connection, request.payment_id, now_ms)
            )
            failpoint("commit.done")
        self._parts.worker.note(invoice.next_run_ms)
        return wire.committed_message(invoice)

    def _commit(self, connection: Connection, payment_id: str, now_ms: int) -> tuple[Invoice, Hold]:
        """Tell of a settlement that was prepared; what was not is settled now."""
        if self._two_phase is not None:
            preparing.check_row_is_free(connection, payment_id)
            preparing.tell_settled(connection, payment_id)
        return holds.commit_invoice(connection, payment_id, now_ms)

    def _free(self, connection: Connection, payment_id: str, now_ms: int) -> Invoice | None:
        """Nothing is prepared any more, unless another call does so just now: then this one is refused, and repeated."""
        release = holds.release_invoice if self._two_phase is None else preparing.release
        return release(connection, payment_id, now_ms)

    async def ReleaseInvoice(
        self, request: pb.ReleaseInvoiceRequest, context: Context[pb.ReleaseInvoiceRequest, pb.ReleaseInvoiceResponse]
    ) -> pb.ReleaseInvoiceResponse:
        """Free what a payment holds, and let it never lock again."""
        now_ms = self._parts.clock()
        with domain_errors():
            failpoint("release")
            if self._two_phase is not None:
                await self._two_phase.rollback(request.payment_id)
            invoice = await self._parts.database.write(
                lambda connection: self._free(connection, request.payment_id, now_ms)
            )
            failpoint("release.done")
        return pb.ReleaseInvoiceResponse(invoice=wire.invoice_message(invoice) if invoice else None)

    async def GetHold(
        self, request: pb.GetHoldRequest, context: Context[pb.GetHoldRequest, pb.GetHoldResponse]
    ) -> pb.GetHoldResponse:
        """Say what became of what a payment holds."""
        with domain_errors():
            hold, invoice = await self._parts.database.read(
                lambda connection: holds.held_invoice(connection, request.payment_id)
            )
        return wire.hold_message(hold, invoice)

    async def FindInvoice(
        self, request: pb.FindInvoiceRequest, context: Context[pb.FindInvoiceRequest, pb.FindInvoiceResponse]
    ) -> pb.FindInvoiceResponse:
        """Say whether an invoice is of this mesh."""
        payment_request = wire.lowered(request.payment_request)
        with domain_errors():
            invoice = await self._parts.database.read(
                lambda connection: holds.requested_invoice(connection, payment_request)
            )
        return pb.FindInvoiceResponse(invoice_id=invoice.invoice_id)

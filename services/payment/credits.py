"""InvoiceLedgerService: the ledger's side of invoices, for the invoice service alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import structlog

from nipmesh.payment.v1 import invoice_ledger_service_pb2 as pb
from nipmesh.payment.v1.invoice_ledger_service_pb2_grpc import InvoiceLedgerServiceServicer
from services.chassis.caller import require_peer
from services.chassis.failpoints import failpoint
from services.payment.border import Context, write
from services.payment.driver import now_ms
from services.payment.store import decisions, sagas
from services.payment.store import invoice_credits as store
from services.storage.database import Database
from services.storage.sql import Connection

INVOICE: Final = "invoice"
"""The one service that may call."""

_DECISIONS: Final = {
    None: pb.GetDecisionResponse.DECISION_UNDECIDED,
    decisions.Decision.COMMIT: pb.GetDecisionResponse.DECISION_COMMIT,
    decisions.Decision.ROLLBACK: pb.GetDecisionResponse.DECISION_ROLLBACK,
}

_log = structlog.stdlib.get_logger()


class InvoiceLedgerServicer(InvoiceLedgerServiceServicer):
    """Thin: checks who calls, asks the store."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def HoldCredit(self, request: pb.HoldCreditRequest, context: Context) -> pb.HoldCreditResponse:
        """Reserve for an account what the node holds for an invoice."""
        await self._write(
            "hold_credit",
            request.account_id,
            lambda connection: store.hold_credit(
                connection, request.invoice_id.lower(), request.account_id, request.amount_msat, now_ms()
            ),
        )
        return pb.HoldCreditResponse()

    async def PostCredit(self, request: pb.PostCreditRequest, context: Context) -> pb.PostCreditResponse:
        """Move what was reserved."""
        await self._write(
            "post_credit",
            request.invoice_id,
            lambda connection: store.post_credit(connection, request.invoice_id.lower(), now_ms()),
        )
        return pb.PostCreditResponse()

    async def VoidCredit(self, request: pb.VoidCreditRequest, context: Context) -> pb.VoidCreditResponse:
        """Free what was reserved, or see to it that nothing ever is."""
        await self._write(
            "void_credit",
            request.invoice_id,
            lambda connection: store.void_credit(connection, request.invoice_id.lower(), now_ms()),
        )
        return pb.VoidCreditResponse()

    async def ResumePayment(self, request: pb.ResumePaymentRequest, context: Context) -> pb.ResumePaymentResponse:
        """Let a payment that awaits an owner's decision look at once."""
        payment_id = request.payment_id.lower()
        await self._write("resume_payment", payment_id, lambda connection: _wake(connection, payment_id))
        return pb.ResumePaymentResponse()

    async def GetDecision(self, request: pb.GetDecisionRequest, context: Context) -> pb.GetDecisionResponse:
        """What is to become of a settlement that is prepared for a payment."""
        require_peer(INVOICE)
        payment_id = request.payment_id.lower()
        failpoint("get_decision")
        decision = await write(
            self._database, lambda connection: decisions.decision_of(connection, payment_id, now_ms()), payment_id
        )
        failpoint("get_decision.done")
        return pb.GetDecisionResponse(decision=_DECISIONS[decision])

    async def _write(self, name: str, subject: str, work: Callable[[Connection], None]) -> None:
        require_peer(INVOICE)
        failpoint(name)
        await write(self._database, work, subject)
        failpoint(f"{name}.done")


def _wake(connection: Connection, payment_id: str) -> None:
    if not sagas.wake(connection, payment_id):
        _log.debug("payment.nothing_to_resume", payment_id=payment_id)

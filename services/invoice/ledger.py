"""Calls of the payment service: the credits of payments from outside, and word to payments that wait for a decision."""

from __future__ import annotations

import enum
from typing import Final

import grpc

from nipmesh.payment.v1 import invoice_ledger_service_pb2 as pb
from nipmesh.payment.v1.invoice_ledger_service_pb2_grpc import InvoiceLedgerServiceStub
from services.chassis.errors import Reason, reason_of
from services.chassis.logs import get_logger
from services.invoice.domain.invoice import Invoice

CALL_S: Final = 2.0
"""Deadline of each call: a healthy one takes milliseconds, and a lost one is repeated."""
_REFUSALS: Final = frozenset({Reason.ACCOUNT_NOT_FOUND, Reason.BALANCE_LIMIT_EXCEEDED, Reason.CREDIT_VOIDED})
"""Why the ledger does not take a credit, for certain."""

_log = get_logger("invoice")


class Decided(enum.Enum):
    """What a payment decided about a settlement that is prepared."""

    UNDECIDED = pb.GetDecisionResponse.DECISION_UNDECIDED
    COMMIT = pb.GetDecisionResponse.DECISION_COMMIT
    ROLLBACK = pb.GetDecisionResponse.DECISION_ROLLBACK


class LedgerUnavailableError(Exception):
    """The payment service gave no definite answer: what it did is not known. The text is for logs."""


class Ledger:
    """The payment service, as far as money for invoices goes."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        """`channel` leads to the own sidecar."""
        self._stub = InvoiceLedgerServiceStub(channel)

    async def hold_credit(self, invoice: Invoice) -> bool:
        """Reserve what the node holds; False when the account cannot be credited. Raises LedgerUnavailableError."""
        request = pb.HoldCreditRequest(
            invoice_id=invoice.invoice_id, account_id=invoice.account_id, amount_msat=invoice.amount_held_msat
        )
        try:
            await self._stub.HoldCredit(request, timeout=CALL_S, wait_for_ready=False)
        except grpc.aio.AioRpcError as error:
            if reason_of(error) in _REFUSALS:
                return False
            raise _unavailable(error) from error
        return True

    async def post_credit(self, invoice: Invoice) -> None:
        """Move what was reserved. The node has the money: there is no way back. Raises LedgerUnavailableError."""
        try:
            request = pb.PostCreditRequest(invoice_id=invoice.invoice_id)
            await self._stub.PostCredit(request, timeout=CALL_S, wait_for_ready=False)
        except grpc.aio.AioRpcError as error:
            raise _unavailable(error) from error

    async def void_credit(self, invoice: Invoice) -> None:
        """Free what was reserved, if anything was. Raises LedgerUnavailableError."""
        try:
            request = pb.VoidCreditRequest(invoice_id=invoice.invoice_id)
            await self._stub.VoidCredit(request, timeout=CALL_S, wait_for_ready=False)
        except grpc.aio.AioRpcError as error:
            raise _unavailable(error) from error

    async def resume_payment(self, payment_id: str) -> None:
        """Tell a payment that the owner of its hold invoice decided. It looks by itself, too: a lost word only costs time."""
        try:
            request = pb.ResumePaymentRequest(payment_id=payment_id)
            await self._stub.ResumePayment(request, timeout=CALL_S, wait_for_ready=False)
        except grpc.aio.AioRpcError as error:
            _log.info("payment not told", payment_id=payment_id, code=error.code().name, reason=reason_of(error))

    async def decision(self, payment_id: str) -> Decided:
        """What is to become of a settlement that is prepared for a payment. Raises LedgerUnavailableError."""
        try:
            request = pb.GetDecisionRequest(payment_id=payment_id)
            response = await self._stub.GetDecision(request, timeout=CALL_S, wait_for_ready=False)
        except grpc.aio.AioRpcError as error:
            raise _unavailable(error) from error
        try:
            return Decided(response.decision)
        except ValueError as error:
            raise LedgerUnavailableError(f"a decision {response.decision} is not known") from error


def _unavailable(error: grpc.aio.AioRpcError) -> LedgerUnavailableError:
    """Return a call's failure as one that says nothing definite."""
    return LedgerUnavailableError(f"{reason_of(error) or error.code().name}: {error.details()}")

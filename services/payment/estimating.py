"""EstimateFee: what paying an invoice would cost now."""

from __future__ import annotations

from typing import Final

import structlog

from nipmesh.payment.v1 import payment_service_pb2 as pb
from services.chassis.caller import require_subject
from services.chassis.errors import Reason, ServiceError, dependency_failed, precondition_failed
from services.lightning.node import NodeRefusedError, NodeUnavailableError, PayingNode
from services.payment.clients import InvoiceClient, StepUnavailableError
from services.payment.domain.fees import fee_limit_msat
from services.payment.domain.invoice import Invoice, amount_to_pay_msat, read_invoice
from services.payment.domain.model import Refused
from services.payment.driver import now_ms

UNREACHABLE: Final = "there is no answer about what it would cost"

_log = structlog.stdlib.get_logger()


class FeeEstimator:
    """Asks the invoice service whether it is one of ours, and the node about all others."""

    def __init__(self, invoices: InvoiceClient, node: PayingNode) -> None:
        self._invoices = invoices
        self._node = node

    async def estimate(self, request: pb.EstimateFeeRequest) -> pb.EstimateFeeResponse:
        """The fees of a payment as it would be made now."""
        require_subject()
        invoice, amount_msat = self._read(request)
        try:
            if await self._invoices.is_ours(invoice.payment_request):
                return pb.EstimateFeeResponse(amount_msat=amount_msat, internal=True)
            found = await self._node.estimate(invoice.payment_request, amount_msat)
        except NodeRefusedError as error:
            raise precondition_failed(
                Reason.ROUTE_NOT_FOUND, "the node knows no way to the payee", subject=invoice.payment_hash
            ) from error
        except (NodeUnavailableError, StepUnavailableError) as error:
            _log.warning("payment.estimate_unavailable", reason=str(error))
            raise dependency_failed(UNREACHABLE) from error
        limit_msat = fee_limit_msat(amount_msat, None)
        return pb.EstimateFeeResponse(amount_msat=amount_msat, fee_msat=found.fee_msat, fee_limit_msat=limit_msat)

    def _read(self, request: pb.EstimateFeeRequest) -> tuple[Invoice, int]:
        """The invoice, and how much of it would be paid. Raises ServiceError."""
        try:
            invoice = read_invoice(request.payment_request, self._node.currency)
            amount_msat = amount_to_pay_msat(invoice, request.amount_msat if request.HasField("amount_msat") else None)
        except Refused as refused:
            raise ServiceError(refused.reason.value, refused.message) from refused
        if now_ms() >= invoice.expire_time_ms:
            raise precondition_failed(Reason.INVOICE_EXPIRED, "the invoice has expired", subject=invoice.payment_hash)
        return invoice, amount_msat

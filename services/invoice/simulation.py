"""The gRPC method with which an operator lets somebody outside pay, on the simulated network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import grpc

from nipmesh.invoice.v1 import simulated_network_service_pb2 as pb
from nipmesh.invoice.v1 import simulated_network_service_pb2_grpc
from services.chassis.caller import Access
from services.chassis.errors import Reason, ServiceError, dependency_failed, precondition_failed
from services.invoice import wire
from services.lightning.node import NodeRefusedError, NodeUnavailableError, ReceivingNode
from services.lightning.simulated import SimulatedReceivingNode

ACCESS: Final[Mapping[str, Access]] = {"/nipmesh.invoice.v1.SimulatedNetworkService/PayInvoice": Access.OPERATOR}
"""Who may call what: operators."""

Context = grpc.aio.ServicerContext


class SimulatedNetworkServicer(simulated_network_service_pb2_grpc.SimulatedNetworkServiceServicer):
    """nipmesh.invoice.v1.SimulatedNetworkService."""

    def __init__(self, node: ReceivingNode) -> None:
        """Only the simulated node has people outside."""
        self._node = node

    async def PayInvoice(
        self, request: pb.PayInvoiceRequest, context: Context[pb.PayInvoiceRequest, pb.PayInvoiceResponse]
    ) -> pb.PayInvoiceResponse:
        """Let somebody outside pay."""
        if not isinstance(self._node, SimulatedReceivingNode):
            message = "the Lightning node is a real one"
            raise precondition_failed(Reason.NETWORK_NOT_SIMULATED, message, subject=self._node.currency)
        text = wire.lowered(request.payment_request)
        try:
            received = await self._node.pay_from_outside(text, request.amount_msat or None)
        except NodeRefusedError as error:
            raise _refusal(error) from error
        except NodeUnavailableError as error:
            raise dependency_failed("the Lightning node does not answer") from error
        return pb.PayInvoiceResponse(payment_hash=received.payment_hash, amount_msat=received.amount_msat)


def _refusal(error: NodeRefusedError) -> ServiceError:
    """Return the error of a node that takes no money."""
    reasons = {
        "request": Reason.PAYMENT_REQUEST_INVALID,
        "unknown": Reason.PAYMENT_REQUEST_INVALID,
        "amount": Reason.PAYMENT_AMOUNT_REQUIRED,
    }
    reason = reasons.get(error.reason, Reason.INVOICE_NOT_PAYABLE)
    if reason is Reason.INVOICE_NOT_PAYABLE:
        return precondition_failed(reason, str(error), subject=error.reason)
    return ServiceError(reason, str(error))

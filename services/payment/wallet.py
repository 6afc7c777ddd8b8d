"""WalletPaymentService: what users may do with payments and accounts, done for a user by the NIP service."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Final

from nipmesh.payment.v1 import wallet_service_pb2 as pb
from nipmesh.payment.v1.wallet_service_pb2_grpc import WalletPaymentServiceServicer
from services.chassis.caller import acting_for, current_caller
from services.chassis.logs import get_logger
from services.lightning.node import PayingNode
from services.payment.accounts import AccountServicer
from services.payment.border import Context
from services.payment.domain.model import WALLET_AGENT
from services.payment.payments import PaymentServicer

_PAYMENTS: Final = "/nipmesh.payment.v1.PaymentService/"
_ACCOUNTS: Final = "/nipmesh.payment.v1.AccountService/"

_log = get_logger("payment")


class WalletPaymentServicer(WalletPaymentServiceServicer):
    """Thin: the servicers of the users' own methods do the work, as if the user called."""

    def __init__(self, payments: PaymentServicer, accounts: AccountServicer, node: PayingNode) -> None:
        """`node` says which network it pays in."""
        self._payments = payments
        self._accounts = accounts
        self._node = node

    async def PayInvoiceFor(self, request: pb.PayInvoiceForRequest, context: Context) -> pb.PayInvoiceForResponse:
        """Pay out of an account of the user."""
        _log.info(
            "payment on behalf of a user",
            actor=request.actor_pubkey,
            peer=current_caller().peer,
            account_id=request.request.account_id,
            request_id=request.request.request_id,
        )
        with _for(request.actor_pubkey, _PAYMENTS + "PayInvoice"):
            return pb.PayInvoiceForResponse(response=await self._payments.PayInvoice(request.request, context))

    async def GetPaymentFor(self, request: pb.GetPaymentForRequest, context: Context) -> pb.GetPaymentForResponse:
        """One payment of the user."""
        with _for(request.actor_pubkey, _PAYMENTS + "GetPayment"):
            return pb.GetPaymentForResponse(response=await self._payments.GetPayment(request.request, context))

    async def ListPaymentsFor(self, request: pb.ListPaymentsForRequest, context: Context) -> pb.ListPaymentsForResponse:
        """Payments of the user."""
        with _for(request.actor_pubkey, _PAYMENTS + "ListPayments"):
            return pb.ListPaymentsForResponse(response=await self._payments.ListPayments(request.request, context))

    async def GetAccountFor(self, request: pb.GetAccountForRequest, context: Context) -> pb.GetAccountForResponse:
        """One account of the user."""
        with _for(request.actor_pubkey, _ACCOUNTS + "GetAccount"):
            return pb.GetAccountForResponse(response=await self._accounts.GetAccount(request.request, context))

    async def GetNetwork(self, request: pb.GetNetworkRequest, context: Context) -> pb.GetNetworkResponse:
        """The network of the Lightning node."""
        return pb.GetNetworkResponse(currency=self._node.currency, simulated=self._node.simulated)


def _for(actor_pubkey: str, method: str) -> AbstractContextManager[None]:
    return acting_for(actor_pubkey, agent=WALLET_AGENT, method=method)

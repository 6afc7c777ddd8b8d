"""WalletInvoiceService: what users may do with invoices, done for a user by the NIP service."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Final, TypeAlias

import grpc

from nipmesh.invoice.v1 import wallet_service_pb2 as pb
from nipmesh.invoice.v1 import wallet_service_pb2_grpc
from services.chassis.caller import SERVICE, Access, acting_for, current_caller
from services.chassis.logs import get_logger
from services.invoice.servicer import InvoiceServicer

AGENT: Final = "wallet"
"""Whose ids of requests they are: an app's, that acts for a user (NIP-47)."""
ACCESS: Final[Mapping[str, Access]] = {
    f"/nipmesh.invoice.v1.WalletInvoiceService/{method}": SERVICE("nip")
    for method in ("CreateInvoiceFor", "GetInvoiceFor", "ListInvoicesFor", "SettleInvoiceFor", "CancelInvoiceFor")
}
"""Who may call what: the NIP service, which checks what a user gave an app leave for."""

_INVOICES: Final = "/nipmesh.invoice.v1.InvoiceService/"
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

_log = get_logger("invoice")


class WalletInvoiceServicer(wallet_service_pb2_grpc.WalletInvoiceServiceServicer):
    """Thin: the servicer of the users' own methods does the work, as if the user called."""

    def __init__(self, invoices: InvoiceServicer) -> None:
        self._invoices = invoices

    async def CreateInvoiceFor(
        self, request: pb.CreateInvoiceForRequest, context: Context
    ) -> pb.CreateInvoiceForResponse:
        """Make an invoice for an account of the user."""
        _audit("invoice on behalf of a user", request.actor_pubkey, request.request.request_id)
        with _for(request.actor_pubkey, "CreateInvoice"):
            return pb.CreateInvoiceForResponse(response=await self._invoices.CreateInvoice(request.request, context))

    async def GetInvoiceFor(self, request: pb.GetInvoiceForRequest, context: Context) -> pb.GetInvoiceForResponse:
        """One invoice of the user."""
        with _for(request.actor_pubkey, "GetInvoice"):
            return pb.GetInvoiceForResponse(response=await self._invoices.GetInvoice(request.request, context))

    async def ListInvoicesFor(self, request: pb.ListInvoicesForRequest, context: Context) -> pb.ListInvoicesForResponse:
        """Invoices of the user."""
        with _for(request.actor_pubkey, "ListInvoices"):
            return pb.ListInvoicesForResponse(response=await self._invoices.ListInvoices(request.request, context))

    async def SettleInvoiceFor(
        self, request: pb.SettleInvoiceForRequest, context: Context
    ) -> pb.SettleInvoiceForResponse:
        """Take what is held for a hold invoice of the user."""
        _audit("settlement on behalf of a user", request.actor_pubkey, request.request.request_id)
        with _for(request.actor_pubkey, "SettleInvoice"):
            return pb.SettleInvoiceForResponse(response=await self._invoices.SettleInvoice(request.request, context))

    async def CancelInvoiceFor(
        self, request: pb.CancelInvoiceForRequest, context: Context
    ) -> pb.CancelInvoiceForResponse:
        """Take an invoice of the user back."""
        _audit("cancellation on behalf of a user", request.actor_pubkey, request.request.request_id)
        with _for(request.actor_pubkey, "CancelInvoice"):
            return pb.CancelInvoiceForResponse(response=await self._invoices.CancelInvoice(request.request, context))


def _audit(what: str, actor_pubkey: str, request_id: str) -> None:
    _log.info(what, actor=actor_pubkey, peer=current_caller().peer, request_id=request_id)


def _for(actor_pubkey: str, method: str) -> AbstractContextManager[None]:
    return acting_for(actor_pubkey, agent=AGENT, method=_INVOICES + method)

"""The calls to payment and invoice on behalf of a user, under this service's own identity, through the sidecar."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, Final

import grpc

from nipmesh.invoice.v1 import invoice_pb2
from nipmesh.invoice.v1 import invoice_service_pb2 as invoices
from nipmesh.invoice.v1 import wallet_service_pb2 as invoice_wallet
from nipmesh.invoice.v1.wallet_service_pb2_grpc import WalletInvoiceServiceStub
from nipmesh.payment.v1 import payment_pb2
from nipmesh.payment.v1 import payment_service_pb2 as payments
from nipmesh.payment.v1 import wallet_service_pb2 as payment_wallet
from nipmesh.payment.v1.wallet_service_pb2_grpc import WalletPaymentServiceStub
from services.chassis.errors import Reason, reason_of

CALL_S: Final = 2.5
"""Deadline of each call; a healthy one takes milliseconds."""
PAY_WAIT_S: Final = 3.5
"""How long PayInvoiceFor waits for a payment to be final; one that takes longer is asked for again."""
PAY_S: Final = 5.5
"""Deadline of PayInvoiceFor: what is not known by then is asked for again, of another replica."""

VAGUE: Final = frozenset(
    {
        Reason.REQUEST_IN_PROGRESS,
        Reason.SERVICE_DRAINING,
        Reason.OVERLOADED,
        Reason.BACKEND_UNAVAILABLE,
        Reason.DEADLINE_EXCEEDED,
        Reason.INTERNAL,
        Reason.STORAGE_FULL,
        Reason.CALLER_NOT_ALLOWED,
        Reason.NOT_AUTHENTICATED,
    }
)
"""Reasons that say nothing about what was asked for: it may be done, or be done later."""


class CallRefusedError(Exception):
    """A definite no, and why: nothing was done, nor will be."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.message = message


class NoAnswerError(Exception):
    """No definite answer: ask again with the same request_id."""


class Backend:
    """Payment and invoice, as far as wallets care."""

    def __init__(self, channel: Callable[[], grpc.aio.Channel]) -> None:
        """`channel` opens the one to the own sidecar, at the first call: a service that nobody gave a sidecar starts all the same."""
        self._channel = channel

    @cached_property
    def _payments(self) -> WalletPaymentServiceStub:
        return WalletPaymentServiceStub(self._channel())

    @cached_property
    def _invoices(self) -> WalletInvoiceServiceStub:
        return WalletInvoiceServiceStub(self._channel())

    async def pay(self, actor: str, request: payments.PayInvoiceRequest) -> payment_pb2.Payment:
        """Pay, or find what an earlier call with this request_id did; the payment may not be final. Raises as all methods here."""
        request.wait_duration.FromMilliseconds(int(PAY_WAIT_S * 1_000))
        wrapped = payment_wallet.PayInvoiceForRequest(actor_pubkey=actor, request=request)
        response = await _answer(self._payments.PayInvoiceFor(wrapped, timeout=PAY_S))
        found: payment_pb2.Payment = response.response.payment
        return found

    async def payment(self, actor: str, request: payments.GetPaymentRequest) -> payment_pb2.Payment:
        """One payment. Raises CallRefusedError, NoAnswerError."""
        wrapped = payment_wallet.GetPaymentForRequest(actor_pubkey=actor, request=request)
        response = await _answer(self._payments.GetPaymentFor(wrapped, timeout=CALL_S))
        found: payment_pb2.Payment = response.response.payment
        return found

    async def list_payments(self, actor: str, request: payments.ListPaymentsRequest) -> payments.ListPaymentsResponse:
        """One page. Raises CallRefusedError, NoAnswerError."""
        wrapped = payment_wallet.ListPaymentsForRequest(actor_pubkey=actor, request=request)
        response = await _answer(self._payments.ListPaymentsFor(wrapped, timeout=CALL_S))
        page: payments.ListPaymentsResponse = response.response
        return page

    async def account(self, actor: str, account_id: str) -> payment_pb2.Account:
        """The account as it is now. Raises CallRefusedError, NoAnswerError."""
        request = payments.GetAccountRequest(account_id=account_id)
        wrapped = payment_wallet.GetAccountForRequest(actor_pubkey=actor, request=request)
        response = await _answer(self._payments.GetAccountFor(wrapped, timeout=CALL_S))
        found: payment_pb2.Account = response.response.account
        return found

    async def currency(self) -> str:
        """What stands behind "ln" in the invoices of this network. Raises CallRefusedError, NoAnswerError."""
        response = await _answer(self._payments.GetNetwork(payment_wallet.GetNetworkRequest(), timeout=CALL_S))
        return str(response.currency)

    async def create_invoice(self, actor: str, request: invoices.CreateInvoiceRequest) -> invoice_pb2.Invoice:
        """Make one. Raises CallRefusedError, NoAnswerError."""
        wrapped = invoice_wallet.CreateInvoiceForRequest(actor_pubkey=actor, request=request)
        response = await _answer(self._invoices.CreateInvoiceFor(wrapped, timeout=CALL_S))
        found: invoice_pb2.Invoice = response.response.invoice
        return found

    async def invoice(self, actor: str, request: invoices.GetInvoiceRequest) -> invoice_pb2.Invoice:
        """One invoice. Raises CallRefusedError, NoAnswerError."""
        wrapped = invoice_wallet.GetInvoiceForRequest(actor_pubkey=actor, request=request)
        response = await _answer(self._invoices.GetInvoiceFor(wrapped, timeout=CALL_S))
        found: invoice_pb2.Invoice = response.response.invoice
        return found

    async def list_invoices(self, actor: str, request: invoices.ListInvoicesRequest) -> invoices.ListInvoicesResponse:
        """One page. Raises CallRefusedError, NoAnswerError."""
        wrapped = invoice_wallet.ListInvoicesForRequest(actor_pubkey=actor, request=request)
        response = await _answer(self._invoices.ListInvoicesFor(wrapped, timeout=CALL_S))
        page: invoices.ListInvoicesResponse = response.response
        return page

    async def settle_invoice(self, actor: str, request: invoices.SettleInvoiceRequest) -> invoice_pb2.Invoice:
        """Take what is held. Raises CallRefusedError, NoAnswerError."""
        wrapped = invoice_wallet.SettleInvoiceForRequest(actor_pubkey=actor, request=request)
        response = await _answer(self._invoices.SettleInvoiceFor(wrapped, timeout=CALL_S))
        found: invoice_pb2.Invoice = response.response.invoice
        return found

    async def cancel_invoice(self, actor: str, request: invoices.CancelInvoiceRequest) -> invoice_pb2.Invoice:
        """Give back what is held. Raises CallRefusedError, NoAnswerError."""
        wrapped = invoice_wallet.CancelInvoiceForRequest(actor_pubkey=actor, request=request)
        response = await _answer(self._invoices.CancelInvoiceFor(wrapped, timeout=CALL_S))
        found: invoice_pb2.Invoice = response.response.invoice
        return found


async def _answer(call: Any) -> Any:  # gRPC's call, which has no type; each caller says what it answers
    """The answer. A code alone proves nothing, a sidecar has codes as well: only a reason of our own services is definite."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        reason = reason_of(error)
        if reason is None or reason in VAGUE:
            raise NoAnswerError(f"{error.code().name}: {reason or 'no reason'}") from error
        raise CallRefusedError(reason, error.details() or "") from error

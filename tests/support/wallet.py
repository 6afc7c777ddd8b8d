"""Stubs of every service at the gateway, for one user."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import grpc.aio

from nipmesh.invoice.v1 import invoice_pb2, invoice_service_pb2
from nipmesh.invoice.v1.invoice_service_pb2_grpc import InvoiceServiceStub
from nipmesh.nip.v1 import nip_service_pb2
from nipmesh.nip.v1.nip_service_pb2_grpc import NipServiceStub
from nipmesh.payment.v1 import payment_pb2, payment_service_pb2
from nipmesh.payment.v1.payment_service_pb2_grpc import AccountServiceStub, LedgerServiceStub, PaymentServiceStub
from support.nostr import User

CALL_SECONDS = 15


def request_id() -> str:
    """A fresh idempotency key."""
    return str(uuid.uuid4())


class Wallet:
    """What a user does with money: accounts, invoices, payments; each method is one call through the mesh."""

    def __init__(self, channel: grpc.aio.Channel, user: User) -> None:
        self.user = user
        self.nip = NipServiceStub(channel)
        self.invoices = InvoiceServiceStub(channel)
        self.payments = PaymentServiceStub(channel)
        self.accounts = AccountServiceStub(channel)
        self.ledger = LedgerServiceStub(channel)

    async def call(self, method: Callable[..., Awaitable[Any]], request: Any, timeout: float = CALL_SECONDS) -> Any:
        """One unary call under this user's token."""
        return await method(request, metadata=self.user.metadata, timeout=timeout)

    async def open_account(self) -> str:
        """A new account of this user; its id."""
        request = payment_service_pb2.CreateAccountRequest(request_id=request_id())
        return str((await self.call(self.accounts.CreateAccount, request)).account.account_id)

    async def deposit(self, account_id: str, amount_msat: int) -> None:
        """Operator only: credit an account."""
        request = payment_service_pb2.DepositRequest(
            request_id=request_id(), account_id=account_id, amount_msat=amount_msat, reference="test"
        )
        await self.call(self.ledger.Deposit, request)

    async def invoice(self, account_id: str, amount_msat: int, description: str = "") -> invoice_pb2.Invoice:
        """A new invoice that credits an account of this user."""
        request = invoice_service_pb2.CreateInvoiceRequest(
            request_id=request_id(), account_id=account_id, amount_msat=amount_msat, description=description
        )
        return (await self.call(self.invoices.CreateInvoice, request)).invoice

    async def pay(
        self, account_id: str, payment_request: str, identifier: str | None = None, timeout: float = 30
    ) -> payment_service_pb2.PayInvoiceResponse:
        """Pay an invoice; `identifier` is the request_id."""
        request = payment_service_pb2.PayInvoiceRequest(
            request_id=identifier or request_id(), account_id=account_id, payment_request=payment_request
        )
        return await self.call(self.payments.PayInvoice, request, timeout)

    async def refund(
        self, payment_id: str, amount_msat: int, identifier: str | None = None
    ) -> payment_service_pb2.RefundPaymentResponse:
        """Give a part of a payment back; `identifier` is the request_id."""
        request = payment_service_pb2.RefundPaymentRequest(
            request_id=identifier or request_id(), payment_id=payment_id, amount_msat=amount_msat
        )
        return await self.call(self.payments.RefundPayment, request)

    async def account(self, account_id: str) -> payment_pb2.Account:
        """One account as it is now."""
        request = payment_service_pb2.GetAccountRequest(account_id=account_id)
        return (await self.call(self.accounts.GetAccount, request)).account

    async def create_key(self, display_name: str = "") -> str:
        """A fresh key of this user; its id."""
        request = nip_service_pb2.CreateKeyRequest(request_id=request_id(), display_name=display_name, fresh=True)
        return str((await self.call(self.nip.CreateKey, request)).key.key_id)


async def funded(wallet: Wallet, operator: Wallet, amount_msat: int) -> str:
    """A new account of `wallet` with money from the operator; its id."""
    account_id = await wallet.open_account()
    await operator.deposit(account_id, amount_msat)
    return account_id


async def all_pages(fetch: Callable[[str], Awaitable[Any]], field: str) -> list[Any]:
    """Every item of a paged list; `fetch` takes a page token."""
    items: list[Any] = []
    token = ""
    while True:
        page = await fetch(token)
        items.extend(getattr(page, field))
        token = page.next_page_token
        if not token:
            return items
        await asyncio.sleep(0)

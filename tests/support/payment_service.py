"""One payment service in the test's process; the invoice service in small answers its calls, the NIP service is missing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc

from nipmesh.payment.v1 import payment_pb2
from nipmesh.payment.v1 import payment_service_pb2 as pb
from nipmesh.payment.v1.invoice_ledger_service_pb2_grpc import InvoiceLedgerServiceStub
from nipmesh.payment.v1.payment_service_pb2_grpc import AccountServiceStub, LedgerServiceStub, PaymentServiceStub
from nipmesh.payment.v1.wallet_service_pb2_grpc import WalletPaymentServiceStub
from services.chassis.testing import as_user, running
from services.payment.service import SERVICE
from support.payment_mesh import OPERATOR, request_id
from support.settlement import Settlement

ALICE, BOB, EVE = "a1" * 32, "b0" * 32, "ee" * 32
Metadata = tuple[tuple[str, str], ...]
DESK = as_user(OPERATOR, role="operator")


class Service:
    """Stubs of one process; `settlement` answers its calls, the NIP service is missing."""

    def __init__(self, channel: grpc.aio.Channel, settlement: Settlement) -> None:
        self.payments = PaymentServiceStub(channel)
        self.accounts = AccountServiceStub(channel)
        self.ledger = LedgerServiceStub(channel)
        self.credits = InvoiceLedgerServiceStub(channel)
        self.wallet = WalletPaymentServiceStub(channel)
        self.settlement = settlement

    async def open(self, user: str, amount_msat: int = 0) -> str:
        request = pb.CreateAccountRequest(request_id=request_id())
        account_id = (await self.accounts.CreateAccount(request, metadata=as_user(user))).account.account_id
        if amount_msat:
            await self.deposit(account_id, amount_msat)
        return account_id

    async def deposit(self, account_id: str, amount_msat: int, identifier: str = "") -> pb.DepositResponse:
        request = pb.DepositRequest(
            request_id=identifier or request_id(), account_id=account_id, amount_msat=amount_msat, reference="cash"
        )
        return await self.ledger.Deposit(request, metadata=DESK)

    async def pay(self, user: str, account_id: str, text: str, identifier: str = "") -> payment_pb2.Payment:
        request = pb.PayInvoiceRequest(
            request_id=identifier or request_id(), account_id=account_id, payment_request=text
        )
        request.wait_duration.FromSeconds(1)
        return (await self.payments.PayInvoice(request, metadata=as_user(user), timeout=10)).payment

    async def refund(self, metadata: Metadata, payment_id: str, **amount: Any) -> pb.RefundPaymentResponse:
        request = pb.RefundPaymentRequest(
            request_id=amount.pop("identifier", "") or request_id(), payment_id=payment_id, reason="sorry", **amount
        )
        return await self.payments.RefundPayment(request, metadata=metadata)

    async def balance(self, account_id: str) -> int:
        request = pb.GetAccountRequest(account_id=account_id)
        return (await self.accounts.GetAccount(request, metadata=DESK)).account.balance_msat


@asynccontextmanager
async def serving(folder: Path, **settings: Any) -> AsyncIterator[Service]:
    """Started, and stopped at the end; its state is in `folder`/data."""
    settlement = Settlement(folder / "settlement.sqlite3")
    server = grpc.aio.server()
    settlement.register(server)
    server.add_insecure_port(f"unix:{folder}/egress.sock")
    await server.start()
    try:
        async with running(SERVICE, folder, egress=f"unix:{folder}/egress.sock", **settings) as (_, channel):
            yield Service(channel, settlement)
    finally:
        await server.stop(0)
        settlement.db.close()

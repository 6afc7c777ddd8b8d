"""The payment service as far as invoices see it: accounts, and the credits of invoices that somebody outside pays."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from nipmesh.payment.v1 import (
    invoice_ledger_service_pb2,
    invoice_ledger_service_pb2_grpc,
    payment_pb2,
    payment_service_pb2,
    payment_service_pb2_grpc,
)
from services.chassis.caller import Access, remaining_s
from services.chassis.errors import Reason, not_found, precondition_failed
from services.chassis.service import Application, ServiceDefinition
from services.chassis.settings import ChassisSettings

ACCOUNT_SERVICE = payment_service_pb2.DESCRIPTOR.services_by_name["AccountService"]
LEDGER_SERVICE = invoice_ledger_service_pb2.DESCRIPTOR.services_by_name["InvoiceLedgerService"]
HELD, POSTED, VOIDED = "held", "posted", "voided"


@dataclass
class AccountServicer(payment_service_pb2_grpc.AccountServiceServicer):
    """Accounts."""

    accounts: dict[str, payment_pb2.Account] = field(default_factory=dict)
    calls: list[tuple[str, float | None]] = field(default_factory=list)
    faults: list[Exception] = field(default_factory=list)
    credits: CreditServicer = field(init=False)

    def __post_init__(self) -> None:
        self.credits = CreditServicer(self)

    def open(self, owner: str, state: str = "STATE_ACTIVE") -> str:
        """Add an account; return its id."""
        account = payment_pb2.Account(
            account_id=f"customer:{uuid.uuid4()}",
            owner_pubkey=owner,
            kind="KIND_CUSTOMER",
            state=payment_pb2.Account.State.Value(state),
        )
        self.accounts[account.account_id] = account
        return account.account_id

    async def GetAccount(self, request: Any, context: Any) -> payment_service_pb2.GetAccountResponse:
        self.calls.append((request.account_id, remaining_s()))
        if self.faults:
            raise self.faults.pop(0)
        if request.account_id not in self.accounts:
            raise not_found(Reason.ACCOUNT_NOT_FOUND, "account")
        return payment_service_pb2.GetAccountResponse(account=self.accounts[request.account_id])


@dataclass
class CreditServicer(invoice_ledger_service_pb2_grpc.InvoiceLedgerServiceServicer):
    """Credits as the API says: `credits` has what became of each invoice's, `amounts` what it was, `resumed` who was told."""

    accounts: AccountServicer
    credits: dict[str, str] = field(default_factory=dict)
    amounts: dict[str, int] = field(default_factory=dict)
    resumed: list[str] = field(default_factory=list)
    faults: dict[str, list[Exception]] = field(default_factory=dict)

    def balance_msat(self) -> int:
        """All that was credited."""
        return sum(self.amounts[each] for each, state in self.credits.items() if state == POSTED)

    def _fault(self, method: str) -> None:
        if self.faults.get(method):
            raise self.faults[method].pop(0)

    async def HoldCredit(self, request: Any, context: Any) -> invoice_ledger_service_pb2.HoldCreditResponse:
        self._fault("HoldCredit")
        account = self.accounts.accounts.get(request.account_id)
        if self.credits.get(request.invoice_id) == VOIDED:
            raise precondition_failed(Reason.CREDIT_VOIDED, "voided", subject=request.invoice_id)
        if account is None or account.state == payment_pb2.Account.STATE_CLOSED:
            raise not_found(Reason.ACCOUNT_NOT_FOUND, "account")
        self.credits.setdefault(request.invoice_id, HELD)
        amount_msat = self.amounts.setdefault(request.invoice_id, request.amount_msat)
        assert amount_msat == request.amount_msat, "another amount than before"
        return invoice_ledger_service_pb2.HoldCreditResponse()

    async def PostCredit(self, request: Any, context: Any) -> invoice_ledger_service_pb2.PostCreditResponse:
        self._fault("PostCredit")
        if self.credits.get(request.invoice_id) not in (HELD, POSTED):
            raise precondition_failed(Reason.CREDIT_NOT_HELD, "not held", subject=request.invoice_id)
        self.credits[request.invoice_id] = POSTED
        return invoice_ledger_service_pb2.PostCreditResponse()

    async def VoidCredit(self, request: Any, context: Any) -> invoice_ledger_service_pb2.VoidCreditResponse:
        self._fault("VoidCredit")
        if self.credits.get(request.invoice_id) == POSTED:
            raise precondition_failed(Reason.CREDIT_POSTED, "posted", subject=request.invoice_id)
        self.credits[request.invoice_id] = VOIDED
        return invoice_ledger_service_pb2.VoidCreditResponse()

    async def ResumePayment(self, request: Any, context: Any) -> invoice_ledger_service_pb2.ResumePaymentResponse:
        self.resumed.append(request.payment_id)
        self._fault("ResumePayment")
        return invoice_ledger_service_pb2.ResumePaymentResponse()


def payment_in_small(servicer: AccountServicer) -> ServiceDefinition[ChassisSettings]:
    """A service with both."""

    @asynccontextmanager
    async def lifespan(app: Application[ChassisSettings]) -> AsyncIterator[None]:
        app.add(payment_service_pb2_grpc.add_AccountServiceServicer_to_server, servicer, ACCOUNT_SERVICE)
        register = invoice_ledger_service_pb2_grpc.add_InvoiceLedgerServiceServicer_to_server
        app.add(register, servicer.credits, LEDGER_SERVICE)
        yield

    access = {
        f"/{service.full_name}/{method.name}": Access.PUBLIC
        for service in (ACCOUNT_SERVICE, LEDGER_SERVICE)
        for method in service.methods
    }
    return ServiceDefinition(settings=ChassisSettings, access=access, lifespan=lifespan)

"""Replicas of the invoice service on Unix sockets, one database file, and a small AccountService where their sidecar would be."""

from __future__ import annotations

import asyncio
import functools
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from nipmesh.invoice.v1 import (
    invoice_pb2,
    invoice_service_pb2_grpc,
    simulated_network_service_pb2_grpc,
    wallet_service_pb2_grpc,
)
from nipmesh.invoice.v1 import invoice_service_pb2 as pb
from nipmesh.invoice.v1 import simulated_network_service_pb2 as outside_pb
from services.chassis.errors import reason_of
from services.chassis.service import Application
from services.chassis.testing import as_service, as_user, running
from services.invoice.service import SERVICE
from support.credits import AccountServicer, payment_in_small
from support.invoice_pair import two_replicas

ALICE, BOB, OPERATOR = "aa" * 32, "bb" * 32, "0f" * 32
AS_ALICE, AS_BOB, AS_OPERATOR = as_user(ALICE), as_user(BOB), as_user(OPERATOR, role="operator")
AS_PAYMENT = as_service("payment")


@dataclass(frozen=True, kw_only=True)
class Replica:
    """A running replica and the accounts that it asks for."""

    invoices: Any
    settlement: Any
    network: Any
    wallet: Any
    accounts: AccountServicer
    app: Application[Any]

    async def create(self, caller: Any = AS_ALICE, **changes: Any) -> invoice_pb2.Invoice:
        """An invoice of 1,000 msat for a fresh account of Alice, unless the changes say otherwise."""
        response = await self.invoices.CreateInvoice(self.creation(**changes), metadata=caller)
        invoice: invoice_pb2.Invoice = response.invoice
        return invoice

    def creation(self, **changes: Any) -> pb.CreateInvoiceRequest:
        """The request of `create`."""
        values: dict[str, Any] = {"request_id": str(uuid.uuid4())} | changes
        if "account_id" not in values:
            values["account_id"] = self.accounts.open(ALICE)
        if "any_amount" not in values:
            values.setdefault("amount_msat", 1_000)
        return pb.CreateInvoiceRequest(**values)

    async def get(self, invoice_id: str, metadata: Any = AS_ALICE) -> invoice_pb2.Invoice:
        """The invoice as it is now."""
        response = await self.invoices.GetInvoice(pb.GetInvoiceRequest(invoice_id=invoice_id), metadata=metadata)
        invoice: invoice_pb2.Invoice = response.invoice
        return invoice

    async def lock(self, payment_request: str, payment_id: str, amount_msat: int = 1_000) -> pb.LockInvoiceResponse:
        """Lock as the payment service."""
        request = pb.LockInvoiceRequest(
            payment_id=payment_id, payment_request=payment_request, amount_msat=amount_msat, actor_pubkey=BOB
        )
        response: pb.LockInvoiceResponse = await self.settlement.LockInvoice(request, metadata=AS_PAYMENT)
        return response

    async def commit(self, payment_id: str) -> pb.CommitInvoiceResponse:
        """Commit as the payment service."""
        request = pb.CommitInvoiceRequest(payment_id=payment_id)
        response: pb.CommitInvoiceResponse = await self.settlement.CommitInvoice(request, metadata=AS_PAYMENT)
        return response

    async def release(self, payment_id: str) -> pb.ReleaseInvoiceResponse:
        """Release as the payment service."""
        request = pb.ReleaseInvoiceRequest(payment_id=payment_id)
        response: pb.ReleaseInvoiceResponse = await self.settlement.ReleaseInvoice(request, metadata=AS_PAYMENT)
        return response

    async def hold(self, payment_id: str) -> pb.GetHoldResponse:
        """Ask what became of a payment's hold."""
        request = pb.GetHoldRequest(payment_id=payment_id)
        response: pb.GetHoldResponse = await self.settlement.GetHold(request, metadata=AS_PAYMENT)
        return response

    async def settle(self, invoice_id: str, metadata: Any = AS_ALICE, **changes: Any) -> pb.SettleInvoiceResponse:
        """Settle as the owner."""
        request = pb.SettleInvoiceRequest(**{"request_id": str(uuid.uuid4()), "invoice_id": invoice_id} | changes)
        response: pb.SettleInvoiceResponse = await self.invoices.SettleInvoice(request, metadata=metadata)
        return response

    async def pay_outside(self, payment_request: str, amount_msat: int = 0) -> outside_pb.PayInvoiceResponse:
        """Let somebody outside pay."""
        request = outside_pb.PayInvoiceRequest(payment_request=payment_request, amount_msat=amount_msat)
        response: outside_pb.PayInvoiceResponse = await self.network.PayInvoice(request, metadata=AS_OPERATOR)
        return response

    async def until(self, invoice_id: str, state: str, metadata: Any = AS_ALICE) -> invoice_pb2.Invoice:
        """The invoice once it is in this state."""
        wanted = invoice_pb2.Invoice.State.Value(f"STATE_{state}")
        async with asyncio.timeout(30):
            while (invoice := await self.get(invoice_id, metadata)).state != wanted:
                await asyncio.sleep(0.02)
        return invoice

    async def cancel(self, invoice_id: str, metadata: Any = AS_ALICE, **changes: Any) -> pb.CancelInvoiceResponse:
        """Cancel as the owner."""
        request = pb.CancelInvoiceRequest(**{"request_id": str(uuid.uuid4()), "invoice_id": invoice_id} | changes)
        response: pb.CancelInvoiceResponse = await self.invoices.CancelInvoice(request, metadata=metadata)
        return response


Serve = Callable[[str], AbstractAsyncContextManager[Replica]]


@pytest.fixture
def secrets_of_invoice(tmp_path: Path, database_settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that name secrets and data, as the runner makes them."""
    key = tmp_path / "node.key"
    key.write_bytes(b"\x07" * 32)
    key.chmod(0o600)
    return {"INVOICE_NODE_KEY_FILE": key, **database_settings}


@pytest.fixture
async def accounts(tmp_path: Path) -> AsyncIterator[AccountServicer]:
    """The real little AccountService, on the socket where the replicas' sidecar would listen."""
    servicer, folder = AccountServicer(), tmp_path / "egress"
    folder.mkdir(mode=0o700)
    async with running(payment_in_small(servicer), folder):
        yield servicer


@pytest.fixture
def serve(tmp_path: Path, secrets_of_invoice: dict[str, Any], accounts: AccountServicer) -> Serve:
    """Serve as the replica of this name, on the data that all share."""

    @asynccontextmanager
    async def served(name: str) -> AsyncIterator[Replica]:
        (tmp_path / name).mkdir(mode=0o700, exist_ok=True)
        egress = f"unix:{tmp_path}/egress/app.sock"
        async with running(SERVICE, tmp_path / name, egress=egress, **secrets_of_invoice) as (app, channel):
            yield Replica(
                invoices=invoice_service_pb2_grpc.InvoiceServiceStub(channel),
                settlement=invoice_service_pb2_grpc.InvoiceSettlementServiceStub(channel),
                network=simulated_network_service_pb2_grpc.SimulatedNetworkServiceStub(channel),
                wallet=wallet_service_pb2_grpc.WalletInvoiceServiceStub(channel),
                accounts=accounts,
                app=app,
            )

    return served


@pytest.fixture
async def replica(serve: Serve) -> AsyncIterator[Replica]:
    async with serve("r0") as one:
        yield one


@pytest.fixture
async def replicas(serve: Serve) -> AsyncIterator[tuple[Replica, Replica]]:
    """Two of them, on one file."""
    async with serve("r0") as one, serve("r1") as other:
        yield one, other


@pytest.fixture
def two(tmp_path: Path, accounts: AccountServicer, secrets_of_invoice: dict[str, Any]) -> Callable[..., Any]:
    """Two replicas as processes: `async with two(failpoint="", heir=False) as pair`."""
    return functools.partial(two_replicas, tmp_path, accounts, secrets_of_invoice["INVOICE_NODE_KEY_FILE"])


@pytest.fixture
def refused() -> Callable[[Any], Any]:
    """Await a call that fails; return its code and reason."""

    async def failed(call: Any) -> tuple[str, str | None]:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await call
        return error.value.code().name, reason_of(error.value)

    return failed

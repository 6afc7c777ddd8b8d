"""Beside the real payment service: hold invoices that accounts of the mesh pay, and money that comes from outside, in real books."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from nipmesh.invoice.v1 import invoice_pb2, invoice_service_pb2_grpc, simulated_network_service_pb2_grpc
from nipmesh.invoice.v1 import invoice_service_pb2 as pb
from nipmesh.invoice.v1 import simulated_network_service_pb2 as outside_pb
from nipmesh.payment.v1.payment_pb2 import Payment
from services.chassis.testing import as_user
from support.payment_mesh import OPERATOR, PaymentMesh, eventually, payment_mesh, request_id

pytestmark = pytest.mark.timeout(180)
ALICE, BOB = "aa" * 32, "bb" * 32
State = invoice_pb2.Invoice


@pytest.fixture
async def mesh() -> AsyncIterator[PaymentMesh]:
    """Two payment replicas, the invoice service, the NIP service."""
    folder = Path(tempfile.mkdtemp(prefix="nm-"))
    try:
        async with payment_mesh(folder, real_invoices=True) as running:
            yield running
    finally:
        shutil.rmtree(folder)


async def _invoices(mesh: PaymentMesh, method: str, request: Any) -> Any:
    """A call of Bob's to the invoice service."""
    async with grpc.aio.insecure_channel(f"unix:{mesh.invoice.socket}") as channel:
        stub = invoice_service_pb2_grpc.InvoiceServiceStub(channel)
        return await getattr(stub, method)(request, metadata=as_user(BOB), timeout=20)


async def _create(mesh: PaymentMesh, account_id: str, *, hold: bool) -> invoice_pb2.Invoice:
    terms = pb.HoldTerms() if hold else None
    request = pb.CreateInvoiceRequest(request_id=request_id(), account_id=account_id, amount_msat=4_000, hold=terms)
    invoice: invoice_pb2.Invoice = (await _invoices(mesh, "CreateInvoice", request)).invoice
    return invoice


async def _until(mesh: PaymentMesh, invoice: invoice_pb2.Invoice, state: str, *, decidable: bool = False) -> None:
    async def reached() -> bool:
        request = pb.GetInvoiceRequest(invoice_id=invoice.invoice_id)
        found = (await _invoices(mesh, "GetInvoice", request)).invoice
        return found.state == State.State.Value(f"STATE_{state}") and found.HasField("accept_time") >= decidable

    await eventually(reached, 60)


async def _decide(mesh: PaymentMesh, invoice: invoice_pb2.Invoice, *, settles: bool) -> invoice_pb2.Invoice:
    kind = pb.SettleInvoiceRequest if settles else pb.CancelInvoiceRequest
    request = kind(request_id=request_id(), invoice_id=invoice.invoice_id)
    decided = await _invoices(mesh, "SettleInvoice" if settles else "CancelInvoice", request)
    found: invoice_pb2.Invoice = decided.invoice
    return found


async def _outside(mesh: PaymentMesh, invoice: invoice_pb2.Invoice) -> None:
    async with grpc.aio.insecure_channel(f"unix:{mesh.invoice.socket}") as channel:
        stub = simulated_network_service_pb2_grpc.SimulatedNetworkServiceStub(channel)
        request = outside_pb.PayInvoiceRequest(payment_request=invoice.payment_request)
        await stub.PayInvoice(request, metadata=as_user(OPERATOR, role="operator"), timeout=20)


async def _balance(mesh: PaymentMesh, account_id: str) -> tuple[int, int]:
    """What the account has, and what it may spend."""
    account = await mesh.account(account_id)
    return account.balance_msat, account.available_msat


@pytest.mark.parametrize("settles", [True, False], ids=["settled", "canceled"])
async def test_a_hold_invoice_is_paid_inside_as_its_owner_decides(mesh: PaymentMesh, settles: bool) -> None:
    payer, payee = await mesh.open_account(ALICE, 10_000), await mesh.open_account(BOB)
    invoice = await _create(mesh, payee, hold=True)
    paying = asyncio.create_task(mesh.pay(ALICE, payer, invoice.payment_request))
    await _until(mesh, invoice, "ACCEPTED", decidable=True)
    assert await _balance(mesh, payer) == (10_000, 6_000)
    decided = await _decide(mesh, invoice, settles=settles)
    payment_id = (await paying).payment.payment_id

    async def over() -> bool:
        return (await mesh.payment(payment_id)).state in (Payment.STATE_SUCCEEDED, Payment.STATE_FAILED)

    await eventually(over, 60)
    payment = await mesh.payment(payment_id)
    assert payment.state == (Payment.STATE_SUCCEEDED if settles else Payment.STATE_FAILED)
    assert await _balance(mesh, payer) == ((6_000, 6_000) if settles else (10_000, 10_000))
    assert await _balance(mesh, payee) == ((4_000, 4_000) if settles else (0, 0))
    assert decided.state == (State.STATE_SETTLED if settles else State.STATE_CANCELED)
    mesh.check_books(10_000)


@pytest.mark.parametrize("settles", [True, False], ids=["settled", "canceled"])
async def test_a_hold_invoice_is_paid_from_outside_as_its_owner_decides(mesh: PaymentMesh, settles: bool) -> None:
    payee = await mesh.open_account(BOB)
    invoice = await _create(mesh, payee, hold=True)
    await _outside(mesh, invoice)
    await _until(mesh, invoice, "ACCEPTED", decidable=True)
    assert await _balance(mesh, payee) == (0, 0)
    await _decide(mesh, invoice, settles=settles)
    assert await _balance(mesh, payee) == ((4_000, 4_000) if settles else (0, 0))
    mesh.check_books(4_000 if settles else 0)


async def test_money_from_outside_reaches_the_account_once(mesh: PaymentMesh) -> None:
    payee = await mesh.open_account(BOB)
    invoices = [await _create(mesh, payee, hold=False) for _ in range(4)]
    await asyncio.gather(*(_outside(mesh, invoice) for invoice in invoices))
    for invoice in invoices:
        await _until(mesh, invoice, "SETTLED")
        await _outside(mesh, invoice)  # told again: nothing more
    assert await _balance(mesh, payee) == (16_000, 16_000)
    mesh.check_books(16_000)

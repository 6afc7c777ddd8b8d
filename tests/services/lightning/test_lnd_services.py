"""The invoice and payment services on real nodes of lnd: paid from outside, held, given back, and paying what is outside."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import pytest
import pytest_asyncio

from nipmesh.invoice.v1 import invoice_pb2
from nipmesh.invoice.v1 import invoice_service_pb2 as invoice_pb
from nipmesh.invoice.v1.invoice_service_pb2_grpc import InvoiceServiceStub
from nipmesh.payment.v1 import payment_pb2
from nipmesh.payment.v1 import payment_service_pb2 as pb
from nipmesh.payment.v1.payment_service_pb2_grpc import AccountServiceStub, LedgerServiceStub, PaymentServiceStub
from services.lightning.bolt11 import decode
from services.lightning.lnd import LndSettings, open_paying_node
from services.lightning.node import NodeFailed, NodePaid, NodePending, PayingNode, PaymentOrder
from support.cluster import Cluster, running_cluster
from support.folders import short_folder
from support.lnd import LightningNetwork
from support.payment_mesh import OPERATOR, request_id

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]
ALICE, BOB = "a1" * 32, "b0" * 32
AMOUNT_MSAT = 20_000_000
Invoice, Payment = invoice_pb2.Invoice, payment_pb2.Payment


@dataclass(frozen=True, slots=True, kw_only=True)
class Shop:
    """A mesh that is paid through carol and pays through alice; `outsider` pays through alice as well."""

    cluster: Cluster
    outsider: PayingNode
    payer: str
    payee: str

    async def invoice(self, **terms: Any) -> invoice_pb2.Invoice:
        """A new invoice of BOB's account."""
        request = invoice_pb.CreateInvoiceRequest(
            request_id=request_id(), account_id=self.payee, amount_msat=AMOUNT_MSAT, **terms
        )
        return (await self.cluster.call(InvoiceServiceStub, "CreateInvoice", request, BOB)).invoice

    async def until(self, invoice: invoice_pb2.Invoice, state: int) -> invoice_pb2.Invoice:
        """The invoice once it is in this state."""
        request = invoice_pb.GetInvoiceRequest(invoice_id=invoice.invoice_id)
        async with asyncio.timeout(60):
            while True:
                found = (await self.cluster.call(InvoiceServiceStub, "GetInvoice", request, BOB)).invoice
                if found.state == state and (state != Invoice.STATE_ACCEPTED or found.HasField("settle_deadline_time")):
                    return found
                await asyncio.sleep(0.1)

    async def balance(self, account: str) -> tuple[int, int]:
        """(balance, credits on their way)."""
        request = pb.GetAccountRequest(account_id=account)
        found = await self.cluster.call(AccountServiceStub, "GetAccount", request, OPERATOR, role="operator")
        return found.account.balance_msat, found.account.credits_pending_msat

    async def pay_from_outside(self, text: str) -> NodePaid | NodeFailed:
        """What becomes of it at the payer's node."""
        order = PaymentOrder(
            payment_hash=decode(text).payment_hash,
            payment_request=text,
            amount_msat=AMOUNT_MSAT,
            fee_limit_msat=1_000_000,
        )
        outcome = await self.outsider.pay(order)
        async with asyncio.timeout(60):
            while not isinstance(outcome, NodePaid | NodeFailed):
                assert isinstance(outcome, NodePending), outcome
                await asyncio.sleep(0.1)
                outcome = await self.outsider.track(order.payment_hash)
        return outcome

    async def pay(self, text: str) -> payment_pb2.Payment:
        """Out of ALICE's account."""
        request = pb.PayInvoiceRequest(request_id=request_id(), account_id=self.payer, payment_request=text)
        return (await self.cluster.call(PaymentServiceStub, "PayInvoice", request, ALICE, timeout=30)).payment


def environment(settings: LndSettings) -> dict[str, str]:
    """How a service is told of its node."""
    return {
        "NIPMESH_LIGHTNING_NODE": "lnd",
        "NIPMESH_LIGHTNING_ADDRESS": settings.address,
        "NIPMESH_LIGHTNING_TLS_CERTIFICATE_FILE": str(settings.tls_cert),
        "NIPMESH_LIGHTNING_MACAROON_FILE": str(settings.macaroon),
    }


async def opened(cluster: Cluster, owner: str, amount_msat: int) -> str:
    """A new account, with money."""
    created = await cluster.call(
        AccountServiceStub, "CreateAccount", pb.CreateAccountRequest(request_id=request_id()), owner
    )
    account = str(created.account.account_id)
    if amount_msat:
        deposit = pb.DepositRequest(request_id=request_id(), account_id=account, amount_msat=amount_msat)
        await cluster.call(LedgerServiceStub, "Deposit", deposit, OPERATOR, role="operator")
    return account


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shop(
    lightning: LightningNetwork, receiving_settings: LndSettings, paying_settings: LndSettings
) -> AsyncIterator[Shop]:
    more = {"invoice": environment(receiving_settings), "payment": environment(paying_settings)}
    outsider = await open_paying_node(paying_settings)
    with short_folder() as folder:
        async with running_cluster(folder, more=more) as cluster:
            payer, payee = await opened(cluster, ALICE, 10 * AMOUNT_MSAT), await opened(cluster, BOB, 0)
            yield Shop(cluster=cluster, outsider=outsider, payer=payer, payee=payee)
            await cluster.verify()
    await outsider.close()


async def test_an_invoice_is_paid_from_outside(shop: Shop) -> None:
    before, _ = await shop.balance(shop.payee)
    invoice = await shop.invoice(description="coffee")
    assert decode(invoice.payment_request).currency == "sb"
    paid = await shop.pay_from_outside(invoice.payment_request)
    assert isinstance(paid, NodePaid), paid
    assert sha256(bytes.fromhex(paid.preimage)).hexdigest() == invoice.payment_hash
    settled = await shop.until(invoice, Invoice.STATE_SETTLED)
    assert settled.amount_paid_msat == AMOUNT_MSAT
    assert await shop.balance(shop.payee) == (before + AMOUNT_MSAT, 0)


@pytest.mark.parametrize("settles", [True, False])
async def test_held_money_is_taken_or_goes_back(shop: Shop, settles: bool) -> None:
    before, _ = await shop.balance(shop.payee)
    invoice = await shop.invoice(hold=invoice_pb.HoldTerms())
    paying = asyncio.create_task(shop.pay_from_outside(invoice.payment_request))
    await shop.until(invoice, Invoice.STATE_ACCEPTED)
    assert await shop.balance(shop.payee) == (before, AMOUNT_MSAT)
    kind = invoice_pb.SettleInvoiceRequest if settles else invoice_pb.CancelInvoiceRequest
    decision = kind(request_id=request_id(), invoice_id=invoice.invoice_id)
    await shop.cluster.call(InvoiceServiceStub, kind.__name__.removesuffix("Request"), decision, BOB)
    outcome = await paying
    assert isinstance(outcome, NodePaid if settles else NodeFailed), outcome
    await shop.until(invoice, Invoice.STATE_SETTLED if settles else Invoice.STATE_CANCELED)
    assert await shop.balance(shop.payee) == (before + (AMOUNT_MSAT if settles else 0), 0)


async def test_what_is_paid_inside_cannot_be_paid_outside(shop: Shop) -> None:
    invoice = await shop.invoice()
    payment = await shop.pay(invoice.payment_request)
    assert (payment.state, payment.internal) == (Payment.STATE_SUCCEEDED, True)
    assert isinstance(await shop.pay_from_outside(invoice.payment_request), NodeFailed)


async def test_an_invoice_outside_is_paid(shop: Shop, lightning: LightningNetwork) -> None:
    before, _ = await shop.balance(shop.payer)
    payment = await shop.pay(await asyncio.to_thread(lightning.carol.plain_invoice, AMOUNT_MSAT))
    assert (payment.state, payment.internal, payment.simulated) == (Payment.STATE_SUCCEEDED, False, False)
    assert sha256(bytes.fromhex(payment.preimage)).hexdigest() == payment.payment_hash
    assert 0 < payment.fee_msat <= payment.fee_limit_msat
    assert await shop.balance(shop.payer) == (before - AMOUNT_MSAT - payment.fee_msat, 0)

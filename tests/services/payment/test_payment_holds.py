"""Hold invoices inside the mesh: the money waits for the owner's decision, through crashes and in thousands."""

from __future__ import annotations

import asyncio
import time

import grpc
import pytest

from nipmesh.payment.v1 import invoice_ledger_service_pb2, payment_pb2
from nipmesh.payment.v1 import payment_service_pb2 as pb
from nipmesh.payment.v1.invoice_ledger_service_pb2_grpc import InvoiceLedgerServiceStub
from nipmesh.payment.v1.payment_service_pb2_grpc import PaymentServiceStub
from services.chassis.testing import as_service, as_user
from support.payment_mesh import PaymentMesh, eventually, refused, request_id
from support.settlement import CANCELED, SETTLED

pytestmark = pytest.mark.asyncio(loop_scope="module")
ALICE, BOB = "a1" * 32, "b0" * 32
Payment = payment_pb2.Payment


async def held_payment(mesh: PaymentMesh, payer: str, payee: str, amount_msat: int = 1_000) -> tuple[str, str]:
    """The payment request of a hold invoice and the id of a payment that waits for its owner."""
    text = mesh.settlement.create(payee, amount_msat, hold=True)
    request = pb.PayInvoiceRequest(request_id=request_id(), account_id=payer, payment_request=text)
    request.wait_duration.FromMilliseconds(0)
    payment_id = (await mesh.call(PaymentServiceStub, "PayInvoice", request, ALICE)).payment.payment_id
    await eventually(lambda: waits(mesh, payment_id))
    return text, payment_id


async def waits(mesh: PaymentMesh, payment_id: str) -> bool:
    return mesh.query("SELECT step, lease_until FROM saga WHERE id = ?", payment_id) == [("await_decision", 0)]


async def is_final(mesh: PaymentMesh, payment_id: str) -> bool:
    return (await mesh.payment(payment_id)).state in (Payment.STATE_SUCCEEDED, Payment.STATE_FAILED)


async def resume(mesh: PaymentMesh, payment_id: str, number: int = 0) -> None:
    """What the invoice service does when an owner decided."""
    stub = InvoiceLedgerServiceStub(mesh.channel(number))
    request = invoice_ledger_service_pb2.ResumePaymentRequest(payment_id=payment_id)
    await stub.ResumePayment(request, metadata=as_service("invoice"), timeout=5)


async def test_the_money_waits_and_is_the_payees_when_the_owner_settles(mesh: PaymentMesh) -> None:
    payer, payee = await mesh.open_account(ALICE, 10_000), await mesh.open_account(BOB)
    text, payment_id = await held_payment(mesh, payer, payee, 10_000)
    payment = await mesh.payment(payment_id)
    assert (payment.state, payment.internal, payment.preimage) == (Payment.STATE_IN_FLIGHT, True, "")
    account, other = await mesh.account(payer), await mesh.account(payee)
    assert (account.available_msat, account.debits_pending_msat) == (0, 10_000)
    assert (other.available_msat, other.credits_pending_msat) == (0, 10_000)
    assert mesh.settlement.decide(text, SETTLED) == payment_id
    start_s = time.monotonic()
    await resume(mesh, payment_id)
    await eventually(lambda: is_final(mesh, payment_id))
    assert time.monotonic() - start_s < 4, "it was told, it did not have to look"
    payment = await mesh.payment(payment_id)
    assert payment.state == Payment.STATE_SUCCEEDED
    assert (await mesh.account(payee)).available_msat == 10_000

    async def signed() -> bool:
        return (await mesh.payment(payment_id)).HasField("receipt")

    await eventually(signed)
    payment = await mesh.payment(payment_id)
    assert payment.receipt.created_at == payment.settle_time.seconds
    mesh.check_books(10_000)


async def test_the_money_is_free_again_when_the_owner_cancels_and_nobody_says_so(mesh: PaymentMesh) -> None:
    payer, payee = await mesh.open_account(ALICE, 10_000), await mesh.open_account(BOB)
    text, payment_id = await held_payment(mesh, payer, payee)
    mesh.settlement.decide(text, CANCELED)
    await eventually(lambda: is_final(mesh, payment_id), 12)
    payment = await mesh.payment(payment_id)
    assert (payment.state, payment.failure_reason) == (Payment.STATE_FAILED, Payment.FAILURE_REASON_INVOICE_CANCELED)
    assert (await mesh.account(payer)).available_msat == 10_000
    mesh.check_books(10_000)


async def test_a_call_that_waits_gets_the_owners_decision(mesh: PaymentMesh) -> None:
    payer, payee = await mesh.open_account(ALICE, 10_000), await mesh.open_account(BOB)
    text = mesh.settlement.create(payee, 1_000, hold=True)
    paying = asyncio.create_task(mesh.pay(ALICE, payer, text, timeout=20))

    async def in_flight() -> bool:
        return mesh.query("SELECT count(*) FROM saga WHERE step = 'await_decision'") == [(1,)]

    await eventually(in_flight)
    await resume(mesh, mesh.settlement.decide(text, SETTLED))
    payment = (await paying).payment
    assert payment.state == Payment.STATE_SUCCEEDED
    mesh.check_books(10_000)


async def test_a_payee_that_can_get_no_more_is_told_before_anything_is_held(mesh: PaymentMesh) -> None:
    payer = await mesh.open_account(ALICE, 10_000)
    text = mesh.settlement.create("customer:" + request_id(), 1_000, hold=True)
    payment = (await mesh.pay(ALICE, payer, text)).payment
    assert payment.failure_reason == Payment.FAILURE_REASON_INVOICE_NOT_PAYABLE
    assert mesh.settlement.state(text) == 1, "released"
    mesh.check_books(10_000)


@pytest.mark.timeout(180)
async def test_hundreds_of_held_payments_keep_no_other_payment_waiting(mesh: PaymentMesh) -> None:
    payer, payee = await mesh.open_account(ALICE, 10_000_000), await mesh.open_account(BOB)
    texts = [mesh.settlement.create(payee, 1_000, hold=True) for _ in range(300)]

    async def some(part: list[str]) -> None:
        for text in part:
            request = pb.PayInvoiceRequest(request_id=request_id(), account_id=payer, payment_request=text)
            request.wait_duration.FromMilliseconds(0)
            await mesh.call(PaymentServiceStub, "PayInvoice", request, ALICE, timeout=60)

    await asyncio.gather(*(some(texts[number::16]) for number in range(16)))

    async def all_wait() -> bool:
        return mesh.query("SELECT count(*) FROM saga WHERE step = 'await_decision'") == [(300,)]

    await eventually(all_wait, 60)
    mesh.settlement.faults = {"lock": [grpc.StatusCode.UNAVAILABLE]}
    start_s = time.monotonic()
    payment = (await mesh.pay(ALICE, payer, mesh.settlement.create(payee, 1_000), timeout=30)).payment
    assert payment.state == Payment.STATE_SUCCEEDED, "parked once, it was claimed before those that wait"
    assert time.monotonic() - start_s < 10
    for text in texts:
        mesh.settlement.decide(text, SETTLED)

    async def all_done() -> bool:
        return mesh.query("SELECT count(*) FROM saga WHERE state <> 2") == [(0,)]

    await eventually(all_done, 90)
    mesh.check_books(10_000_000)
    assert (await mesh.account(payee)).available_msat == 301_000


async def test_only_the_invoice_service_may_touch_credits(mesh: PaymentMesh) -> None:
    account = await mesh.open_account(BOB)
    stub = InvoiceLedgerServiceStub(mesh.channel(0))
    invoice_id = request_id()
    hold = invoice_ledger_service_pb2.HoldCreditRequest(invoice_id=invoice_id, account_id=account, amount_msat=500)
    for metadata in (as_user(ALICE, role="operator"), as_service("nip")):
        assert (await refused(stub.HoldCredit(hold, metadata=metadata, timeout=5)))[1] in (
            "CALLER_NOT_ALLOWED",
            "OPERATOR_REQUIRED",
        )
    post = invoice_ledger_service_pb2.PostCreditRequest(invoice_id=invoice_id)
    assert await refused(stub.PostCredit(post, metadata=as_service("invoice"), timeout=5)) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "CREDIT_NOT_HELD",
    )
    await asyncio.gather(*(stub.HoldCredit(hold, metadata=as_service("invoice"), timeout=5) for _ in range(4)))
    assert (await mesh.account(account)).credits_pending_msat == 500
    await asyncio.gather(*(stub.PostCredit(post, metadata=as_service("invoice"), timeout=5) for _ in range(4)))
    assert (await mesh.account(account)).available_msat == 500
    void = invoice_ledger_service_pb2.VoidCreditRequest(invoice_id=invoice_id)
    assert (await refused(stub.VoidCredit(void, metadata=as_service("invoice"), timeout=5)))[1] == "CREDIT_POSTED"

"""PayInvoice with two replicas, one database and a real NIP service: what is paid, what fails, and what is said about it."""

from __future__ import annotations

import asyncio
import time
from hashlib import sha256

import grpc
import pytest

from nipmesh.payment.v1 import payment_pb2
from nipmesh.payment.v1 import payment_service_pb2 as pb
from nipmesh.payment.v1.payment_service_pb2_grpc import LedgerServiceStub, PaymentServiceStub
from services.lightning.simulated import Behaviour
from services.nip.wire import event_of
from services.nostr.event import Verdict, verify_event
from support.payment_mesh import OPERATOR, PaymentMesh, eventually, refused, request_id
from support.settlement import ACCEPTED, OPEN, SETTLED, payment_request

pytestmark = pytest.mark.asyncio(loop_scope="module")
ALICE, BOB = "a1" * 32, "b0" * 32
Payment = payment_pb2.Payment


async def test_an_invoice_of_this_mesh_is_paid_with_a_signed_receipt(mesh: PaymentMesh) -> None:
    payer, payee = await mesh.open_account(ALICE, 1_000_000), await mesh.open_account(BOB)
    response = await mesh.pay(ALICE, payer, mesh.settlement.create(payee, 400_000).upper())
    payment = response.payment
    assert payment.state == Payment.STATE_SUCCEEDED
    assert payment.internal
    assert not payment.simulated
    assert not response.replayed
    assert sha256(bytes.fromhex(payment.preimage)).hexdigest() == payment.payment_hash
    assert (await mesh.account(payer)).balance_msat == 600_000
    assert (await mesh.account(payee)).balance_msat == 400_000
    assert verify_event(event_of(payment.receipt)) is Verdict.VALID
    assert payment.receipt.created_at == payment.settle_time.seconds
    tags = {tag.values[0]: tag.values[1] for tag in payment.receipt.tags}
    assert (tags["payment_hash"], tags["amount"], tags["P"], tags["p"]) == (payment.payment_hash, "400000", ALICE, BOB)
    full = await mesh.payment(payment.payment_id, full=True)
    steps = [step.step for step in full.steps]
    assert steps[:3] == ["reserve_balance", "lock_invoice", "post_transfer"]
    assert set(steps[3:]) == {"commit_invoice", "sign_receipt"}, "in whichever order they were answered"
    assert "preimage" not in tags
    mesh.check_books(1_000_000)


async def test_all_of_a_balance_can_be_paid_inside_the_mesh(mesh: PaymentMesh) -> None:
    payer, payee = await mesh.open_account(ALICE, 5_000), await mesh.open_account(BOB)
    text = mesh.settlement.create(payee, None)
    assert await refused(mesh.pay(ALICE, payer, text)) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "PAYMENT_AMOUNT_REQUIRED",
    )
    payment = (await mesh.pay(ALICE, payer, text, amount_msat=5_000)).payment
    assert payment.state == Payment.STATE_SUCCEEDED
    assert (await mesh.account(payee)).balance_msat == 5_000
    mesh.check_books(5_000)


async def test_an_invoice_of_another_node_is_paid_by_the_simulated_node(mesh: PaymentMesh) -> None:
    payer = await mesh.open_account(ALICE, 1_000_000)
    payment = (await mesh.pay(ALICE, payer, payment_request(amount_msat=100_000))).payment
    assert payment.state == Payment.STATE_SUCCEEDED
    assert payment.simulated
    assert not payment.internal
    assert payment.preimage == ""
    assert payment.fee_msat == 1_100
    assert any(tag.values[0] == "simulated" for tag in payment.receipt.tags)
    account = await mesh.account(payer)
    assert (account.balance_msat, account.debits_pending_msat) == (1_000_000 - 101_100, 0)
    mesh.check_books(1_000_000 - 101_100)


async def test_the_preimage_that_the_node_was_given_is_the_payers_proof(mesh: PaymentMesh) -> None:
    payer = await mesh.open_account(ALICE, 1_000_000)
    payment = (await mesh.pay(ALICE, payer, await mesh.outside_invoice(None), amount_msat=50_000)).payment
    assert payment.state == Payment.STATE_SUCCEEDED
    assert sha256(bytes.fromhex(payment.preimage)).hexdigest() == payment.payment_hash
    assert payment.amount_msat == 50_000


@pytest.mark.parametrize(
    ("words", "limit", "reason"),
    [
        ("simulated:fail", None, Payment.FAILURE_REASON_NO_ROUTE),
        ("simulated:fee=20000", None, Payment.FAILURE_REASON_NO_ROUTE),
        ("", 0, Payment.FAILURE_REASON_NO_ROUTE),
    ],
)
async def test_a_definite_failure_of_the_node_frees_the_money(
    mesh: PaymentMesh, words: str, limit: int | None, reason: int
) -> None:
    payer = await mesh.open_account(ALICE, 1_000_000)
    text = payment_request(amount_msat=100_000, description=words)
    payment = (await mesh.pay(ALICE, payer, text, fee_limit_msat=limit)).payment
    assert (payment.state, payment.failure_reason) == (Payment.STATE_FAILED, reason)
    mesh.check_books(1_000_000)


async def test_what_hangs_stays_in_flight_until_the_node_decides(mesh: PaymentMesh) -> None:
    payer = await mesh.open_account(ALICE, 1_000_000)
    text = payment_request(amount_msat=100_000, description="simulated:hang")
    identifier = request_id()
    response = await mesh.pay(ALICE, payer, text, identifier, timeout=1.5)
    assert response.payment.state == Payment.STATE_IN_FLIGHT
    assert await refused(mesh.pay(ALICE, payer, text, identifier, timeout=1.5)) == (
        grpc.StatusCode.ABORTED,
        "REQUEST_IN_PROGRESS",
    )
    assert await refused(mesh.pay(ALICE, payer, text)) == (grpc.StatusCode.ALREADY_EXISTS, "PAYMENT_IN_FLIGHT")
    await mesh.rule(response.payment.payment_hash, Behaviour.PAY)

    async def paid() -> bool:
        return (await mesh.payment(response.payment.payment_id)).state == Payment.STATE_SUCCEEDED

    await eventually(paid, 8)
    again = await mesh.pay(ALICE, payer, text, identifier)
    assert again.replayed
    assert again.payment.state == Payment.STATE_SUCCEEDED
    assert await refused(mesh.pay(ALICE, payer, text)) == (grpc.StatusCode.ALREADY_EXISTS, "PAYMENT_ALREADY_PAID")


async def test_wait_duration_zero_returns_when_the_money_is_reserved(mesh: PaymentMesh) -> None:
    payer, payee = await mesh.open_account(ALICE, 10_000), await mesh.open_account(BOB)
    request = pb.PayInvoiceRequest(
        request_id=request_id(), account_id=payer, payment_request=mesh.settlement.create(payee, 1_000)
    )
    request.wait_duration.FromMilliseconds(0)
    answer = await mesh.call(PaymentServiceStub, "PayInvoice", request, ALICE)
    assert answer.payment.state == Payment.STATE_RESERVED

    async def done() -> bool:
        return (await mesh.payment(answer.payment.payment_id)).state == Payment.STATE_SUCCEEDED

    await eventually(done)


async def test_an_account_does_not_pay_its_own_invoice(mesh: PaymentMesh) -> None:
    payer = await mesh.open_account(ALICE, 10_000)
    text = mesh.settlement.create(payer, 1_000)
    payment = (await mesh.pay(ALICE, payer, text)).payment
    assert payment.failure_reason == Payment.FAILURE_REASON_SAME_ACCOUNT
    assert mesh.settlement.state(text) == OPEN
    mesh.check_books(10_000)


async def test_a_balance_that_does_not_suffice_is_an_error_and_recorded(mesh: PaymentMesh) -> None:
    payer, payee = await mesh.open_account(ALICE, 10_000), await mesh.open_account(BOB)
    text = mesh.settlement.create(payee, 10_001)
    identifier = request_id()
    for _ in range(2):
        assert await refused(mesh.pay(ALICE, payer, text, identifier)) == (
            grpc.StatusCode.FAILED_PRECONDITION,
            "INSUFFICIENT_BALANCE",
        )
    request = pb.GetPaymentRequest(request_id=identifier)
    payment = (await mesh.call(PaymentServiceStub, "GetPayment", request, ALICE)).payment
    assert payment.state == Payment.STATE_FAILED
    outside = payment_request(amount_msat=9_000)
    assert (await refused(mesh.pay(ALICE, payer, outside)))[1] == "INSUFFICIENT_BALANCE", "the fee limit counts"
    mesh.check_books(10_000)


async def test_the_lock_is_retried_and_the_pivot_is_never_undone(mesh: PaymentMesh) -> None:
    payer, payee = await mesh.open_account(ALICE, 10_000), await mesh.open_account(BOB)
    text = mesh.settlement.create(payee, 1_000)
    code = grpc.StatusCode
    mesh.settlement.faults = {"lock": [code.UNAVAILABLE, code.INTERNAL], "commit": [code.UNAVAILABLE, code.UNKNOWN]}
    start_s = time.monotonic()
    assert (await mesh.pay(ALICE, payer, text)).payment.state == Payment.STATE_SUCCEEDED
    assert time.monotonic() - start_s < 5
    assert mesh.settlement.state(text) == SETTLED
    mesh.check_books(10_000)


async def test_a_missing_receipt_undoes_nothing_and_comes_later(mesh: PaymentMesh) -> None:
    payer, payee = await mesh.open_account(ALICE, 10_000), await mesh.open_account(BOB)
    await mesh.nip.end()
    payment = (await mesh.pay(ALICE, payer, mesh.settlement.create(payee, 1_000))).payment
    assert payment.state == Payment.STATE_SUCCEEDED
    assert not payment.HasField("receipt")
    mesh.check_books(10_000)
    await mesh.nip.start()

    async def signed() -> bool:
        return (await mesh.payment(payment.payment_id)).HasField("receipt")

    await eventually(signed, 12)


async def test_a_frozen_account_neither_pays_nor_refunds_but_receives(mesh: PaymentMesh) -> None:
    payer, payee = await mesh.open_account(ALICE, 10_000), await mesh.open_account(BOB)
    text, other = mesh.settlement.create(payee, 1_000), mesh.settlement.create(payee, 1_000)
    freeze = pb.FreezeAccountRequest(request_id=request_id(), account_id=payee)
    await mesh.call(LedgerServiceStub, "FreezeAccount", freeze, OPERATOR, role="operator")
    payment = (await mesh.pay(ALICE, payer, text)).payment
    assert payment.state == Payment.STATE_SUCCEEDED
    refund = pb.RefundPaymentRequest(request_id=request_id(), payment_id=payment.payment_id, all=True)
    assert (await refused(mesh.call(PaymentServiceStub, "RefundPayment", refund, BOB)))[1] == "ACCOUNT_FROZEN"
    freeze = pb.FreezeAccountRequest(request_id=request_id(), account_id=payer)
    await mesh.call(LedgerServiceStub, "FreezeAccount", freeze, OPERATOR, role="operator")
    assert (await refused(mesh.pay(ALICE, payer, other)))[1] == "ACCOUNT_FROZEN"
    thaw = pb.UnfreezeAccountRequest(request_id=request_id(), account_id=payer)
    await mesh.call(LedgerServiceStub, "UnfreezeAccount", thaw, OPERATOR, role="operator")
    assert (await mesh.pay(ALICE, payer, other)).payment.state == Payment.STATE_SUCCEEDED
    mesh.check_books(10_000)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("lnbcrt1", "PAYMENT_REQUEST_INVALID"),
        (payment_request(amount_msat=5, currency="bc"), "PAYMENT_REQUEST_INVALID"),
        (payment_request(amount_msat=5, create_time_s=1_600_000_000), "INVOICE_EXPIRED"),
    ],
)
async def test_what_cannot_be_paid_is_refused_and_not_recorded(mesh: PaymentMesh, text: str, reason: str) -> None:
    payer = await mesh.open_account(ALICE, 10_000)
    identifier = request_id()
    assert (await refused(mesh.pay(ALICE, payer, text, identifier)))[1] == reason
    request = pb.GetPaymentRequest(request_id=identifier)
    assert (await refused(mesh.call(PaymentServiceStub, "GetPayment", request, ALICE)))[1] == "PAYMENT_NOT_FOUND"


async def test_the_amount_of_an_invoice_that_names_one_is_not_the_payers(mesh: PaymentMesh) -> None:
    payer, payee = await mesh.open_account(ALICE, 10_000), await mesh.open_account(BOB)
    answer = await refused(mesh.pay(ALICE, payer, mesh.settlement.create(payee, 1_000), amount_msat=1_000))
    assert answer[1] == "PAYMENT_AMOUNT_NOT_ALLOWED"


async def test_a_cancelled_call_does_not_touch_the_payment(mesh: PaymentMesh) -> None:
    payer, payee = await mesh.open_account(ALICE, 10_000), await mesh.open_account(BOB)
    text, identifier = mesh.settlement.create(payee, 1_000), request_id()
    mesh.settlement.faults = {"lock": [grpc.StatusCode.UNAVAILABLE]}
    call = asyncio.create_task(mesh.pay(ALICE, payer, text, identifier))
    await asyncio.sleep(0.1)
    call.cancel()
    response = await mesh.pay(ALICE, payer, text, identifier)
    assert response.replayed
    assert response.payment.state == Payment.STATE_SUCCEEDED
    assert mesh.settlement.state(text) != ACCEPTED
    mesh.check_books(10_000)

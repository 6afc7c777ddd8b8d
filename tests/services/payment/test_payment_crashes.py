"""A replica dies at each numbered step while the other lives: final within 5 s, money conserved, paid exactly once."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from typing import Any

import apsw
import grpc
import pytest

from nipmesh.payment.v1 import invoice_ledger_service_pb2 as ledger_pb
from nipmesh.payment.v1 import payment_operator_service_pb2 as operator_pb
from nipmesh.payment.v1 import payment_pb2
from nipmesh.payment.v1 import payment_service_pb2 as pb
from nipmesh.payment.v1.invoice_ledger_service_pb2_grpc import InvoiceLedgerServiceStub
from nipmesh.payment.v1.payment_operator_service_pb2_grpc import PaymentOperatorServiceStub
from nipmesh.payment.v1.payment_service_pb2_grpc import PaymentServiceStub
from services.chassis.testing import as_service, as_user
from support.payment_mesh import PaymentMesh, eventually, request_id
from support.settlement import ACCEPTED, CANCELED, OPEN, SETTLED, payment_request

pytestmark = pytest.mark.asyncio(loop_scope="module")
ALICE, BOB = "a1" * 32, "b0" * 32
Payment = payment_pb2.Payment
SECONDS_MAX = 5.0

INSIDE = [
    "reserve_balance.done",
    "lock_invoice",
    "lock_invoice.done",
    "post_transfer",
    "post_transfer.done",
    "commit_invoice",
    "commit_invoice.done",
    "succeed.done",
    "sign_receipt",
    "sign_receipt.done",
    "succeed",
]
OUTSIDE = [
    "dispatch",
    "dispatch.done",
    "process_payment",
    "process_payment.done",
    "settle",
    "settle.done",
    "save_receipt",
    "save_receipt.done",
]
HELD = [
    "hold_for_payee",
    "hold_for_payee.done",
    "commit_invoice",
    "commit_invoice.done",
    "park",
    "park.done",
    "get_hold",
    "get_hold.done",
]
DECIDED = {
    SETTLED: [*HELD, "post_held", "post_held.done", "save_receipt"],
    CANCELED: ["commit_invoice.done", "get_hold.done", "fail", "fail.done"],
}
CREDITS = ["hold_credit", "hold_credit.done", "post_credit", "post_credit.done", "void_credit", "void_credit.done"]
UNDONE = ["remember.done", "release_invoice", "release_invoice.done", "fail", "fail.done"]


async def pay_and_die(mesh: PaymentMesh, failpoint: str, account_id: str, text: str) -> pb.PayInvoiceResponse:
    """Replica 0 dies at the failpoint with the call in flight; the sidecar repeats the call on replica 1."""
    if mesh.replicas[0].alive:
        await mesh.replicas[0].end()
    await mesh.replicas[0].start(NIPMESH_FAILPOINT=failpoint)
    request = pb.PayInvoiceRequest(request_id=request_id(), account_id=account_id, payment_request=text)
    start_s = time.monotonic()
    with contextlib.suppress(grpc.aio.AioRpcError):
        await call(mesh, 0, request)
    assert mesh.replicas[0].process is not None
    await asyncio.wait_for(mesh.replicas[0].process.wait(), 5)
    died_s = time.monotonic()
    response: pb.PayInvoiceResponse = await call(mesh, 1, request)
    assert response.replayed
    assert time.monotonic() - died_s < SECONDS_MAX, f"{failpoint}: {time.monotonic() - start_s:.1f} s"
    return response


async def call(mesh: PaymentMesh, number: int, request: pb.PayInvoiceRequest) -> Any:
    stub = PaymentServiceStub(mesh.channel(number))
    return await stub.PayInvoice(request, metadata=as_user(ALICE), timeout=10, wait_for_ready=True)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("failpoints", [INSIDE[:6], INSIDE[6:]], ids=["before the pivot", "after the pivot"])
async def test_inside_the_mesh(mesh: PaymentMesh, failpoints: list[str]) -> None:
    payer, payee = await mesh.open_account(ALICE, 1_000_000), await mesh.open_account(BOB)
    for number, failpoint in enumerate(failpoints, start=1):
        text = mesh.settlement.create(payee, 10_000)
        payment = (await pay_and_die(mesh, failpoint, payer, text)).payment
        assert payment.state == Payment.STATE_SUCCEEDED, failpoint
        assert mesh.settlement.state(text) == SETTLED
        assert (await mesh.account(payee)).balance_msat == 10_000 * number
        mesh.check_books(1_000_000)

        async def signed(payment_id: str = payment.payment_id) -> bool:
            return (await mesh.payment(payment_id)).HasField("receipt")

        await eventually(signed)


@pytest.mark.timeout(240)
async def test_through_the_node(mesh: PaymentMesh) -> None:
    payer = await mesh.open_account(ALICE, 1_000_000)
    for number, failpoint in enumerate(OUTSIDE, start=1):
        payment = (await pay_and_die(mesh, failpoint, payer, payment_request(amount_msat=10_000))).payment
        assert payment.state == Payment.STATE_SUCCEEDED, failpoint
        assert (await mesh.account(payer)).balance_msat == 1_000_000 - number * 11_010
        mesh.check_books(1_000_000 - number * 11_010)
        await eventually(lambda: nothing_left(mesh), 15)  # else the next one dies of this one's receipt
    with contextlib.closing(apsw.Connection(str(mesh.folder / "data" / "simulated-lightning.sqlite3"))) as node:
        attempts = list(node.execute("SELECT times_begun, times_paid FROM attempt"))
    assert attempts == [(1, 1)] * len(OUTSIDE)


async def test_while_it_is_undone(mesh: PaymentMesh) -> None:
    payer = await mesh.open_account(ALICE, 1_000_000)
    for failpoint in UNDONE:
        text = mesh.settlement.create(payer, 10_000)
        payment = (await pay_and_die(mesh, failpoint, payer, text)).payment
        assert payment.failure_reason == Payment.FAILURE_REASON_SAME_ACCOUNT, failpoint
        assert mesh.settlement.state(text) == OPEN
        mesh.check_books(1_000_000)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("decision", [SETTLED, CANCELED], ids=["settled", "canceled"])
async def test_while_an_owner_decides(mesh: PaymentMesh, decision: int) -> None:
    """The only replica dies, before or after the owner's decision, and the next one ends what the owner wanted."""
    payer, payee = await mesh.open_account(ALICE, 1_000_000), await mesh.open_account(BOB)
    paid_msat = 0
    for failpoint in DECIDED[decision]:
        for replica in mesh.replicas:
            if replica.alive:
                await replica.end()
        await mesh.replicas[0].start(NIPMESH_FAILPOINT=failpoint)
        text = mesh.settlement.create(payee, 10_000, hold=True)
        request = pb.PayInvoiceRequest(request_id=request_id(), account_id=payer, payment_request=text)
        paying = asyncio.create_task(call(mesh, 0, request))
        await eventually(lambda text=text: held(mesh, text))
        mesh.settlement.decide(text, decision)
        assert mesh.replicas[0].process is not None
        await asyncio.wait_for(mesh.replicas[0].process.wait(), 15)
        await asyncio.gather(paying, return_exceptions=True)
        await mesh.replicas[1].start()
        payment = (await call(mesh, 1, request)).payment
        if decision == SETTLED:
            paid_msat += 10_000
            assert payment.state == Payment.STATE_SUCCEEDED, failpoint
        else:
            assert payment.failure_reason == Payment.FAILURE_REASON_INVOICE_CANCELED, failpoint
        assert (await mesh.account(payee)).balance_msat == paid_msat
        assert (await mesh.account(payer)).available_msat == 1_000_000 - paid_msat
        mesh.check_books(1_000_000)
        await eventually(
            lambda: nothing_left(mesh), 15
        )  # else the next one dies of this one's receipt before it serves


async def nothing_left(mesh: PaymentMesh) -> bool:
    """No saga has anything to do."""
    return mesh.query("SELECT count(*) FROM saga WHERE state <> 2") == [(0,)]


async def held(mesh: PaymentMesh, text: str) -> bool:
    """The invoice is locked, and the replica got as far as it gets without a decision, or died."""
    waiting = mesh.query("SELECT count(*) FROM saga WHERE step = 'await_decision'") == [(1,)]
    return mesh.settlement.state(text) == ACCEPTED and (waiting or not mesh.replicas[0].alive)


@pytest.mark.timeout(180)
async def test_money_from_outside_is_credited_once(mesh: PaymentMesh) -> None:
    account, credited_msat = await mesh.open_account(BOB), 0
    for failpoint in CREDITS:
        if mesh.replicas[0].alive:
            await mesh.replicas[0].end()
        await mesh.replicas[0].start(NIPMESH_FAILPOINT=failpoint)
        invoice_id, void = request_id(), failpoint.startswith("void")
        hold = ledger_pb.HoldCreditRequest(invoice_id=invoice_id, account_id=account, amount_msat=7_000)
        await repeated(mesh, "HoldCredit", hold)
        if void:
            await repeated(mesh, "VoidCredit", ledger_pb.VoidCreditRequest(invoice_id=invoice_id))
        else:
            await repeated(mesh, "PostCredit", ledger_pb.PostCreditRequest(invoice_id=invoice_id))
            credited_msat += 7_000
        assert not mesh.replicas[0].alive, f"{failpoint} was not reached"
        found = await mesh.account(account)
        assert (found.balance_msat, found.credits_pending_msat) == (credited_msat, 0), failpoint
        mesh.check_books(credited_msat)


async def repeated(mesh: PaymentMesh, method: str, request: Any) -> None:
    """As the invoice service calls: on replica 0 while it lives, and again on replica 1 when that gave no answer."""
    number = 0 if mesh.replicas[0].alive else 1
    if number == 1 or not await answered(mesh, method, request):
        await credit(mesh, 1, method, request)


async def answered(mesh: PaymentMesh, method: str, request: Any) -> bool:
    """Whether replica 0 answered; else it is dead by now."""
    try:
        await credit(mesh, 0, method, request)
    except grpc.aio.AioRpcError:
        assert mesh.replicas[0].process is not None
        await asyncio.wait_for(mesh.replicas[0].process.wait(), 5)
        return False
    return True


async def credit(mesh: PaymentMesh, number: int, method: str, request: Any) -> None:
    stub = InvoiceLedgerServiceStub(mesh.channel(number))
    await getattr(stub, method)(request, metadata=as_service("invoice"), timeout=10, wait_for_ready=True)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("failpoint", ["refund", "refund.done"])
async def test_a_refund_is_made_once(mesh: PaymentMesh, failpoint: str) -> None:
    payer, payee = await mesh.open_account(ALICE, 1_000_000), await mesh.open_account(BOB)
    payment_id = (await mesh.pay(ALICE, payer, mesh.settlement.create(payee, 10_000))).payment.payment_id
    for number, amount in enumerate(({"amount_msat": 4_000}, {"all": True}), start=1):
        await mesh.replicas[0].end()
        await mesh.replicas[0].start(NIPMESH_FAILPOINT=failpoint)
        request = pb.RefundPaymentRequest(request_id=request_id(), payment_id=payment_id, **amount)  # type: ignore[arg-type]
        with contextlib.suppress(grpc.aio.AioRpcError):
            await PaymentServiceStub(mesh.channel(0)).RefundPayment(
                request, metadata=as_user(BOB), timeout=10, wait_for_ready=True
            )
        assert mesh.replicas[0].process is not None
        await asyncio.wait_for(mesh.replicas[0].process.wait(), 5)
        stub = PaymentServiceStub(mesh.channel(1))
        answer = await stub.RefundPayment(request, metadata=as_user(BOB), timeout=10, wait_for_ready=True)
        assert answer.replayed is (failpoint == "refund.done")
        assert answer.refunded_msat == {1: 4_000, 2: 10_000}[number]
        assert (await mesh.account(payer)).balance_msat == 990_000 + answer.refunded_msat
    mesh.check_books(1_000_000)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("failpoint", ["resolve", "resolve.done"])
async def test_an_operators_word_counts_once(mesh: PaymentMesh, failpoint: str) -> None:
    payer = await mesh.open_account(ALICE, 1_000_000)
    begin = pb.PayInvoiceRequest(
        request_id=request_id(),
        account_id=payer,
        payment_request=payment_request(amount_msat=10_000, description="simulated:hang"),
    )
    begin.wait_duration.FromMilliseconds(0)
    payment_id = (await mesh.call(PaymentServiceStub, "PayInvoice", begin, ALICE)).payment.payment_id
    await eventually(lambda: aged(mesh, payment_id))
    await mesh.replicas[0].end()
    await mesh.replicas[0].start(NIPMESH_FAILPOINT=failpoint)
    request = operator_pb.ResolvePaymentRequest(
        request_id=request_id(), payment_id=payment_id, failed=True, reason="the node is gone"
    )
    with contextlib.suppress(grpc.aio.AioRpcError):
        await resolve(mesh, 0, request)
    assert mesh.replicas[0].process is not None
    await asyncio.wait_for(mesh.replicas[0].process.wait(), 5)
    answer = await resolve(mesh, 1, request)
    assert answer.replayed is (failpoint == "resolve.done")
    assert answer.payment.state == Payment.STATE_FAILED
    assert mesh.query("SELECT count(*) FROM payment_resolution WHERE payment_id = ?", payment_id) == [(1,)]
    mesh.check_books(1_000_000)


async def aged(mesh: PaymentMesh, payment_id: str) -> bool:
    """The saga is parked at the node, and its step is made older than it may be."""
    sql = (
        "UPDATE saga SET next_run_at = next_run_at + 60000, data = json_set(data, '$.step_time_ms', 1)"
        " WHERE id = ? AND step = 'process_payment' AND state = 3 AND lease_until = 0"
    )
    with contextlib.closing(apsw.Connection(str(mesh.folder / "data" / "payment.sqlite3"))) as connection:
        connection.set_busy_timeout(2_000)
        connection.execute(sql, (payment_id,))
        return connection.changes() == 1


async def resolve(
    mesh: PaymentMesh, number: int, request: operator_pb.ResolvePaymentRequest
) -> operator_pb.ResolvePaymentResponse:
    stub = PaymentOperatorServiceStub(mesh.channel(number))
    metadata = as_user("0f" * 32, role="operator")
    return await stub.ResolvePayment(request, metadata=metadata, timeout=10, wait_for_ready=True)


async def test_a_drained_replica_hands_its_sagas_over_and_loses_no_call(mesh: PaymentMesh) -> None:
    payer, payee = await mesh.open_account(ALICE, 1_000_000), await mesh.open_account(BOB)
    texts = [mesh.settlement.create(payee, 1_000) for _ in range(40)]
    mesh.settlement.faults = {"lock": [grpc.StatusCode.UNAVAILABLE] * 10}
    calls = [asyncio.create_task(mesh.pay(ALICE, payer, text)) for text in texts]
    await asyncio.sleep(0.1)
    assert await mesh.replicas[0].end(signal.SIGTERM) == 0
    responses = await asyncio.gather(*calls)
    assert {response.payment.state for response in responses} == {Payment.STATE_SUCCEEDED}
    mesh.check_books(1_000_000)

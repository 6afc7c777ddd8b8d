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

from nipmesh.payment.v1 import payment_pb2
from nipmesh.payment.v1 import payment_service_pb2 as pb
from nipmesh.payment.v1.payment_service_pb2_grpc import PaymentServiceStub
from services.chassis.testing import as_user
from support.payment_mesh import PaymentMesh, eventually, request_id
from support.settlement import OPEN, SETTLED, payment_request

pytestmark = pytest.mark.asyncio(loop_scope="module")
ALICE, BOB = "a1" * 32, "b0" * 32
Payment = payment_pb2.Payment
SECONDS_MAX = 5.0

INSIDE = [
    "reserve_balance.done",
    "lock_invoice",
    "lock_invoice.done",
    "cancel_at_node.done",
    "post_transfer",
    "post_transfer.done",
    "commit_invoice",
    "commit_invoice.done",
    "succeed.done",
    "sign_receipt",
    "sign_receipt.done",
    "save_receipt.done",
]
OUTSIDE = ["dispatch", "dispatch.done", "process_payment", "process_payment.done", "settle", "settle.done"]
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
    with contextlib.closing(apsw.Connection(str(mesh.folder / "data" / "simulated-node.sqlite3"))) as node:
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

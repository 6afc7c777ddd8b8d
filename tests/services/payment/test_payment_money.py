"""Everything real: two payment replicas, the invoice service and the NIP service, random money and a kill of each."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from hashlib import sha256

import grpc
import pytest

from nipmesh.invoice.v1 import invoice_service_pb2 as invoice_pb2
from nipmesh.payment.v1 import payment_pb2
from nipmesh.payment.v1 import payment_service_pb2 as pb
from nipmesh.payment.v1.payment_service_pb2_grpc import PaymentServiceStub
from services.lightning.bolt11 import decode, encode
from services.storage.sql import value_of
from support.payment_mesh import PaymentMesh, eventually, refused, request_id
from support.payment_requests import KEY

ALICE, BOB = "a1" * 32, "b0" * 32
Payment = payment_pb2.Payment


async def test_a_real_invoice_is_paid(full_mesh: PaymentMesh) -> None:
    payer, payee = await full_mesh.open_account(ALICE, 10_000), await full_mesh.open_account(BOB)
    payment = (await full_mesh.pay(ALICE, payer, await full_mesh.create_invoice(BOB, payee, 4_000))).payment
    assert payment.state == Payment.STATE_SUCCEEDED
    assert payment.internal
    assert sha256(bytes.fromhex(payment.preimage)).hexdigest() == payment.payment_hash
    assert payment.HasField("receipt")
    own = await full_mesh.create_invoice(BOB, payee, 1_000)
    refused = (await full_mesh.pay(BOB, payee, own)).payment
    assert refused.failure_reason == Payment.FAILURE_REASON_SAME_ACCOUNT
    again = (await full_mesh.pay(ALICE, payer, own)).payment
    assert again.state == Payment.STATE_SUCCEEDED, "a released invoice is open again"
    full_mesh.check_books(10_000)


async def test_a_real_hold_invoice_is_its_owners_to_settle_or_to_cancel(full_mesh: PaymentMesh) -> None:
    mesh = full_mesh
    payer, payee = await mesh.open_account(ALICE, 10_000), await mesh.open_account(BOB)
    for settles in (True, False):
        text = await mesh.create_invoice(BOB, payee, 4_000, hold=True)
        key = {"request_id": request_id(), "payment_hash": decode(text).payment_hash}
        paying = asyncio.create_task(mesh.pay(ALICE, payer, text, timeout=20))
        await eventually(lambda: _awaits(mesh), 10)
        assert (await mesh.account(payee)).credits_pending_msat == 4_000
        if settles:
            await mesh.call_invoices("SettleInvoice", invoice_pb2.SettleInvoiceRequest(**key), BOB)
        else:
            await mesh.call_invoices("CancelInvoice", invoice_pb2.CancelInvoiceRequest(**key), BOB)
        payment = (await paying).payment
        assert payment.internal
        if settles:
            assert sha256(bytes.fromhex(payment.preimage)).hexdigest() == payment.payment_hash
        else:
            assert payment.failure_reason == Payment.FAILURE_REASON_INVOICE_CANCELED
        assert (await mesh.account(payee)).available_msat == 4_000
        await eventually(lambda: _settled(mesh), 10)
    mesh.check_books(10_000)


async def test_a_real_invoice_costs_nothing_inside_by_estimate(full_mesh: PaymentMesh) -> None:
    text = await full_mesh.create_invoice(BOB, await full_mesh.open_account(BOB), 4_000)
    request = pb.EstimateFeeRequest(payment_request=text)
    answer = await full_mesh.call(PaymentServiceStub, "EstimateFee", request, ALICE)
    assert (answer.internal, answer.amount_msat, answer.fee_msat) == (True, 4_000, 0)
    forged = encode(replace(decode(text), payee_pubkey=KEY.public_key), KEY)
    estimating = full_mesh.call(PaymentServiceStub, "EstimateFee", pb.EstimateFeeRequest(payment_request=forged), ALICE)
    assert await refused(estimating) == (grpc.StatusCode.INVALID_ARGUMENT, "PAYMENT_REQUEST_INVALID")


async def _awaits(mesh: PaymentMesh) -> bool:
    return mesh.query("SELECT count(*) FROM saga WHERE step = 'await_decision'") == [(1,)]


@pytest.mark.timeout(180)
@pytest.mark.parametrize("seed", [7])
async def test_random_payments_and_refunds_with_duplicates_and_a_kill(full_mesh: PaymentMesh, seed: int) -> None:
    """16 callers over 20 accounts, 400 operations, many sent twice, one kill -9 of each service in the middle."""
    mesh = full_mesh
    dice = random.Random(seed)
    owners = [f"{number:02x}" * 32 for number in range(1, 21)]
    accounts = [await mesh.open_account(owner, 100_000) for owner in owners]
    done: list[tuple[str, int]] = []
    effects: dict[str, set[str]] = {}
    operations = iter(range(400))
    victims = {100: mesh.replicas[0], 200: mesh.invoice, 300: mesh.nip}

    async def pay() -> None:
        payer, payee = dice.sample(range(20), 2)
        text = await mesh.create_invoice(owners[payee], accounts[payee], dice.randint(1, 30_000))
        identifier = request_id()
        copies = [
            mesh.pay(owners[payer], accounts[payer], text, identifier, timeout=20) for _ in range(dice.randint(1, 2))
        ]
        for answer in await asyncio.gather(*copies, return_exceptions=True):
            if isinstance(answer, grpc.aio.AioRpcError):
                assert answer.code() is grpc.StatusCode.FAILED_PRECONDITION, answer
                continue
            assert not isinstance(answer, BaseException), answer
            assert answer.payment.state == Payment.STATE_SUCCEEDED
            effects.setdefault(identifier, set()).add(answer.payment.payment_id)
            done.append((answer.payment.payment_id, payee))

    async def refund() -> None:
        payment_id, payee = dice.choice(done)
        identifier = request_id()
        amount_msat = dice.randint(1, 10_000)
        request = pb.RefundPaymentRequest(request_id=identifier, payment_id=payment_id, amount_msat=amount_msat)
        copies = [
            mesh.call(PaymentServiceStub, "RefundPayment", request, owners[payee]) for _ in range(dice.randint(1, 2))
        ]
        for answer in await asyncio.gather(*copies, return_exceptions=True):
            if isinstance(answer, grpc.aio.AioRpcError):
                assert answer.code() is grpc.StatusCode.FAILED_PRECONDITION, answer
                continue
            assert not isinstance(answer, BaseException), answer
            effects.setdefault(identifier, set()).add(answer.transfer.transfer_id)

    async def caller() -> None:
        for number in operations:
            if number in victims:
                await victims[number].end()
                await victims[number].start()
            await (refund() if done and dice.random() < 0.3 else pay())

    await asyncio.gather(*(caller() for _ in range(16)))
    assert all(len(ids) == 1 for ids in effects.values()), "a request_id took effect twice"
    await eventually(lambda: _settled(mesh), 10)
    mesh.check_books(20 * 100_000)
    succeeded = mesh.query("SELECT count(*) FROM payment WHERE state IN (4, 6)")[0][0]
    with mesh.database("invoice") as connection:
        assert value_of(connection.execute("SELECT count(*) FROM invoice WHERE state = 3")) == succeeded
    refunds = mesh.query("SELECT coalesce(sum(amount_msat), 0) FROM transfer WHERE purpose = 3")[0][0]
    assert refunds == mesh.query("SELECT coalesce(sum(refunded_msat), 0) FROM payment")[0][0]


async def _settled(mesh: PaymentMesh) -> bool:
    return mesh.query("SELECT count(*) FROM saga WHERE state <> 2") == [(0,)]

"""What operators see of payments under way, what they can do about one that is stuck, and what payments are estimated to cost."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from hashlib import sha256
from pathlib import Path
from typing import Any

import apsw
import grpc
import pytest
from click.testing import CliRunner

from generator.cli import sagas as sagas_command
from generator.cli.main import main
from nipmesh.operations.v1 import saga_service_pb2
from nipmesh.operations.v1.saga_service_pb2_grpc import SagaServiceStub
from nipmesh.payment.v1 import payment_operator_service_pb2 as operator_pb
from nipmesh.payment.v1 import payment_pb2
from nipmesh.payment.v1 import payment_service_pb2 as pb
from nipmesh.payment.v1.payment_operator_service_pb2_grpc import PaymentOperatorServiceStub
from nipmesh.payment.v1.payment_service_pb2_grpc import PaymentServiceStub
from services.lightning.simulated import Behaviour
from support.payment_mesh import OPERATOR, PaymentMesh, eventually, refused, request_id
from support.settlement import CANCELED, payment_request

pytestmark = pytest.mark.asyncio(loop_scope="module")
ALICE, BOB = "a1" * 32, "b0" * 32
Payment = payment_pb2.Payment
Saga = saga_service_pb2.Saga
MANIFEST = Path(__file__).resolve().parents[3] / "mesh.yaml"


async def begin(mesh: PaymentMesh, account_id: str, text: str) -> str:
    """The id of a payment that was begun."""
    request = pb.PayInvoiceRequest(request_id=request_id(), account_id=account_id, payment_request=text)
    request.wait_duration.FromMilliseconds(0)
    answer = await mesh.call(PaymentServiceStub, "PayInvoice", request, ALICE)
    return str(answer.payment.payment_id)


async def hanging(mesh: PaymentMesh, account_id: str, preimage: bytes | None = None) -> str:
    """A payment that hangs at the node, parked."""
    text = payment_request(amount_msat=100_000, preimage=preimage, description="simulated:hang")
    payment_id = await begin(mesh, account_id, text)

    async def parked() -> bool:
        return mesh.query("SELECT step, state FROM saga WHERE id = ?", payment_id) == [("process_payment", 3)]

    await eventually(parked)
    return payment_id


async def wait_long(mesh: PaymentMesh, payment_id: str) -> None:
    """Two minutes pass for one saga."""
    sql = (
        "UPDATE saga SET next_run_at = next_run_at + 60000, data = json_set(data, '$.step_time_ms', 1)"
        " WHERE id = ? AND lease_until = 0"
    )

    async def changed() -> bool:
        with contextlib.closing(apsw.Connection(str(mesh.folder / "data" / "payment.sqlite3"))) as connection:
            connection.set_busy_timeout(2_000)
            connection.execute(sql, (payment_id,))
            return connection.changes() == 1

    await eventually(changed)


async def resolve(mesh: PaymentMesh, payment_id: str, **outcome: Any) -> operator_pb.ResolvePaymentResponse:
    request = operator_pb.ResolvePaymentRequest(
        request_id=outcome.pop("request_id", None) or request_id(),
        payment_id=payment_id,
        reason="asked the payee",
        **outcome,
    )
    return await mesh.call(PaymentOperatorServiceStub, "ResolvePayment", request, OPERATOR, role="operator")


async def list_sagas(mesh: PaymentMesh, **rest: Any) -> saga_service_pb2.ListSagasResponse:
    request = saga_service_pb2.ListSagasRequest(**rest)
    return await mesh.call(SagaServiceStub, "ListSagas", request, OPERATOR, role="operator")


async def test_a_stuck_payment_is_shown_and_ended_by_an_operator_who_has_the_proof(mesh: PaymentMesh) -> None:
    payer, preimage = await mesh.open_account(ALICE, 1_000_000), secrets.token_bytes(32)
    payment_id = await hanging(mesh, payer, preimage)
    paid = operator_pb.ResolvePaymentRequest.Paid(preimage=preimage.hex(), fee_msat=700)
    assert await refused(resolve(mesh, payment_id, paid=paid)) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "PAYMENT_NOT_STUCK",
    )
    await wait_long(mesh, payment_id)
    (shown,) = (await list_sagas(mesh)).sagas
    assert (shown.saga_id, shown.kind, shown.step) == (payment_id, "pay_invoice", "process_payment")
    assert (shown.state, shown.reason) == (Saga.STATE_STUCK, "NODE_PENDING")
    assert shown.owner.startswith("payment-")
    assert shown.HasField("next_run_time")
    assert not shown.HasField("lease_expire_time")
    wrong = operator_pb.ResolvePaymentRequest.Paid(preimage="00" * 32)
    assert (await refused(resolve(mesh, payment_id, paid=wrong)))[1] == "PREIMAGE_MISMATCH"
    identifier = request_id()
    for replayed in (False, True):
        answer = await resolve(mesh, payment_id, paid=paid, request_id=identifier)
        assert answer.replayed is replayed
        assert (answer.payment.state, answer.payment.preimage) == (Payment.STATE_SUCCEEDED, "")
    payment = await mesh.payment(payment_id, full=True)
    assert sha256(bytes.fromhex(payment.preimage)).hexdigest() == payment.payment_hash
    assert "resolve_payment" in [step.step for step in payment.steps]
    assert (await mesh.account(payer)).available_msat == 1_000_000 - 100_700
    assert (await refused(resolve(mesh, payment_id, failed=True)))[1] == "PAYMENT_NOT_STUCK", "once and for all"
    assert mesh.query("SELECT operator, succeeded, reason FROM payment_resolution") == [
        (OPERATOR, 1, "asked the payee")
    ]

    async def signed() -> bool:
        return (await mesh.payment(payment_id)).HasField("receipt")

    await eventually(signed)
    mesh.check_books(1_000_000 - 100_700)


async def test_an_operator_gives_the_money_back_when_nothing_was_paid_for_certain(mesh: PaymentMesh) -> None:
    payer = await mesh.open_account(ALICE, 1_000_000)
    payment_id = await hanging(mesh, payer)
    await wait_long(mesh, payment_id)
    answer = await resolve(mesh, payment_id, failed=True)
    assert (answer.payment.state, answer.payment.failure_reason) == (
        Payment.STATE_FAILED,
        Payment.FAILURE_REASON_NODE_ERROR,
    )
    mesh.check_books(1_000_000)
    assert (await list_sagas(mesh)).sagas == []
    unknown = request_id()
    assert (await refused(resolve(mesh, unknown, failed=True)))[1] == "PAYMENT_NOT_FOUND"


async def test_a_payment_inside_the_mesh_is_nobodys_to_end(mesh: PaymentMesh) -> None:
    payer, payee = await mesh.open_account(ALICE, 10_000), await mesh.open_account(BOB)
    text = mesh.settlement.create(payee, 1_000, hold=True)
    payment_id = await begin(mesh, payer, text)

    async def waits() -> bool:
        return [saga.state for saga in (await list_sagas(mesh)).sagas] == [Saga.STATE_WAITING]

    await eventually(waits)
    (shown,) = (await list_sagas(mesh)).sagas
    assert (shown.step, shown.reason) == ("await_decision", "OWNER_DECIDES")
    await wait_long(mesh, payment_id)
    assert (await refused(resolve(mesh, payment_id, failed=True)))[1] == "PAYMENT_NOT_STUCK"
    mesh.settlement.decide(text, CANCELED)
    with contextlib.closing(apsw.Connection(str(mesh.folder / "data" / "payment.sqlite3"))) as connection:
        connection.set_busy_timeout(2_000)
        connection.execute("UPDATE saga SET next_run_at = 0 WHERE id = ?", (payment_id,))

    async def freed() -> bool:
        return (await mesh.payment(payment_id)).state == Payment.STATE_FAILED

    await eventually(freed, 8)
    mesh.check_books(10_000)


async def test_only_operators_see_and_end_them(mesh: PaymentMesh) -> None:
    for stub, method, request in (
        (SagaServiceStub, "ListSagas", saga_service_pb2.ListSagasRequest()),
        (
            PaymentOperatorServiceStub,
            "ResolvePayment",
            operator_pb.ResolvePaymentRequest(
                request_id=request_id(), payment_id=request_id(), failed=True, reason="x"
            ),
        ),
    ):
        assert (await refused(mesh.call(stub, method, request, ALICE)))[1] == "OPERATOR_REQUIRED"


async def test_what_is_in_progress_stuck_and_compensating_and_why_by_the_command(
    mesh: PaymentMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    payer = await mesh.open_account(ALICE, 1_000_000)
    stuck = await hanging(mesh, payer)
    await wait_long(mesh, stuck)
    mesh.settlement.faults = {"release": [grpc.StatusCode.UNAVAILABLE] * 500}
    undone = await begin(mesh, payer, mesh.settlement.create(payer, 1_000))

    async def undoing() -> bool:
        return mesh.query("SELECT step FROM saga WHERE id = ? AND attempt > 1", undone) == [("release_invoice",)]

    await eventually(undoing)
    replicas = [
        {"name": "payment-9", "listen": f"unix:{mesh.folder}/nobody.sock"},
        *({"name": replica.name, "listen": f"unix:{replica.socket}"} for replica in mesh.replicas),
    ]
    document = {"services": {"payment": {"replicas": replicas}}}
    monkeypatch.setattr(sagas_command, "call", lambda *_: document)

    def run(*arguments: str) -> Any:
        return CliRunner().invoke(main, ["-f", str(MANIFEST), "sagas", *arguments])

    result = await asyncio.to_thread(run, "--output", "json")
    assert result.exit_code == 0, result.output
    answer = json.loads(result.output)
    assert (answer["services"], answer["unanswered"]) == (["payment"], {})
    found = {saga["saga_id"]: saga for saga in answer["sagas"]}
    assert (found[stuck]["state"], found[stuck]["reason"]) == ("stuck", "NODE_PENDING")
    assert (found[undone]["state"], found[undone]["reason"]) == ("compensating", "UNAVAILABLE")
    assert found[undone]["attempt"] >= 1
    table = await asyncio.to_thread(run, "--state", "stuck")
    assert table.exit_code == 0
    assert stuck in table.output
    assert undone not in table.output
    document["services"]["payment"]["replicas"] = replicas[:1]
    silent = await asyncio.to_thread(run)
    assert silent.exit_code == 1
    assert "payment did not answer: payment-9: UNAVAILABLE" in silent.output
    mesh.settlement.faults.clear()
    await resolve(mesh, stuck, failed=True)

    async def over() -> bool:
        return mesh.query("SELECT count(*) FROM saga WHERE state <> 2") == [(0,)]

    await eventually(over, 10)
    mesh.check_books(1_000_000)


async def test_pages_of_sagas(mesh: PaymentMesh) -> None:
    payer = await mesh.open_account(ALICE, 10_000_000)
    begun = [await hanging(mesh, payer) for _ in range(5)]
    seen: list[str] = []
    token = ""
    for _ in range(3):
        page = await list_sagas(mesh, page_size=2, page_token=token)
        seen += [saga.saga_id for saga in page.sagas]
        token = page.next_page_token
    assert (seen, token) == (sorted(begun), "")
    for payment_id in begun:
        await mesh.rule((await mesh.payment(payment_id)).payment_hash, Behaviour.FAIL)

    async def over() -> bool:
        return mesh.query("SELECT count(*) FROM saga WHERE state <> 2") == [(0,)]

    await eventually(over, 15)
    mesh.check_books(10_000_000)


async def test_fees_are_estimated_inside_without_the_node_and_outside_by_it(mesh: PaymentMesh) -> None:
    payee = await mesh.open_account(BOB)

    async def estimate(text: str, **rest: Any) -> pb.EstimateFeeResponse:
        request = pb.EstimateFeeRequest(payment_request=text, **rest)
        return await mesh.call(PaymentServiceStub, "EstimateFee", request, ALICE)

    inside = await estimate(mesh.settlement.create(payee, None), amount_msat=5_000)
    assert (inside.internal, inside.amount_msat, inside.fee_msat, inside.fee_limit_msat) == (True, 5_000, 0, 0)
    outside = await estimate(payment_request(amount_msat=100_000))
    assert (outside.internal, outside.fee_msat, outside.fee_limit_msat) == (False, 1_100, 10_000)
    assert (await refused(estimate(payment_request(amount_msat=None))))[1] == "PAYMENT_AMOUNT_REQUIRED"
    assert (await refused(estimate(payment_request(amount_msat=1, create_time_s=1_000_000_000))))[
        1
    ] == "INVOICE_EXPIRED"
    assert (await refused(estimate(payment_request(amount_msat=1, currency="bc"))))[1] == "PAYMENT_REQUEST_INVALID"
    payer = await mesh.open_account(ALICE, 1_000_000)
    paid = (await mesh.pay(ALICE, payer, payment_request(amount_msat=100_000))).payment
    assert paid.fee_msat == outside.fee_msat, "what was estimated is what it cost"

"""Two-phase commit between the payment and the invoice database: crashes at each step, orphans, and what is refused at the start."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import psycopg
import pytest
import pytest_asyncio

from nipmesh.invoice.v1 import invoice_pb2, invoice_service_pb2
from nipmesh.invoice.v1.invoice_service_pb2_grpc import InvoiceSettlementServiceStub
from nipmesh.payment.v1 import payment_pb2
from nipmesh.payment.v1 import payment_service_pb2 as pb
from nipmesh.payment.v1.payment_service_pb2_grpc import PaymentServiceStub
from services.chassis.errors import Reason, reason_of
from services.chassis.testing import as_service, as_user
from services.payment.verification.command import main
from support.folders import short_folder
from support.payment_mesh import PaymentMesh, Process, eventually, payment_mesh, request_id
from support.postgresql import Server, running_server

pytestmark = pytest.mark.asyncio(loop_scope="module")
ALICE, BOB = "a1" * 32, "b0" * 32
Payment = payment_pb2.Payment
SETTLED, OPEN = invoice_pb2.Invoice.STATE_SETTLED, invoice_pb2.Invoice.STATE_OPEN
ON = {"NIPMESH_TWO_PHASE_COMMIT": "true"}
PAYMENT_STEPS = [
    "reserve_balance.done",
    "lock_invoice",
    "lock_invoice.done",
    "post_transfer",
    "post_transfer.done",
    "commit_invoice",
    "commit_invoice.done",
    "succeed",
    "succeed.done",
]
INVOICE_STEPS = [
    "lock",
    "lock.done",
    "prepare",
    "prepare.done",
    "commit",
    "commit_prepared",
    "commit_prepared.done",
    "commit.done",
]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """With room for prepared transactions."""
    with running_server(prepared_max=50) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh(server: Server) -> AsyncIterator[PaymentMesh]:
    """Payment and invoice, each with a database of its own."""
    urls = {"database_url": server.new_database(), "invoice_url": server.new_database()}
    with short_folder() as folder:
        async with payment_mesh(folder, real_invoices=True, **urls, **ON) as running:
            yield running


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def whole(mesh: PaymentMesh) -> None:
    """Everything runs."""
    if not mesh.invoice.alive:
        await mesh.invoice.start()
    await mesh.mend()


def invoices(mesh: PaymentMesh, sql: str, *values: object) -> list[tuple[object, ...]]:
    """Rows of the invoice database."""
    with psycopg.connect(mesh.invoice_url, autocommit=True) as connection:
        connection.execute("SET search_path = invoice")
        return connection.execute(sql.encode(), values).fetchall()


def prepared(mesh: PaymentMesh) -> list[str]:
    rows = invoices(mesh, "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()")
    return [str(gid) for (gid,) in rows]


def state(mesh: PaymentMesh, text: str) -> int:
    ((found,),) = invoices(mesh, "SELECT state FROM invoice WHERE payment_request = %s", text)
    return int(str(found))


def cancellation(mesh: PaymentMesh, text: str) -> invoice_service_pb2.CancelInvoiceRequest:
    ((invoice_id,),) = invoices(mesh, "SELECT invoice_id FROM invoice WHERE payment_request = %s", text)
    return invoice_service_pb2.CancelInvoiceRequest(request_id=request_id(), invoice_id=str(invoice_id))


def events(mesh: PaymentMesh, text: str) -> list[str]:
    sql = "SELECT kind FROM storage_event WHERE subject = (SELECT invoice_id FROM invoice WHERE payment_request = %s)"
    return [str(kind).rpartition(".")[2] for (kind,) in invoices(mesh, f"{sql} ORDER BY sequence", text)]


def decisions(mesh: PaymentMesh) -> list[tuple[str, int, bool]]:
    return mesh.query("SELECT payment_id, decision, finish_time_ms IS NOT NULL AS done FROM two_phase_decision")


async def finished(mesh: PaymentMesh, text: str) -> bool:
    """Nothing is prepared or untold, and the event of the settlement was told once."""
    return not prepared(mesh) and not invoices(mesh, "SELECT 1 FROM invoice_untold")


async def is_final(mesh: PaymentMesh, payment_id: str) -> bool:
    return (await mesh.payment(payment_id)).state in (Payment.STATE_SUCCEEDED, Payment.STATE_FAILED)


async def begin(mesh: PaymentMesh, payer: str, text: str) -> str:
    """Begin a payment without waiting for it; its id."""
    request = pb.PayInvoiceRequest(request_id=request_id(), account_id=payer, payment_request=text)
    request.wait_duration.FromMilliseconds(0)
    return str((await mesh.call(PaymentServiceStub, "PayInvoice", request, ALICE)).payment.payment_id)


async def check_paid(mesh: PaymentMesh, text: str, payee: str, before_msat: int) -> None:
    """The invoice is settled, told of once, and the money moved once."""
    await eventually(lambda: finished(mesh, text), 15)
    assert state(mesh, text) == SETTLED
    told = events(mesh, text)
    assert told.count(told[-1]) == 1
    assert len(told) == 3, told  # created, accepted, settled
    assert (await mesh.account(payee)).balance_msat == before_msat + 10_000


async def test_pays(mesh: PaymentMesh) -> None:
    payer, payee = await mesh.open_account(ALICE, 1_000_000), await mesh.open_account(BOB)
    text = await mesh.create_invoice(BOB, payee, 10_000)
    payment = (await mesh.pay(ALICE, payer, text)).payment
    assert payment.state == Payment.STATE_SUCCEEDED
    assert payment.preimage
    await check_paid(mesh, text, payee, 0)
    assert (payment.payment_id, 1, True) in decisions(mesh)
    mesh.check_books(1_000_000)


async def test_refuses_what_the_saga_refuses(mesh: PaymentMesh) -> None:
    payer, payee = await mesh.open_account(ALICE, 1_000_000), await mesh.open_account(BOB)
    own = await mesh.create_invoice(ALICE, payer, 10_000)
    payment = (await mesh.pay(ALICE, payer, own)).payment
    assert payment.failure_reason == Payment.FAILURE_REASON_SAME_ACCOUNT
    assert state(mesh, own) == OPEN
    text = await mesh.create_invoice(BOB, payee, 10_000)
    await mesh.call_invoices("CancelInvoice", cancellation(mesh, text), BOB)
    payment = (await mesh.pay(ALICE, payer, text)).payment
    assert payment.state == Payment.STATE_FAILED
    assert not prepared(mesh)
    mesh.check_books(1_000_000)


@pytest.mark.timeout(300)
async def test_payment_dies_at_each_step(mesh: PaymentMesh) -> None:
    payer, payee = await mesh.open_account(ALICE, 1_000_000), await mesh.open_account(BOB)
    for number, failpoint in enumerate(PAYMENT_STEPS):
        await mesh.replicas[0].end()
        await mesh.replicas[0].start(NIPMESH_FAILPOINT=failpoint)
        text = await mesh.create_invoice(BOB, payee, 10_000)
        request = pb.PayInvoiceRequest(request_id=request_id(), account_id=payer, payment_request=text)
        stub = PaymentServiceStub(mesh.channel(0))
        with contextlib.suppress(grpc.aio.AioRpcError):
            await stub.PayInvoice(request, metadata=as_user(ALICE), timeout=10, wait_for_ready=True)
        assert mesh.replicas[0].process is not None
        await asyncio.wait_for(mesh.replicas[0].process.wait(), 10)
        answer = await mesh.call(PaymentServiceStub, "PayInvoice", request, ALICE)
        assert answer.payment.state == Payment.STATE_SUCCEEDED, failpoint
        await check_paid(mesh, text, payee, 10_000 * number)
        mesh.check_books(1_000_000)


@pytest.mark.timeout(300)
async def test_invoice_dies_at_each_step(mesh: PaymentMesh) -> None:
    payer, payee = await mesh.open_account(ALICE, 1_000_000), await mesh.open_account(BOB)
    for number, failpoint in enumerate(INVOICE_STEPS):
        await mesh.invoice.end()
        await mesh.invoice.start(NIPMESH_FAILPOINT=failpoint)
        text = await mesh.create_invoice(BOB, payee, 10_000)
        payment_id = await begin(mesh, payer, text)
        assert mesh.invoice.process is not None
        await asyncio.wait_for(mesh.invoice.process.wait(), 10)
        await mesh.invoice.start()
        await eventually(lambda payment_id=payment_id: is_final(mesh, payment_id), 20)
        assert (await mesh.payment(payment_id)).state == Payment.STATE_SUCCEEDED, failpoint
        await check_paid(mesh, text, payee, 10_000 * number)
        mesh.check_books(1_000_000)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("failpoint", ["rollback_prepared", "rollback_prepared.done", "release.done"])
async def test_invoice_dies_while_it_is_undone(mesh: PaymentMesh, failpoint: str) -> None:
    payer = await mesh.open_account(ALICE, 1_000_000)
    await mesh.invoice.end()
    await mesh.invoice.start(NIPMESH_FAILPOINT=failpoint)
    own = await mesh.create_invoice(ALICE, payer, 10_000)
    payment_id = await begin(mesh, payer, own)
    assert mesh.invoice.process is not None
    await asyncio.wait_for(mesh.invoice.process.wait(), 10)
    await mesh.invoice.start()
    await eventually(lambda: is_final(mesh, payment_id), 20)
    assert (await mesh.payment(payment_id)).failure_reason == Payment.FAILURE_REASON_SAME_ACCOUNT
    assert state(mesh, own) == OPEN
    assert not prepared(mesh)
    mesh.check_books(1_000_000)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("failpoint", ["prepare.done", "post_transfer.done", "commit_prepared.done"])
async def test_the_server_dies_with_who_got_there(mesh: PaymentMesh, server: Server, failpoint: str) -> None:
    """The service dies at the step, and PostgreSQL with it: what was prepared is there again."""
    payer, payee = await mesh.open_account(ALICE, 1_000_000), await mesh.open_account(BOB)
    in_payment = failpoint == "post_transfer.done"
    for replica in mesh.replicas[int(not in_payment) :]:
        await replica.end()
    dying: Process = mesh.replicas[0] if in_payment else mesh.invoice
    await dying.end()
    await dying.start(NIPMESH_FAILPOINT=failpoint)
    text = await mesh.create_invoice(BOB, payee, 10_000)
    payment_id = await begin(mesh, payer, text)
    assert dying.process is not None
    await asyncio.wait_for(dying.process.wait(), 10)
    server.kill()
    server.start()
    assert failpoint.startswith("commit") or len(prepared(mesh)) == 1
    await dying.start()
    await eventually(lambda: is_final(mesh, payment_id), 30)
    assert (await mesh.payment(payment_id)).state == Payment.STATE_SUCCEEDED
    await check_paid(mesh, text, payee, 0)
    mesh.check_books(1_000_000)


async def prepare(mesh: PaymentMesh, text: str, payment_id: str) -> invoice_service_pb2.LockInvoiceResponse:
    """As the payment service does."""
    request = invoice_service_pb2.LockInvoiceRequest(
        payment_id=payment_id, payment_request=text, amount_msat=10_000, actor_pubkey=ALICE, prepare=True
    )
    async with grpc.aio.insecure_channel(f"unix:{mesh.invoice.socket}") as channel:
        stub = InvoiceSettlementServiceStub(channel)
        answer: invoice_service_pb2.LockInvoiceResponse = await stub.LockInvoice(
            request, metadata=as_service("payment"), timeout=5
        )
        return answer


async def test_what_is_prepared_is_refused_at_once_and_an_orphan_is_rolled_back(mesh: PaymentMesh) -> None:
    payee, orphan = await mesh.open_account(BOB), str(uuid.uuid4())
    text = await mesh.create_invoice(BOB, payee, 10_000)
    assert (await prepare(mesh, text, orphan)).prepared
    assert (await prepare(mesh, text, orphan)).prepared, "repeated: the same answer"
    assert prepared(mesh) == [f"nipmesh/invoice/{orphan}"]
    start_s = time.monotonic()
    for call in (
        lambda: prepare(mesh, text, str(uuid.uuid4())),
        lambda: mesh.call_invoices("CancelInvoice", cancellation(mesh, text), BOB),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call()
        assert reason_of(caught.value) == Reason.INVOICE_LOCKED
    await mesh.create_invoice(BOB, payee, 10_000)  # the writer does not wait for the row
    assert time.monotonic() - start_s < 4, "lock_timeout is 5 s"

    async def swept() -> bool:
        return not prepared(mesh) and state(mesh, text) == OPEN

    await eventually(swept, 20)
    assert (orphan, 2, False) in decisions(mesh)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await prepare(mesh, text, orphan)
    assert reason_of(caught.value) == Reason.INVOICE_NOT_LOCKED


@pytest.mark.timeout(120)
async def test_an_orphan_whose_payment_decided_is_committed_without_it(mesh: PaymentMesh) -> None:
    """No driver is left to say so: the sweeper asks, and the payment finds its invoice settled."""
    payer, payee = await mesh.open_account(ALICE, 1_000_000), await mesh.open_account(BOB)
    await mesh.replicas[1].end()
    await mesh.replicas[0].end()
    await mesh.replicas[0].start(NIPMESH_FAILPOINT="post_transfer.done")
    text = await mesh.create_invoice(BOB, payee, 10_000)
    payment_id = await begin(mesh, payer, text)
    assert mesh.replicas[0].process is not None
    await asyncio.wait_for(mesh.replicas[0].process.wait(), 10)
    assert prepared(mesh) == [f"nipmesh/invoice/{payment_id}"]
    with psycopg.connect(mesh.database_url, autocommit=True) as connection:  # nobody goes on with the saga
        far = time.time_ns() // 1_000_000 + 3_600_000
        connection.execute("UPDATE payment.saga SET lease_until = %s WHERE id = %s", (far, payment_id))
    await mesh.replicas[1].start()
    await eventually(lambda: finished(mesh, text), 20)
    assert state(mesh, text) == SETTLED
    with psycopg.connect(mesh.database_url, autocommit=True) as connection:
        connection.execute("UPDATE payment.saga SET lease_until = 0 WHERE id = %s", (payment_id,))
    await eventually(lambda: is_final(mesh, payment_id), 20)
    await check_paid(mesh, text, payee, 0)
    mesh.check_books(1_000_000)


async def test_a_hold_invoice_is_paid_by_the_saga_alone(mesh: PaymentMesh) -> None:
    payer, payee = await mesh.open_account(ALICE, 1_000_000), await mesh.open_account(BOB)
    text = await mesh.create_invoice(BOB, payee, 10_000, hold=True)
    payment_id = await begin(mesh, payer, text)

    async def waits() -> bool:
        return mesh.query("SELECT step FROM saga WHERE id = ?", payment_id) == [("await_decision",)]

    await eventually(waits)
    assert not prepared(mesh)
    await mesh.call_invoices("CancelInvoice", cancellation(mesh, text), BOB)
    await eventually(lambda: is_final(mesh, payment_id))
    assert payment_id not in [row[0] for row in decisions(mesh)]
    mesh.check_books(1_000_000)


async def test_a_row_that_somebody_locks_is_refused_at_once(mesh: PaymentMesh) -> None:
    """As a prepared transaction would that another replica makes in just this moment: the writer does not wait for it."""
    payee, payment_id = await mesh.open_account(BOB), str(uuid.uuid4())
    text = await mesh.create_invoice(BOB, payee, 10_000)
    await prepare(mesh, text, payment_id)
    with psycopg.connect(mesh.invoice_url, autocommit=True) as connection:
        connection.execute(f"ROLLBACK PREPARED 'nipmesh/invoice/{payment_id}'".encode())
        with connection.transaction():
            connection.execute("SELECT 1 FROM invoice.invoice WHERE payment_request = %s FOR UPDATE", (text,))
            start_s = time.monotonic()
            for method in ("ReleaseInvoice", "CommitInvoice"):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await settle(mesh, method, payment_id)
                assert reason_of(caught.value) == Reason.INVOICE_LOCKED
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await prepare(mesh, text, payment_id)
            assert reason_of(caught.value) == Reason.BACKEND_UNAVAILABLE
            assert time.monotonic() - start_s < 4, "lock_timeout is 5 s"
    await settle(mesh, "ReleaseInvoice", payment_id)
    assert state(mesh, text) == OPEN


async def settle(mesh: PaymentMesh, method: str, payment_id: str) -> None:
    """CommitInvoice or ReleaseInvoice, as the payment service calls."""
    request = getattr(invoice_service_pb2, f"{method}Request")(payment_id=payment_id)
    async with grpc.aio.insecure_channel(f"unix:{mesh.invoice.socket}") as channel:
        stub = InvoiceSettlementServiceStub(channel)
        await getattr(stub, method)(request, metadata=as_service("payment"), timeout=5)


async def test_a_settlement_that_an_operator_rolled_back_is_made_by_the_saga(mesh: PaymentMesh) -> None:
    """So is one that a restored database does not have: the lock below it is enough."""
    payer, payee = await mesh.open_account(ALICE, 1_000_000), await mesh.open_account(BOB)
    await mesh.replicas[1].end()
    await mesh.replicas[0].end()
    await mesh.replicas[0].start(NIPMESH_FAILPOINT="post_transfer.done")
    text = await mesh.create_invoice(BOB, payee, 10_000)
    payment_id = await begin(mesh, payer, text)
    assert mesh.replicas[0].process is not None
    await asyncio.wait_for(mesh.replicas[0].process.wait(), 10)
    invoices_database = psycopg.connect(mesh.invoice_url, autocommit=True)
    with contextlib.closing(invoices_database):
        invoices_database.execute(f"ROLLBACK PREPARED 'nipmesh/invoice/{payment_id}'".encode())
    await mesh.replicas[1].start()
    await eventually(lambda: is_final(mesh, payment_id), 20)
    await check_paid(mesh, text, payee, 0)
    mesh.check_books(1_000_000)


async def test_where_only_the_payment_service_has_it_on_the_saga_pays(mesh: PaymentMesh) -> None:
    payer, payee = await mesh.open_account(ALICE, 1_000_000), await mesh.open_account(BOB)
    await mesh.invoice.end()
    await mesh.invoice.start(NIPMESH_TWO_PHASE_COMMIT="false")
    text = await mesh.create_invoice(BOB, payee, 10_000)
    assert (await mesh.pay(ALICE, payer, text)).payment.state == Payment.STATE_SUCCEEDED
    assert not (await prepare(mesh, await mesh.create_invoice(BOB, payee, 10_000), str(uuid.uuid4()))).prepared
    await mesh.invoice.end()
    await check_paid(mesh, text, payee, 0)
    mesh.check_books(1_000_000)


@pytest.mark.parametrize("service", ["payment", "invoice"])
async def test_on_files_it_does_not_start(mesh: PaymentMesh, tmp_path: Path, service: str) -> None:
    files = {"NIPMESH_DATA_DIRECTORY": str(tmp_path), "NIPMESH_EGRESS": f"unix:{tmp_path}/egress.sock"}
    key = {"INVOICE_NODE_KEY_FILE": str(mesh.folder / "node.key")}
    process = Process(f"services.{service}", f"{service}-on-files", mesh.folder, {**files, **key, **ON})
    with pytest.raises(AssertionError, match="NIPMESH_TWO_PHASE_COMMIT needs PostgreSQL"):
        await process.start()
    assert process.process is not None
    assert process.process.returncode != 0


async def test_many_at_once(mesh: PaymentMesh) -> None:
    payer, payee = await mesh.open_account(ALICE, 1_000_000), await mesh.open_account(BOB)
    texts = [await mesh.create_invoice(BOB, payee, 1_000) for _ in range(60)]
    answers = await asyncio.gather(*(mesh.pay(ALICE, payer, text) for text in texts))
    assert {answer.payment.state for answer in answers} == {Payment.STATE_SUCCEEDED}
    assert (await mesh.account(payee)).balance_msat == 60_000
    await eventually(lambda: finished(mesh, texts[0]))
    mesh.check_books(1_000_000)


async def test_the_books_verify(mesh: PaymentMesh) -> None:
    """After all the deaths of this module."""
    assert await asyncio.to_thread(main, ["--database", mesh.database_url]) == 0

"""kill -9 of each process at every numbered step, two replicas of each service alive: final or honestly in flight, once, nothing lost.

A flow names the steps that it passes. Each step is a case: the order to kill is given to the running services, the flow is run under
one request_id, the victim is started again, and within 5 s of that the outcome must be final and the books in order. `make test`
runs a sample, `make kills` all of them.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import pytest_asyncio

from nipmesh.invoice.v1 import invoice_service_pb2 as invoice_pb
from nipmesh.invoice.v1 import simulated_network_service_pb2 as simulated_pb
from nipmesh.invoice.v1.invoice_service_pb2_grpc import InvoiceServiceStub
from nipmesh.invoice.v1.simulated_network_service_pb2_grpc import SimulatedNetworkServiceStub
from nipmesh.payment.v1 import payment_pb2
from nipmesh.payment.v1 import payment_service_pb2 as pb
from nipmesh.payment.v1.payment_service_pb2_grpc import AccountServiceStub, LedgerServiceStub, PaymentServiceStub
from support.cluster import Cluster, running_cluster
from support.folders import short_folder
from support.payment_mesh import OPERATOR, Process, request_id
from support.postgresql import Server
from support.settlement import payment_request

from .bank import check_snapshot

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]
ALICE, BOB = "a1" * 32, "b0" * 32
START_MSAT = 1_000_000
AMOUNT_MSAT = 10_000
SECONDS_MAX = 5.0
"""After everybody is back; on a machine that is slow just then, longer by what the flow takes undisturbed."""
SAMPLE = int(os.environ.get("NIPMESH_KILLS_SAMPLE", "12"))
"""How many cases a run has; 0 is all."""
Payment = payment_pb2.Payment


@dataclass(slots=True)
class Bench:
    """A cluster, the file with its orders, and the accounts that pay and are paid."""

    cluster: Cluster
    payer: str = ""
    payee: str = ""
    undisturbed_s: dict[str, float] = field(default_factory=dict)
    """How long each flow took here when nobody died."""

    async def seconds_max(self, flow: Flow) -> float:
        """How long a flow may go on after the restart."""
        if flow.name not in self.undisturbed_s:
            start_s = time.monotonic()
            await flow.run(self)
            self.undisturbed_s[flow.name] = time.monotonic() - start_s
        return SECONDS_MAX + 5 * self.undisturbed_s[flow.name]

    async def open(self, owner: str, amount_msat: int) -> str:
        """A new account with money."""
        created = await self.cluster.call(
            AccountServiceStub, "CreateAccount", pb.CreateAccountRequest(request_id=request_id()), owner
        )
        account = str(created.account.account_id)
        if amount_msat:
            deposit = pb.DepositRequest(request_id=request_id(), account_id=account, amount_msat=amount_msat)
            await self.cluster.call(LedgerServiceStub, "Deposit", deposit, OPERATOR, role="operator")
        return account

    async def account(self, account: str) -> payment_pb2.Account:
        """As the operator sees it."""
        request = pb.GetAccountRequest(account_id=account)
        found = await self.cluster.call(AccountServiceStub, "GetAccount", request, OPERATOR, role="operator")
        return found.account

    async def invoice(self, **terms: Any) -> Any:
        """A new invoice of the payee."""
        request = invoice_pb.CreateInvoiceRequest(
            request_id=request_id(), account_id=self.payee, amount_msat=AMOUNT_MSAT, **terms
        )
        return (await self.cluster.call(InvoiceServiceStub, "CreateInvoice", request, BOB)).invoice

    async def until_accepted(self, invoice_id: str) -> None:
        """Wait until the money of a hold invoice is there and its owner may decide."""
        request = invoice_pb.GetInvoiceRequest(invoice_id=invoice_id)
        async with asyncio.timeout(30):
            while True:
                found = await self.cluster.call(InvoiceServiceStub, "GetInvoice", request, BOB)
                if found.invoice.HasField("settle_deadline_time"):
                    return
                await asyncio.sleep(0.05)

    async def pay(self, payer: str, text: str, identifier: str, *, wait: bool = True) -> payment_pb2.Payment:
        """The payment once it is final, by asking again and again under one request_id; or as soon as it is recorded."""
        request = pb.PayInvoiceRequest(request_id=identifier, account_id=payer, payment_request=text)
        if not wait:
            request.wait_duration.FromSeconds(0)
        owner = ALICE if payer == self.payer else BOB
        answer = await self.cluster.call(PaymentServiceStub, "PayInvoice", request, owner, timeout=10)
        return answer.payment

    async def until_final(self, payer: str, text: str, identifier: str) -> payment_pb2.Payment:
        """The payment once it is final; asked with the very request that recorded it."""
        async with asyncio.timeout(30):
            while True:
                payment = await self.pay(payer, text, identifier, wait=False)
                if payment.state not in (Payment.STATE_RESERVED, Payment.STATE_IN_FLIGHT):
                    return payment
                await asyncio.sleep(0.05)

    async def check_books(self) -> None:
        """Every snapshot is in order."""
        request = pb.ListAccountsRequest(page_size=1_000)
        listed = await self.cluster.call(AccountServiceStub, "ListAccounts", request, OPERATOR, role="operator")
        check_snapshot(listed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """What is done, and the steps that it passes."""

    name: str
    run: Callable[[Bench], Awaitable[None]]
    steps: tuple[str, ...]


def both(*names: str) -> tuple[str, ...]:
    """Before and after each of these steps."""
    return tuple(point for name in names for point in (name, f"{name}.done"))


async def inside(bench: Bench) -> None:
    """A payment between two customers."""
    before, invoice, identifier = await bench.account(bench.payee), await bench.invoice(), request_id()
    payment = await bench.pay(bench.payer, invoice.payment_request, identifier)
    assert payment.state == Payment.STATE_SUCCEEDED, payment
    assert payment.internal
    again = await bench.pay(bench.payer, invoice.payment_request, identifier)
    assert again.payment_id == payment.payment_id
    after = await bench.account(bench.payee)
    assert after.balance_msat == before.balance_msat + AMOUNT_MSAT


async def outside(bench: Bench) -> None:
    """A payment through the node."""
    before, text, identifier = await bench.account(bench.payer), payment_request(amount_msat=AMOUNT_MSAT), request_id()
    payment = await bench.pay(bench.payer, text, identifier)
    assert payment.state == Payment.STATE_SUCCEEDED, payment
    assert not payment.internal
    after = await bench.account(bench.payer)
    assert after.balance_msat == before.balance_msat - AMOUNT_MSAT - payment.fee_msat
    assert after.debits_pending_msat == 0


async def undone(bench: Bench) -> None:
    """A payment that is locked and then released: who pays is who would be paid."""
    before, invoice = await bench.account(bench.payee), await bench.invoice()
    payment = await bench.pay(bench.payee, invoice.payment_request, request_id())
    assert payment.failure_reason == Payment.FAILURE_REASON_SAME_ACCOUNT, payment
    after = await bench.account(bench.payee)
    assert (after.balance_msat, after.debits_pending_msat) == (before.balance_msat, 0)
    paid = await bench.pay(bench.payer, invoice.payment_request, request_id())
    assert paid.state == Payment.STATE_SUCCEEDED, "a released invoice is open again"


async def decided(bench: Bench, *, settles: bool) -> None:
    """A payment of a hold invoice, and its owner's word."""
    before, identifier = await bench.account(bench.payee), request_id()
    invoice = await bench.invoice(hold=invoice_pb.HoldTerms())
    await bench.pay(bench.payer, invoice.payment_request, identifier, wait=False)
    kind = invoice_pb.SettleInvoiceRequest if settles else invoice_pb.CancelInvoiceRequest
    decision, method = (
        kind(request_id=request_id(), invoice_id=invoice.invoice_id),
        kind.__name__.removesuffix("Request"),
    )
    await bench.until_accepted(invoice.invoice_id)
    await bench.cluster.call(InvoiceServiceStub, method, decision, BOB)
    payment = await bench.until_final(bench.payer, invoice.payment_request, identifier)
    after = await bench.account(bench.payee)
    if settles:
        assert payment.state == Payment.STATE_SUCCEEDED, payment
        assert after.balance_msat == before.balance_msat + AMOUNT_MSAT
    else:
        assert payment.failure_reason == Payment.FAILURE_REASON_INVOICE_CANCELED, payment
        assert after.balance_msat == before.balance_msat


async def received(bench: Bench, *, hold: bool) -> None:
    """Somebody outside pays; a hold invoice's owner gives the money back."""
    before = await bench.account(bench.payee)
    invoice = await bench.invoice(**({"hold": invoice_pb.HoldTerms()} if hold else {}))
    request = simulated_pb.PayInvoiceRequest(payment_request=invoice.payment_request)
    await bench.cluster.call(SimulatedNetworkServiceStub, "PayInvoice", request, OPERATOR, role="operator")
    if hold:
        await bench.until_accepted(invoice.invoice_id)
        decision = invoice_pb.CancelInvoiceRequest(request_id=request_id(), invoice_id=invoice.invoice_id)
        await bench.cluster.call(InvoiceServiceStub, "CancelInvoice", decision, BOB)
    amount_msat = 0 if hold else AMOUNT_MSAT
    async with asyncio.timeout(30):
        while True:
            after = await bench.account(bench.payee)
            if after.balance_msat == before.balance_msat + amount_msat and not after.credits_pending_msat:
                return
            await asyncio.sleep(0.05)


async def refunded(bench: Bench) -> None:
    """A part of a payment, given back."""
    payment = await bench.pay(bench.payer, (await bench.invoice()).payment_request, request_id())
    before = await bench.account(bench.payer)
    request = pb.RefundPaymentRequest(request_id=request_id(), payment_id=payment.payment_id, amount_msat=4_000)
    answers = [await bench.cluster.call(PaymentServiceStub, "RefundPayment", request, BOB) for _ in range(2)]
    assert answers[0].transfer.transfer_id == answers[1].transfer.transfer_id
    assert (await bench.account(bench.payer)).balance_msat == before.balance_msat + 4_000


FLOWS = (
    Flow(
        name="inside",
        run=inside,
        steps=(
            "reserve_balance.done",
            *both(
                "lock_invoice",
                "lock",
                "lock_at_node",
                "post_transfer",
                "commit_invoice",
                "commit",
                "sign_receipt",
                "succeed",
            ),
        ),
    ),
    Flow(
        name="outside",
        run=outside,
        steps=(
            "reserve_balance.done",
            *both("lock_invoice", "dispatch", "process_payment", "settle", "sign_receipt", "save_receipt"),
        ),
    ),
    Flow(name="undone", run=undone, steps=both("remember", "release_invoice", "release", "fail")),
    Flow(
        name="hold settled",
        run=partial(decided, settles=True),
        steps=both(
            "lock_invoice", "hold_for_payee", "commit_invoice", "decide", "get_hold", "post_held", "sign_receipt"
        ),
    ),
    Flow(
        name="hold canceled",
        run=partial(decided, settles=False),
        steps=both("hold_for_payee", "decide", "get_hold", "fail"),
    ),
    Flow(
        name="received",
        run=partial(received, hold=False),
        steps=both("arrive", "hold_credit", "settle_at_node", "post_credit"),
    ),
    Flow(
        name="given back",
        run=partial(received, hold=True),
        steps=both("arrive", "hold_credit", "cancel_at_node", "void_credit"),
    ),
    Flow(name="refunded", run=refunded, steps=both("refund")),
)
VICTIMS = ("itself", "payment", "invoice", "nip", "everything", "postgresql")
"""Who dies: the process that gets to the step, a replica of a service, all processes at once, or the database's server."""


def cases() -> list[Any]:
    """Every step of every flow with every victim, or a sample that is the same in each run."""
    found = [(flow, step, victim) for flow in FLOWS for step in flow.steps for victim in VICTIMS]
    chosen = random.Random(4).sample(found, SAMPLE) if SAMPLE else found
    return [pytest.param(*case, id=f"{case[0].name}, {case[1]}, {case[2]}") for case in chosen]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(engine: Server | None) -> AsyncIterator[Bench]:
    with short_folder() as folder:
        async with running_cluster(folder, engine, NIPMESH_FAILPOINT=f"@{folder}/order") as cluster:
            running = Bench(cluster)
            running.payer, running.payee = (
                await running.open(ALICE, START_MSAT * 100),
                await running.open(BOB, START_MSAT),
            )
            yield running
            await cluster.verify()


@pytest.mark.parametrize(("flow", "step", "victim"), cases())
async def test_a_kill_at_a_step(bench: Bench, flow: Flow, step: str, victim: str) -> None:
    if victim == "postgresql" and bench.cluster.server is None:
        victim = "everything"
    seconds_max = await bench.seconds_max(flow)
    killing = Killing(bench.cluster, victim)
    killing.arm(step)
    running = asyncio.create_task(flow.run(bench))
    try:
        await killing.until_dead(running)
        await killing.restart()
        started_s = time.monotonic()
        await asyncio.wait_for(running, 60)
        assert time.monotonic() - started_s < seconds_max, "it is not over in time after the restart"
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await killing.mend()
    await bench.check_books()


class Killing:
    """One order to kill, from giving it to bringing everything back."""

    def __init__(self, cluster: Cluster, victim: str) -> None:
        self._cluster = cluster
        self._order = cluster.folder / "order"
        self._server = cluster.server if victim == "postgresql" else None
        self._server_processes = self._server.processes() if self._server is not None else ()
        services = {"itself": (), "postgresql": (), "everything": ("invoice", "nip", "payment")}.get(victim, (victim,))
        found = [process for service in services for process in cluster.processes[service]]
        self._victims = found if victim == "everything" else found[:1]

    def arm(self, step: str) -> None:
        """Give the order; it is there whole or not at all."""
        pids = self._server_processes or tuple(pid_of(process) for process in self._victims)
        new = self._order.with_suffix(".new")
        new.write_text(f"{step} {pids[0]}" if pids else step)
        new.rename(self._order)

    async def until_dead(self, running: asyncio.Task[None]) -> None:
        """Wait until the order was carried out; the flow may not end before."""
        async with asyncio.timeout(30):
            while self._order.exists():
                assert not running.done(), f"the step was never reached: {running}"
                await asyncio.sleep(0.005)
        for process in self._victims:
            await process.end()
        if self._server is not None:
            await asyncio.to_thread(self._server.bury, self._server_processes)

    async def restart(self) -> None:
        """Bring back whoever died."""
        if self._server is not None:
            await asyncio.to_thread(self._server.start)
        await asyncio.sleep(0.05)  # the process that killed itself is on its way
        await asyncio.gather(*(process.start() for process in self._cluster.all() if not process.alive))

    async def mend(self) -> None:
        """Whatever happened: no order, and everything runs."""
        self._order.unlink(missing_ok=True)
        await self.restart()


def pid_of(process: Process) -> int:
    """Of a living process."""
    assert process.process is not None
    return process.process.pid

"""Paid from outside, through the simulated node: the credit is reserved before the money is taken, and everything else goes back."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import uuid
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from nipmesh.invoice.v1 import invoice_pb2
from nipmesh.invoice.v1 import invoice_service_pb2 as pb
from nipmesh.invoice.v1 import simulated_network_service_pb2 as outside_pb
from nipmesh.payment.v1 import payment_pb2
from services.chassis.errors import unavailable
from services.chassis.testing import as_user
from services.invoice.settings import InvoiceSettings
from services.lightning.node import Received, ReceivedState
from services.lightning.settings import open_receiving_node
from services.lightning.simulated import SimulatedReceivingNode
from support.credits import HELD, POSTED, VOIDED

ALICE = "aa" * 32
AS_ALICE, AS_OPERATOR = as_user(ALICE), as_user("0f" * 32, role="operator")
State = invoice_pb2.Invoice
HOLD = pb.HoldTerms()
NOT_PAYABLE = ("FAILED_PRECONDITION", "INVOICE_NOT_PAYABLE")


def _id() -> str:
    return str(uuid.uuid4())


@pytest.fixture
async def node(secrets_of_invoice: dict[str, Any]) -> AsyncIterator[SimulatedReceivingNode]:
    """The node of the replicas, seen by somebody else."""
    settings = InvoiceSettings(**secrets_of_invoice)
    node = await open_receiving_node(settings, settings.node_key_file)
    assert isinstance(node, SimulatedReceivingNode)
    yield node
    await node.close()


async def _at_node(node: SimulatedReceivingNode, payment_hash: str, state: ReceivedState) -> Received:
    """What the node says of an invoice once it is in this state."""
    async with asyncio.timeout(30):
        while True:
            received = await node.lookup(payment_hash)
            if received is not None and received.state is state:
                return received
            await asyncio.sleep(0.02)


async def _held(replica: Any, **changes: Any) -> Any:
    """A hold invoice whose money from outside waits for its owner."""
    invoice = await replica.create(**{"hold": HOLD} | changes)
    await replica.pay_outside(invoice.payment_request)
    async with asyncio.timeout(30):
        while not (found := await replica.get(invoice.invoice_id)).HasField("accept_time"):
            await asyncio.sleep(0.02)
    return found


async def test_an_invoice_paid_from_outside_credits_the_account(replicas: Any, node: Any) -> None:
    one, other = replicas
    invoice = await one.create()
    assert (await other.pay_outside(invoice.payment_request)).amount_msat == 1_000
    paid = await one.until(invoice.invoice_id, "SETTLED")
    assert (paid.payer, paid.amount_paid_msat, paid.amount_held_msat) == (State.PAYER_OUTSIDE, 1_000, 0)
    assert hashlib.sha256(bytes.fromhex(paid.preimage)).hexdigest() == invoice.payment_hash
    assert (await node.lookup(invoice.payment_hash)).state is ReceivedState.SETTLED
    assert one.accounts.credits.credits == {invoice.invoice_id: POSTED}
    assert one.accounts.credits.balance_msat() == 1_000


async def test_the_payer_chooses_where_the_invoice_does_not(replica: Any, refused: Any) -> None:
    invoice = await replica.create(any_amount=True)
    amount = replica.pay_outside(invoice.payment_request)
    assert await refused(amount) == ("INVALID_ARGUMENT", "PAYMENT_AMOUNT_REQUIRED")
    await replica.pay_outside(invoice.payment_request, 77)
    assert (await replica.until(invoice.invoice_id, "SETTLED")).amount_paid_msat == 77


async def test_the_owner_of_a_hold_invoice_settles_what_the_node_holds(replicas: Any, node: Any) -> None:
    one, other = replicas
    held = await _held(one)
    assert (held.state, held.amount_held_msat, held.payer) == (State.STATE_ACCEPTED, 1_000, State.PAYER_OUTSIDE)
    assert one.accounts.credits.credits == {held.invoice_id: HELD}
    assert (await node.lookup(held.payment_hash)).state is ReceivedState.ACCEPTED
    settled = (await other.settle(held.invoice_id)).invoice
    assert (settled.state, settled.amount_paid_msat) == (State.STATE_SETTLED, 1_000)
    assert one.accounts.credits.credits == {held.invoice_id: POSTED}
    assert (await node.lookup(held.payment_hash)).state is ReceivedState.SETTLED


async def test_a_preimage_that_only_the_owner_knows_takes_the_money(replica: Any, node: Any, refused: Any) -> None:
    preimage = secrets.token_bytes(32)
    terms = pb.HoldTerms(payment_hash=hashlib.sha256(preimage).hexdigest())
    held = await _held(replica, hold=terms)
    assert await refused(replica.settle(held.invoice_id)) == ("INVALID_ARGUMENT", "REQUEST_INVALID")
    settled = (await replica.settle(held.invoice_id, preimage=preimage.hex())).invoice
    assert settled.preimage == preimage.hex()
    assert (await node.lookup(held.payment_hash)).state is ReceivedState.SETTLED


async def test_the_owner_of_a_hold_invoice_gives_back_what_the_node_holds(replica: Any, node: Any) -> None:
    held = await _held(replica)
    assert (await replica.cancel(held.invoice_id)).invoice.state == State.STATE_CANCELED
    assert (await node.lookup(held.payment_hash)).state is ReceivedState.CANCELED
    assert replica.accounts.credits.credits == {held.invoice_id: VOIDED}


async def test_what_nobody_decides_goes_back_at_the_deadline_and_is_never_called_expired(
    replica: Any, node: Any
) -> None:
    terms = pb.HoldTerms(settle_duration=Duration(seconds=2))
    held = await _held(replica, hold=terms, expiry_duration=Duration(seconds=60))
    canceled = await replica.until(held.invoice_id, "CANCELED")
    assert canceled.update_time.ToMilliseconds() >= held.settle_deadline_time.ToMilliseconds()
    assert (await node.lookup(held.payment_hash)).state is ReceivedState.CANCELED
    assert replica.accounts.credits.credits == {held.invoice_id: VOIDED}


async def test_an_account_that_cannot_be_credited_sends_the_money_back(replica: Any, node: Any) -> None:
    account_id = replica.accounts.open(ALICE)
    invoice = await replica.create(account_id=account_id)
    replica.accounts.accounts[account_id].state = payment_pb2.Account.STATE_CLOSED
    await replica.pay_outside(invoice.payment_request)
    assert (await replica.until(invoice.invoice_id, "CANCELED")).amount_paid_msat == 0
    assert (await node.lookup(invoice.payment_hash)).state is ReceivedState.CANCELED
    assert replica.accounts.credits.balance_msat() == 0


async def test_what_a_payment_inside_holds_nobody_outside_can_pay(replica: Any, node: Any, refused: Any) -> None:
    invoice, payment_id = await replica.create(), _id()
    await replica.lock(invoice.payment_request, payment_id)
    assert (await node.lookup(invoice.payment_hash)).state is ReceivedState.CANCELED, "before the lock is answered"
    assert await refused(replica.pay_outside(invoice.payment_request)) == NOT_PAYABLE
    await replica.commit(payment_id)
    assert (await replica.get(invoice.invoice_id)).payer == State.PAYER_INSIDE
    assert replica.accounts.credits.credits == {}


async def test_what_somebody_outside_pays_no_payment_inside_can_hold(replica: Any, refused: Any) -> None:
    held = await _held(replica)
    payment_id = _id()
    locked = replica.lock(held.payment_request, payment_id)
    assert await refused(locked) == ("FAILED_PRECONDITION", "INVOICE_LOCKED")
    assert await refused(replica.hold(payment_id)) == ("FAILED_PRECONDITION", "INVOICE_NOT_LOCKED")
    await replica.settle(held.invoice_id)


@pytest.mark.parametrize("round_", range(5))
async def test_inside_and_outside_race_and_exactly_one_pays(replicas: Any, node: Any, round_: int) -> None:
    one, other = replicas
    invoices = [await one.create() for _ in range(6)]
    payments = [_id() for _ in invoices]

    async def inside(at: int) -> bool:
        await asyncio.sleep(0.004 * (at % 3))
        try:
            await other.lock(invoices[at].payment_request, payments[at])
        except grpc.aio.AioRpcError:
            return False
        await other.commit(payments[at])
        return True

    async def outside(at: int) -> bool:
        try:
            await one.pay_outside(invoices[at].payment_request)
        except grpc.aio.AioRpcError:
            return False
        return True

    results = await asyncio.gather(*(pay(at) for at in range(len(invoices)) for pay in (inside, outside)))
    for at, invoice in enumerate(invoices):
        paid = await one.until(invoice.invoice_id, "SETTLED")
        inside_paid = results[2 * at]
        assert (paid.payer == State.PAYER_INSIDE) == inside_paid
        wanted = ReceivedState.CANCELED if inside_paid else ReceivedState.SETTLED
        await _at_node(node, invoice.payment_hash, wanted)
        assert (one.accounts.credits.credits.get(invoice.invoice_id) == POSTED) == (not inside_paid)


@pytest.mark.parametrize("how", ["canceled", "expired"])
async def test_an_invoice_that_is_over_is_closed_at_the_node(replica: Any, node: Any, refused: Any, how: str) -> None:
    invoice = await replica.create(expiry_duration=Duration(seconds=1 if how == "expired" else 60))
    if how == "canceled":
        await replica.cancel(invoice.invoice_id)
    await replica.until(invoice.invoice_id, how.upper())
    await _at_node(node, invoice.payment_hash, ReceivedState.CANCELED)
    assert await refused(replica.pay_outside(invoice.payment_request)) == NOT_PAYABLE


async def test_too_much_money_goes_back(replica: Any, node: Any) -> None:
    invoice = await replica.create()
    await replica.pay_outside(invoice.payment_request, 1_500)
    await _at_node(node, invoice.payment_hash, ReceivedState.CANCELED)
    assert (await replica.get(invoice.invoice_id)).state == State.STATE_OPEN
    payment_id = _id()
    await replica.lock(invoice.payment_request, payment_id)
    assert (await replica.commit(payment_id)).invoice.state == State.STATE_SETTLED, "inside it can still be paid"


async def test_what_came_while_no_replica_ran_is_found(serve: Any, node: Any) -> None:
    async with serve("r0") as replica:
        invoice = await replica.create()
        hold = await replica.create(hold=HOLD)
    await node.pay_from_outside(invoice.payment_request)
    await node.pay_from_outside(hold.payment_request)
    await asyncio.sleep(1.5)  # longer than a new subscription looks back
    async with serve("r1") as replica:
        assert (await replica.until(invoice.invoice_id, "SETTLED")).amount_paid_msat == 1_000
        assert (await replica.until(hold.invoice_id, "ACCEPTED")).amount_held_msat == 1_000
        await replica.settle(hold.invoice_id)


@pytest.mark.parametrize("method", ["HoldCredit", "PostCredit"])
async def test_a_ledger_that_does_not_answer_delays_and_loses_nothing(replica: Any, node: Any, method: str) -> None:
    invoice = await replica.create()
    replica.accounts.credits.faults[method] = [unavailable("down") for _ in range(3)]
    await replica.pay_outside(invoice.payment_request)
    assert (await replica.until(invoice.invoice_id, "SETTLED")).amount_paid_msat == 1_000
    assert replica.accounts.credits.balance_msat() == 1_000


async def test_a_decision_that_cannot_be_carried_out_yet_stands(replica: Any, refused: Any) -> None:
    held = await _held(replica)
    replica.accounts.credits.faults["PostCredit"] = [unavailable("down")]
    request_id = _id()
    call = replica.settle(held.invoice_id, request_id=request_id)
    assert await refused(call) == ("UNAVAILABLE", "BACKEND_UNAVAILABLE")
    assert (await replica.until(held.invoice_id, "SETTLED")).amount_paid_msat == 1_000
    again = await replica.settle(held.invoice_id, request_id=request_id)
    assert (again.invoice.state, again.replayed) == (State.STATE_SETTLED, False)
    assert (await replica.settle(held.invoice_id, request_id=request_id)).replayed


async def test_money_that_the_node_gave_up_is_voided(replica: Any, node: Any, refused: Any) -> None:
    held = await _held(replica)
    await node.cancel(held.payment_hash)  # as its own deadline does
    await replica.until(held.invoice_id, "CANCELED")
    assert replica.accounts.credits.credits == {held.invoice_id: VOIDED}
    settle = replica.settle(held.invoice_id)
    assert await refused(settle) == ("FAILED_PRECONDITION", "INVOICE_ALREADY_CANCELED")


async def test_a_node_that_gave_up_just_before_the_owner_settled_leaves_nothing_behind(serve: Any, node: Any) -> None:
    async with serve("r0") as replica:
        held = await _held(replica)
    await node.cancel(held.payment_hash)
    await asyncio.sleep(1.5)
    async with serve("r1") as replica:
        assert (await replica.until(held.invoice_id, "CANCELED")).amount_paid_msat == 0
        assert replica.accounts.credits.credits == {held.invoice_id: VOIDED}


async def test_only_operators_make_people_outside_pay(replica: Any, refused: Any) -> None:
    invoice = await replica.create()
    request = pb.GetInvoiceRequest(invoice_id=invoice.invoice_id)
    assert (await replica.invoices.GetInvoice(request, metadata=AS_ALICE)).invoice.state == State.STATE_OPEN
    pay = replica.network.PayInvoice

    paying = outside_pb.PayInvoiceRequest(payment_request=invoice.payment_request)
    assert await refused(pay(paying, metadata=AS_ALICE)) == ("PERMISSION_DENIED", "OPERATOR_REQUIRED")
    nonsense = outside_pb.PayInvoiceRequest(payment_request="lnbcrt1")
    invalid = ("INVALID_ARGUMENT", "PAYMENT_REQUEST_INVALID")
    assert await refused(pay(nonsense, metadata=AS_OPERATOR)) == invalid


async def test_watchers_see_each_change_of_a_payment_from_outside_once(replica: Any) -> None:
    plain = await replica.create()
    await replica.pay_outside(plain.payment_request)
    await replica.until(plain.invoice_id, "SETTLED")
    held = await _held(replica)
    await replica.cancel(held.invoice_id)
    for invoice, story in (
        (plain, [(0, 1), (1, 2), (2, 3)]),
        (held, [(0, 1), (1, 2), (2, 2), (2, 4)]),
    ):
        request = pb.WatchInvoicesRequest(resume_after_sequence=0, payment_hash=invoice.payment_hash)
        stream, seen = replica.invoices.WatchInvoices(request, metadata=AS_ALICE), []
        while len(seen) < len(story):
            message = await asyncio.wait_for(stream.read(), 10)
            if message.HasField("invoice"):
                seen.append((message.previous_state, message.invoice.state))
        stream.cancel()
        assert seen == story

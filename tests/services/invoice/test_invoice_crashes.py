"""A replica dies at each point of each step, another goes on: every invoice ends as it would have, and every credit is right."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import apsw
import pytest

from nipmesh.invoice.v1 import invoice_pb2
from nipmesh.invoice.v1 import invoice_service_pb2 as pb
from services.lightning.node import ReceivedState
from services.lightning.simulated.node_file import FILE_NAME
from services.lightning.simulated.received import NUMBERS
from support.credits import POSTED, VOIDED
from support.invoice_pair import Two

Start = Callable[..., Any]
State = invoice_pb2.Invoice
HOLD = pb.HoldTerms()

INSIDE = ["lock", "lock.done", "lock_at_node", "lock_at_node.done", "commit", "commit.done", "decide", "decide.done"]
ARRIVING = ["arrive", "arrive.done", "hold_credit", "hold_credit.done"]
TAKING = ["settle_at_node", "settle_at_node.done", "post_credit", "post_credit.done"]
RETURNING = ["cancel_at_node", "cancel_at_node.done", "void_credit", "void_credit.done"]


def _id() -> str:
    return str(uuid.uuid4())


@pytest.mark.parametrize("failpoint", INSIDE)
async def test_a_hold_invoice_inside_is_settled(two: Start, failpoint: str) -> None:
    async with two(failpoint) as pair:
        invoice = await pair.create(hold=HOLD)
        payment_id = await pair.pay_inside(invoice)
        request = pb.SettleInvoiceRequest(request_id=_id(), invoice_id=invoice.invoice_id)
        settled = (await pair.invoices("SettleInvoice", request)).invoice
        await pair.died()
        hold = await pair.settlement("GetHold", pb.GetHoldRequest(payment_id=payment_id))
        assert (hold.state, hold.preimage) == (pb.GetHoldResponse.STATE_SETTLED, settled.preimage)
        assert (settled.state, settled.amount_paid_msat) == (State.STATE_SETTLED, 1_000)


async def _outside(
    two: Start, failpoint: str, decide: Callable[[Two, invoice_pb2.Invoice], Awaitable[None]] | None
) -> tuple[invoice_pb2.Invoice, str]:
    """An invoice paid from outside while a replica dies; the invoice when it is over, and its credit."""
    async with two(failpoint, heir=True) as pair:
        invoice = await pair.create(hold=HOLD if decide else None)
        await pair.outside(invoice.payment_request)
        if decide:
            await pair.until(invoice.invoice_id, lambda found: found.HasField("accept_time"))
            await decide(pair, invoice)
        over = await pair.until(invoice.invoice_id, lambda found: found.state > State.STATE_ACCEPTED)
        credit = pair.accounts.credits.credits[invoice.invoice_id]
        await pair.died()
        return over, credit


async def _settle(pair: Two, invoice: invoice_pb2.Invoice) -> None:
    request = pb.SettleInvoiceRequest(request_id=_id(), invoice_id=invoice.invoice_id)
    assert (await pair.invoices("SettleInvoice", request)).invoice.state == State.STATE_SETTLED


async def _cancel(pair: Two, invoice: invoice_pb2.Invoice) -> None:
    request = pb.CancelInvoiceRequest(request_id=_id(), invoice_id=invoice.invoice_id)
    assert (await pair.invoices("CancelInvoice", request)).invoice.state == State.STATE_CANCELED


@pytest.mark.parametrize("failpoint", [*ARRIVING, *TAKING])
async def test_an_invoice_paid_from_outside_is_credited_once(two: Start, failpoint: str) -> None:
    over, credit = await _outside(two, failpoint, None)
    assert (over.state, over.amount_paid_msat, credit) == (State.STATE_SETTLED, 1_000, POSTED)


@pytest.mark.parametrize("failpoint", [*ARRIVING, "decide", "decide.done", *TAKING])
async def test_a_hold_invoice_paid_from_outside_is_settled_by_its_owner(two: Start, failpoint: str) -> None:
    over, credit = await _outside(two, failpoint, _settle)
    assert (over.state, over.amount_paid_msat, credit) == (State.STATE_SETTLED, 1_000, POSTED)


@pytest.mark.parametrize("failpoint", ["decide", "decide.done", *RETURNING])
async def test_a_hold_invoice_paid_from_outside_is_given_back(two: Start, failpoint: str) -> None:
    over, credit = await _outside(two, failpoint, _cancel)
    assert (over.state, over.amount_paid_msat, credit) == (State.STATE_CANCELED, 0, VOIDED)


@pytest.mark.parametrize("failpoint", ["add_invoice", "add_invoice.done"])
async def test_an_invoice_is_made_once(two: Start, failpoint: str) -> None:
    async with two(failpoint) as pair:
        invoice = await pair.create()
        await pair.died()
        listing = await pair.invoices("ListInvoices", pb.ListInvoicesRequest())
        assert [each.invoice_id for each in listing.invoices] == [invoice.invoice_id]


@pytest.mark.parametrize("failpoint", ["release", "release.done"])
async def test_an_invoice_is_released_once(two: Start, failpoint: str) -> None:
    async with two(failpoint) as pair:
        invoice, payment_id = await pair.create(), _id()
        lock = pb.LockInvoiceRequest(
            payment_id=payment_id, payment_request=invoice.payment_request, amount_msat=1_000, actor_pubkey="aa" * 32
        )
        await pair.settlement("LockInvoice", lock)
        await pair.settlement("ReleaseInvoice", pb.ReleaseInvoiceRequest(payment_id=payment_id))
        await pair.died()
        assert (await pair.until(invoice.invoice_id, lambda _: True)).state == State.STATE_OPEN
        hold = await pair.settlement("GetHold", pb.GetHoldRequest(payment_id=payment_id))
        assert hold.state == pb.GetHoldResponse.STATE_RELEASED


@pytest.mark.parametrize("failpoint", ["close_at_node", "close_at_node.done"])
async def test_a_canceled_invoice_is_closed_at_the_node_by_whoever_lives(two: Start, failpoint: str) -> None:
    async with two(failpoint, heir=True) as pair:
        invoice = await pair.create()
        await _cancel(pair, invoice)
        await pair.died()

        async with asyncio.timeout(60):
            while _state_at_node(pair, invoice.payment_hash) != NUMBERS[ReceivedState.CANCELED]:
                await asyncio.sleep(0.05)


def _state_at_node(pair: Two, payment_hash: str) -> int | None:
    with contextlib.closing(apsw.Connection(str(pair.folder / "data" / FILE_NAME))) as connection:
        rows = connection.execute("SELECT state FROM received WHERE payment_hash = ?", (payment_hash,)).fetchall()
    return rows[0][0] if rows else None

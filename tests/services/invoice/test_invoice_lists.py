"""Lists of invoices page by page, and invoices that expire by themselves."""

from __future__ import annotations

import asyncio
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from nipmesh.invoice.v1 import invoice_pb2
from nipmesh.invoice.v1 import invoice_service_pb2 as pb
from services.chassis.testing import as_user

ALICE, BOB = "aa" * 32, "bb" * 32
AS_ALICE, AS_BOB, AS_OPERATOR = as_user(ALICE), as_user(BOB), as_user("0f" * 32, role="operator")
State = invoice_pb2.Invoice


def _id() -> str:
    return str(uuid.uuid4())


# Listing


async def _list(replica: Any, metadata: Any = AS_ALICE, **fields: Any) -> list[str]:
    """All invoice ids, page by page."""
    ids: list[str] = []
    token = ""
    while True:
        response = await replica.invoices.ListInvoices(
            pb.ListInvoicesRequest(page_token=token, **fields), metadata=metadata
        )
        ids += [invoice.invoice_id for invoice in response.invoices]
        token = response.next_page_token
        if not token:
            return ids


async def test_lists_are_paged_in_both_orders_and_hold_the_caller_s_own(replica: Any) -> None:
    account_id = replica.accounts.open(ALICE)
    made = [(await replica.create(account_id=account_id)).invoice_id for _ in range(7)]
    bobs = (await replica.create(AS_BOB, account_id=replica.accounts.open(BOB))).invoice_id
    for page_size in (0, 1, 3, 7, 8):
        assert await _list(replica, page_size=page_size) == made[::-1]
        assert await _list(replica, page_size=page_size, oldest_first=True) == made
    assert await _list(replica, AS_BOB) == [bobs]
    assert await _list(replica, AS_OPERATOR, page_size=3) == [bobs, *made[::-1]]


async def test_new_invoices_do_not_disturb_a_list_under_way(replica: Any) -> None:
    account_id = replica.accounts.open(ALICE)
    made = [(await replica.create(account_id=account_id)).invoice_id for _ in range(4)]
    first = await replica.invoices.ListInvoices(pb.ListInvoicesRequest(page_size=2), metadata=AS_ALICE)
    await replica.create(account_id=account_id)
    rest = await replica.invoices.ListInvoices(
        pb.ListInvoicesRequest(page_size=2, page_token=first.next_page_token), metadata=AS_ALICE
    )
    assert [invoice.invoice_id for invoice in (*first.invoices, *rest.invoices)] == made[::-1]


async def test_list_filters_hold_all_at_once(replica: Any) -> None:
    here, there = replica.accounts.open(ALICE), replica.accounts.open(ALICE)
    first, second_, third = [await replica.create(account_id=account) for account in (here, there, here)]
    await replica.cancel(third.invoice_id)
    assert await _list(replica, account_id=here) == [third.invoice_id, first.invoice_id]
    assert await _list(replica, account_id=here, states=["STATE_OPEN"]) == [first.invoice_id]
    assert await _list(replica, states=["STATE_CANCELED", "STATE_EXPIRED"]) == [third.invoice_id]
    assert await _list(replica, create_time_from=second_.create_time, create_time_until=third.create_time) in (
        [second_.invoice_id],
        [],  # the second and third in one millisecond
    )
    assert await _list(replica, AS_BOB, account_id=here) == []
    later = Timestamp(seconds=int(time.time()) + 60)
    assert await _list(replica, create_time_from=later) == []


async def test_page_tokens_belong_to_one_caller_and_one_query(replica: Any, refused: Any) -> None:
    account_id = replica.accounts.open(ALICE)
    for _ in range(3):
        await replica.create(account_id=account_id)
    token = (
        await replica.invoices.ListInvoices(pb.ListInvoicesRequest(page_size=1), metadata=AS_ALICE)
    ).next_page_token
    wrong = [
        (pb.ListInvoicesRequest(page_token=token), AS_BOB),
        (pb.ListInvoicesRequest(page_token=token, oldest_first=True), AS_ALICE),
        (pb.ListInvoicesRequest(page_token=token[:-2]), AS_ALICE),
        (pb.ListInvoicesRequest(page_token="x"), AS_ALICE),
    ]
    for request, metadata in wrong:
        call = replica.invoices.ListInvoices(request, metadata=metadata)
        assert await refused(call) == ("INVALID_ARGUMENT", "PAGE_TOKEN_INVALID")


# Expiry


async def test_an_invoice_expires_by_itself(replicas: Any, refused: Any) -> None:
    replica, other = replicas
    invoice = await replica.create(expiry_duration=Duration(seconds=1))
    until_s = time.time() + 10
    while (now := await other.get(invoice.invoice_id)).state == State.STATE_OPEN:
        assert time.time() < until_s
        await asyncio.sleep(0.02)
    assert now.state == State.STATE_EXPIRED
    late_s = now.update_time.ToMilliseconds() / 1_000 - invoice.expire_time.ToMilliseconds() / 1_000
    assert 0 <= late_s < 0.5, "the sweeper wakes at the expire time"
    assert await refused(replica.lock(invoice.payment_request, _id())) == ("FAILED_PRECONDITION", "INVOICE_EXPIRED")
    assert (await replica.cancel(invoice.invoice_id)).invoice.state == State.STATE_EXPIRED


async def test_a_locked_invoice_does_not_expire_until_it_is_released(replica: Any) -> None:
    invoice, payment_id = await replica.create(expiry_duration=Duration(seconds=2)), _id()
    await replica.lock(invoice.payment_request, payment_id)
    await asyncio.sleep(2.3)
    assert (await replica.get(invoice.invoice_id)).state == State.STATE_ACCEPTED
    assert (await replica.release(payment_id)).invoice.state == State.STATE_EXPIRED


@pytest.mark.parametrize("database_settings", ["sqlite"], indirect=True)
async def test_the_files_are_private(replica: Any, tmp_path: Path) -> None:
    await replica.create()
    files = list((tmp_path / "data").iterdir())
    assert files
    assert [file for file in files if file.stat().st_mode & 0o077] == []

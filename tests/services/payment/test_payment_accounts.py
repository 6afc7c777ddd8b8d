"""Closing, freezing, quotas, transfers between accounts, two-phase transfers, statements and the ledger's head, over the API."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc
import pytest

from nipmesh.payment.v1 import payment_pb2
from nipmesh.payment.v1 import payment_service_pb2 as pb
from services.chassis.errors import retry_delay_ms_of
from services.chassis.testing import as_user
from services.payment.domain.ledger import DAY_MS, PENDING_RETRY_MS
from support.payment_mesh import OPERATOR, eventually, refused, request_id
from support.payment_service import ALICE, BOB, DESK, EVE, Service
from support.settlement import payment_request

CODE = grpc.StatusCode
PRECONDITION = CODE.FAILED_PRECONDITION
State, Kind = payment_pb2.Account, payment_pb2.Transfer
NOBODY = "customer:00000000-0000-0000-0000-000000000000"


async def account_of(service: Service, account_id: str) -> payment_pb2.Account:
    return (await service.accounts.GetAccount(pb.GetAccountRequest(account_id=account_id), metadata=DESK)).account


async def send(
    service: Service, user: str, debit: str, credit: str, amount_msat: int, identifier: str = ""
) -> pb.TransferResponse:
    request = pb.TransferRequest(
        request_id=identifier or request_id(),
        account_id=debit,
        credit_account_id=credit,
        amount_msat=amount_msat,
        reference="rent",
    )
    return await service.accounts.Transfer(request, metadata=as_user(user))


async def close(service: Service, metadata: Any, account_id: str) -> pb.CloseAccountResponse:
    request = pb.CloseAccountRequest(request_id=request_id(), account_id=account_id, reason="moved away")
    return await service.accounts.CloseAccount(request, metadata=metadata)


async def limit(service: Service, account_id: str, **limits: int) -> payment_pb2.Account:
    quota = payment_pb2.Quota(**limits)  # type: ignore[arg-type]
    request = pb.SetQuotaRequest(request_id=request_id(), account_id=account_id, quota=quota, reason="too young")
    return (await service.ledger.SetQuota(request, metadata=DESK)).account


async def freeze(service: Service, account_id: str) -> None:
    request = pb.FreezeAccountRequest(request_id=request_id(), account_id=account_id, reason="a court's order")
    await service.ledger.FreezeAccount(request, metadata=DESK)


async def create(service: Service, identifier: str = "", **step: Any) -> payment_pb2.Transfer:
    request = pb.CreateTransferRequest(request_id=identifier or request_id(), reference="a correction", **step)
    return (await service.ledger.CreateTransfer(request, metadata=DESK)).transfer


def new(debit: str, credit: str, amount_msat: int) -> pb.NewTransfer:
    return pb.NewTransfer(debit_account_id=debit, credit_account_id=credit, amount_msat=amount_msat)


async def test_an_owner_sends_money_to_another_account_once(service: Service) -> None:
    alice, bob, identifier = await service.open(ALICE, 1_000), await service.open(BOB), request_id()
    first, again = [await send(service, ALICE, alice, bob, 400, identifier) for _ in range(2)]
    assert (first.replayed, again.replayed) == (False, True)
    assert first.transfer == again.transfer
    assert (first.account.balance_msat, await service.balance(bob)) == (600, 400)
    assert (first.transfer.kind, first.transfer.purpose) == (Kind.KIND_POSTED, Kind.PURPOSE_TRANSFER)
    found = await service.ledger.GetTransfer(
        pb.GetTransferRequest(transfer_id=first.transfer.transfer_id), metadata=DESK
    )
    assert found.transfer == first.transfer
    refusals = [
        ((EVE, alice, bob, 1), "ACCOUNT_NOT_FOUND"),
        ((ALICE, alice, NOBODY, 1), "ACCOUNT_NOT_FOUND"),
        ((ALICE, alice, alice, 1), "REQUEST_INVALID"),
        ((ALICE, alice, bob, 601), "INSUFFICIENT_BALANCE"),
        ((ALICE, alice, "node:lightning", 1), "REQUEST_INVALID"),
    ]
    for arguments, reason in refusals:
        assert (await refused(send(service, *arguments)))[1] == reason
    assert await refused(send(service, ALICE, alice, bob, 401, identifier)) == (
        CODE.INVALID_ARGUMENT,
        "REQUEST_ID_REUSED",
    )
    assert (await service.balance(alice), await service.balance(bob)) == (600, 400)


async def test_a_closed_account_stays_empty_for_good(service: Service) -> None:
    alice, bob, other = await service.open(ALICE, 1_000), await service.open(BOB, 10), await service.open(ALICE)
    assert await refused(close(service, as_user(ALICE), alice)) == (PRECONDITION, "ACCOUNT_NOT_EMPTY")
    assert (await refused(close(service, as_user(BOB), alice)))[1] == "ACCOUNT_NOT_FOUND"
    payment = await service.pay(ALICE, alice, service.settlement.create(bob, 500))
    text = service.settlement.create(alice, 5)
    await send(service, ALICE, alice, bob, 500)
    closed = await close(service, as_user(ALICE), alice)
    assert closed.account.state == State.STATE_CLOSED
    assert (await close(service, DESK, alice)).account == closed.account
    calls = [
        service.deposit(alice, 1),
        send(service, BOB, bob, alice, 1),
        send(service, ALICE, alice, bob, 1),
        service.pay(ALICE, alice, service.settlement.create(bob, 1)),
        service.refund(as_user(BOB), payment.payment_id, all=True),
        service.ledger.Withdraw(
            pb.WithdrawRequest(request_id=request_id(), account_id=alice, amount_msat=1), metadata=DESK
        ),
        service.ledger.UnfreezeAccount(
            pb.UnfreezeAccountRequest(request_id=request_id(), account_id=alice), metadata=DESK
        ),
        limit(service, alice, day_msat_max=1),
        create(service, posted=new("suspense", alice, 1)),
    ]
    for call in calls:
        assert await refused(call) == (PRECONDITION, "ACCOUNT_CLOSED")
    paid = await service.pay(BOB, bob, text)
    assert paid.failure_reason == payment_pb2.Payment.FAILURE_REASON_INVOICE_NOT_PAYABLE
    assert (await account_of(service, bob)).debits_pending_msat == 0
    await freeze(service, other)
    assert await refused(close(service, as_user(ALICE), other)) == (PRECONDITION, "ACCOUNT_FROZEN")
    assert (await close(service, DESK, other)).account.state == State.STATE_CLOSED
    assert (await refused(close(service, DESK, NOBODY)))[1] == "ACCOUNT_NOT_FOUND"


async def test_money_on_its_way_keeps_an_account_open(service: Service) -> None:
    alice, bob = await service.open(ALICE), await service.open(BOB, 100)
    hold = await create(service, pending=new(bob, alice, 40))
    assert (await refused(close(service, as_user(ALICE), alice)))[1] == "ACCOUNT_NOT_EMPTY"
    await create(service, void_pending_transfer_id=hold.transfer_id)
    assert (await close(service, as_user(ALICE), alice)).account.state == State.STATE_CLOSED


async def test_nothing_new_leaves_a_frozen_account_and_what_was_reserved_goes_on(service: Service) -> None:
    alice, bob = await service.open(ALICE, 100_000), await service.open(BOB, 10)
    service.settlement.faults["lock"] = [CODE.UNAVAILABLE] * 1_000
    identifier, text = request_id(), payment_request(amount_msat=50_000)
    request = pb.PayInvoiceRequest(request_id=identifier, account_id=alice, payment_request=text)
    request.wait_duration.FromMilliseconds(1)
    waiting = (await service.payments.PayInvoice(request, metadata=as_user(ALICE), timeout=10)).payment
    assert waiting.state == payment_pb2.Payment.STATE_RESERVED
    await freeze(service, alice)
    for call in (
        send(service, ALICE, alice, bob, 1),
        service.pay(ALICE, alice, service.settlement.create(bob, 1)),
        create(service, posted=new(alice, bob, 1)),
        create(service, pending=new(alice, "suspense", 1)),
    ):
        assert await refused(call) == (PRECONDITION, "ACCOUNT_FROZEN")
    await service.deposit(alice, 7)
    await send(service, BOB, bob, alice, 3)
    service.settlement.faults.clear()
    wanted = pb.GetPaymentRequest(payment_id=waiting.payment_id)

    async def succeeded() -> bool:
        payment = (await service.payments.GetPayment(wanted, metadata=DESK)).payment
        return payment.state == payment_pb2.Payment.STATE_SUCCEEDED

    await eventually(succeeded, 30)
    paid = (await service.payments.GetPayment(wanted, metadata=DESK)).payment
    assert paid.fee_msat > 0
    assert await service.balance(alice) == 100_010 - 50_000 - paid.fee_msat


async def test_a_quota_limits_one_payment_and_a_day(service: Service) -> None:
    alice, bob = await service.open(ALICE, 100_000), await service.open(BOB)
    account = await limit(service, alice, payment_msat_max=1_000, day_msat_max=2_500)
    assert (account.quota.payment_msat_max, account.quota.day_msat_max) == (1_000, 2_500)
    assert not account.quota.HasField("pending_msat_max")
    too_much = await _error(send(service, ALICE, alice, bob, 1_001))
    assert (too_much.code(), retry_delay_ms_of(too_much)) == (CODE.RESOURCE_EXHAUSTED, None)
    assert (await refused(service.pay(ALICE, alice, service.settlement.create(bob, 1_001))))[1] == "QUOTA_EXCEEDED"
    identifier, text = request_id(), service.settlement.create(bob, 1_000)
    for _ in range(3):
        assert (await service.pay(ALICE, alice, text, identifier)).state == payment_pb2.Payment.STATE_SUCCEEDED
    await send(service, ALICE, alice, bob, 1_000)
    counted = await account_of(service, alice)
    assert (counted.spent_msat, counted.spent_date) == (2_000, time.strftime("%Y-%m-%d", time.gmtime()))
    today = await _error(send(service, ALICE, alice, bob, 501))
    left_ms = DAY_MS - time.time_ns() // 1_000_000 % DAY_MS
    assert left_ms <= (retry_delay_ms_of(today) or 0) < left_ms + 60_000
    assert ("grpc-retry-pushback-ms", "-1") in tuple(today.trailing_metadata() or ()), "no library waits for tomorrow"
    failed = await service.pay(ALICE, alice, payment_request(amount_msat=500, description="simulated:fail"))
    assert failed.state == payment_pb2.Payment.STATE_FAILED
    assert (await account_of(service, alice)).spent_msat == 2_000, "what failed is given back"
    await send(service, ALICE, alice, bob, 500)
    withdraw = pb.WithdrawRequest(request_id=request_id(), account_id=alice, amount_msat=5_000)
    assert (await service.ledger.Withdraw(withdraw, metadata=DESK)).account.spent_msat == 2_500
    assert (await refused(send(service, ALICE, alice, bob, 1)))[1] == "QUOTA_EXCEEDED"
    assert not (await limit(service, alice)).HasField("quota")
    await send(service, ALICE, alice, bob, 5_000)


async def _error(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def test_parallel_payments_do_not_outrun_a_quota(service: Service) -> None:
    alice, bob = await service.open(ALICE, 100_000), await service.open(BOB)
    await limit(service, alice, day_msat_max=5_000)
    texts = [service.settlement.create(bob, 1_000) for _ in range(12)]
    calls = [service.pay(ALICE, alice, text) for text in texts] + [
        send(service, ALICE, alice, bob, 1_000) for _ in range(12)
    ]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(not isinstance(answer, BaseException) for answer in answers) == 5
    assert await service.balance(bob) == 5_000


async def test_a_quota_limits_what_is_reserved_at_once(service: Service) -> None:
    alice = await service.open(ALICE, 100_000)
    await limit(service, alice, pending_msat_max=12_000)
    hanging = await service.pay(ALICE, alice, payment_request(amount_msat=1_000, description="simulated:hang"))
    assert hanging.state == payment_pb2.Payment.STATE_IN_FLIGHT
    assert (await account_of(service, alice)).debits_pending_msat == 11_000
    error = await _error(service.pay(ALICE, alice, payment_request(amount_msat=1_001)))
    assert (error.code(), retry_delay_ms_of(error)) == (CODE.RESOURCE_EXHAUSTED, PENDING_RETRY_MS)
    larger = await _error(service.pay(ALICE, alice, payment_request(amount_msat=12_001)))
    assert retry_delay_ms_of(larger) is None, "time does not help"


async def test_an_operator_moves_money_in_two_phases(service: Service) -> None:
    alice, bob, identifier = await service.open(ALICE, 1_000), await service.open(BOB), request_id()
    posted = await create(service, identifier, posted=new("suspense", "fees:service", 7))
    assert await create(service, identifier, posted=new("suspense", "fees:service", 7)) == posted
    assert (posted.purpose, posted.reference) == (Kind.PURPOSE_ADJUSTMENT, "a correction")
    hold = await create(service, pending=new(alice, bob, 600))
    assert (await account_of(service, alice)).available_msat == 400
    more = pb.PostPending(pending_transfer_id=hold.transfer_id, amount_msat=601)
    assert await refused(create(service, post_pending=more)) == (PRECONDITION, "TRANSFER_EXCEEDS_PENDING")
    more.amount_msat = 200
    part = await create(service, post_pending=more)
    assert (part.kind, part.pending_transfer_id, part.amount_msat) == (
        Kind.KIND_POST_PENDING,
        hold.transfer_id,
        200,
    )
    assert (await service.balance(alice), await service.balance(bob)) == (800, 200)
    assert (await account_of(service, alice)).available_msat == 800
    again = create(service, void_pending_transfer_id=hold.transfer_id)
    assert await refused(again) == (PRECONDITION, "TRANSFER_RESOLVED")
    whole = await create(service, pending=new(alice, bob, 300))
    await create(service, post_pending=pb.PostPending(pending_transfer_id=whole.transfer_id))
    assert await service.balance(bob) == 500
    assert (await account_of(service, alice)).spent_msat == 0, "an operator's transfers count against no quota"
    assert (await refused(create(service, posted=new(alice, bob, 501))))[1] == "INSUFFICIENT_BALANCE"
    assert (await refused(create(service, posted=new(alice, NOBODY, 1))))[1] == "ACCOUNT_NOT_FOUND"
    assert (await refused(create(service, posted=new(NOBODY, alice, 1))))[1] == "ACCOUNT_NOT_FOUND"
    assert (await refused(create(service, posted=new(alice, alice, 1))))[1] == "REQUEST_INVALID"
    assert (await refused(create(service)))[1] == "REQUEST_INVALID"
    assert (await refused(create(service, void_pending_transfer_id=request_id())))[1] == "TRANSFER_NOT_FOUND"
    assert (await refused(create(service, void_pending_transfer_id=posted.transfer_id)))[1] == "TRANSFER_NOT_PENDING"


async def test_no_operator_ends_the_hold_of_a_payment(service: Service) -> None:
    alice = await service.open(ALICE, 100_000)
    payment = await service.pay(ALICE, alice, payment_request(amount_msat=1_000, description="simulated:hang"))
    request = pb.ListTransfersRequest(account_id=alice, payment_id=payment.payment_id)
    holds = (await service.accounts.ListTransfers(request, metadata=DESK)).transfers
    assert {hold.kind for hold in holds} == {Kind.KIND_PENDING}
    for hold in holds:
        for step in (
            {"void_pending_transfer_id": hold.transfer_id},
            {"post_pending": pb.PostPending(pending_transfer_id=hold.transfer_id)},
        ):
            assert await refused(create(service, **step)) == (PRECONDITION, "TRANSFER_NOT_PENDING")
    assert (await account_of(service, alice)).debits_pending_msat == 11_000


async def statement_of(service: Service, user: str, request: pb.GetStatementRequest) -> list[pb.GetStatementResponse]:
    pages = []
    asked = pb.GetStatementRequest()
    asked.CopyFrom(request)
    while True:
        pages.append(await service.accounts.GetStatement(asked, metadata=as_user(user)))
        if not pages[-1].next_page_token:
            return pages
        asked.page_token = pages[-1].next_page_token


async def test_a_statement_has_the_balances_before_between_and_after(service: Service) -> None:
    alice, bob = await service.open(ALICE, 100_000), await service.open(BOB)
    await send(service, ALICE, alice, bob, 100)
    await asyncio.sleep(0.01)
    request = pb.GetStatementRequest(account_id=alice, page_size=2)
    request.create_time_from.FromMilliseconds(time.time_ns() // 1_000_000)
    await asyncio.sleep(0.01)
    payment = await service.pay(ALICE, alice, service.settlement.create(bob, 4_000))
    await service.refund(as_user(BOB), payment.payment_id, amount_msat=1_000)
    await service.pay(ALICE, alice, payment_request(amount_msat=1_000, description="simulated:fail"))
    last = await send(service, ALICE, alice, bob, 200)
    first = await service.accounts.GetStatement(request, metadata=as_user(ALICE))
    await send(service, ALICE, alice, bob, 300)
    assert [(line.change_msat, line.balance_msat) for line in first.lines] == [(-4_000, 95_900), (1_000, 96_900)]
    assert (first.opening_balance_msat, first.closing_balance_msat) == (99_900, 96_700)
    assert first.ledger_number == last.transfer.number
    request.page_token = first.next_page_token
    second = await service.accounts.GetStatement(request, metadata=as_user(ALICE))
    assert [(line.change_msat, line.balance_msat) for line in second.lines] == [(-200, 96_700)]
    assert second.lines[0].transfer == last.transfer
    assert (second.closing_balance_msat, second.next_page_token) == (96_700, "")
    assert (await refused(service.accounts.GetStatement(request, metadata=as_user(BOB))))[1] == "PAGE_TOKEN_INVALID"
    foreign = pb.GetStatementRequest(account_id=alice)
    assert (await refused(service.accounts.GetStatement(foreign, metadata=as_user(BOB))))[1] == "ACCOUNT_NOT_FOUND"
    whole = await service.accounts.GetStatement(foreign, metadata=DESK)
    assert (whole.opening_balance_msat, whole.closing_balance_msat) == (0, await service.balance(alice))
    future = pb.GetStatementRequest(account_id=alice)
    future.create_time_from.FromSeconds(4_000_000_000)
    empty = await service.accounts.GetStatement(future, metadata=DESK)
    assert (list(empty.lines), empty.opening_balance_msat) == ([], whole.closing_balance_msat)
    future.create_time_until.FromSeconds(3_000_000_000)
    assert (await refused(service.accounts.GetStatement(future, metadata=DESK)))[1] == "REQUEST_INVALID"


async def test_an_export_is_the_whole_statement(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.payment.statements.EXPORT_LINES", 2)
    alice, bob = await service.open(ALICE, 10_000), await service.open(BOB)
    for amount_msat in range(1, 5):
        await send(service, ALICE, alice, bob, amount_msat)
    pages = await statement_of(service, ALICE, pb.GetStatementRequest(account_id=alice))
    stream = service.accounts.ExportStatement(pb.ExportStatementRequest(account_id=alice), metadata=as_user(ALICE))
    parts = [part async for part in stream]
    assert [line for part in parts for line in part.lines] == [line for page in pages for line in page.lines]
    assert [len(part.lines) for part in parts] == [2, 2, 1]
    assert {(part.opening_balance_msat, part.closing_balance_msat, part.ledger_number) for part in parts} == {
        (0, 9_990, pages[0].ledger_number)
    }
    nothing = service.accounts.ExportStatement(
        pb.ExportStatementRequest(account_id=await service.open(EVE)), metadata=as_user(EVE)
    )
    assert [len(part.lines) async for part in nothing] == [0]
    foreign = service.accounts.ExportStatement(pb.ExportStatementRequest(account_id=alice), metadata=as_user(BOB))
    assert (await refused(foreign.read()))[1] == "ACCOUNT_NOT_FOUND"


async def test_the_history_of_an_account_says_who_and_why(service: Service) -> None:
    alice = await service.open(ALICE)
    await freeze(service, alice)
    await service.ledger.UnfreezeAccount(
        pb.UnfreezeAccountRequest(request_id=request_id(), account_id=alice, reason="it was an error"), metadata=DESK
    )
    await limit(service, alice, day_msat_max=5)
    await limit(service, alice)
    await close(service, as_user(ALICE), alice)
    request = pb.ListAccountEventsRequest(account_id=alice, page_size=4)
    first = await service.ledger.ListAccountEvents(request, metadata=DESK)
    request.page_token = first.next_page_token
    second = await service.ledger.ListAccountEvents(request, metadata=DESK)
    events = [*first.events, *second.events]
    event = payment_pb2.AccountEvent
    assert [(one.kind, one.actor, one.reason) for one in events] == [
        (event.KIND_OPENED, ALICE, ""),
        (event.KIND_FROZEN, OPERATOR, "a court's order"),
        (event.KIND_UNFROZEN, OPERATOR, "it was an error"),
        (event.KIND_QUOTA_SET, OPERATOR, "too young"),
        (event.KIND_QUOTA_SET, OPERATOR, "too young"),
        (event.KIND_CLOSED, ALICE, "moved away"),
    ]
    assert [one.quota.day_msat_max for one in events] == [0, 0, 0, 5, 0, 0]
    head = await service.ledger.GetLedgerHead(pb.GetLedgerHeadRequest(), metadata=DESK)
    newest = events[-1]
    assert (head.number, head.sha256, head.create_time) == (newest.number, newest.sha256, newest.create_time)
    missing = pb.ListAccountEventsRequest(account_id=NOBODY)
    assert (await refused(service.ledger.ListAccountEvents(missing, metadata=DESK)))[1] == "ACCOUNT_NOT_FOUND"


async def test_users_cannot_do_what_operators_can(service: Service) -> None:
    alice = await service.open(ALICE, 10)
    user = as_user(ALICE)
    calls = [
        service.ledger.CreateTransfer(
            pb.CreateTransferRequest(request_id=request_id(), posted=new(alice, "suspense", 1)), metadata=user
        ),
        service.ledger.SetQuota(pb.SetQuotaRequest(request_id=request_id(), account_id=alice), metadata=user),
        service.ledger.ListAccountEvents(pb.ListAccountEventsRequest(account_id=alice), metadata=user),
        service.ledger.GetLedgerHead(pb.GetLedgerHeadRequest(), metadata=user),
    ]
    for call in calls:
        assert await refused(call) == (CODE.PERMISSION_DENIED, "OPERATOR_REQUIRED")

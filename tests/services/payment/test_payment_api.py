"""Accounts, ledger, refunds, lists, streams, idempotency and who may do what: in one process, without other services."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from nipmesh.payment.v1 import payment_pb2
from nipmesh.payment.v1 import payment_service_pb2 as pb
from services.chassis.testing import as_gateway, as_service, as_user
from support.payment_mesh import OPERATOR, refused, request_id
from support.payment_service import ALICE, BOB, DESK, EVE, Service
from support.settlement import payment_request

CODE = grpc.StatusCode
Metadata = tuple[tuple[str, str], ...]


async def test_accounts_belong_to_their_owners(service: Service) -> None:
    account_id = await service.open(ALICE, 5)
    request = pb.GetAccountRequest(account_id=account_id)
    for metadata in (as_user(ALICE), DESK, as_service("invoice")):
        account = (await service.accounts.GetAccount(request, metadata=metadata)).account
        assert (account.owner_pubkey, account.balance_msat, account.kind) == (
            ALICE,
            5,
            payment_pb2.Account.KIND_CUSTOMER,
        )
    missing = pb.GetAccountRequest(account_id="customer:00000000-0000-0000-0000-000000000000")
    theirs = await _details(service.accounts.GetAccount(request, metadata=as_user(BOB)))
    nobodys = await _details(service.accounts.GetAccount(missing, metadata=as_user(BOB)))
    assert theirs == nobodys == (CODE.NOT_FOUND, "no such account")
    node = pb.GetAccountRequest(account_id="node:lightning")
    assert (await refused(service.accounts.GetAccount(node, metadata=as_user(ALICE))))[1] == "ACCOUNT_NOT_FOUND"
    assert (await service.accounts.GetAccount(node, metadata=DESK)).account.balance_msat == -5


async def _details(call: Any) -> tuple[grpc.StatusCode, str | None]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details()


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ((), "NOT_AUTHENTICATED"),
        (as_gateway(), "NOT_AUTHENTICATED"),
        (as_user(ALICE), "OPERATOR_REQUIRED"),
        (as_service("invoice"), "CALLER_NOT_ALLOWED"),
        ((("x-nipmesh-subject", OPERATOR), ("x-nipmesh-role", "operator")), "NOT_AUTHENTICATED"),
        ((*as_service("nip"), ("x-nipmesh-subject", OPERATOR), ("x-nipmesh-role", "operator")), "CALLER_NOT_ALLOWED"),
    ],
)
async def test_only_an_operator_moves_the_ledger(service: Service, metadata: Metadata, reason: str) -> None:
    account_id = await service.open(ALICE, 10)
    calls = [
        service.ledger.Deposit(
            pb.DepositRequest(request_id=request_id(), account_id=account_id, amount_msat=1), metadata=metadata
        ),
        service.ledger.Withdraw(
            pb.WithdrawRequest(request_id=request_id(), account_id=account_id, amount_msat=1), metadata=metadata
        ),
        service.ledger.FreezeAccount(
            pb.FreezeAccountRequest(request_id=request_id(), account_id=account_id), metadata=metadata
        ),
        service.ledger.UnfreezeAccount(
            pb.UnfreezeAccountRequest(request_id=request_id(), account_id=account_id), metadata=metadata
        ),
        service.ledger.GetTransfer(pb.GetTransferRequest(transfer_id=request_id()), metadata=metadata),
    ]
    for call in calls:
        assert (await refused(call))[1] == reason
    assert await service.balance(account_id) == 10


async def test_an_operator_opens_accounts_for_others_and_users_do_not(service: Service) -> None:
    request = pb.CreateAccountRequest(request_id=request_id(), owner_pubkey=BOB)
    assert (await refused(service.accounts.CreateAccount(request, metadata=as_user(ALICE))))[1] == "OPERATOR_REQUIRED"
    account = (await service.accounts.CreateAccount(request, metadata=DESK)).account
    assert account.owner_pubkey == BOB
    listed = await service.accounts.ListAccounts(pb.ListAccountsRequest(), metadata=as_user(BOB))
    assert [item.account_id for item in listed.accounts] == [account.account_id]
    other = pb.ListAccountsRequest(owner_pubkey=BOB)
    assert (await refused(service.accounts.ListAccounts(other, metadata=as_user(ALICE))))[1] == "OPERATOR_REQUIRED"


async def test_a_deposit_takes_effect_once(service: Service) -> None:
    account_id, identifier = await service.open(ALICE), request_id()
    first, again = [await service.deposit(account_id, 100, identifier) for _ in range(2)]
    assert (first.replayed, again.replayed) == (False, True)
    assert first.transfer == again.transfer
    assert await service.balance(account_id) == 100
    assert await refused(service.deposit(account_id, 101, identifier)) == (CODE.INVALID_ARGUMENT, "REQUEST_ID_REUSED")
    found = await service.ledger.GetTransfer(
        pb.GetTransferRequest(transfer_id=first.transfer.transfer_id), metadata=DESK
    )
    assert found.transfer == first.transfer
    assert found.transfer.reference == "cash"


async def test_a_request_id_belongs_to_its_caller(service: Service) -> None:
    identifier = request_id()
    request = pb.CreateAccountRequest(request_id=identifier)
    alices = await service.accounts.CreateAccount(request, metadata=as_user(ALICE))
    bobs = await service.accounts.CreateAccount(request, metadata=as_user(BOB))
    assert alices.account.account_id != bobs.account.account_id
    assert not bobs.replayed


async def test_the_limits_of_money(service: Service) -> None:
    account_id = await service.open(ALICE, 100)
    withdraw = pb.WithdrawRequest(request_id=request_id(), account_id=account_id, amount_msat=101)
    answer = await refused(service.ledger.Withdraw(withdraw, metadata=DESK))
    assert answer == (CODE.FAILED_PRECONDITION, "INSUFFICIENT_BALANCE")
    withdraw.amount_msat = 100
    assert (await service.ledger.Withdraw(withdraw, metadata=DESK)).account.balance_msat == 0
    most = 2_100_000_000_000_000_000
    assert (await refused(service.deposit(account_id, most)))[1] == "BALANCE_LIMIT_EXCEEDED"
    assert (await refused(service.deposit(account_id, most + 1)))[1] == "REQUEST_INVALID"
    nobody = "customer:00000000-0000-0000-0000-000000000000"
    assert (await refused(service.deposit(nobody, 1)))[1] == "ACCOUNT_NOT_FOUND"


async def test_idempotency_of_payments(service: Service) -> None:
    payer, payee, other = await service.open(ALICE, 10_000), await service.open(BOB), await service.open(ALICE, 10_000)
    text, identifier = service.settlement.create(payee, 1_000), request_id()
    request = pb.PayInvoiceRequest(request_id=identifier, account_id=payer, payment_request=text)
    first = await service.payments.PayInvoice(request, metadata=as_user(ALICE), timeout=5)
    again = await service.payments.PayInvoice(request, metadata=as_user(ALICE), timeout=5)
    assert (first.replayed, again.replayed) == (False, True)
    assert first.payment == again.payment
    request.account_id = other
    answer = await refused(service.payments.PayInvoice(request, metadata=as_user(ALICE), timeout=5))
    assert answer == (CODE.INVALID_ARGUMENT, "REQUEST_ID_REUSED")
    assert (await refused(service.pay(ALICE, other, text)))[1] == "PAYMENT_ALREADY_PAID"
    assert (await refused(service.pay(BOB, payer, text)))[1] == "ACCOUNT_NOT_FOUND"
    assert await service.balance(payee) == 1_000


async def test_payments_are_for_their_payer(service: Service) -> None:
    payer, payee = await service.open(ALICE, 10_000), await service.open(BOB)
    payment = await service.pay(ALICE, payer, service.settlement.create(payee, 1_000))
    keys = [
        {"payment_id": payment.payment_id},
        {"payment_hash": payment.payment_hash},
        {"request_id": payment.request_id},
    ]
    for key in keys:
        request = pb.GetPaymentRequest(**key)  # type: ignore[arg-type]
        assert (await service.payments.GetPayment(request, metadata=as_user(ALICE))).payment == payment
        for metadata in (as_user(BOB), as_user(EVE)):
            answer = await refused(service.payments.GetPayment(request, metadata=metadata))
            assert answer == (CODE.NOT_FOUND, "PAYMENT_NOT_FOUND")
    listed = await service.payments.ListPayments(pb.ListPaymentsRequest(), metadata=as_user(BOB))
    assert not listed.payments
    listed = await service.payments.ListPayments(pb.ListPaymentsRequest(), metadata=DESK)
    assert [item.payment_id for item in listed.payments] == [payment.payment_id]


async def test_refunds_in_parts_and_never_more(service: Service) -> None:
    payer, payee = await service.open(ALICE, 10_000), await service.open(BOB)
    payment = await service.pay(ALICE, payer, service.settlement.create(payee, 10_000))
    for metadata, reason in (
        (as_user(ALICE), "REFUND_NOT_ALLOWED"),
        (DESK, "REFUND_NOT_ALLOWED"),
        (as_user(EVE), "PAYMENT_NOT_FOUND"),
    ):
        assert (await refused(service.refund(metadata, payment.payment_id, all=True)))[1] == reason
    bob, identifier = as_user(BOB), request_id()
    part = await service.refund(bob, payment.payment_id, amount_msat=4_000, identifier=identifier)
    assert (part.payment_state, part.refunded_msat) == (payment_pb2.Payment.STATE_SUCCEEDED, 4_000)
    assert (await service.refund(bob, payment.payment_id, amount_msat=4_000, identifier=identifier)).replayed
    assert (await refused(service.refund(bob, payment.payment_id, amount_msat=6_001)))[1] == "REFUND_EXCEEDS_PAYMENT"
    rest = await service.refund(bob, payment.payment_id, all=True)
    assert (rest.payment_state, rest.transfer.amount_msat) == (payment_pb2.Payment.STATE_REFUNDED, 6_000)
    assert (await refused(service.refund(bob, payment.payment_id, all=True)))[1] == "REFUND_EXCEEDS_PAYMENT"
    assert (await service.balance(payer), await service.balance(payee)) == (10_000, 0)


async def test_who_spent_the_money_cannot_refund_it(service: Service) -> None:
    payer, payee, third = await service.open(ALICE, 10_000), await service.open(BOB), await service.open(EVE)
    payment = await service.pay(ALICE, payer, service.settlement.create(payee, 10_000))
    await service.pay(BOB, payee, service.settlement.create(third, 1))
    answer = await refused(service.refund(as_user(BOB), payment.payment_id, all=True))
    assert answer == (CODE.FAILED_PRECONDITION, "INSUFFICIENT_BALANCE")


async def test_what_left_the_mesh_is_refunded_by_an_operator(service: Service) -> None:
    payer = await service.open(ALICE, 100_000)
    failed = await service.pay(ALICE, payer, payment_request(amount_msat=1_000, description="simulated:fail"))
    assert (await refused(service.refund(DESK, failed.payment_id, all=True)))[1] == "PAYMENT_NOT_SUCCEEDED"
    payment = await service.pay(ALICE, payer, payment_request(amount_msat=50_000))
    assert (await refused(service.refund(as_user(ALICE), payment.payment_id, all=True)))[1] == "REFUND_NOT_ALLOWED"
    refund = await service.refund(DESK, payment.payment_id, all=True)
    assert refund.transfer.debit_account_id == "node:lightning"
    assert await service.balance(payer) == 100_000 - payment.fee_msat


async def test_pages(service: Service) -> None:
    payer, payee = await service.open(ALICE, 100_000), await service.open(BOB)
    made = [await service.pay(ALICE, payer, service.settlement.create(payee, 1_000)) for _ in range(5)]
    for oldest_first in (False, True):
        request = pb.ListPaymentsRequest(page_size=2, oldest_first=oldest_first, states=[4])
        found: list[str] = []
        while True:
            page = await service.payments.ListPayments(request, metadata=as_user(ALICE))
            found += [payment.payment_id for payment in page.payments]
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
        wanted = [payment.payment_id for payment in (made if oldest_first else reversed(made))]
        assert found == wanted
    request.page_token = page.next_page_token or "AAAA"
    assert (await refused(service.payments.ListPayments(request, metadata=as_user(BOB))))[1] == "PAGE_TOKEN_INVALID"
    transfers: list[payment_pb2.Transfer] = []
    listing = pb.ListTransfersRequest(account_id=payee, page_size=2)
    while True:
        batch = await service.accounts.ListTransfers(listing, metadata=as_user(BOB))
        transfers += batch.transfers
        if not batch.next_page_token:
            break
        listing.page_token = batch.next_page_token
    assert [item.payment_id for item in transfers] == [payment.payment_id for payment in reversed(made)]
    assert {item.kind for item in transfers} == {payment_pb2.Transfer.KIND_POSTED}
    foreign = pb.ListTransfersRequest(account_id=payer)
    assert (await refused(service.accounts.ListTransfers(foreign, metadata=as_user(BOB))))[1] == "ACCOUNT_NOT_FOUND"


async def test_watching_resumes_and_shows_only_ones_own(service: Service) -> None:
    payer, payee = await service.open(ALICE, 100_000), await service.open(BOB)
    first = await service.pay(ALICE, payer, service.settlement.create(payee, 1_000))
    other = await service.open(EVE, 5_000)
    await service.pay(EVE, other, service.settlement.create(payee, 1_000))
    second = await service.pay(ALICE, payer, service.settlement.create(payee, 1_000))
    states = payment_pb2.Payment
    expected = [states.STATE_RESERVED, states.STATE_IN_FLIGHT, states.STATE_SUCCEEDED] * 2
    for resume, count in ((0, 6), (None, 0)):
        request = pb.WatchPaymentsRequest(account_id=payer, resume_after_sequence=resume)
        stream = service.payments.WatchPayments(request, metadata=as_user(ALICE), timeout=10)
        seen = [await stream.read() for _ in range(count)]
        stream.cancel()
        assert [item.payment.state for item in seen] == expected[:count]
        assert all(not item.payment.preimage for item in seen)
        sequences = [item.sequence for item in seen]
        assert sequences == sorted(set(sequences))
        if seen:
            middle = pb.WatchPaymentsRequest(account_id=payer, resume_after_sequence=sequences[2])
            stream = service.payments.WatchPayments(middle, metadata=as_user(ALICE), timeout=10)
            assert (await stream.read()).payment.payment_id == second.payment_id
            stream.cancel()
    current = pb.WatchPaymentsRequest(payment_id=first.payment_id)
    stream = service.payments.WatchPayments(current, metadata=as_user(ALICE), timeout=10)
    assert (await stream.read()).payment.state == states.STATE_SUCCEEDED
    await service.refund(as_user(BOB), first.payment_id, all=True)
    refunded = await stream.read()
    assert (refunded.payment.state, refunded.previous_state) == (states.STATE_REFUNDED, states.STATE_SUCCEEDED)
    stream.cancel()
    for metadata in (as_user(BOB), as_user(EVE)):
        stream = service.payments.WatchPayments(current, metadata=metadata, timeout=5)
        assert (await refused(stream.read()))[1] == "PAYMENT_NOT_FOUND"
    late = pb.WatchPaymentsRequest(resume_after_sequence=10_000_000)
    stream = service.payments.WatchPayments(late, metadata=as_user(ALICE), timeout=5)
    assert await refused(stream.read()) == (CODE.OUT_OF_RANGE, "RESUME_POINT_EXPIRED")

"""Random payments and refunds with repeated request ids while each service is killed once: no money is lost or made."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
import pytest

from nipmesh.payment.v1 import payment_pb2, payment_service_pb2
from support.mesh import RunningMesh
from support.nostr import User
from support.wallet import Wallet, all_pages, request_id

pytestmark = [pytest.mark.mesh, pytest.mark.timeout(600)]

OPERATIONS = 2_000
CALLERS = 16
ACCOUNTS = 20
START_MSAT = 1_000_000
REFUND_SHARE = 0.2
REPEAT_SHARE = 0.25
FINAL = {payment_pb2.Payment.STATE_SUCCEEDED, payment_pb2.Payment.STATE_FAILED, payment_pb2.Payment.STATE_REFUNDED}
ATTEMPTS_MAX = 20
"""How often one operation is asked again after an unclear answer, always under its own request_id."""
UNCLEAR = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}


@dataclass(slots=True)
class Book:
    """What the callers were told: the only truth that a user has."""

    balances: dict[str, int]
    paid: list[tuple[str, str, str, int]] = field(default_factory=list)
    """(payment id, payer's account, payee's account, amount)"""
    refunded: Counter[str] = field(default_factory=Counter)
    answers: dict[str, Any] = field(default_factory=dict)
    """request id to the payment or transfer it made"""
    refusals: Counter[str] = field(default_factory=Counter)


async def test_two_thousand_operations_and_three_kills_conserve_money(
    mesh: RunningMesh, channel: grpc.aio.Channel, operator: User
) -> None:
    desk = Wallet(channel, operator)
    wallets = [Wallet(channel, User()) for _ in range(ACCOUNTS)]
    for wallet in wallets:
        await wallet.user.login(channel, f"http://{mesh.gateway}")
    accounts = [await wallet.open_account() for wallet in wallets]
    for account in accounts:
        await desk.deposit(account, START_MSAT)
    owners = dict(zip(accounts, wallets, strict=True))
    book = Book(balances=dict.fromkeys(accounts, START_MSAT))
    progress = iter(range(OPERATIONS))
    done = Counter[str]()
    callers = [_caller(random.Random(seed), owners, book, progress, done) for seed in range(CALLERS)]
    await asyncio.gather(_kill_each_service(mesh, done), *callers)
    assert done["operations"] == OPERATIONS
    await asyncio.to_thread(mesh.wait_ready)
    await _check_balances(owners, book)
    await _check_every_payment(owners, book)


async def _caller(
    random_source: random.Random, owners: dict[str, Wallet], book: Book, progress: Any, done: Counter[str]
) -> None:
    for _ in progress:
        if book.paid and random_source.random() < REFUND_SHARE:
            await _refund(random_source, owners, book)
        else:
            await _pay(random_source, owners, book)
        done["operations"] += 1


async def _pay(random_source: random.Random, owners: dict[str, Wallet], book: Book) -> None:
    payer, payee = random_source.sample(sorted(owners), 2)
    amount = random_source.choice([1, 999, random_source.randint(1, 60_000), START_MSAT * ACCOUNTS])
    invoice = await _settled(lambda: owners[payee].invoice(payee, amount))
    identifier = request_id()
    attempts = [lambda: owners[payer].pay(payer, invoice.payment_request, identifier)]
    attempts *= 2 if random_source.random() < REPEAT_SHARE else 1
    answers = await asyncio.gather(*(_settled(attempt) for attempt in attempts), return_exceptions=True)
    payment = _same_answer(answers, "payment", book)
    if payment is None:
        return
    assert payment.state == payment_pb2.Payment.STATE_SUCCEEDED, payment
    book.balances[payer] -= amount
    book.balances[payee] += amount
    book.paid.append((payment.payment_id, payer, payee, amount))
    book.answers[identifier] = payment.payment_id


async def _refund(random_source: random.Random, owners: dict[str, Wallet], book: Book) -> None:
    payment_id, payer, payee, amount = random_source.choice(book.paid)
    part = random_source.randint(1, amount)
    identifier = request_id()
    attempts = [lambda: owners[payee].refund(payment_id, part, identifier)]
    attempts *= 2 if random_source.random() < REPEAT_SHARE else 1
    answers = await asyncio.gather(*(_settled(attempt) for attempt in attempts), return_exceptions=True)
    transfer = _same_answer(answers, "transfer", book)
    if transfer is None:
        return
    assert transfer.amount_msat == part
    book.balances[payee] -= part
    book.balances[payer] += part
    book.refunded[payment_id] += part
    book.answers[identifier] = transfer.transfer_id


def _same_answer(answers: list[Any], field_name: str, book: Book) -> Any:
    """What all calls under one request_id said; None when all were refused. They must not differ."""
    errors = [answer for answer in answers if isinstance(answer, BaseException)]
    for error in errors:
        assert isinstance(error, grpc.RpcError), repr(error)
        assert error.code() in {grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.ALREADY_EXISTS}, error
        book.refusals[str(error.details())] += 1
    assert len(errors) in {0, len(answers)}, f"one request_id, two outcomes: {answers}"
    if errors:
        return None
    first, *others = [getattr(answer, field_name) for answer in answers]
    identifier = "payment_id" if field_name == "payment" else "transfer_id"
    assert all(getattr(other, identifier) == getattr(first, identifier) for other in others)
    if field_name == "payment" and first.state not in FINAL:
        raise AssertionError(f"not final: {first}")
    return first


async def _settled(call: Any) -> Any:
    """Ask again, under the same request_id, until the answer is clear; a payment's answer is clear when it is final."""
    for attempt in range(ATTEMPTS_MAX):
        try:
            answer = await call()
        except grpc.RpcError as error:
            if error.code() not in UNCLEAR or attempt == ATTEMPTS_MAX - 1:
                raise
        else:
            if not isinstance(answer, payment_service_pb2.PayInvoiceResponse) or answer.payment.state in FINAL:
                return answer
        await asyncio.sleep(0.1 * (attempt + 1))
    raise AssertionError("no final answer after every attempt")


async def _kill_each_service(mesh: RunningMesh, done: Counter[str]) -> None:
    for share, service in ((0.25, "payment"), (0.5, "invoice"), (0.7, "nip")):
        while done["operations"] < OPERATIONS * share:
            await asyncio.sleep(0.02)
        replicas = await asyncio.to_thread(mesh.replicas, service)
        os.kill(replicas[0]["pid"], signal.SIGKILL)


async def _check_balances(owners: dict[str, Wallet], book: Book) -> None:
    found = {account: await wallet.account(account) for account, wallet in owners.items()}
    assert {name: account.balance_msat for name, account in found.items()} == book.balances
    assert all(account.available_msat >= 0 and account.debits_pending_msat == 0 for account in found.values())
    assert sum(account.balance_msat for account in found.values()) == ACCOUNTS * START_MSAT


async def _check_every_payment(owners: dict[str, Wallet], book: Book) -> None:
    seen: dict[str, payment_pb2.Payment] = {}
    for account, wallet in owners.items():

        async def fetch(token: str, account: str = account, wallet: Wallet = wallet) -> Any:
            request = payment_service_pb2.ListPaymentsRequest(account_id=account, page_size=1000, page_token=token)
            return await wallet.call(wallet.payments.ListPayments, request)

        seen |= {payment.payment_id: payment for payment in await all_pages(fetch, "payments")}
    assert {payment.state for payment in seen.values()} <= FINAL
    succeeded = {key for key, payment in seen.items() if payment.state != payment_pb2.Payment.STATE_FAILED}
    assert succeeded == {payment_id for payment_id, *_ in book.paid}
    assert {key: payment.refunded_msat for key, payment in seen.items() if payment.refunded_msat} == dict(book.refunded)
    assert len(book.answers) == len(set(book.answers.values())), "one effect for each request_id"

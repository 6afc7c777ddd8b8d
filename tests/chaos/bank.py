"""The bank test: random money moved by 16 callers while processes are killed at random; what the callers were told must be the truth.

Every operation has a request_id and ends as ok, failed or unknown; every unknown one is resolved by asking again under the same
request_id. The book is kept from the answers alone and compared with the accounts at the end. A seed fixes the operations, their
amounts and who is killed when (not the interleaving): `Bank(...).replay` says how to run one again.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc

from nipmesh.invoice.v1 import invoice_pb2
from nipmesh.invoice.v1 import invoice_service_pb2 as invoice_pb
from nipmesh.invoice.v1 import simulated_network_service_pb2 as simulated_pb
from nipmesh.invoice.v1.invoice_service_pb2_grpc import InvoiceServiceStub
from nipmesh.invoice.v1.simulated_network_service_pb2_grpc import SimulatedNetworkServiceStub
from nipmesh.payment.v1 import payment_pb2
from nipmesh.payment.v1 import payment_service_pb2 as pb
from nipmesh.payment.v1.payment_service_pb2_grpc import AccountServiceStub, LedgerServiceStub, PaymentServiceStub
from services.chassis.errors import reason_of
from support.cluster import UNCLEAR, Cluster, kill_and_restart
from support.payment_mesh import OPERATOR, request_id
from support.settlement import payment_request

CALLERS = 16
ACCOUNTS = 20
START_MSAT = 1_000_000
OPERATIONS_PER_KILL = 30
"""On average: often enough that many operations meet a kill, seldom enough that most of the time two replicas live."""
REFUSALS = frozenset({grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.ALREADY_EXISTS})
"""Codes of a definite no."""
CALL_SECONDS = 10.0
RESOLVE_SECONDS = 30.0
Payment = payment_pb2.Payment
FINAL = frozenset({Payment.STATE_SUCCEEDED, Payment.STATE_FAILED, Payment.STATE_REFUNDED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One call that can be repeated, and what its success means for the book."""

    name: str
    call: Callable[[], Awaitable[Any]]
    book: Callable[[Any], None]


@dataclass(slots=True)
class Book:
    """What the callers were told."""

    balances: dict[str, int]
    paid: list[tuple[str, str, str, int]] = field(default_factory=list)
    """Payments inside: (payment id, payer, payee, amount)."""
    effects: dict[str, str] = field(default_factory=dict)
    """request_id -> the payment or transfer that it made."""
    outcomes: Counter[str] = field(default_factory=Counter)
    unknown: list[Operation] = field(default_factory=list)

    def move(self, debit: str | None, credit: str | None, amount_msat: int) -> None:
        """Between two accounts; None is outside the mesh."""
        for account, change in ((debit, -amount_msat), (credit, amount_msat)):
            if account is not None:
                self.balances[account] += change

    def effect(self, identifier: str, made: str) -> None:
        """Each request_id makes one thing, and each thing is made by one request_id."""
        assert self.effects.setdefault(identifier, made) == made, f"request_id {identifier} took effect twice"


class Bank:
    """One run over a cluster."""

    def __init__(
        self, cluster: Cluster, *, seed: int, operations: int, victims: Callable[[random.Random], Awaitable[None]]
    ) -> None:
        """`victims` kills one of whatever may die, and brings it back."""
        self._cluster = cluster
        self._seed = seed
        self._operations = operations
        self._kill = victims
        self._owners: dict[str, str] = {}
        self.book = Book(balances={})
        self.begun = 0
        self.kills = 0

    async def run(self) -> None:
        """All operations, then all checks. Raises AssertionError."""
        await self._open_accounts()
        numbers = iter(range(self._operations))
        killer = asyncio.create_task(self._killer())
        try:
            await asyncio.gather(*(self._caller(numbers) for _ in range(CALLERS)))
        finally:
            self._done = True
            await killer
        await self._resolve()
        await self.check()

    # ---- before

    async def _open_accounts(self) -> None:
        for number in range(ACCOUNTS):
            owner = f"{number + 1:02x}" * 32
            account = await self._open_account(owner)
            self._owners[account] = owner
            self.book.balances[account] = START_MSAT

    async def _open_account(self, owner: str) -> str:
        opened = await self._cluster.call(
            AccountServiceStub, "CreateAccount", pb.CreateAccountRequest(request_id=request_id()), owner
        )
        account = str(opened.account.account_id)
        deposit = pb.DepositRequest(request_id=request_id(), account_id=account, amount_msat=START_MSAT)
        await self._cluster.call(LedgerServiceStub, "Deposit", deposit, OPERATOR, role="operator")
        return account

    # ---- the run

    _done = False

    async def _killer(self) -> None:
        """Kills by progress, so that a slow machine kills as often as a fast one."""
        dice = random.Random(f"{self._seed}:kills")
        due = OPERATIONS_PER_KILL
        while not self._done:
            if self.begun >= due:
                await self._kill(dice)
                self.kills += 1
                due += dice.randint(OPERATIONS_PER_KILL // 2, OPERATIONS_PER_KILL * 3 // 2)
            await asyncio.sleep(0.01)

    async def _caller(self, numbers: Any) -> None:
        for number in numbers:
            self.begun += 1
            while self.begun > 2 * OPERATIONS_PER_KILL * (self.kills + 1):
                await asyncio.sleep(0.01)  # a fast machine waits for its kills
            dice = random.Random(f"{self._seed}:{number}")
            kinds = list(KINDS)
            (kind,) = dice.choices(kinds, [KINDS[kind] for kind in kinds])
            operation = await kind(self, dice)
            if operation is not None:
                await self._do(operation)

    async def _do(self, operation: Operation) -> None:
        """Once; an unclear answer is kept for later, as a caller does whose own process died."""
        try:
            answer = await operation.call()
        except grpc.aio.AioRpcError as error:
            if error.code() in UNCLEAR:
                self.book.unknown.append(operation)
                self.book.outcomes["unknown"] += 1
                return
            if error.code() not in REFUSALS:
                raise AssertionError(
                    f"{operation.name}: {error.code()} {reason_of(error)} {error.details()}"
                ) from error
            self.book.outcomes[f"{operation.name} failed"] += 1
            return
        if isinstance(answer, pb.PayInvoiceResponse) and answer.payment.state not in FINAL:
            self.book.unknown.append(operation)
            self.book.outcomes["unknown"] += 1
            return
        operation.book(answer)
        self.book.outcomes[f"{operation.name} ok"] += 1

    async def _resolve(self) -> None:
        """Ask again for everything whose outcome is not known."""
        while self.book.unknown:
            operations, self.book.unknown = self.book.unknown, []
            async with asyncio.timeout(RESOLVE_SECONDS):
                await asyncio.gather(*(self._do(operation) for operation in operations))
            await asyncio.sleep(0.1)

    def _call(self, stub: Any, method: str, request: Any, user: str, *, role: str = "", attempts: int = 2) -> Any:
        return self._cluster.call(stub, method, request, user, role=role, timeout=CALL_SECONDS, attempts=attempts)

    # ---- operations

    async def _invoice(self, payee: str, amount_msat: int, **terms: Any) -> invoice_pb2.Invoice | None:
        request = invoice_pb.CreateInvoiceRequest(
            request_id=request_id(), account_id=payee, amount_msat=amount_msat, **terms
        )
        try:
            created = await self._call(InvoiceServiceStub, "CreateInvoice", request, self._owners[payee])
        except grpc.aio.AioRpcError as error:
            if error.code() not in UNCLEAR:
                raise
            return None  # nobody has seen it: it can never be paid
        return created.invoice

    async def pay_inside(self, dice: random.Random) -> Operation | None:
        """PayInvoice between two customers; now and then more than anybody has."""
        payer, payee = dice.sample(sorted(self._owners), 2)
        amount = dice.choice([1, 999, dice.randint(1, 60_000), START_MSAT * ACCOUNTS])
        invoice = await self._invoice(payee, amount)
        if invoice is None:
            return None
        request = pb.PayInvoiceRequest(
            request_id=request_id(), account_id=payer, payment_request=invoice.payment_request
        )

        def book(answer: pb.PayInvoiceResponse) -> None:
            payment = answer.payment
            self.book.effect(request.request_id, payment.payment_id)
            assert payment.state == Payment.STATE_SUCCEEDED, payment
            assert payment.internal
            self.book.move(payer, payee, amount)
            self.book.paid.append((payment.payment_id, payer, payee, amount))

        return self._operation("pay inside", PaymentServiceStub, "PayInvoice", request, self._owners[payer], book)

    async def pay_outside(self, dice: random.Random) -> Operation | None:
        """PayInvoice through the simulated node, which pays, fails or takes its time."""
        payer = dice.choice(sorted(self._owners))
        word = dice.choice(["", "", "simulated:fail", "simulated:delay=300", "simulated:fee=2500"])
        amount = dice.randint(1, 60_000)
        text = payment_request(amount_msat=amount, description=word)
        request = pb.PayInvoiceRequest(request_id=request_id(), account_id=payer, payment_request=text)

        def book(answer: pb.PayInvoiceResponse) -> None:
            payment = answer.payment
            self.book.effect(request.request_id, payment.payment_id)
            assert (payment.state == Payment.STATE_FAILED) == (word == "simulated:fail"), payment
            if payment.state == Payment.STATE_SUCCEEDED:
                assert not payment.internal
                self.book.move(payer, None, amount + payment.fee_msat)

        return self._operation("pay outside", PaymentServiceStub, "PayInvoice", request, self._owners[payer], book)

    async def transfer(self, dice: random.Random) -> Operation | None:
        """Money sent on without an invoice."""
        debit, credit = dice.sample(sorted(self._owners), 2)
        amount = dice.choice([1, dice.randint(1, 60_000), START_MSAT * ACCOUNTS])
        request = pb.TransferRequest(
            request_id=request_id(), account_id=debit, credit_account_id=credit, amount_msat=amount
        )

        def book(answer: pb.TransferResponse) -> None:
            self.book.effect(request.request_id, answer.transfer.transfer_id)
            self.book.move(debit, credit, amount)

        return self._operation("transfer", AccountServiceStub, "Transfer", request, self._owners[debit], book)

    async def hold(self, dice: random.Random) -> Operation | None:
        """A hold invoice that is paid inside, then settled or canceled by its owner."""
        payer, payee = dice.sample(sorted(self._owners), 2)
        amount, settles = dice.randint(1, 60_000), dice.random() < 0.5
        invoice = await self._invoice(payee, amount, hold=invoice_pb.HoldTerms())
        if invoice is None:
            return None
        request = pb.PayInvoiceRequest(
            request_id=request_id(), account_id=payer, payment_request=invoice.payment_request
        )
        request.wait_duration.FromSeconds(0)
        kind = invoice_pb.SettleInvoiceRequest if settles else invoice_pb.CancelInvoiceRequest
        decision = kind(request_id=request_id(), invoice_id=invoice.invoice_id)

        async def call() -> pb.PayInvoiceResponse:
            owner = self._owners[payer]
            answer = await self._call(PaymentServiceStub, "PayInvoice", request, owner)
            while answer.payment.state not in FINAL:
                await self._decide(decision, self._owners[payee])
                answer = await self._call(PaymentServiceStub, "PayInvoice", request, owner)
                await asyncio.sleep(0.02)
            return answer

        def book(answer: pb.PayInvoiceResponse) -> None:
            payment = answer.payment
            self.book.effect(request.request_id, payment.payment_id)
            if payment.failure_reason in (
                Payment.FAILURE_REASON_INVOICE_CANCELED,
                Payment.FAILURE_REASON_INVOICE_NOT_PAYABLE,
            ):
                assert not settles, payment
                return
            assert payment.state == Payment.STATE_SUCCEEDED, payment
            assert settles, payment
            self.book.move(payer, payee, amount)
            self.book.paid.append((payment.payment_id, payer, payee, amount))

        return Operation(name="hold", call=call, book=book)

    async def _decide(self, decision: Any, owner: str) -> None:
        """The owner's word, as soon as the money is held. A cancellation before that means that nobody can pay any more."""
        method = "SettleInvoice" if isinstance(decision, invoice_pb.SettleInvoiceRequest) else "CancelInvoice"
        try:
            await self._call(InvoiceServiceStub, method, decision, owner)
        except grpc.aio.AioRpcError as error:
            if reason_of(error) not in ("INVOICE_NOT_ACCEPTED", "INVOICE_LOCKED"):
                raise

    async def receive(self, dice: random.Random) -> Operation | None:
        """Somebody outside pays an invoice through the simulated network; done when the invoice is settled."""
        payee, amount = dice.choice(sorted(self._owners)), dice.randint(1, 60_000)
        invoice = await self._invoice(payee, amount)
        if invoice is None:
            return None
        request = simulated_pb.PayInvoiceRequest(payment_request=invoice.payment_request)
        ask = invoice_pb.GetInvoiceRequest(invoice_id=invoice.invoice_id)

        async def call() -> Any:
            await self._call(SimulatedNetworkServiceStub, "PayInvoice", request, OPERATOR, role="operator")
            async with asyncio.timeout(RESOLVE_SECONDS):
                while True:
                    found = await self._call(InvoiceServiceStub, "GetInvoice", ask, self._owners[payee])
                    if found.invoice.state == invoice_pb2.Invoice.STATE_SETTLED:
                        return found
                    await asyncio.sleep(0.05)

        def book(answer: invoice_pb.GetInvoiceResponse) -> None:
            assert answer.invoice.amount_paid_msat == amount
            self.book.effect(invoice.invoice_id, invoice.invoice_id)
            self.book.move(None, payee, amount)

        return Operation(name="receive", call=call, book=book)

    async def refund(self, dice: random.Random) -> Operation | None:
        """A part of an earlier payment, by who got it."""
        if not self.book.paid:
            return None
        payment_id, payer, payee, paid = dice.choice(self.book.paid)
        amount = dice.randint(1, paid)
        request = pb.RefundPaymentRequest(request_id=request_id(), payment_id=payment_id, amount_msat=amount)

        def book(answer: pb.RefundPaymentResponse) -> None:
            self.book.effect(request.request_id, answer.transfer.transfer_id)
            assert answer.transfer.amount_msat == amount
            self.book.move(payee, payer, amount)

        return self._operation("refund", PaymentServiceStub, "RefundPayment", request, self._owners[payee], book)

    async def desk(self, dice: random.Random) -> Operation | None:
        """A deposit or a withdrawal."""
        account, amount = dice.choice(sorted(self._owners)), dice.randint(1, 50_000)
        inward = dice.random() < 0.5
        kind = pb.DepositRequest if inward else pb.WithdrawRequest
        request = kind(request_id=request_id(), account_id=account, amount_msat=amount)

        def book(answer: Any) -> None:
            self.book.effect(request.request_id, answer.transfer.transfer_id)
            self.book.move(None if inward else account, account if inward else None, amount)

        method = "Deposit" if inward else "Withdraw"
        return self._operation("desk", LedgerServiceStub, method, request, OPERATOR, book, role="operator")

    async def read_all(self, dice: random.Random) -> Operation | None:
        """One snapshot of all accounts: at every moment debits equal credits and no customer owes anything."""
        request = pb.ListAccountsRequest(page_size=1_000)
        return self._operation(
            "read", AccountServiceStub, "ListAccounts", request, OPERATOR, check_snapshot, role="operator"
        )

    def _operation(
        self, name: str, stub: Any, method: str, request: Any, user: str, book: Callable[[Any], None], role: str = ""
    ) -> Operation:
        return Operation(name=name, call=lambda: self._call(stub, method, request, user, role=role), book=book)

    # ---- afterwards

    async def check(self) -> None:
        """The accounts hold what the callers were told, and nothing is under way."""
        request = pb.ListAccountsRequest(page_size=1_000)
        listed = await self._cluster.call(AccountServiceStub, "ListAccounts", request, OPERATOR, role="operator")
        check_snapshot(listed)
        found = {account.account_id: account for account in listed.accounts}
        balances = {account: found[account].balance_msat for account in self._owners}
        assert balances == self.book.balances
        assert all(found[account].debits_pending_msat == 0 for account in self._owners), "something is still held"
        assert len(set(self.book.effects.values())) == len(self.book.effects), "one thing for two request_ids"
        await self._cluster.verify()


def check_snapshot(listed: pb.ListAccountsResponse) -> None:
    """What is true of all accounts at every moment."""
    accounts = listed.accounts
    assert not listed.next_page_token, "all accounts fit on one page, that is one snapshot"
    assert sum(account.balance_msat for account in accounts) == 0, "money was made or lost"
    pending = sum(account.debits_pending_msat - account.credits_pending_msat for account in accounts)
    assert pending == 0, "a reservation has one side only"
    customers = [account for account in accounts if account.kind == payment_pb2.Account.KIND_CUSTOMER]
    assert all(account.available_msat >= 0 for account in customers), "a customer spent more than there was"


KINDS: dict[Callable[[Bank, random.Random], Awaitable[Operation | None]], int] = {
    Bank.transfer: 20,
    Bank.pay_inside: 25,
    Bank.pay_outside: 12,
    Bank.hold: 8,
    Bank.receive: 8,
    Bank.refund: 12,
    Bank.desk: 7,
    Bank.read_all: 8,
}
"""What is done, and how often relative to the others."""


async def kill_something(cluster: Cluster, dice: random.Random) -> None:
    """kill -9 of one replica of any service, or of the database's server where there is one."""
    processes = cluster.all()
    victim = dice.randrange(len(processes) + (cluster.server is not None))
    if victim < len(processes):
        await kill_and_restart(processes[victim], dice)
        return
    assert cluster.server is not None
    await asyncio.to_thread(cluster.server.kill)
    await asyncio.to_thread(cluster.server.start)

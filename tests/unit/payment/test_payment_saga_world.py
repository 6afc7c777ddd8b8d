"""Whole sagas over the real tables in a simulated world, by hypothesis: lost calls, late calls, crashes, two drivers at once, refusals.

Whatever happens: money is conserved and moved at most once, what the payee's side and the node believe is what the ledger says, and once
the world is well again every payment ends.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from hashlib import sha256

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from services.lightning.node import NodeFailed, NodeFailure, NodePaid, NodePending, NodeUnknown
from services.payment.domain.model import (
    FINAL_STATES,
    NODE_ACCOUNT,
    Account,
    AccountState,
    Failure,
    Payment,
    PaymentState,
    Purpose,
    Refused,
    Transfer,
    TransferKind,
)
from services.payment.domain.saga import Decision, Saga, decide
from services.payment.domain.saga_words import (
    Accepted,
    Action,
    Answer,
    Committed,
    Event,
    GraceOver,
    HoldEnded,
    Locked,
    LockRefused,
    NotOurs,
    Park,
    Released,
    Resumed,
    Signed,
    Step,
    Unavailable,
    Undecided,
    WriteRefused,
    Written,
)
from services.payment.store import ledger, payments, sagas, transactions
from services.payment.store.accounts import Order, close_account, insert_account
from services.storage.idempotency import RequestKey
from support.ledger_rows import open_payment_database

PREIMAGE = bytes(32)
HASH = sha256(PREIMAGE).hexdigest()
PAYER, PAYEE, PAYMENT_ID = "customer:a", "customer:b", "01a1fdd1-177a-7167-8620-8206803123ef"
FUNDS_MSAT, AMOUNT_MSAT, FEE_LIMIT_MSAT, FEE_MSAT = 10_000, 7_000, 500, 300
LEASE_MS, GIVE_UP_MS = 2_000, 60_000
STEPS_MAX = 200
"""A saga that is not at its end after so many steps in a world without faults never ends."""


@dataclass
class World:
    """The payee's side and the node, as their own books have it."""

    kind: str
    invoice: str = "open"
    tombstone: bool = False
    node: str = "unknown"
    node_paid: int = 0

    def call(self, action: Action) -> Answer:
        """What a call does, and what it answers."""
        if action is Action.SIGN:
            return Signed('{"tags":[]}')
        if action in (Action.PAY, Action.TRACK):
            return self._node(action)
        return self._invoice(action)

    def _invoice(self, action: Action) -> Answer:
        if action is Action.LOCK:
            return self._lock()
        if action is Action.RELEASE:
            assert self.invoice not in ("awaiting", "settled"), "what was committed is never released"
            self.invoice = "open" if self.invoice == "locked" else self.invoice
            self.tombstone = True
            return Released()
        if action is Action.COMMIT and self.invoice == "locked":
            self.invoice = "awaiting" if self.kind == "hold" else "settled"
        if self.invoice == "settled":
            return Committed(PREIMAGE.hex())
        if action is Action.COMMIT:
            assert self.kind == "hold"
            return Accepted()
        return HoldEnded() if self.invoice == "canceled" else Undecided()

    def _lock(self) -> Answer:
        if self.kind == "outside":
            return NotOurs()
        if self.tombstone or self.invoice == "withdrawn":
            return LockRefused(Failure.INVOICE_NOT_PAYABLE)
        if self.invoice == "open":
            self.invoice = "locked"
        return Locked(PAYER if self.kind == "own" else PAYEE, hold=self.kind == "hold")

    def _node(self, action: Action) -> Answer:
        if action is Action.PAY and self.node in ("unknown", "failed"):
            self.node = "pending"
        if self.node == "paid":
            return NodePaid(PREIMAGE.hex(), FEE_MSAT)
        if self.node == "failed":
            return NodeFailed(NodeFailure.NO_ROUTE)
        return NodePending() if self.node == "pending" else NodeUnknown()


@dataclass
class Driver:
    """A process that drives the saga, or believes that it does."""

    lease: sagas.Lease
    saga: Saga
    payment: Payment
    decision: Decision
    calls: set[Action] = field(default_factory=set)

    def follow(self) -> None:
        """Begin what the decision begins."""
        if self.decision.commit is None:
            self.saga = self.decision.saga
            self.calls |= self.decision.actions
            assert self.calls == self.saga.outstanding


class SagaMachine(RuleBasedStateMachine):
    """One payment; rules are what can happen to it."""

    @initialize(kind=st.sampled_from(["inside", "inside", "hold", "hold", "outside", "outside", "own"]))
    def begin(self, kind: str) -> None:
        self.world, self.now_ms = World(kind), 1_000
        self.connection = open_payment_database()
        for account_id in (PAYER, PAYEE):
            insert_account(self.connection, Account(account_id=account_id, owner=account_id, state=AccountState.ACTIVE))
        self._deposit()
        draft = Payment(
            payment_id=PAYMENT_ID,
            account_id=PAYER,
            scope=PAYER,
            request_id=PAYMENT_ID,
            state=PaymentState.RESERVED,
            payment_request="lnbcrt1",
            payment_hash=HASH,
            amount_msat=AMOUNT_MSAT,
            fee_limit_msat=FEE_LIMIT_MSAT,
            create_time_ms=self.now_ms,
        )
        saga = Saga(
            payment_id=PAYMENT_ID,
            payer_account_id=PAYER,
            give_up_time_ms=self.now_ms + GIVE_UP_MS,
            step_time_ms=self.now_ms,
        )
        lease = sagas.Lease(saga_id=PAYMENT_ID, owner="one", fence=1)
        key = RequestKey(
            scope=PAYER, method="/nipmesh.payment.v1.PaymentService/PayInvoice", request_id=PAYMENT_ID, sha256=b""
        )
        with self.connection:
            begun = transactions.begin_payment(self.connection, key, draft, saga, lease, self.now_ms + LEASE_MS)
        self.drivers: list[Driver] = []
        self.late: list[Action] = []
        self.states = [PaymentState.RESERVED]
        self._drive(lease, saga, begun.payment, Written())

    def _deposit(self) -> None:
        deposit = Transfer(
            transfer_id="deposit",
            kind=TransferKind.POSTED,
            debit_account_id=NODE_ACCOUNT,
            credit_account_id=PAYER,
            amount_msat=FUNDS_MSAT,
            purpose=Purpose.DEPOSIT,
            create_time_ms=1,
        )
        with self.connection:
            ledger.post(self.connection, (deposit,))

    def _drive(self, lease: sagas.Lease, saga: Saga, payment: Payment, event: Event) -> None:
        driver = Driver(lease, saga, payment, decide(saga, event, self.now_ms))
        self.drivers.append(driver)
        driver.follow()

    def _next(self, driver: Driver, event: Event) -> None:
        driver.decision = decide(driver.saga, event, self.now_ms)
        driver.follow()
        if driver.decision.commit is None and not driver.calls:
            assert driver.saga.step is Step.DONE
            self.drivers.remove(driver)

    def _dies(self, driver: Driver) -> None:
        """What it had on the way may still arrive."""
        self.late.extend(sorted(driver.calls))
        self.drivers.remove(driver)

    def _write(self, driver: Driver) -> None:
        commit, decision = driver.decision.commit, driver.decision
        assert commit is not None
        progress = transactions.Progress(
            lease=driver.lease, decision=decision, payment=driver.payment, simulated=True, steps=(), now_ms=self.now_ms
        )
        try:
            with self.connection:
                driver.payment = transactions.advance(self.connection, progress)
        except sagas.LeaseLostError:
            self._dies(driver)
            return
        except Refused:
            self._next(driver, WriteRefused(Failure.INVOICE_NOT_PAYABLE, commit))
            return
        driver.saga = decision.saga
        if isinstance(commit, Park):
            self._dies(driver)
        else:
            self._next(driver, Written())

    def _answer(self, driver: Driver, action: Action, answer: Answer) -> None:
        driver.calls.discard(action)
        self._next(driver, answer)

    # ---- what can happen

    def _waiting(self) -> list[Driver]:
        """Drivers that wait for answers; one that writes hears none before it has written."""
        return [driver for driver in self.drivers if driver.decision.commit is None and driver.calls]

    def _some(self, data: st.DataObject) -> Driver:
        return self.drivers[data.draw(st.integers(0, len(self.drivers) - 1), "driver")]

    @precondition(lambda self: self.drivers)
    @rule(data=st.data())
    def goes_on(self, data: st.DataObject) -> None:
        """One step of a driver: its commit, or the answer to one of its calls."""
        driver = self._some(data)
        if driver.decision.commit is not None:
            self._write(driver)
            return
        action = data.draw(st.sampled_from(sorted(driver.calls)), "action")
        self._answer(driver, action, self.world.call(action))

    @precondition(lambda self: self._waiting())
    @rule(data=st.data(), fate=st.sampled_from(["on the way there", "on the way back", "late"]))
    def a_call_is_lost(self, data: st.DataObject, fate: str) -> None:
        """Nobody knows what it did, or will do."""
        driver = self._waiting()[data.draw(st.integers(0, len(self._waiting()) - 1), "driver")]
        action = data.draw(st.sampled_from(sorted(driver.calls)), "action")
        if fate == "on the way back":
            self.world.call(action)
        elif fate == "late":
            self.late.append(action)
        self._answer(driver, action, Unavailable(action, "UNAVAILABLE"))

    @precondition(lambda self: any(driver.decision.grace_ms for driver in self.drivers))
    @rule()
    def grace_ends(self) -> None:
        """The receipt is not there in time."""
        for driver in list(self.drivers):
            if driver.decision.commit is None and driver.decision.grace_ms is not None:
                self._next(driver, GraceOver())

    @precondition(lambda self: self.drivers)
    @rule(data=st.data())
    def dies(self, data: st.DataObject) -> None:
        """A process ends, at any point."""
        self._dies(self._some(data))

    @rule(owner=st.sampled_from(["one", "two"]), after_ms=st.sampled_from([0, 400, 2_500, 10_000, 70_000]))
    def is_claimed(self, owner: str, after_ms: int) -> None:
        """A sweeper looks, some time later; a driver whose lease has ended may still believe that it drives."""
        self.now_ms += after_ms
        until_ms = self.now_ms + LEASE_MS
        with self.connection:
            claimed = sagas.claim(self.connection, owner, now_ms=self.now_ms, until_ms=until_ms, limit=10)
        for lease, saga in claimed:
            self._drive(lease, saga, self._payment(), Resumed())

    @precondition(lambda self: self.late)
    @rule()
    def a_late_call_arrives(self) -> None:
        """Of a process that is gone; nobody hears the answer."""
        self.world.call(self.late.pop(0))

    @precondition(lambda self: self.world.invoice in ("open", "awaiting"))
    @rule(settles=st.booleans())
    def the_owner_decides(self, settles: bool) -> None:
        """Cancels what nobody holds, settles or cancels what waits for the owner."""
        if self.world.invoice == "awaiting":
            self.world.invoice = "settled" if settles else "canceled"
        elif not settles:
            self.world.invoice = "withdrawn"

    @precondition(lambda self: self.world.node == "pending")
    @rule(pays=st.booleans())
    def the_node_decides(self, pays: bool) -> None:
        """The attempt ends."""
        self.world.node = "paid" if pays else "failed"
        self.world.node_paid += pays

    @rule()
    def the_payee_closes_the_account(self) -> None:
        """If it may."""
        with contextlib.suppress(Refused), self.connection:
            close_account(self.connection, PAYEE, Order(actor="o", now_ms=self.now_ms))

    # ---- what must be true

    def _payment(self) -> Payment:
        payment = payments.find_payment(self.connection, PAYMENT_ID)
        assert payment is not None
        return payment

    def _account(self, account_id: str) -> Account:
        account = ledger.find_account(self.connection, account_id)
        assert account is not None
        return account

    @invariant()
    def money_is_conserved_and_moved_at_most_once(self) -> None:
        if not hasattr(self, "connection"):
            return
        ledger.sums(self.connection)  # debits equal credits
        payment, payer, payee = self._payment(), self._account(PAYER), self._account(PAYEE)
        spent_msat = FUNDS_MSAT - payer.credits_posted_msat + payer.debits_posted_msat
        inside = payment.state is PaymentState.SUCCEEDED or (
            payment.state is PaymentState.IN_FLIGHT and payment.internal
        )
        moved = payment.state is PaymentState.SUCCEEDED or (inside and payer.debits_pending_msat == 0)
        assert spent_msat == (AMOUNT_MSAT + payment.fee_msat if moved else 0)
        assert payee.credits_posted_msat == (AMOUNT_MSAT if moved and payment.internal else 0)
        if payment.state in FINAL_STATES:
            assert payer.debits_pending_msat == payee.credits_pending_msat == 0

    @invariant()
    def a_payment_never_goes_back(self) -> None:
        if not hasattr(self, "connection"):
            return
        state = self._payment().state
        assert state >= self.states[-1]
        assert state is self.states[-1] or self.states[-1] not in FINAL_STATES
        self.states.append(state)

    @invariant()
    def what_others_believe_is_what_the_ledger_says(self) -> None:
        if not hasattr(self, "connection"):
            return
        payment, world = self._payment(), self.world
        assert world.node_paid <= 1
        if payment.state is PaymentState.FAILED:
            assert world.node != "paid", "a refund of what was paid"
            assert world.invoice != "settled", "the payee gave the goods away"
        if payment.state is PaymentState.SUCCEEDED:
            assert payment.preimage == PREIMAGE.hex()
            assert (world.invoice == "settled") is payment.internal
            assert (world.node_paid == 1) is not payment.internal
        if world.invoice in ("settled", "awaiting"):
            assert payment.internal, "what is the payee's to take is reserved, or theirs already"

    def teardown(self) -> None:
        """The world is well again: the payment ends, and says so."""
        if not hasattr(self, "connection"):
            return
        for _ in range(STEPS_MAX):
            if self._payment().state in FINAL_STATES and not self._row_runs():
                break
            self._a_good_step()
        payment = self._payment()
        assert payment.state in FINAL_STATES, f"stands still in {self.world}"
        assert not self._row_runs()
        assert self.world.invoice != "locked", "the invoice is nobody's to pay any more"
        assert bool(payment.receipt_json) is (payment.state is PaymentState.SUCCEEDED)
        self.money_is_conserved_and_moved_at_most_once()
        self.what_others_believe_is_what_the_ledger_says()
        self.connection.close()

    def _row_runs(self) -> bool:
        return sagas.find_saga(self.connection, PAYMENT_ID) is not None

    def _a_good_step(self) -> None:
        self.now_ms += 100
        if self.world.node == "pending":
            self.world.node, self.world.node_paid = "paid", self.world.node_paid + 1
        if self.world.invoice == "awaiting":
            self.world.invoice = "settled"
        if self.world.node == "unknown" and self._stored_step() is Step.PROCESS_PAYMENT:
            self.world.node = "failed"  # a node that never heard of it would be asked for ever: an operator says so
        if not self.drivers:
            self.now_ms += 70_000
            self.is_claimed("one", 0)
        for driver in list(self.drivers):
            if driver.decision.commit is not None:
                self._write(driver)
            elif driver.calls:
                action = min(driver.calls)
                self._answer(driver, action, self.world.call(action))

    def _stored_step(self) -> Step:
        view = sagas.find_saga(self.connection, PAYMENT_ID)
        return Step.DONE if view is None else view.saga.step


TestSagaMachine = SagaMachine.TestCase
TestSagaMachine.settings = settings(max_examples=60, stateful_step_count=40)

"""The ledger's rules, and the SQL against a model that only knows the rules."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import accumulate
from typing import Any

import apsw
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from services.payment.domain.fees import fee_limit_msat
from services.payment.domain.ledger import DAY_MS, Delta, apply, deltas, net_deltas, refusal
from services.payment.domain.model import (
    AMOUNT_MSAT_MAX,
    NODE_ACCOUNT,
    SUSPENSE_ACCOUNT,
    Account,
    AccountState,
    Purpose,
    Quota,
    Reason,
    Refused,
    Transfer,
    TransferKind,
)
from services.payment.store import ledger as store
from services.payment.store.accounts import Order, close_account, insert_account, set_account_state, set_quota
from services.payment.store.entries import find_head
from services.payment.store.statements import Line, find_statement, list_lines
from services.payment.verification.command import verify
from services.payment.verification.ledger import check_ledger
from services.payment.verification.report import Report
from support.ledger_rows import open_payment_database

CUSTOMERS = ("customer:a", "customer:b", "customer:c")


def open_ledger() -> apsw.Connection:
    connection = open_payment_database()
    for account_id in CUSTOMERS:
        insert_account(connection, Account(account_id=account_id, owner="o", state=AccountState.ACTIVE))
    return connection


def transfer(number: int, kind: TransferKind, debit: str, credit: str, amount: int, pending: str = "") -> Transfer:
    return Transfer(
        transfer_id=f"t{number}",
        kind=kind,
        debit_account_id=debit,
        credit_account_id=credit,
        amount_msat=amount,
        purpose=Purpose.PAYMENT,
        pending_transfer_id=pending,
    )


@contextmanager
def refused(reason: Reason) -> Iterator[None]:
    with pytest.raises(Refused) as caught:
        yield
    assert caught.value.reason is reason


def test_kinds_move_the_right_counters() -> None:
    held = transfer(1, TransferKind.PENDING, "customer:a", SUSPENSE_ACCOUNT, 100)
    debit, credit = deltas(held)
    assert (debit.debits_pending_msat, credit.credits_pending_msat) == (100, 100)
    part = transfer(2, TransferKind.POST_PENDING, "customer:a", SUSPENSE_ACCOUNT, 60, "t1")
    debit, credit = deltas(part, held)
    assert (debit.debits_pending_msat, debit.debits_posted_msat, debit.available_msat) == (-100, 60, 40)
    assert (credit.credits_pending_msat, credit.credits_posted_msat) == (-100, 60)
    gone = transfer(3, TransferKind.VOID_PENDING, "customer:a", SUSPENSE_ACCOUNT, 100, "t1")
    assert deltas(gone, held)[0].available_msat == 100


def test_a_post_never_moves_more_than_was_reserved() -> None:
    held = transfer(1, TransferKind.PENDING, "customer:a", SUSPENSE_ACCOUNT, 100)
    with pytest.raises(AssertionError):
        deltas(transfer(2, TransferKind.POST_PENDING, "customer:a", SUSPENSE_ACCOUNT, 101, "t1"), held)


def test_default_fee_limit() -> None:
    assert fee_limit_msat(1, None) == 10_000
    assert fee_limit_msat(1_000_001, None) == 10_001
    assert fee_limit_msat(5_000_000, None) == 50_000
    assert fee_limit_msat(5_000_000, 0) == 0


def test_frozen_accounts_receive_and_resolve_but_do_not_spend() -> None:
    frozen = Account(
        account_id="a", owner="o", state=AccountState.FROZEN, credits_posted_msat=10, debits_pending_msat=5
    )
    assert refusal(frozen, Delta(account_id="a", debits_pending_msat=-5)) is None
    assert refusal(frozen, Delta(account_id="a", debits_pending_msat=-5, debits_posted_msat=5)) is None
    assert refusal(frozen, Delta(account_id="a", credits_posted_msat=5)) is None
    answer = refusal(frozen, Delta(account_id="a", debits_posted_msat=1))
    assert answer is not None
    assert answer.reason is Reason.ACCOUNT_FROZEN


def test_no_account_sums_up_to_more_than_there_is() -> None:
    connection = open_ledger()
    store.post(connection, [transfer(1, TransferKind.POSTED, NODE_ACCOUNT, "customer:a", AMOUNT_MSAT_MAX)])
    with refused(Reason.BALANCE_LIMIT_EXCEEDED), connection:
        store.post(connection, [transfer(2, TransferKind.POSTED, NODE_ACCOUNT, "customer:b", 1)])
    with refused(Reason.BALANCE_LIMIT_EXCEEDED), connection:
        store.post(connection, [transfer(3, TransferKind.PENDING, SUSPENSE_ACCOUNT, "customer:a", 1)])


def test_the_same_transfer_twice_is_applied_once() -> None:
    connection = open_ledger()
    deposit = [transfer(1, TransferKind.POSTED, NODE_ACCOUNT, "customer:a", 50)]
    assert store.post(connection, deposit)
    assert not store.post(connection, deposit)
    account = store.find_account(connection, "customer:a")
    assert account is not None
    assert account.available_msat == 50
    with pytest.raises(AssertionError):
        store.post(connection, [replace(deposit[0], amount_msat=51)])


def test_a_reservation_is_resolved_once() -> None:
    connection = open_ledger()
    store.post(connection, [transfer(1, TransferKind.POSTED, NODE_ACCOUNT, "customer:a", 50)])
    store.post(connection, [transfer(2, TransferKind.PENDING, "customer:a", SUSPENSE_ACCOUNT, 50)])
    store.post(connection, [transfer(3, TransferKind.VOID_PENDING, "customer:a", SUSPENSE_ACCOUNT, 50, "t2")])
    with pytest.raises(apsw.ConstraintError), connection:
        store.post(connection, [transfer(4, TransferKind.POST_PENDING, "customer:a", SUSPENSE_ACCOUNT, 50, "t2")])
    store.post(connection, [transfer(5, TransferKind.PENDING, "customer:a", SUSPENSE_ACCOUNT, 50)])
    store.post(connection, [transfer(6, TransferKind.POST_PENDING, "customer:a", SUSPENSE_ACCOUNT, 50, "t5")])
    with pytest.raises(apsw.ConstraintError), connection:
        store.post(connection, [transfer(7, TransferKind.VOID_PENDING, "customer:a", SUSPENSE_ACCOUNT, 50, "t5")])


def test_transfers_cannot_be_edited() -> None:
    connection = open_ledger()
    store.post(connection, [transfer(1, TransferKind.POSTED, NODE_ACCOUNT, "customer:a", 50)])
    for sql in ("UPDATE transfer SET amount_msat = 1", "DELETE FROM transfer"):
        with pytest.raises(apsw.ConstraintError, match="immutable"):
            connection.execute(sql)


def test_unknown_accounts_are_refused() -> None:
    connection = open_ledger()
    with refused(Reason.ACCOUNT_NOT_FOUND):
        store.post(connection, [transfer(1, TransferKind.POSTED, NODE_ACCOUNT, "customer:x", 50)])
    with refused(Reason.ACCOUNT_NOT_FOUND):
        set_account_state(connection, NODE_ACCOUNT, AccountState.FROZEN)


LIMITS = st.none() | st.integers(0, 1_500)
QUOTAS = st.builds(Quota, payment_msat_max=LIMITS, day_msat_max=LIMITS, pending_msat_max=LIMITS)


class LedgerMachine(RuleBasedStateMachine):
    """Random transfers, single and in groups, freezes, closings and quotas: the SQL accepts and refuses exactly what the rules do.

    At the end of each run the chain is walked and everything is booked a second time.
    """

    @initialize()
    def start(self) -> None:
        self.connection = open_ledger()
        self.accounts = {
            account_id: self._found(account_id) for account_id in (*CUSTOMERS, NODE_ACCOUNT, SUSPENSE_ACCOUNT)
        }
        self.pending: dict[str, Transfer] = {}
        self.number = 0
        self.now_ms = 30 * DAY_MS - 5

    def _found(self, account_id: str) -> Account:
        account = store.find_account(self.connection, account_id)
        assert account is not None
        return account

    def _make(
        self,
        kind: TransferKind,
        debit: str,
        credit: str,
        amount: int,
        pending: str = "",
        purpose: Purpose = Purpose.PAYMENT,
    ) -> Transfer:
        self.number += 1
        made = transfer(self.number, kind, debit, credit, amount, pending)
        payment_id = "p" if purpose in (Purpose.PAYMENT, Purpose.ROUTING_FEE) else ""
        return replace(made, purpose=purpose, payment_id=payment_id, create_time_ms=self.now_ms)

    def _both(self, transfers: list[Transfer]) -> bool:
        net = net_deltas(transfers, self.pending)
        answers = [refusal(self.accounts[delta.account_id], delta) for delta in net]
        expected = next((answer for answer in answers if answer is not None), None)
        if expected is not None:
            with refused(expected.reason), self.connection:
                store.post(self.connection, transfers)
            return False
        with self.connection:
            assert store.post(self.connection, transfers)
        for delta in net:
            self.accounts[delta.account_id] = apply(self.accounts[delta.account_id], delta)
        for one in transfers:
            self.pending.pop(one.pending_transfer_id, None)
            if one.kind is TransferKind.PENDING:
                self.pending[one.transfer_id] = one
        return True

    def _held(self, data: st.DataObject) -> Transfer:
        return self.pending[data.draw(st.sampled_from(sorted(self.pending)))]

    @rule(ms=st.sampled_from([1, 1_000, DAY_MS // 2, DAY_MS]))
    def time_passes(self, ms: int) -> None:
        self.now_ms += ms

    @rule(credit=st.sampled_from(CUSTOMERS), amount=st.integers(1, 1_000))
    def deposit(self, credit: str, amount: int) -> None:
        self._both([self._make(TransferKind.POSTED, NODE_ACCOUNT, credit, amount, purpose=Purpose.DEPOSIT)])

    @rule(debit=st.sampled_from(CUSTOMERS), amount=st.integers(1, 1_000))
    def withdraw(self, debit: str, amount: int) -> None:
        self._both([self._make(TransferKind.POSTED, debit, NODE_ACCOUNT, amount, purpose=Purpose.WITHDRAWAL)])

    @rule(accounts=st.permutations(CUSTOMERS), amount=st.integers(1, 1_000))
    def send(self, accounts: list[str], amount: int) -> None:
        debit, credit = accounts[:2]
        self._both([self._make(TransferKind.POSTED, debit, credit, amount, purpose=Purpose.TRANSFER)])

    @rule(debit=st.sampled_from(CUSTOMERS), amount=st.integers(1, 1_000))
    def reserve(self, debit: str, amount: int) -> None:
        self._both([self._make(TransferKind.PENDING, debit, SUSPENSE_ACCOUNT, amount)])

    @rule(debit=st.sampled_from(CUSTOMERS), amount=st.integers(1, 100))
    def reserve_a_fee(self, debit: str, amount: int) -> None:
        self._both([self._make(TransferKind.PENDING, debit, SUSPENSE_ACCOUNT, amount, purpose=Purpose.ROUTING_FEE)])

    @rule(accounts=st.permutations((*CUSTOMERS, NODE_ACCOUNT)), amount=st.integers(1, 1_000))
    def hold(self, accounts: list[str], amount: int) -> None:
        debit, credit = accounts[:2]
        self._both([self._make(TransferKind.PENDING, debit, credit, amount, purpose=Purpose.ADJUSTMENT)])

    @precondition(lambda self: self.pending)
    @rule(data=st.data(), credit=st.sampled_from(CUSTOMERS))
    def post(self, data: st.DataObject, credit: str) -> None:
        """What waits for the suspense account goes on from there at once, as a group."""
        held = self._held(data)
        amount = data.draw(st.integers(1, held.amount_msat))
        kind, accounts = TransferKind.POST_PENDING, (held.debit_account_id, held.credit_account_id)
        group = [self._make(kind, *accounts, amount, held.transfer_id, held.purpose)]
        if held.credit_account_id == SUSPENSE_ACCOUNT:
            onward = self._make(TransferKind.POSTED, SUSPENSE_ACCOUNT, credit, amount, purpose=Purpose.ADJUSTMENT)
            group.append(onward)
        self._both(group)

    @precondition(lambda self: self.pending)
    @rule(data=st.data(), credit=st.sampled_from(CUSTOMERS))
    def pivot(self, data: st.DataObject, credit: str) -> None:
        """A payment inside the mesh: what was reserved is freed and moved in one group, also out of a frozen account."""
        held = self._held(data)
        if credit in (held.debit_account_id, held.credit_account_id) or held.purpose is not Purpose.PAYMENT:
            return
        kind, accounts = TransferKind.VOID_PENDING, (held.debit_account_id, held.credit_account_id)
        void = self._make(kind, *accounts, held.amount_msat, held.transfer_id)
        post = self._make(TransferKind.POSTED, held.debit_account_id, credit, held.amount_msat)
        moved = self._both([void, post])
        assert moved or self.accounts[credit].state is AccountState.CLOSED, "what is reserved goes on"

    @precondition(lambda self: self.pending)
    @rule(data=st.data())
    def void(self, data: st.DataObject) -> None:
        held = self._held(data)
        kind, accounts = TransferKind.VOID_PENDING, (held.debit_account_id, held.credit_account_id)
        assert self._both([self._make(kind, *accounts, held.amount_msat, held.transfer_id, held.purpose)])

    @rule(account_id=st.sampled_from(CUSTOMERS), state=st.sampled_from([AccountState.ACTIVE, AccountState.FROZEN]))
    def freeze(self, account_id: str, state: AccountState) -> None:
        account, order = self.accounts[account_id], Order(actor="operator", now_ms=self.now_ms)
        if account.state is AccountState.CLOSED:
            with refused(Reason.ACCOUNT_CLOSED), self.connection:
                set_account_state(self.connection, account_id, state, order)
            return
        set_account_state(self.connection, account_id, state, order)
        self.accounts[account_id] = replace(account, state=state)

    @rule(account_id=st.sampled_from(CUSTOMERS))
    def close(self, account_id: str) -> None:
        account, order = self.accounts[account_id], Order(actor="owner", now_ms=self.now_ms)
        balance_msat = account.credits_posted_msat - account.debits_posted_msat
        if balance_msat or account.debits_pending_msat or account.credits_pending_msat:
            with refused(Reason.ACCOUNT_NOT_EMPTY), self.connection:
                close_account(self.connection, account_id, order)
            return
        close_account(self.connection, account_id, order)
        self.accounts[account_id] = replace(account, state=AccountState.CLOSED)

    @rule(account_id=st.sampled_from(CUSTOMERS), quota=QUOTAS)
    def limit(self, account_id: str, quota: Quota) -> None:
        account, order = self.accounts[account_id], Order(actor="operator", now_ms=self.now_ms)
        if account.state is AccountState.CLOSED:
            with refused(Reason.ACCOUNT_CLOSED), self.connection:
                set_quota(self.connection, account_id, quota, order)
            return
        set_quota(self.connection, account_id, quota, order)
        self.accounts[account_id] = replace(account, quota=quota)

    @invariant()
    def the_books_agree(self) -> None:
        store.sums(self.connection)
        for account_id, expected in self.accounts.items():
            found = self._found(account_id)
            assert found == expected
            assert not found.must_cover or found.available_msat >= 0
            assert found.spent_msat >= 0
        suspense = self.accounts[SUSPENSE_ACCOUNT]
        assert suspense.credits_posted_msat == suspense.debits_posted_msat, "nothing stays in suspense"

    def teardown(self) -> None:
        if hasattr(self, "connection"):
            report = Report()
            check_ledger(self.connection, report, find_head(self.connection))
            assert report.violations == []
            self.connection.close()


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(max_examples=60, stateful_step_count=40)


MOVES = st.lists(
    st.tuples(
        st.sampled_from([(NODE_ACCOUNT, "customer:a"), ("customer:a", NODE_ACCOUNT), ("customer:a", "customer:b")]),
        st.sampled_from([TransferKind.POSTED, TransferKind.PENDING]),
        st.integers(1, 100),
        st.integers(0, 3),
        st.none() | st.integers(1, 100),
    ),
    max_size=25,
)


def book(connection: apsw.Connection, moves: list[Any], number: int, now_ms: int) -> int:
    """Book what the rules allow; (where each is to be ended by a post of a part of it, or a void); the time afterwards."""
    for (debit, credit), kind, amount, pause_ms, part in moves:
        now_ms += pause_ms
        number += 2
        held = replace(transfer(number, kind, debit, credit, amount), create_time_ms=now_ms, purpose=Purpose.DEPOSIT)
        with suppress(Refused), connection:
            store.post(connection, [held])
            if kind is TransferKind.PENDING and part is not None:
                posts = part <= amount
                end = TransferKind.POST_PENDING if posts else TransferKind.VOID_PENDING
                ended = transfer(number + 1, end, debit, credit, part if posts else amount, held.transfer_id)
                store.post(connection, [replace(ended, create_time_ms=now_ms)])
    return now_ms


@settings(max_examples=150)
@given(
    moves=MOVES,
    later=MOVES,
    times=st.tuples(st.none() | st.integers(0, 60), st.none() | st.integers(0, 60)),
    page=st.integers(1, 7),
)
def test_a_statement_is_the_sum_of_its_transfers(
    moves: list[Any], later: list[Any], times: tuple[int | None, int | None], page: int
) -> None:
    """Whatever pages it is read in, and whatever is booked between two of them."""
    connection = open_ledger()
    now_ms = book(connection, moves, 0, 0)
    account = store.find_account(connection, "customer:a")
    assert account is not None
    from_ms, until_ms = times
    if from_ms is not None and until_ms is not None and from_ms > until_ms:
        from_ms, until_ms = until_ms, from_ms
    rows = connection.execute(
        "SELECT create_time_ms, CASE WHEN credit_account_id = 'customer:a' THEN amount_msat ELSE -amount_msat END"
        " FROM transfer WHERE kind IN (1, 3) AND 'customer:a' IN (credit_account_id, debit_account_id) ORDER BY number"
    ).fetchall()
    before = sum(change for ms, change in rows if from_ms is not None and ms < from_ms)
    changes = [c for ms, c in rows if (from_ms is None or ms >= from_ms) and (until_ms is None or ms < until_ms)]
    statement = find_statement(connection, account, from_ms, until_ms)
    assert (statement.opening_msat, statement.closing_msat) == (before, before + sum(changes))
    lines: list[Line] = []
    after, balance_msat = 0, statement.opening_msat
    while found := list_lines(connection, statement, after, balance_msat, page):
        lines += found
        after, balance_msat = found[-1].transfer.number, found[-1].balance_msat
        now_ms = book(connection, later, 1_000 * len(lines), now_ms)
    assert [line.change_msat for line in lines] == changes
    assert [line.balance_msat for line in lines] == list(accumulate(changes, initial=before))[1:]
    assert verify(connection).violations == []

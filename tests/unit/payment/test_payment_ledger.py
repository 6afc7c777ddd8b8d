"""The ledger's rules, and the SQL against a model that only knows the rules."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import apsw
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from services.payment.domain.fees import fee_limit_msat
from services.payment.domain.ledger import Delta, apply, deltas, net_deltas, refusal
from services.payment.domain.model import (
    AMOUNT_MSAT_MAX,
    NODE_ACCOUNT,
    SUSPENSE_ACCOUNT,
    Account,
    AccountState,
    Purpose,
    Reason,
    Refused,
    Transfer,
    TransferKind,
)
from services.payment.store import ledger as store

MIGRATION = Path(store.__file__).parents[1] / "migrations" / "0001_payment.sql"
CUSTOMERS = ("customer:a", "customer:b", "customer:c")


def open_ledger() -> apsw.Connection:
    connection = apsw.Connection(":memory:")
    connection.execute(MIGRATION.read_text())
    for account_id in CUSTOMERS:
        store.insert_account(connection, Account(account_id=account_id, owner="o", state=AccountState.ACTIVE))
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
        store.set_account_state(connection, NODE_ACCOUNT, AccountState.FROZEN)


class LedgerMachine(RuleBasedStateMachine):
    """Random transfers, single and in groups: the SQL accepts and refuses exactly what the rules do."""

    @initialize()
    def start(self) -> None:
        self.connection = open_ledger()
        self.accounts = {
            account_id: store.find_account(self.connection, account_id)
            for account_id in (*CUSTOMERS, NODE_ACCOUNT, SUSPENSE_ACCOUNT)
        }
        self.pending: dict[str, Transfer] = {}
        self.number = 0

    def _make(self, kind: TransferKind, debit: str, credit: str, amount: int, pending: str = "") -> Transfer:
        self.number += 1
        return transfer(self.number, kind, debit, credit, amount, pending)

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
            account = self.accounts[delta.account_id]
            assert account is not None
            self.accounts[delta.account_id] = apply(account, delta)
        for one in transfers:
            self.pending.pop(one.pending_transfer_id, None)
        return True

    @rule(credit=st.sampled_from(CUSTOMERS), amount=st.integers(1, 1_000))
    def deposit(self, credit: str, amount: int) -> None:
        self._both([self._make(TransferKind.POSTED, NODE_ACCOUNT, credit, amount)])

    @rule(debit=st.sampled_from(CUSTOMERS), amount=st.integers(1, 1_000))
    def reserve(self, debit: str, amount: int) -> None:
        held = self._make(TransferKind.PENDING, debit, SUSPENSE_ACCOUNT, amount)
        if self._both([held]):
            self.pending[held.transfer_id] = held

    @rule(data=st.data(), credit=st.sampled_from(CUSTOMERS))
    def pay(self, data: st.DataObject, credit: str) -> None:
        if not self.pending:
            return
        held = self.pending[data.draw(st.sampled_from(sorted(self.pending)))]
        amount = data.draw(st.integers(1, held.amount_msat))
        if credit != held.debit_account_id:
            post = self._make(
                TransferKind.POST_PENDING, held.debit_account_id, SUSPENSE_ACCOUNT, amount, held.transfer_id
            )
            self._both([post, self._make(TransferKind.POSTED, SUSPENSE_ACCOUNT, credit, amount)])

    @rule(data=st.data())
    def void(self, data: st.DataObject) -> None:
        if not self.pending:
            return
        held = self.pending[data.draw(st.sampled_from(sorted(self.pending)))]
        assert self._both(
            [
                self._make(
                    TransferKind.VOID_PENDING,
                    held.debit_account_id,
                    SUSPENSE_ACCOUNT,
                    held.amount_msat,
                    held.transfer_id,
                )
            ]
        )

    @rule(account_id=st.sampled_from(CUSTOMERS), state=st.sampled_from([AccountState.ACTIVE, AccountState.FROZEN]))
    def freeze(self, account_id: str, state: AccountState) -> None:
        store.set_account_state(self.connection, account_id, state)
        account = self.accounts[account_id]
        assert account is not None
        self.accounts[account_id] = replace(account, state=state)

    @invariant()
    def the_books_agree(self) -> None:
        store.sums(self.connection)
        for account_id, expected in self.accounts.items():
            found = store.find_account(self.connection, account_id)
            assert found == expected
            assert not found.must_cover or found.available_msat >= 0
        suspense = self.accounts[SUSPENSE_ACCOUNT]
        assert suspense is not None
        assert suspense.credits_posted_msat == suspense.debits_posted_msat, "nothing stays in suspense"


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)

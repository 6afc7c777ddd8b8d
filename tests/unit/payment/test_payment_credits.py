"""What invoices that are paid from outside do to the ledger, in every order that calls can come in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import apsw
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.payment.domain.model import AMOUNT_MSAT_MAX, NODE_ACCOUNT, Account, AccountState, Reason, Refused
from services.payment.store import invoice_credits, ledger
from services.payment.store.accounts import insert_account
from support.ledger_rows import open_payment_database

INVOICE, OTHER = "01a1fdd1-177a-7167-8620-8206803123ef", "02a1fdd1-177a-7167-8620-8206803123ef"


def open_ledger(*states: AccountState) -> apsw.Connection:
    connection = open_payment_database()
    for letter, state in zip("abc", states or (AccountState.ACTIVE,), strict=False):
        account = Account(account_id=f"customer:{letter}", owner="o", state=state)
        insert_account(connection, account)
    return connection


@contextmanager
def refused(reason: Reason) -> Iterator[None]:
    with pytest.raises(Refused) as caught:
        yield
    assert caught.value.reason is reason


def counters(connection: apsw.Connection, account_id: str = "customer:a") -> tuple[int, int]:
    account = ledger.find_account(connection, account_id)
    assert account is not None
    return account.credits_pending_msat, account.credits_posted_msat


def test_money_from_outside_is_held_and_then_the_accounts() -> None:
    connection = open_ledger()
    for _ in range(2):
        invoice_credits.hold_credit(connection, INVOICE, "customer:a", 700, 1)
        assert counters(connection) == (700, 0)
    for _ in range(2):
        invoice_credits.post_credit(connection, INVOICE, 2)
        assert counters(connection) == (0, 700)
    invoice_credits.hold_credit(connection, INVOICE, "customer:a", 700, 3)
    assert counters(connection) == (0, 700), "what was done once is answered the same for ever"
    with refused(Reason.CREDIT_POSTED):
        invoice_credits.void_credit(connection, INVOICE, 4)
    node = ledger.find_account(connection, NODE_ACCOUNT)
    assert node is not None
    assert (node.debits_posted_msat, node.debits_pending_msat) == (700, 0)


def test_what_goes_back_outside_is_freed_for_good() -> None:
    connection = open_ledger()
    invoice_credits.hold_credit(connection, INVOICE, "customer:a", 700, 1)
    for _ in range(2):
        invoice_credits.void_credit(connection, INVOICE, 2)
        assert counters(connection) == (0, 0)
    with refused(Reason.CREDIT_VOIDED):
        invoice_credits.hold_credit(connection, INVOICE, "customer:a", 700, 3)
    with refused(Reason.CREDIT_NOT_HELD):
        invoice_credits.post_credit(connection, INVOICE, 3)


def test_a_void_that_comes_first_is_a_tombstone() -> None:
    connection = open_ledger()
    invoice_credits.void_credit(connection, INVOICE, 1)
    invoice_credits.void_credit(connection, INVOICE, 1)
    with refused(Reason.CREDIT_VOIDED):
        invoice_credits.hold_credit(connection, INVOICE, "customer:a", 700, 2)
    invoice_credits.hold_credit(connection, OTHER, "customer:a", 1, 2)
    assert counters(connection) == (1, 0)


def test_what_was_never_held_is_not_posted() -> None:
    with refused(Reason.CREDIT_NOT_HELD):
        invoice_credits.post_credit(open_ledger(), INVOICE, 1)


def test_closed_accounts_get_nothing_and_frozen_ones_do() -> None:
    connection = open_ledger(AccountState.CLOSED, AccountState.FROZEN)
    for account_id in ("customer:a", "customer:nobody"):
        with refused(Reason.ACCOUNT_NOT_FOUND):
            invoice_credits.hold_credit(connection, INVOICE, account_id, 700, 1)
    invoice_credits.hold_credit(connection, INVOICE, "customer:b", 700, 1)
    invoice_credits.post_credit(connection, INVOICE, 1)
    assert counters(connection, "customer:b") == (0, 700)


def test_more_than_there_can_be_is_refused() -> None:
    connection = open_ledger()
    invoice_credits.hold_credit(connection, OTHER, "customer:a", AMOUNT_MSAT_MAX, 1)
    with refused(Reason.BALANCE_LIMIT_EXCEEDED), connection:
        invoice_credits.hold_credit(connection, INVOICE, "customer:a", 1, 1)


def test_one_invoice_is_one_account_and_amount() -> None:
    connection = open_ledger(AccountState.ACTIVE, AccountState.ACTIVE)
    invoice_credits.hold_credit(connection, INVOICE, "customer:a", 700, 1)
    for account_id, amount_msat in (("customer:b", 700), ("customer:a", 701)):
        with refused(Reason.REQUEST_ID_REUSED):
            invoice_credits.hold_credit(connection, INVOICE, account_id, amount_msat, 1)


CALLS: dict[str, Callable[[apsw.Connection], None]] = {
    "hold": lambda connection: invoice_credits.hold_credit(connection, INVOICE, "customer:a", 700, 1),
    "post": lambda connection: invoice_credits.post_credit(connection, INVOICE, 1),
    "void": lambda connection: invoice_credits.void_credit(connection, INVOICE, 1),
}
MODEL: dict[tuple[str, str], tuple[str, Reason | None]] = {
    ("none", "hold"): ("held", None),
    ("none", "post"): ("none", Reason.CREDIT_NOT_HELD),
    ("none", "void"): ("voided", None),
    ("held", "hold"): ("held", None),
    ("held", "post"): ("posted", None),
    ("held", "void"): ("voided", None),
    ("posted", "hold"): ("posted", None),
    ("posted", "post"): ("posted", None),
    ("posted", "void"): ("posted", Reason.CREDIT_POSTED),
    ("voided", "hold"): ("voided", Reason.CREDIT_VOIDED),
    ("voided", "post"): ("voided", Reason.CREDIT_NOT_HELD),
    ("voided", "void"): ("voided", None),
}
MONEY = {"none": (0, 0), "held": (700, 0), "posted": (0, 700), "voided": (0, 0)}


@given(st.lists(st.sampled_from(sorted(CALLS)), max_size=12))
def test_any_order_of_calls_does_what_the_table_says(calls: list[str]) -> None:
    connection, state = open_ledger(), "none"
    for call in calls:
        state, reason = MODEL[state, call]
        with refused(reason) if reason is not None else nullcontext():
            CALLS[call](connection)
        assert counters(connection) == MONEY[state]
        ledger.sums(connection)

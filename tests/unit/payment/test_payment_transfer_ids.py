"""The ids of a payment's transfers: derived, rising with time, and still known for payments that were reserved under other ones."""

from __future__ import annotations

import uuid
from dataclasses import replace

import apsw
import pytest

from services.payment.domain import transfers
from services.payment.domain.model import (
    NODE_ACCOUNT,
    Account,
    AccountState,
    Payment,
    PaymentState,
    Purpose,
    Transfer,
    TransferKind,
)
from services.payment.domain.receipt import derived_request_id
from services.payment.store import accounts, ledger
from services.storage.ids import new_id
from support.ledger_rows import open_payment_database

PAYMENT = Payment(
    payment_id="01a1fdd1-177a-7167-8620-8206803123ef",
    account_id="customer:a",
    scope="o",
    request_id="r",
    state=PaymentState.RESERVED,
    payment_request="lnbcrt",
    payment_hash="00" * 32,
    amount_msat=700,
    fee_limit_msat=0,
)


@pytest.fixture
def connection() -> apsw.Connection:
    opened = open_payment_database()
    for letter in "ab":
        account = Account(account_id=f"customer:{letter}", owner="o", state=AccountState.ACTIVE)
        accounts.insert_account(opened, account)
    deposit = Transfer(
        transfer_id=new_id(),
        kind=TransferKind.POSTED,
        debit_account_id=NODE_ACCOUNT,
        credit_account_id="customer:a",
        amount_msat=1_000,
        purpose=Purpose.DEPOSIT,
    )
    ledger.post(opened, (deposit,))
    return opened


def test_ids_are_uuids_that_rise_with_their_payments() -> None:
    payment_ids = [f"01a1fdd1-{number:04x}-7167-8620-8206803123ef" for number in range(200)]
    ids = [transfers.transfer_id_of(payment_id, "hold") for payment_id in payment_ids]
    assert ids == sorted(ids)
    assert {(uuid.UUID(each).version, uuid.UUID(each).variant) for each in ids} == {(8, uuid.RFC_4122)}
    assert [str(uuid.UUID(each)) for each in ids] == ids
    names = ("hold", "void", "post", "fee_hold", "fee_post", "fee_void", "payee_hold", "payee_post", "payee_void")
    assert len({transfers.transfer_id_of(each, name) for each in payment_ids for name in names}) == 200 * len(names)


@pytest.mark.parametrize("earlier", [False, True])
def test_what_was_reserved_is_moved_whatever_its_id(connection: apsw.Connection, earlier: bool) -> None:
    hold = transfers.hold(PAYMENT, 1)
    if earlier:
        hold = replace(hold, transfer_id=derived_request_id(PAYMENT.payment_id, "hold"))
    ledger.post(connection, (hold,))
    void, post = ledger.post(connection, transfers.post_inside(PAYMENT, "customer:b", 2))
    assert void.pending_transfer_id == hold.transfer_id
    assert post.credit_account_id == "customer:b"
    assert ledger.post(connection, transfers.post_inside(PAYMENT, "customer:b", 3)) == (), "it was done before"
    assert ledger.sums(connection) == (0, 1_700, 0, 1_700)


def test_what_was_never_reserved_is_not_moved(connection: apsw.Connection) -> None:
    with pytest.raises(AssertionError, match="made before"):
        ledger.post(connection, transfers.post_inside(PAYMENT, "customer:b", 2))
    assert ledger.sums(connection) == (0, 1_000, 0, 1_000)

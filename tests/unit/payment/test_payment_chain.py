"""The chain of the ledger: its bytes as the documentation says, its rows, and how a ledger of before is chained."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import replace

import apsw
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.payment.domain.chain import GENESIS, Head, quota_details, quota_of_details, recorded_sha256
from services.payment.domain.ledger import DAY_MS
from services.payment.domain.model import (
    NODE_ACCOUNT,
    SYSTEM_ACCOUNTS,
    Account,
    AccountEvent,
    AccountEventKind,
    AccountState,
    Purpose,
    Quota,
    Transfer,
    TransferKind,
)
from services.payment.service import MIGRATIONS
from services.payment.store import chaining
from services.payment.store.accounts import Order, close_account, insert_account, set_account_state, set_quota
from services.payment.store.chaining import chain_what_is_not
from services.payment.store.entries import ACCOUNT_EVENT_COLUMNS, TRANSFER_COLUMNS, account_event_of_row, find_head
from services.payment.store.ledger import find_account, find_transfer, post
from services.storage.migrations import SQLITE, STORAGE_MIGRATIONS, load_migrations
from support.ledger_rows import open_payment_database

CUSTOMER = "customer:a"
PAID = Transfer(
    transfer_id="t",
    kind=TransferKind.POSTED,
    debit_account_id=NODE_ACCOUNT,
    credit_account_id=CUSTOMER,
    amount_msat=1_000,
    purpose=Purpose.DEPOSIT,
    reference="grüße",
    create_time_ms=1_700_000_000_000,
    number=1,
)


def documented_sha256(previous: bytes, fields: list[str | int | None]) -> bytes:
    """The chain's documentation, written down a second time."""
    digest = hashlib.sha256(previous)
    for field in fields:
        content = struct.pack(">q", field) if isinstance(field, int) else (field or "").encode("utf-8")
        digest.update(struct.pack(">I", len(content)) + content)
    return digest.digest()


def documented_chain(connection: apsw.Connection) -> bytes:
    """Check every row with nothing but SQL and the documentation; the hash of the newest."""
    rows: dict[int, tuple[list[str | int | None], bytes]] = {}
    for table, columns in (("transfer", TRANSFER_COLUMNS), ("account_event", ACCOUNT_EVENT_COLUMNS)):
        for row in connection.execute(f"SELECT {columns} FROM {table}"):
            assert row[0] not in rows
            rows[row[0]] = ([table, *row[:-1]], row[-1])
    previous = hashlib.sha256(b"nipmesh ledger 1").digest()
    for number in range(1, len(rows) + 1):
        fields, sha256 = rows[number]
        previous = documented_sha256(previous, fields)
        assert previous == sha256, f"entry {number}"
    return previous


def test_the_bytes_never_change() -> None:
    assert GENESIS.hex() == hashlib.sha256(b"nipmesh ledger 1").hexdigest()
    assert recorded_sha256(GENESIS, PAID).hex() == "8e1cd738b294a8488595ae8873bca69b1d5f892eb807b6e5e2349a29164d9a79"
    event = AccountEvent(account_id=CUSTOMER, kind=AccountEventKind.FROZEN, actor="op", reason="r", number=2)
    assert recorded_sha256(GENESIS, event).hex() == "cd6bb15dcddd2a998ad02185d85c32dcb493b9885afd867d0970e24f7fd3d199"


@given(
    texts=st.lists(st.text(st.characters(codec="utf-8"), max_size=20), min_size=6, max_size=6),
    numbers=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=3, max_size=3),
    previous=st.binary(min_size=32, max_size=32),
)
def test_an_entry_is_hashed_as_documented(texts: list[str], numbers: list[int], previous: bytes) -> None:
    transfer = Transfer(
        transfer_id=texts[0],
        kind=TransferKind.PENDING,
        debit_account_id=texts[1],
        credit_account_id=texts[2],
        amount_msat=numbers[0],
        purpose=Purpose.REFUND,
        pending_transfer_id=texts[3],
        payment_id=texts[4],
        reference=texts[5],
        create_time_ms=numbers[1],
        number=numbers[2],
    )
    fields = ["transfer", numbers[2], texts[0], 2, texts[1], texts[2], numbers[0], 3, *texts[3:], numbers[1]]
    assert recorded_sha256(previous, transfer) == documented_sha256(previous, fields)


def test_transfers_and_events_share_one_chain() -> None:
    connection = open_payment_database()
    insert_account(connection, Account(account_id=CUSTOMER, owner="o", state=AccountState.ACTIVE, create_time_ms=5))
    (recorded,) = post(connection, [replace(PAID, number=0)])
    assert recorded.number == len(SYSTEM_ACCOUNTS) + 2
    operator = Order(actor="operator", reason="a judge said so", now_ms=PAID.create_time_ms + 1)
    set_account_state(connection, CUSTOMER, AccountState.FROZEN, operator)
    set_account_state(connection, CUSTOMER, AccountState.FROZEN, operator)
    set_quota(connection, CUSTOMER, Quota(day_msat_max=7), operator)
    set_quota(connection, CUSTOMER, Quota(day_msat_max=7), operator)
    head = find_head(connection)
    assert (head.number, head.sha256) == (len(SYSTEM_ACCOUNTS) + 4, documented_chain(connection))
    columns = f"SELECT {ACCOUNT_EVENT_COLUMNS} FROM account_event WHERE account_id = ? ORDER BY number"
    opened, frozen, limited = map(account_event_of_row, connection.execute(columns, (CUSTOMER,)))
    assert (opened.kind, opened.actor, opened.details) == (
        AccountEventKind.OPENED,
        "o",
        '{"must_cover":1,"owner":"o"}',
    )
    assert (frozen.kind, frozen.actor, frozen.reason) == (AccountEventKind.FROZEN, "operator", "a judge said so")
    assert quota_of_details(limited.details) == Quota(day_msat_max=7)


def test_time_never_falls_in_the_ledger() -> None:
    connection = open_payment_database()
    insert_account(connection, Account(account_id=CUSTOMER, owner="o", state=AccountState.ACTIVE, create_time_ms=9))
    (early,) = post(connection, [replace(PAID, create_time_ms=4)])
    assert early.create_time_ms == 9
    insert_account(connection, Account(account_id="customer:b", owner="o", state=AccountState.ACTIVE, create_time_ms=3))
    assert find_head(connection).create_time_ms == 9


def test_a_repeated_transfer_adds_no_entry() -> None:
    connection = open_payment_database()
    insert_account(connection, Account(account_id=CUSTOMER, owner="o", state=AccountState.ACTIVE))
    post(connection, [PAID])
    head = find_head(connection)
    assert post(connection, [replace(PAID, create_time_ms=PAID.create_time_ms + 5)]) == ()
    assert find_head(connection) == head
    assert str(head) == f"{head.number}:{head.sha256.hex()}"


def test_events_cannot_be_edited() -> None:
    connection = open_payment_database()
    for sql in ("UPDATE account_event SET actor = 'x'", "DELETE FROM account_event"):
        with pytest.raises(apsw.ConstraintError, match="immutable"):
            connection.execute(sql)


@given(limits=st.lists(st.none() | st.integers(0, 2**60), min_size=3, max_size=3))
def test_quotas_are_read_as_they_were_written(limits: list[int | None]) -> None:
    quota = Quota(payment_msat_max=limits[0], day_msat_max=limits[1], pending_msat_max=limits[2])
    assert quota_of_details(quota_details(quota)) == quota


def old_database() -> apsw.Connection:
    """As a program of before the chain left it: two customers, one frozen; a reservation half used yesterday, one open today."""
    connection = apsw.Connection(":memory:")
    connection.execute(migration(1))
    for account_id, state in ((CUSTOMER, 1), ("customer:b", 2)):
        sql = "INSERT INTO account (account_id, owner, state, must_cover, create_time_ms) VALUES (?, 'o', ?, 1, 1)"
        connection.execute(sql, (account_id, state))
    rows = [
        ("t1", 1, NODE_ACCOUNT, CUSTOMER, 1_000, 4, None, None, "cash", 20 * DAY_MS),
        ("t2", 2, CUSTOMER, NODE_ACCOUNT, 600, 1, None, "p", "", 20 * DAY_MS + 1),
        ("t3", 3, CUSTOMER, NODE_ACCOUNT, 500, 1, "t2", "p", "", 21 * DAY_MS),
        ("t4", 2, CUSTOMER, NODE_ACCOUNT, 300, 1, None, "q", "", 21 * DAY_MS - 1),
        ("t5", 2, CUSTOMER, NODE_ACCOUNT, 100, 1, None, "r", "", 21 * DAY_MS),
        ("t6", 4, CUSTOMER, NODE_ACCOUNT, 300, 1, "t4", "q", "", 21 * DAY_MS + 5),
    ]
    for row in rows:
        connection.execute(
            "INSERT INTO transfer (transfer_id, kind, debit_account_id, credit_account_id, amount_msat, purpose,"
            " pending_transfer_id, payment_id, reference, create_time_ms) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            row,
        )
    return connection


def migration(number: int) -> str:
    return next(each.sql for each in load_migrations(MIGRATIONS / SQLITE) if each.number == number)


@pytest.mark.parametrize("rows_max", [1, 3, 1_000])
def test_a_ledger_of_before_is_chained_once(rows_max: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chaining, "ROWS_MAX", rows_max)
    connection = old_database()
    columns = TRANSFER_COLUMNS.removesuffix(", sha256")
    before = connection.execute(f"SELECT {columns} FROM transfer ORDER BY number").fetchall()
    connection.execute(migration(2))
    with pytest.raises(apsw.ConstraintError):
        connection.execute("INSERT INTO transfer (transfer_id) VALUES ('of an old program')")
    assert chain_what_is_not(connection)
    assert connection.execute(f"SELECT {columns} FROM transfer ORDER BY number").fetchall() == before
    head = find_head(connection)
    assert (head.number, head.sha256) == (6 + 6 + 1, documented_chain(connection))
    assert head.create_time_ms == 21 * DAY_MS + 5
    account = find_account(connection, CUSTOMER)
    assert account is not None
    assert (account.spent_day, account.spent_msat) == (21, 100)
    kinds = connection.execute("SELECT kind FROM account_event WHERE account_id = 'customer:b' ORDER BY number")
    assert kinds.fetchall() == [(AccountEventKind.OPENED,), (AccountEventKind.FROZEN,)]
    assert not chain_what_is_not(connection)
    assert find_head(connection) == head
    for sql in ("UPDATE transfer SET amount_msat = 1", "DELETE FROM transfer"):
        with pytest.raises(apsw.ConstraintError, match="immutable"):
            connection.execute(sql)
    found = find_transfer(connection, "t3")
    assert found is not None
    with pytest.raises(apsw.ConstraintError):
        post(connection, [replace(found, transfer_id="t7", number=0)])


def test_an_empty_ledger_is_chained_as_well() -> None:
    connection = apsw.Connection(":memory:")
    for folder in (STORAGE_MIGRATIONS, MIGRATIONS):
        for one in load_migrations(folder / SQLITE):
            connection.execute(one.sql)
    assert find_head(connection) == Head()
    assert chain_what_is_not(connection)
    assert find_head(connection).number == len(SYSTEM_ACCOUNTS)
    documented_chain(connection)


def test_a_closed_account_is_an_entry_too() -> None:
    connection = open_payment_database()
    insert_account(connection, Account(account_id=CUSTOMER, owner="o", state=AccountState.ACTIVE))
    close_account(connection, CUSTOMER, Order(actor="o", now_ms=1))
    close_account(connection, CUSTOMER, Order(actor="o", now_ms=2))
    assert find_head(connection).number == len(SYSTEM_ACCOUNTS) + 2
    documented_chain(connection)

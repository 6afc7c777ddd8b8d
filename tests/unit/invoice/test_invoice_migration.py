"""A database of before hold invoices, with rows in every state, is brought to today's tables: nothing is lost, all of it goes on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import apsw
import pytest

from services.invoice import holds, store
from services.invoice.domain.invoice import AtNode, HoldState, Phase, State
from services.invoice.domain.rules import LockOrder
from services.invoice.service import MIGRATIONS
from services.invoice.store import Filter, Key
from services.storage.migrations import SQLITE, STORAGE_MIGRATIONS, load_migrations, migrate
from services.storage.sqlite.migrating import FileMigrator

OWNER, NOW_MS = "aa" * 32, 1_700_000_100_000
STATES = {"OPEN": 1, "ACCEPTED": 2, "SETTLED": 3, "CANCELED": 4, "EXPIRED": 5}


def _row(name: str, state: int) -> tuple[Any, ...]:
    preimage = name.encode().ljust(32, b".")
    held, settled = state in (2, 3), state == 3
    return (
        f"invoice-{name}",
        OWNER,
        "customer:1",
        state,
        f"lnbcrt1{name.lower()}",
        hashlib.sha256(preimage).hexdigest(),
        preimage,
        1_000 if name != "OPEN" else None,
        1_000 if settled else 0,
        "tea",
        "",
        1_700_000_000_000 + state,
        1_800_000_000_000,
        1_700_000_000_500 if settled else None,
        1_700_000_000_500,
        f"payment-{name}" if held else None,
        40 + state,
    )


@pytest.fixture
def old() -> Iterator[apsw.Connection]:
    """As the service of before left it."""
    connection = apsw.Connection(":memory:")
    connection.pragma("foreign_keys", True)
    migrate(FileMigrator(connection), "storage", load_migrations(STORAGE_MIGRATIONS / SQLITE))
    migrate(FileMigrator(connection), "service", load_migrations(MIGRATIONS / SQLITE)[:1])
    for name, state in STATES.items():
        connection.execute(f"INSERT INTO invoice VALUES ({', '.join('?' * 17)})", _row(name, state))
    holds_before = [
        ("payment-ACCEPTED", "invoice-ACCEPTED", 1, 1_000, "cc" * 32, 5),
        ("payment-SETTLED", "invoice-SETTLED", 2, 1_000, "cc" * 32, 6),
        ("payment-released", "invoice-OPEN", 3, 700, "cc" * 32, 7),
        ("payment-buried", None, 3, 0, "", 8),
    ]
    for each in holds_before:
        connection.execute("INSERT INTO invoice_hold VALUES (?, ?, ?, ?, ?, ?)", each)
    yield connection
    connection.close()


def test_every_row_is_kept_and_reads_as_before(old: apsw.Connection) -> None:
    columns = "invoice_id, owner_pubkey, account_id, state, payment_request, payment_hash, preimage, amount_msat, amount_paid_msat"
    columns += ", description, description_hash, create_time_ms, expire_time_ms, settle_time_ms, update_time_ms, locked_by, sequence"
    before = old.execute(f"SELECT {columns} FROM invoice ORDER BY invoice_id").fetchall()
    payments = old.execute("SELECT * FROM invoice_hold ORDER BY payment_id").fetchall()
    assert migrate(FileMigrator(old), "service", load_migrations(MIGRATIONS / SQLITE)) >= 1
    assert old.execute(f"SELECT {columns} FROM invoice ORDER BY invoice_id").fetchall() == before
    assert old.execute("SELECT * FROM invoice_hold ORDER BY payment_id").fetchall() == payments
    assert old.execute("PRAGMA foreign_key_check").fetchall() == []
    assert old.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    invoices = store.list_invoices(old, Filter(owner_pubkey=OWNER, oldest_first=True), 10)
    assert [invoice.state for invoice in invoices] == list(State)
    assert [invoice.amount_held_msat for invoice in invoices] == [0, 1_000, 0, 0, 0]
    assert {(invoice.at_node, invoice.next_run_ms, invoice.hold) for invoice in invoices} == {
        (AtNode.CLOSED, None, False)
    }


def test_what_was_under_way_goes_on(old: apsw.Connection) -> None:
    migrate(FileMigrator(old), "service", load_migrations(MIGRATIONS / SQLITE))
    settled, hold = holds.commit_invoice(old, "payment-ACCEPTED", NOW_MS)
    assert (settled.phase, settled.amount_paid_msat, hold.state) == (Phase.SETTLED, 1_000, HoldState.COMMITTED)
    opened = store.find_invoice(old, Key(column="invoice_id", value="invoice-OPEN"))
    order = LockOrder(payment_id="payment-new", amount_msat=5, actor_pubkey="cc" * 32)
    locked, _ = holds.lock_invoice(old, opened.payment_request, order, NOW_MS)
    assert (locked.phase, locked.amount_held_msat) == (Phase.LOCKED, 5)
    assert holds.release_invoice(old, "payment-buried", NOW_MS) is None


@pytest.mark.parametrize(
    "change",
    [
        "INSERT INTO invoice_hold VALUES ('p', 'nobody', 1, 1, '', 1)",
        "INSERT INTO invoice_hold VALUES ('p', 'invoice-SETTLED', 4, 1, '', 1)",
        "UPDATE invoice SET preimage = NULL WHERE state = 1",
        "UPDATE invoice SET preimage = NULL, hold = 1, settle_duration_s = 1 WHERE state = 3",
        "UPDATE invoice SET phase = 3 WHERE state = 1",
        "UPDATE invoice SET phase = 9 WHERE state = 2",
        "UPDATE invoice SET payment_hash = (SELECT payment_hash FROM invoice WHERE state = 4) WHERE state = 1",
    ],
)
def test_the_new_tables_refuse_what_must_not_be(old: apsw.Connection, change: str) -> None:
    migrate(FileMigrator(old), "service", load_migrations(MIGRATIONS / SQLITE))
    with pytest.raises(apsw.ConstraintError):
        old.execute(change)


def test_a_secret_that_only_its_owner_knows_may_be_missing(old: apsw.Connection) -> None:
    migrate(FileMigrator(old), "service", load_migrations(MIGRATIONS / SQLITE))
    old.execute("UPDATE invoice SET preimage = NULL, hold = 1, settle_duration_s = 9 WHERE state = 1")
    assert store.find_invoice(old, Key(column="invoice_id", value="invoice-OPEN")).preimage is None

"""Once, at the first start with a chained ledger: the entries that were there before are chained.

Migration 2 moves the old transfers aside and leaves a note. What follows happens in one transaction that no other writer shares, so
that whoever comes second finds no note; a program of before, should one still run, can add no transfer without a hash.
"""

from __future__ import annotations

from dataclasses import replace

from services.payment.domain.chain import Head, opened_details
from services.payment.domain.ledger import deltas, spent_after
from services.payment.domain.model import Account, AccountEvent, AccountEventKind, AccountState, Transfer
from services.payment.store.entries import (
    append_account_event,
    chained,
    find_head,
    head_of,
    insert_transfer,
    transfer_of_row,
)
from services.payment.store.ledger import find_transfer, list_accounts_after
from services.storage.sql import Connection, value_of

NOTE = "ledger_unchained"
"""Name in `memory`; the value is the table with the old transfers, which is always the same."""
ROWS_MAX = 1_000
"""Rows read at a time: the memory that this needs does not grow with the ledger."""
REASON = "was there before the chain"
"""Why an account event of this module was recorded, where nobody asked for it."""
_SELECT = (
    "SELECT number, transfer_id, kind, debit_account_id, credit_account_id, amount_msat, purpose, pending_transfer_id,"
    " payment_id, reference, create_time_ms FROM transfer_unchained WHERE number > ? ORDER BY number LIMIT ?"
)


def chain_what_is_not(connection: Connection) -> bool:
    """Chain the old transfers in their order, then what is known of each account. False: that was done before."""
    if value_of(connection.execute("SELECT value FROM memory WHERE name = ?", (NOTE,))) is None:
        return False
    assert find_head(connection) == Head(), "nothing is recorded before the old transfers are chained"
    spent = _chain_transfers(connection)
    _chain_accounts(connection)
    for account in spent.values():
        sql = "UPDATE account SET spent_day = ?, spent_msat = ? WHERE account_id = ?"
        connection.execute(sql, (account.spent_day, account.spent_msat, account.account_id))
    connection.execute("DROP TABLE transfer_unchained")
    connection.execute("DELETE FROM memory WHERE name = ?", (NOTE,))
    return True


def _chain_transfers(connection: Connection) -> dict[str, Account]:
    """Each with its own time, also where that fell; what each account spent on its newest day."""
    spent: dict[str, Account] = {}
    head, after = Head(), 0
    while rows := connection.execute(_SELECT, (after, ROWS_MAX)).fetchall():
        after = rows[-1][0]
        for row in rows:
            transfer = chained(replace(head, create_time_ms=0), transfer_of_row((*row, b"")))
            inserted = insert_transfer(connection, transfer)
            assert inserted, "each transfer has an id of its own"
            head = head_of(transfer)
            _count(connection, spent, transfer)
    return spent


def _count(connection: Connection, spent: dict[str, Account], transfer: Transfer) -> None:
    pending = find_transfer(connection, transfer.pending_transfer_id) if transfer.pending_transfer_id else None
    delta, _ = deltas(transfer, pending)
    blank = Account(account_id=delta.account_id, owner="", state=AccountState.ACTIVE)
    before = spent.get(delta.account_id, blank)
    spent_day, spent_msat = spent_after(before, delta)
    spent[delta.account_id] = replace(before, spent_day=spent_day, spent_msat=spent_msat)


def _chain_accounts(connection: Connection) -> None:
    """OPENED for each account, and FROZEN for those that are."""
    after = 0
    while found := list_accounts_after(connection, after, ROWS_MAX):
        after = found[-1][0]
        for _, account in found:
            opened = AccountEvent(
                account_id=account.account_id,
                kind=AccountEventKind.OPENED,
                actor=account.owner,
                reason=REASON,
                details=opened_details(account),
                create_time_ms=account.create_time_ms,
            )
            append_account_event(connection, opened)
            if account.state is AccountState.FROZEN:
                frozen = replace(opened, kind=AccountEventKind.FROZEN, actor="", details="")
                append_account_event(connection, frozen)

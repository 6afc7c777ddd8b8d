"""Pages of accounts and transfers, by row number."""

from __future__ import annotations

from dataclasses import dataclass

from services.payment.domain.model import Account, AccountEvent, Transfer
from services.payment.store.entries import (
    ACCOUNT_EVENT_COLUMNS,
    TRANSFER_COLUMNS,
    account_event_of_row,
    transfer_of_row,
)
from services.payment.store.ledger import ACCOUNT_COLUMNS, account_of_row
from services.storage.sql import Connection


def list_accounts(connection: Connection, owner: str, after: int | None, limit: int) -> tuple[tuple[int, Account], ...]:
    """One page of (row number, account), newest first; `owner` "" is for operators: all accounts."""
    conditions = [("owner = ?", owner or None), ("number < ?", after)]
    where = " AND ".join(["TRUE", *(sql for sql, value in conditions if value is not None)])
    values = [value for _, value in conditions if value is not None]
    sql = f"SELECT number, {ACCOUNT_COLUMNS} FROM account WHERE {where} ORDER BY number DESC LIMIT ?"  # noqa: S608 - constants
    rows = connection.execute(sql, (*values, limit))
    return tuple((row[0], account_of_row(row[1:])) for row in rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferFilter:
    """Which transfers of an account a page holds. Empty and None mean: not asked."""

    account_id: str
    payment_id: str = ""
    create_time_from_ms: int | None = None
    create_time_until_ms: int | None = None
    oldest_first: bool = False


def list_transfers(
    connection: Connection, wanted: TransferFilter, after: int | None, limit: int
) -> tuple[tuple[int, Transfer], ...]:
    """One page of (row number, transfer): a page of each side, merged, so that both indexes are used."""
    conditions: list[tuple[str, str | int | None]] = [
        ("payment_id = ?", wanted.payment_id or None),
        ("create_time_ms >= ?", wanted.create_time_from_ms),
        ("create_time_ms < ?", wanted.create_time_until_ms),
        ("number > ?" if wanted.oldest_first else "number < ?", after),
    ]
    values = [value for _, value in conditions if value is not None]
    where = "".join(f" AND {sql}" for sql, value in conditions if value is not None)
    order = "ASC" if wanted.oldest_first else "DESC"
    found: list[tuple[int, Transfer]] = []
    for side in ("debit_account_id", "credit_account_id"):
        sql = (
            f"SELECT {TRANSFER_COLUMNS} FROM transfer WHERE {side} = ?{where}"  # noqa: S608 - built from constants
            f" ORDER BY number {order} LIMIT ?"
        )
        rows = connection.execute(sql, (wanted.account_id, *values, limit))
        found.extend((row[0], transfer_of_row(row)) for row in rows)
    found.sort(key=lambda pair: pair[0], reverse=not wanted.oldest_first)
    return tuple(found[:limit])


def list_account_events(connection: Connection, account_id: str, after: int, limit: int) -> tuple[AccountEvent, ...]:
    """One page of an account's events after an entry, oldest first."""
    sql = (
        f"SELECT {ACCOUNT_EVENT_COLUMNS} FROM account_event WHERE account_id = ? AND number > ? ORDER BY number LIMIT ?"  # noqa: S608
    )
    return tuple(account_event_of_row(row) for row in connection.execute(sql, (account_id, after, limit)))

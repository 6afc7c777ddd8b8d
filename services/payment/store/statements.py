"""Statements: what moved in an account between two entries of the ledger, and the balances around it.

Time never falls along the ledger, so a time is a place in it. A statement that is bound to places never changes, whatever is booked
afterwards. Only entries that are older than the chain may lie by the clock on the wrong side of a place: never in two statements, or none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from services.payment.domain.model import Account, Transfer, TransferKind
from services.payment.store.entries import TRANSFER_COLUMNS, find_head, integer, transfer_of_row
from services.storage.sql import Connection

MOVING = (TransferKind.POSTED, TransferKind.POST_PENDING)
"""Kinds that change a balance; the others reserve and free."""
_MOVES = f"kind IN ({', '.join(str(int(kind)) for kind in MOVING)})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """Entries `first` to `last` of the ledger, and the account's balances before and after them."""

    account_id: str
    first: int
    last: int
    opening_msat: int
    closing_msat: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One transfer, what it changed and the balance after it."""

    transfer: Transfer
    change_msat: int
    balance_msat: int


def find_statement(connection: Connection, account: Account, from_ms: int | None, until_ms: int | None) -> Statement:
    """The statement of a time, as of now. None: from the first entry, or up to the newest."""
    newest = find_head(connection).number
    first = 1 if from_ms is None else place_of_time(connection, from_ms, newest)
    after = newest + 1 if until_ms is None else place_of_time(connection, until_ms, newest)
    balance_msat = account.credits_posted_msat - account.debits_posted_msat
    return Statement(
        account_id=account.account_id,
        first=first,
        last=after - 1,
        opening_msat=balance_msat - _change_since(connection, account.account_id, first),
        closing_msat=balance_msat - _change_since(connection, account.account_id, after),
    )


def place_of_time(connection: Connection, time_ms: int, newest: int) -> int:
    """The first place that no transfer before `time_ms` has: a search in halves, some twenty rows of millions."""
    low, high = 1, newest + 1
    sql = "SELECT number, create_time_ms FROM transfer WHERE number >= ? ORDER BY number LIMIT 1"
    while low < high:
        middle = (low + high) // 2
        row = connection.execute(sql, (middle,)).fetchone()
        if row is None or row[1] >= time_ms:
            high = middle
        else:
            low = row[0] + 1
    return low


def _change_since(connection: Connection, account_id: str, number: int) -> int:
    """What the entries from `number` on changed about the balance."""
    sums = []
    for side in ("credit_account_id", "debit_account_id"):
        sql = f"SELECT CAST(coalesce(sum(amount_msat), 0) AS BIGINT) FROM transfer WHERE {side} = ? AND number >= ? AND {_MOVES}"  # noqa: S608
        row = connection.execute(sql, (account_id, number)).fetchone()
        assert row is not None, "an aggregate has a row"
        sums.append(integer(row[0]))
    return sums[0] - sums[1]


def list_lines(
    connection: Connection, statement: Statement, after: int, balance_msat: int, limit: int
) -> tuple[Line, ...]:
    """At most `limit` lines that follow entry `after`, where the balance was `balance_msat`."""
    found: list[Transfer] = []
    start = max(after + 1, statement.first)
    for side in ("debit_account_id", "credit_account_id"):
        sql = (
            f"SELECT {TRANSFER_COLUMNS} FROM transfer WHERE {side} = ? AND number BETWEEN ? AND ? AND {_MOVES}"  # noqa: S608
            " ORDER BY number LIMIT ?"
        )
        values = (statement.account_id, start, statement.last, limit)
        found.extend(transfer_of_row(row) for row in connection.execute(sql, values))
    found.sort(key=lambda transfer: transfer.number)
    return _with_balances(statement, found[:limit], balance_msat)


def _with_balances(statement: Statement, transfers: Sequence[Transfer], balance_msat: int) -> tuple[Line, ...]:
    lines = []
    for transfer in transfers:
        enters = transfer.credit_account_id == statement.account_id
        change_msat = transfer.amount_msat if enters else -transfer.amount_msat
        balance_msat += change_msat
        lines.append(Line(transfer=transfer, change_msat=change_msat, balance_msat=balance_msat))
    return tuple(lines)

"""Accounts and their money in SQL. Every function runs inside the caller's transaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from services.payment.domain.ledger import SUM_MSAT_MAX, Delta, net_deltas, refusal
from services.payment.domain.model import Account, AccountState, Quota, Transfer
from services.payment.domain.transfers import earlier_hold_id
from services.payment.store.entries import (
    TRANSFER_COLUMNS,
    chained,
    find_head,
    head_of,
    insert_transfer,
    integer,
    transfer_of_row,
)
from services.storage.sql import Connection

ACCOUNT_COLUMNS = (
    "account_id, owner, state, debits_pending_msat, debits_posted_msat, credits_pending_msat, credits_posted_msat,"
    " must_cover, create_time_ms, quota_payment_msat, quota_day_msat, quota_pending_msat, spent_day, spent_msat"
)
SPENT_AFTER = """(CASE WHEN :spent = 0 OR spent_day = :spent_day THEN spent_msat ELSE 0 END) + :spent
  - (CASE WHEN :returned_day = (CASE WHEN :spent > 0 THEN :spent_day ELSE spent_day END) THEN :returned ELSE 0 END)"""
"""`domain.ledger.spent_after` in SQL."""
APPLY = f"""
UPDATE account SET
  debits_pending_msat = debits_pending_msat + :debits_pending, debits_posted_msat = debits_posted_msat + :debits_posted,
  credits_pending_msat = credits_pending_msat + :credits_pending, credits_posted_msat = credits_posted_msat + :credits_posted,
  spent_msat = {SPENT_AFTER}, spent_day = CASE WHEN :spent > 0 THEN :spent_day ELSE spent_day END
WHERE account_id = :account_id AND state <> 3
  AND (:leaving = 0 OR state = 1)
  AND (:available >= 0 OR must_cover = 0 OR credits_posted_msat - debits_posted_msat - debits_pending_msat + :available >= 0)
  AND debits_posted_msat + debits_pending_msat + :debits <= :sum_max
  AND credits_posted_msat + credits_pending_msat + :credits <= :sum_max
  AND (:is_spending = 0 OR (
    (quota_payment_msat IS NULL OR :leaving <= quota_payment_msat)
    AND (quota_day_msat IS NULL OR {SPENT_AFTER} <= quota_day_msat)
    AND (quota_pending_msat IS NULL OR :debits_pending <= 0 OR debits_pending_msat + :debits_pending <= quota_pending_msat)))
"""  # noqa: S608 - built from constants
"""The rules of `domain.ledger.refusal` are this WHERE clause."""


def account_of_row(row: Sequence[object]) -> Account:
    """One row of ACCOUNT_COLUMNS."""
    account_id, owner, state, debits_pending, debits_posted, credits_pending, credits_posted, must_cover, created = row[
        :9
    ]
    payment_max, day_max, pending_max, spent_day, spent = row[9:]
    return Account(
        account_id=str(account_id),
        owner=str(owner),
        state=AccountState(integer(state)),
        debits_pending_msat=integer(debits_pending),
        debits_posted_msat=integer(debits_posted),
        credits_pending_msat=integer(credits_pending),
        credits_posted_msat=integer(credits_posted),
        must_cover=bool(must_cover),
        create_time_ms=integer(created),
        quota=Quota(
            payment_msat_max=_limit(payment_max), day_msat_max=_limit(day_max), pending_msat_max=_limit(pending_max)
        ),
        spent_day=integer(spent_day),
        spent_msat=integer(spent),
    )


def _limit(value: object) -> int | None:
    return None if value is None else integer(value)


def find_account(connection: Connection, account_id: str) -> Account | None:
    """The account, or None."""
    row = connection.execute(f"SELECT {ACCOUNT_COLUMNS} FROM account WHERE account_id = ?", (account_id,)).fetchone()  # noqa: S608
    return account_of_row(row) if row else None


def find_transfer(connection: Connection, transfer_id: str) -> Transfer | None:
    """The transfer, or None."""
    sql = f"SELECT {TRANSFER_COLUMNS} FROM transfer WHERE transfer_id = ?"  # noqa: S608 - built from constants
    row = connection.execute(sql, (transfer_id,)).fetchone()
    return transfer_of_row(row) if row else None


def list_accounts_after(connection: Connection, number: int, limit: int) -> tuple[tuple[int, Account], ...]:
    """(row number, account) of all accounts after a row number, in the order of these."""
    sql = f"SELECT number, {ACCOUNT_COLUMNS} FROM account WHERE number > ? ORDER BY number LIMIT ?"  # noqa: S608
    return tuple((row[0], account_of_row(row[1:])) for row in connection.execute(sql, (number, limit)).fetchall())


def post(connection: Connection, transfers: Sequence[Transfer]) -> tuple[Transfer, ...]:
    """Chain and apply transfers together; the transfers as recorded. None: they were all applied before, and nothing changed.

    Raises Refused with the reason of the first account that says no; the caller's transaction is then rolled back.
    """
    pending: dict[str, Transfer] = {}
    recorded = _append(connection, [_resolving(connection, transfer, pending) for transfer in transfers])
    for delta in net_deltas(recorded, pending):
        _apply(connection, delta)
    return recorded


def _resolving(connection: Connection, transfer: Transfer, pending: dict[str, Transfer]) -> Transfer:
    """The transfer with the recorded id of what it resolves, which is added to `pending`."""
    if not transfer.pending_transfer_id:
        return transfer
    found = find_transfer(connection, transfer.pending_transfer_id)
    if found is None:
        found = find_transfer(connection, earlier_hold_id(transfer))
    assert found is not None, "a reservation that is resolved was made before"
    pending[found.transfer_id] = found
    return replace(transfer, pending_transfer_id=found.transfer_id)


def _append(connection: Connection, transfers: Sequence[Transfer]) -> tuple[Transfer, ...]:
    head = find_head(connection)
    recorded: list[Transfer] = []
    for transfer in transfers:
        entry = chained(head, transfer)
        if insert_transfer(connection, entry):
            recorded.append(entry)
            head = head_of(entry)
    if len(recorded) == len(transfers):
        return tuple(recorded)
    assert not recorded, "some of these transfers were applied before, and some not"
    for transfer in transfers:
        found = find_transfer(connection, transfer.transfer_id)
        assert found is not None
        assert _identity(found) == _identity(transfer), "another transfer has this id"
    return ()


def _identity(transfer: Transfer) -> Transfer:
    """Without what the ledger gave it."""
    return replace(transfer, number=0, sha256=b"", create_time_ms=0)


def _apply(connection: Connection, delta: Delta) -> None:
    connection.execute(
        APPLY,
        {
            "account_id": delta.account_id,
            "debits_pending": delta.debits_pending_msat,
            "debits_posted": delta.debits_posted_msat,
            "credits_pending": delta.credits_pending_msat,
            "credits_posted": delta.credits_posted_msat,
            "debits": delta.debits_msat,
            "credits": delta.credits_msat,
            "available": delta.available_msat,
            "leaving": delta.leaving_msat,
            "is_spending": int(delta.is_spending),
            "spent": delta.spent_msat,
            "spent_day": delta.spent_day,
            "returned": delta.returned_msat,
            "returned_day": delta.returned_day,
            "sum_max": SUM_MSAT_MAX,
        },
    )
    if connection.changes() == 1:
        return
    refused = refusal(find_account(connection, delta.account_id), delta)
    assert refused is not None, "the UPDATE and the rules disagree"
    raise refused


def sums(connection: Connection) -> tuple[int, int, int, int]:
    """Debits pending, debits posted, credits pending, credits posted over all accounts; debits equal credits at all times."""
    row = connection.execute(
        "SELECT coalesce(sum(debits_pending_msat), 0), coalesce(sum(debits_posted_msat), 0),"
        " coalesce(sum(credits_pending_msat), 0), coalesce(sum(credits_posted_msat), 0) FROM account"
    ).fetchone()
    assert row is not None
    debits_pending, debits_posted, credits_pending, credits_posted = (integer(value) for value in row)
    assert debits_pending == credits_pending, "reserved debits differ from reserved credits"
    assert debits_posted == credits_posted, "posted debits differ from posted credits"
    return debits_pending, debits_posted, credits_pending, credits_posted

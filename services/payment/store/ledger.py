"""Accounts and transfers in SQL. Every function runs inside the caller's transaction."""

from __future__ import annotations

from collections.abc import Sequence

import apsw

from services.payment.domain.ledger import SUM_MSAT_MAX, Delta, net_deltas, refusal
from services.payment.domain.model import (
    Account,
    AccountState,
    Purpose,
    Reason,
    Refused,
    Transfer,
    TransferKind,
)

ACCOUNT_COLUMNS = (
    "account_id, owner, state, debits_pending_msat, debits_posted_msat, credits_pending_msat, credits_posted_msat,"
    " must_cover, create_time_ms"
)
TRANSFER_COLUMNS = (
    "transfer_id, kind, debit_account_id, credit_account_id, amount_msat, purpose, pending_transfer_id, payment_id,"
    " reference, create_time_ms"
)
APPLY = """
UPDATE account SET
  debits_pending_msat = debits_pending_msat + :debits_pending, debits_posted_msat = debits_posted_msat + :debits_posted,
  credits_pending_msat = credits_pending_msat + :credits_pending, credits_posted_msat = credits_posted_msat + :credits_posted
WHERE account_id = :account_id
  AND (:available >= 0 OR (state = 1 AND (
    must_cover = 0 OR credits_posted_msat - debits_posted_msat - debits_pending_msat + :available >= 0)))
  AND debits_posted_msat + debits_pending_msat + :debits <= :sum_max
  AND credits_posted_msat + credits_pending_msat + :credits <= :sum_max
"""
INSERT_TRANSFER = f"""
INSERT INTO transfer ({TRANSFER_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (transfer_id) DO NOTHING
"""  # noqa: S608 - built from constants


def account_of_row(row: Sequence[object]) -> Account:
    """One row of ACCOUNT_COLUMNS."""
    account_id, owner, state, debits_pending, debits_posted, credits_pending, credits_posted, must_cover, created = row
    return Account(
        account_id=str(account_id),
        owner=str(owner),
        state=AccountState(_integer(state)),
        debits_pending_msat=_integer(debits_pending),
        debits_posted_msat=_integer(debits_posted),
        credits_pending_msat=_integer(credits_pending),
        credits_posted_msat=_integer(credits_posted),
        must_cover=bool(must_cover),
        create_time_ms=_integer(created),
    )


def transfer_of_row(row: Sequence[object]) -> Transfer:
    """One row of TRANSFER_COLUMNS."""
    transfer_id, kind, debit, credit, amount, purpose, pending_id, payment_id, reference, created = row
    return Transfer(
        transfer_id=str(transfer_id),
        kind=TransferKind(_integer(kind)),
        debit_account_id=str(debit),
        credit_account_id=str(credit),
        amount_msat=_integer(amount),
        purpose=Purpose(_integer(purpose)),
        pending_transfer_id=str(pending_id or ""),
        payment_id=str(payment_id or ""),
        reference=str(reference),
        create_time_ms=_integer(created),
    )


def _integer(value: object) -> int:
    assert isinstance(value, int)
    return value


def find_account(connection: apsw.Connection, account_id: str) -> Account | None:
    """The account, or None."""
    row = connection.execute(f"SELECT {ACCOUNT_COLUMNS} FROM account WHERE account_id = ?", (account_id,)).fetchone()  # noqa: S608
    return account_of_row(row) if row else None


def find_transfer(connection: apsw.Connection, transfer_id: str) -> Transfer | None:
    """The transfer, or None."""
    sql = f"SELECT {TRANSFER_COLUMNS} FROM transfer WHERE transfer_id = ?"  # noqa: S608 - built from constants
    row = connection.execute(sql, (transfer_id,)).fetchone()
    return transfer_of_row(row) if row else None


def insert_account(connection: apsw.Connection, account: Account) -> None:
    """Add a customer's account."""
    connection.execute(
        "INSERT INTO account (account_id, owner, state, must_cover, create_time_ms) VALUES (?, ?, ?, 1, ?)",
        (account.account_id, account.owner, int(account.state), account.create_time_ms),
    )


def set_account_state(connection: apsw.Connection, account_id: str, state: AccountState) -> Account:
    """Freeze or unfreeze; the same state again is success. Raises Refused ACCOUNT_NOT_FOUND."""
    sql = "UPDATE account SET state = ? WHERE account_id = ? AND must_cover = 1 AND state <> 3"
    connection.execute(sql, (int(state), account_id))
    account = find_account(connection, account_id)
    if account is None or connection.changes() != 1:
        raise Refused(Reason.ACCOUNT_NOT_FOUND, "there is no such account")
    return account


def post(connection: apsw.Connection, transfers: Sequence[Transfer]) -> bool:
    """Apply transfers together. False: they were all applied before, and nothing changed.

    Raises Refused with the reason of the first account that says no; the caller's transaction is then rolled back.
    """
    if not _insert(connection, transfers):
        return False
    pending = {t.pending_transfer_id: _pending(connection, t) for t in transfers if t.pending_transfer_id}
    for delta in net_deltas(transfers, pending):
        _apply(connection, delta)
    return True


def _insert(connection: apsw.Connection, transfers: Sequence[Transfer]) -> bool:
    inserted = 0
    for transfer in transfers:
        connection.execute(INSERT_TRANSFER, _transfer_row(transfer))
        inserted += connection.changes()
    if inserted == len(transfers):
        return True
    assert inserted == 0, "some of these transfers were applied before, and some not"
    for transfer in transfers:
        found = find_transfer(connection, transfer.transfer_id)
        assert found is not None
        assert _identity(found) == _identity(transfer), "another transfer has this id"
    return False


def _transfer_row(transfer: Transfer) -> tuple[str | int | None, ...]:
    return (
        transfer.transfer_id,
        int(transfer.kind),
        transfer.debit_account_id,
        transfer.credit_account_id,
        transfer.amount_msat,
        int(transfer.purpose),
        transfer.pending_transfer_id or None,
        transfer.payment_id or None,
        transfer.reference,
        transfer.create_time_ms,
    )


def _identity(transfer: Transfer) -> tuple[str | int | None, ...]:
    return _transfer_row(transfer)[:-1]


def _pending(connection: apsw.Connection, transfer: Transfer) -> Transfer:
    pending = find_transfer(connection, transfer.pending_transfer_id)
    assert pending is not None, "a reservation that is resolved was made before"
    return pending


def _apply(connection: apsw.Connection, delta: Delta) -> None:
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
            "sum_max": SUM_MSAT_MAX,
        },
    )
    if connection.changes() == 1:
        return
    refused = refusal(find_account(connection, delta.account_id), delta)
    assert refused is not None, "the UPDATE and the rules disagree"
    raise refused


def sums(connection: apsw.Connection) -> tuple[int, int, int, int]:
    """Debits pending, debits posted, credits pending, credits posted over all accounts; debits equal credits at all times."""
    row = connection.execute(
        "SELECT coalesce(sum(debits_pending_msat), 0), coalesce(sum(debits_posted_msat), 0),"
        " coalesce(sum(credits_pending_msat), 0), coalesce(sum(credits_posted_msat), 0) FROM account"
    ).fetchone()
    assert row is not None
    debits_pending, debits_posted, credits_pending, credits_posted = (_integer(value) for value in row)
    assert debits_pending == credits_pending, "reserved debits differ from reserved credits"
    assert debits_posted == credits_posted, "posted debits differ from posted credits"
    return debits_pending, debits_posted, credits_pending, credits_posted

"""What invoices that are paid from outside do to the ledger: each function is one transaction, and doing it again changes nothing."""

from __future__ import annotations

from enum import IntEnum

from services.payment.domain import transfers
from services.payment.domain.model import AccountState, Reason, Refused, TransferKind
from services.payment.store import ledger
from services.storage.sql import Connection


class CreditState(IntEnum):
    """What became of an invoice's credit; the last two are final."""

    HELD = 1
    POSTED = 2
    VOIDED = 3


def hold_credit(connection: Connection, invoice_id: str, account_id: str, amount_msat: int, now_ms: int) -> None:
    """Reserve for the account what the node holds.

    Raises Refused: ACCOUNT_NOT_FOUND (also when it is closed), BALANCE_LIMIT_EXCEEDED, CREDIT_VOIDED; REQUEST_ID_REUSED for an invoice
    that was held with another account or amount.
    """
    found = _find(connection, invoice_id)
    if found is not None:
        _check_same(found, account_id, amount_msat)
        return
    account = ledger.find_account(connection, account_id)
    if account is None or account.state is AccountState.CLOSED:
        raise Refused(Reason.ACCOUNT_NOT_FOUND, "no such account")
    ledger.post(connection, (transfers.credit_hold(invoice_id, account_id, amount_msat, now_ms),))
    _insert(connection, invoice_id, CreditState.HELD, (account_id, amount_msat), now_ms)


def post_credit(connection: Connection, invoice_id: str, now_ms: int) -> None:
    """Move what is reserved. Raises Refused CREDIT_NOT_HELD."""
    state = _state(connection, invoice_id)
    if state is CreditState.POSTED:
        return
    if state is not CreditState.HELD:
        raise Refused(Reason.CREDIT_NOT_HELD, "nothing is reserved for this invoice")
    _end(connection, invoice_id, TransferKind.POST_PENDING, now_ms)
    _set(connection, invoice_id, CreditState.POSTED, now_ms)


def void_credit(connection: Connection, invoice_id: str, now_ms: int) -> None:
    """Free what is reserved; when nothing is, nothing ever will be. Raises Refused CREDIT_POSTED."""
    state = _state(connection, invoice_id)
    if state is CreditState.VOIDED:
        return
    if state is CreditState.POSTED:
        raise Refused(Reason.CREDIT_POSTED, "what was reserved for this invoice is moved already")
    if state is None:
        _insert(connection, invoice_id, CreditState.VOIDED, (None, 0), now_ms)
        return
    _end(connection, invoice_id, TransferKind.VOID_PENDING, now_ms)
    _set(connection, invoice_id, CreditState.VOIDED, now_ms)


def _end(connection: Connection, invoice_id: str, kind: TransferKind, now_ms: int) -> None:
    held = ledger.find_transfer(connection, transfers.credit_id(invoice_id))
    assert held is not None, "what is held has a transfer"
    applied = ledger.post(connection, (transfers.credit_end(held, kind, now_ms),))
    assert applied, "what is held was not ended before"


def _check_same(found: tuple[CreditState, str, int], account_id: str, amount_msat: int) -> None:
    state, held_for, held_msat = found
    if state is CreditState.VOIDED:
        raise Refused(Reason.CREDIT_VOIDED, "what was reserved for this invoice is free again, for good")
    if (held_for, held_msat) != (account_id, amount_msat):
        raise Refused(Reason.REQUEST_ID_REUSED, "this invoice was held with another account or amount")


def _state(connection: Connection, invoice_id: str) -> CreditState | None:
    found = _find(connection, invoice_id)
    return None if found is None else found[0]


def _find(connection: Connection, invoice_id: str) -> tuple[CreditState, str, int] | None:
    sql = "SELECT state, account_id, amount_msat FROM invoice_credit WHERE invoice_id = ?"
    row = connection.execute(sql, (invoice_id,)).fetchone()
    return None if row is None else (CreditState(row[0]), str(row[1] or ""), int(row[2]))


def _insert(
    connection: Connection, invoice_id: str, state: CreditState, credit: tuple[str | None, int], now_ms: int
) -> None:
    connection.execute(
        "INSERT INTO invoice_credit (invoice_id, state, account_id, amount_msat, update_time_ms) VALUES (?, ?, ?, ?, ?)",
        (invoice_id, int(state), *credit, now_ms),
    )


def _set(connection: Connection, invoice_id: str, state: CreditState, now_ms: int) -> None:
    connection.execute(
        "UPDATE invoice_credit SET state = ?, update_time_ms = ? WHERE invoice_id = ? AND state = ?",
        (int(state), now_ms, invoice_id, int(CreditState.HELD)),
    )
    assert connection.changes() == 1, "only what is held changes"

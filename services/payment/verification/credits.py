"""Money that somebody outside pays into an invoice: what the invoice service was told against the transfers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from services.payment.domain.model import NODE_ACCOUNT, Purpose, TransferKind
from services.payment.domain.transfers import credit_id
from services.payment.store.invoice_credits import CreditState
from services.payment.verification.report import Report
from services.storage.sql import Connection, value_of

ROWS_MAX: Final = 500
"""Credits read at a time."""
ENDS: Final = {
    CreditState.HELD: None,
    CreditState.POSTED: TransferKind.POST_PENDING,
    CreditState.VOIDED: TransferKind.VOID_PENDING,
}
"""How the reservation of a credit ended, in each of its states."""
_CREDITS: Final = "SELECT invoice_id, state, account_id, amount_msat FROM invoice_credit WHERE invoice_id > ? ORDER BY invoice_id LIMIT ?"
_HOLDS: Final = (
    "SELECT held.transfer_id, held.debit_account_id, held.credit_account_id, held.amount_msat, ended.kind"
    " FROM transfer AS held LEFT JOIN transfer AS ended ON ended.pending_transfer_id = held.transfer_id"
    " WHERE held.kind = 2 AND held.purpose = 8 AND held.transfer_id IN ({})"
)


def check_credits(connection: Connection, report: Report) -> None:
    """Every credit has its reservation, in the state that it says, and there are no others."""
    after, found = "", 0
    while rows := connection.execute(_CREDITS, (after, ROWS_MAX)).fetchall():
        after = rows[-1][0]
        holds = _holds(connection, [credit_id(row[0]) for row in rows])
        found += len(holds)
        for row in rows:
            report.checked["invoice credits"] += 1
            _check(report, row, holds.get(credit_id(row[0])))
    sql = "SELECT count(*) FROM transfer WHERE kind = ? AND purpose = ?"
    count = int(value_of(connection.execute(sql, (int(TransferKind.PENDING), int(Purpose.RECEIVED)))))
    meaning = f"{count - found} reservations for invoices belong to none that the service knows"
    report.expect(count == found, "credit.kept", meaning, "invoice credits")


def _holds(connection: Connection, transfer_ids: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    """(debited, credited, amount, kind of its end) by id."""
    marks = ", ".join("?" * len(transfer_ids))
    return {row[0]: row[1:] for row in connection.execute(_HOLDS.format(marks), transfer_ids).fetchall()}


def _check(report: Report, row: Sequence[Any], hold: tuple[Any, ...] | None) -> None:
    invoice_id, number, account_id, amount_msat = row
    state = CreditState(number)
    if account_id is None:
        return report.expect(hold is None, "credit.transfer", "it was never held, but a transfer holds it", invoice_id)
    wanted = (NODE_ACCOUNT, account_id, amount_msat, ENDS[state])
    meaning = f"it is {state.name}; its transfers say {hold or 'nothing'} instead of {wanted}"
    return report.expect(hold == wanted, "credit.transfer", meaning, invoice_id)

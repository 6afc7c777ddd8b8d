"""What a prepared settlement does to stored invoices, in a transaction that is prepared beside the writer and finished later.

It locks its rows, and tells nobody: events are numbered in the order of the writers' commits. Once it is committed the writer tells.
All functions run inside a transaction; none begins or commits. Only on PostgreSQL.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from services.chassis.errors import Reason
from services.invoice import holds
from services.invoice.domain import rules
from services.invoice.domain.invoice import HoldState, Invoice, Phase, State
from services.invoice.domain.rules import RefusedError
from services.invoice.store import Key, append_change, find_invoice, update_invoice
from services.storage.sql import Connection

UNTOLD_READ_MAX: Final = 200
"""Settlements that are told of in one turn of the sweeper."""
_FREE: Final = "SELECT 1 FROM invoice WHERE invoice_id = (SELECT invoice_id FROM invoice_hold WHERE payment_id = ?) FOR UPDATE SKIP LOCKED"


class NothingToPrepareError(Exception):
    """The payment has settled its invoice already."""


def check_row_is_free(connection: Connection, payment_id: str) -> None:
    """Lock the invoice that a payment holds, if any. Raises RefusedError INVOICE_LOCKED at once when another transaction does.

    So nobody waits, least of all the writer: a prepared transaction keeps its rows for as long as it takes.
    """
    if connection.execute(_FREE, (payment_id,)).fetchone() is not None:
        return
    hold = holds.find_hold(connection, payment_id)
    if hold is not None and hold.invoice_id is not None:
        raise RefusedError(Reason.INVOICE_LOCKED, payment_id)


def settle_untold(connection: Connection, payment_id: str, now_ms: int) -> None:
    """Settle the invoice that a payment holds, without an event. Raises RefusedError and NothingToPrepareError."""
    check_row_is_free(connection, payment_id)
    hold = holds.find_hold(connection, payment_id)
    if hold is not None and hold.state is HoldState.COMMITTED:
        raise NothingToPrepareError(payment_id)
    if hold is None or hold.state is not HoldState.HELD:
        raise RefusedError(Reason.INVOICE_NOT_LOCKED, payment_id)
    assert hold.invoice_id is not None
    invoice = find_invoice(connection, Key(column="invoice_id", value=hold.invoice_id))
    assert not invoice.hold, "the owner of a hold invoice decides, not the payment"
    settled, committed = rules.commit(invoice, hold, now_ms)
    assert settled.phase is Phase.SETTLED
    update_invoice(connection, invoice, settled)
    holds.put_hold(connection, committed)
    connection.execute(
        "INSERT INTO invoice_untold (payment_id, invoice_id) VALUES (?, ?)", (payment_id, hold.invoice_id)
    )


def release(connection: Connection, payment_id: str, now_ms: int) -> Invoice | None:
    """As `holds.release_invoice`. Raises RefusedError INVOICE_LOCKED at once while another transaction has the invoice."""
    check_row_is_free(connection, payment_id)
    return holds.release_invoice(connection, payment_id, now_ms)


def is_held(connection: Connection, payment_id: str) -> bool:
    """Whether a payment holds an invoice that is not settled."""
    hold = holds.find_hold(connection, payment_id)
    return hold is not None and hold.state is HoldState.HELD


def tell_settled(connection: Connection, payment_id: str) -> Invoice | None:
    """Append the event of a prepared settlement that is committed now; the invoice, or None when that is done. In the writer."""
    sql = "DELETE FROM invoice_untold WHERE payment_id = ? RETURNING invoice_id"
    row = connection.execute(sql, (payment_id,)).fetchone()
    if row is None:
        return None
    invoice = find_invoice(connection, Key(column="invoice_id", value=row[0]))
    assert invoice.phase is Phase.SETTLED
    told = replace(invoice, sequence=append_change(connection, invoice, previous=State.ACCEPTED))
    update_invoice(connection, invoice, told)
    return told


def untold(connection: Connection) -> list[str]:
    """Payments whose settlement is committed and not told of, at most UNTOLD_READ_MAX."""
    rows = connection.execute("SELECT payment_id FROM invoice_untold LIMIT ?", (UNTOLD_READ_MAX,))
    return [row[0] for row in rows]

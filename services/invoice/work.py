"""What is still to be done for stored invoices at the node and in the ledger: claimed by one replica, done, written down.

All functions run inside `database.write` or `database.read`; none begins or commits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from services.invoice.domain import rules
from services.invoice.domain.invoice import AtNode, Invoice, Phase
from services.invoice.domain.rules import LEASE_MS
from services.invoice.holds import decide
from services.invoice.store import COLUMNS, Key, find_invoice, invoice_of, store_change
from services.storage.sql import Connection

CLAIMS_MAX: Final = 64
"""Invoices that a replica claims at once: the others shall get their share."""
RETRY_MS_MIN: Final = 100
"""First pause after a step that could not be done: a restarted sidecar needs about this long."""
RETRY_MS_MAX: Final = 5_000
"""While money is held, a node or ledger that is back is noticed within 5 s."""
RETRY_DOUBLINGS_MAX: Final = 10
"""100 ms doubled 10 times is above the longest pause; more would only grow the number."""
LOOKED_AT_MAX: Final = 500
"""Invoices of one page when all that wait at the node are looked at."""

Rule = Callable[[Invoice, int], Invoice]
"""From an invoice and the time to the invoice afterwards."""

_CLAIM: Final = f"""
UPDATE invoice SET next_run_ms = ? WHERE next_run_ms <= ? AND invoice_id IN (
    SELECT invoice_id FROM invoice WHERE next_run_ms <= ? ORDER BY next_run_ms LIMIT ?
) RETURNING {COLUMNS}
"""  # noqa: S608  # only names from the store


def claim(connection: Connection, now_ms: int) -> list[Invoice]:
    """Return invoices that are due, now claimed for LEASE_MS: nobody else takes them before."""
    rows = connection.execute(_CLAIM, (now_ms + LEASE_MS, now_ms, now_ms, CLAIMS_MAX)).fetchall()
    return [invoice_of(row) for row in rows]


def next_run_ms(connection: Connection) -> int | None:
    """Return when the next invoice is due; None when none is."""
    row = connection.execute("SELECT min(next_run_ms) FROM invoice WHERE next_run_ms IS NOT NULL").fetchone()
    return None if row is None or row[0] is None else int(row[0])


def advance(connection: Connection, invoice_id: str, rule: Rule, now_ms: int) -> tuple[Invoice, Invoice]:
    """Apply a rule to the invoice as it is now; return it before and after."""
    before = find_invoice(connection, Key(column="invoice_id", value=invoice_id))
    return before, decide(connection, before, rule(before, now_ms), now_ms)


def arrive(connection: Connection, payment_hash: str, amount_msat: int, now_ms: int) -> tuple[Invoice, Invoice]:
    """Give an invoice to the payment that the node holds for it. Raises InvoiceNotFoundError and RefusedError."""
    before = find_invoice(connection, Key(column="payment_hash", value=payment_hash))
    return before, store_change(connection, before, rules.arrive(before, amount_msat, now_ms))


def close(connection: Connection, invoice_id: str) -> None:
    """Write down that nobody outside can pay the invoice any more; a canceled or expired one needs no further look."""
    connection.execute(
        "UPDATE invoice SET at_node = ?, next_run_ms = CASE WHEN state > 3 THEN NULL ELSE next_run_ms END"
        " WHERE invoice_id = ? AND at_node = ?",
        (AtNode.CLOSED, invoice_id, AtNode.LISTED),
    )


def postpone(connection: Connection, invoice: Invoice, now_ms: int) -> None:
    """Let a step that could not be done be tried again, after a pause that grows."""
    pause_ms = min(RETRY_MS_MIN << min(invoice.attempt, RETRY_DOUBLINGS_MAX), RETRY_MS_MAX)
    later = replace(invoice, attempt=invoice.attempt + 1, next_run_ms=now_ms + pause_ms)
    connection.execute(
        "UPDATE invoice SET attempt = ?, next_run_ms = ? WHERE invoice_id = ? AND phase = ? AND at_node = ?",
        (later.attempt, later.next_run_ms, invoice.invoice_id, invoice.phase, invoice.at_node),
    )


def waiting_at_node(connection: Connection, after: str) -> list[tuple[str, str]]:
    """Return ids and hashes of invoices that the node may have news of, in the order of their ids, those after `after`."""
    query = (
        "SELECT invoice_id, payment_hash FROM invoice WHERE invoice_id > ?"
        " AND ((state = 1 AND at_node = 1) OR phase = ?) ORDER BY invoice_id LIMIT ?"
    )
    rows = connection.execute(query, (after, Phase.HELD, LOOKED_AT_MAX))
    return [(row[0], row[1]) for row in rows]

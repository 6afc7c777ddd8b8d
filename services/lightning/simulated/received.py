"""Rows of the receiving side: what our nodes' invoices have come to, and the changes that subscribers are told of.

An invoice has a row from the first time that money comes for it or that it is canceled: to add one writes nothing. Subscribers are told
of money, that it comes, is taken or goes back; that an invoice was canceled before any came is no news but to who canceled it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from services.lightning.node import Received, ReceivedState
from services.storage.sql import Connection, value_of

NUMBERS: Final = {ReceivedState.ACCEPTED: 2, ReceivedState.SETTLED: 3, ReceivedState.CANCELED: 4}
STATES: Final = {number: state for state, number in NUMBERS.items()}
CHANGES_KEPT: Final = 10_000
"""More than any subscriber is behind: it reads within a second."""
CHANGES_READ_MAX: Final = 256
NODE: Final = "node"
"""Paid by the paying node that shares the file."""
OUTSIDE: Final = "outside"
"""Paid by somebody else."""

STORE: Final = """
INSERT INTO received (payment_hash, state, payer, amount_msat, deadline_ms, preimage)
VALUES (:payment_hash, :state, :payer, :amount_msat, :deadline_ms, :preimage)
ON CONFLICT (payment_hash) DO UPDATE SET
  state = :state, amount_msat = :amount_msat, deadline_ms = :deadline_ms, preimage = :preimage
"""
STORE_FIRST: Final = """
INSERT INTO received (payment_hash, state, payer, amount_msat, deadline_ms, preimage) VALUES (?, ?, '', ?, ?, '')
ON CONFLICT (payment_hash) DO NOTHING
"""
TELL: Final = """
INSERT INTO received_change (sequence, time_ms, payment_hash, state, amount_msat, deadline_ms) VALUES (?, ?, ?, ?, ?, ?)
"""


def register(connection: Connection, pubkey: str) -> None:
    """From now on money for this node's invoices arrives here."""
    connection.execute("INSERT INTO receiver (pubkey) VALUES (?) ON CONFLICT (pubkey) DO NOTHING", (pubkey,))


def is_receiver(connection: Connection, pubkey: str) -> bool:
    """Whether this node is paid into this file."""
    return value_of(connection.execute("SELECT 1 FROM receiver WHERE pubkey = ?", (pubkey,))) is not None


def find_received(connection: Connection, payment_hash: str) -> Received | None:
    """What became of an invoice; None when nothing ever did."""
    sql = "SELECT payment_hash, state, amount_msat, deadline_ms FROM received WHERE payment_hash = ?"
    row = connection.execute(sql, (payment_hash,)).fetchone()
    return None if row is None else _received(row)


def payer_of(connection: Connection, payment_hash: str) -> str:
    """Who pays an invoice: NODE, OUTSIDE, or "" for nobody."""
    return value_of(connection.execute("SELECT payer FROM received WHERE payment_hash = ?", (payment_hash,))) or ""


def store_first(connection: Connection, received: Received) -> bool:
    """Write what became of an invoice of which nothing was known, and tell nobody; False when there was something, which stays."""
    state = NUMBERS[received.state]
    values = (received.payment_hash, state, received.amount_msat, received.settle_deadline_ms)
    connection.execute(STORE_FIRST, values)
    return connection.changes() == 1


def store_received(
    connection: Connection, received: Received, now_ms: int, *, payer: str = "", preimage: str = ""
) -> None:
    """Write what became of an invoice, and tell the subscribers. `payer` is written once, with the first row."""
    values = {
        "payment_hash": received.payment_hash,
        "state": NUMBERS[received.state],
        "payer": payer,
        "amount_msat": received.amount_msat,
        "deadline_ms": received.settle_deadline_ms,
        "preimage": preimage,
    }
    connection.execute(STORE, values)
    _tell(connection, received, now_ms)


def _tell(connection: Connection, received: Received, now_ms: int) -> None:
    """Append a change. The counter's row is locked until the commit, so that numbers become visible in their order."""
    sql = "UPDATE counter SET value = value + 1 WHERE name = 'change' RETURNING value"
    sequence = int(value_of(connection.execute(sql)))
    state = NUMBERS[received.state]
    values = (sequence, now_ms, received.payment_hash, state, received.amount_msat, received.settle_deadline_ms)
    connection.execute(TELL, values)
    connection.execute("DELETE FROM received_change WHERE sequence <= ?", (sequence - CHANGES_KEPT,))


def first_sequence_since(connection: Connection, time_ms: int) -> int:
    """The number before the first change that is not older than this time."""
    first = value_of(connection.execute("SELECT min(sequence) FROM received_change WHERE time_ms >= ?", (time_ms,)))
    if first is not None:
        return int(first) - 1
    return int(value_of(connection.execute("SELECT value FROM counter WHERE name = 'change'")))


def changes_after(connection: Connection, sequence: int) -> list[tuple[int, Received]]:
    """The next changes, with their numbers."""
    sql = """
    SELECT payment_hash, state, amount_msat, deadline_ms, sequence FROM received_change
    WHERE sequence > ? ORDER BY sequence LIMIT ?
    """
    return [(row[4], _received(row)) for row in connection.execute(sql, (sequence, CHANGES_READ_MAX))]


def overdue(connection: Connection, now_ms: int, count_max: int) -> list[str]:
    """Payment hashes of invoices whose money must go back."""
    sql = "SELECT payment_hash FROM received WHERE state = 2 AND deadline_ms <= ? ORDER BY deadline_ms LIMIT ?"
    return [row[0] for row in connection.execute(sql, (now_ms, count_max))]


def _received(row: Sequence[Any]) -> Received:
    return Received(payment_hash=row[0], state=STATES[row[1]], amount_msat=row[2], settle_deadline_ms=row[3])

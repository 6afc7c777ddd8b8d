"""Invoices in SQL. Every change is one compare-and-set with its event in the same transaction.

All functions run inside `database.write` or `database.read`; none begins or commits. The rules are those of `domain.rules`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from services.chassis.secret import SecretBytes
from services.invoice.domain import rules
from services.invoice.domain.invoice import AtNode, Invoice, Phase, State
from services.invoice.wire import change_payload, event_kind
from services.storage.events import append_event
from services.storage.sql import Connection

EXPIRE_ROWS_MAX: Final = 200
"""Invoices that expire in one transaction: the writer is not held up."""
_NAMES: Final = (
    "invoice_id", "owner_pubkey", "account_id", "phase", "payment_request", "payment_hash", "preimage", "amount_msat",
    "amount_held_msat", "amount_paid_msat", "description", "description_hash", "metadata", "zap_request", "hold", "settle_duration_s",
    "create_time_ms", "expire_time_ms", "accept_time_ms", "settle_deadline_ms", "settle_time_ms", "update_time_ms", "locked_by",
    "at_node", "next_run_ms", "attempt", "sequence",
)  # fmt: skip
"""The fields of an Invoice, which are columns; the state is one more, for queries."""
COLUMNS: Final = ", ".join(_NAMES)
_INSERT: Final = (
    f"INSERT INTO invoice (state, {COLUMNS}) VALUES (?{', ?' * len(_NAMES)}) ON CONFLICT (payment_hash) DO NOTHING"  # noqa: S608
)
_CHANGING: Final = (
    "phase", "preimage", "amount_held_msat", "amount_paid_msat", "accept_time_ms", "settle_deadline_ms", "settle_time_ms",
    "update_time_ms", "locked_by", "at_node", "next_run_ms", "attempt", "sequence",
)  # fmt: skip
_SHOWN: Final = (
    "state", "amount_held_msat", "amount_paid_msat", "accept_time_ms", "settle_deadline_ms", "settle_time_ms", "update_time_ms",
    "locked_by", "sequence",
)  # fmt: skip
"""Which of them readers see: caches and watchers learn of a change from its event alone."""
_UPDATE: Final = (
    f"UPDATE invoice SET state = ?, {', '.join(f'{name} = ?' for name in _CHANGING)}"  # noqa: S608  # only names from above
    " WHERE invoice_id = ? AND phase = ? AND sequence = ?"
)


class InvoiceNotFoundError(LookupError):
    """There is no such invoice, or none that the caller may see."""


class HashUsedError(Exception):
    """There is an invoice with this payment hash already, whoever's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """Which invoice: the name of a unique column, and its value."""

    column: str
    value: str

    def __post_init__(self) -> None:
        """Only these columns are unique; the name becomes a part of the SQL."""
        assert self.column in ("invoice_id", "payment_hash", "payment_request"), self.column


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which invoices of a list; None or empty: any. `after` is the sort key (create_time_ms, invoice_id) of the last one seen."""

    owner_pubkey: str | None
    account_id: str = ""
    states: tuple[State, ...] = ()
    create_time_from_ms: int | None = None
    create_time_until_ms: int | None = None
    oldest_first: bool = False
    after: tuple[int, str] | None = None


def insert_invoice(connection: Connection, invoice: Invoice) -> Invoice:
    """Store a new invoice with its event; return it with its sequence. Raises HashUsedError."""
    invoice.check()
    assert invoice.phase is Phase.OPEN
    stored = replace(invoice, sequence=append_change(connection, invoice, previous=None))
    connection.execute(_INSERT, (stored.state, *_values(stored, _NAMES)))
    if connection.changes() != 1:
        raise HashUsedError(invoice.payment_hash)
    return stored


def hash_is_used(connection: Connection, payment_hash: str) -> bool:
    """Whether there is an invoice with this hash, whoever's."""
    return connection.execute("SELECT 1 FROM invoice WHERE payment_hash = ?", (payment_hash,)).fetchone() is not None


def find_invoice(connection: Connection, key: Key, owner_pubkey: str | None = None) -> Invoice:
    """Return an invoice; with `owner_pubkey` only if it is theirs. Raises InvoiceNotFoundError."""
    query = f"SELECT {COLUMNS} FROM invoice WHERE {key.column} = ?"  # noqa: S608  # the column is one of three names
    row = connection.execute(query, (key.value,)).fetchone()
    if row is None or (owner_pubkey is not None and row[1] != owner_pubkey):
        raise InvoiceNotFoundError(key.value)
    return invoice_of(row)


def list_invoices(connection: Connection, wanted: Filter, limit: int) -> list[Invoice]:
    """Return at most `limit` invoices in the order asked for."""
    direction, comparison = ("ASC", ">") if wanted.oldest_first else ("DESC", "<")
    conditions: list[tuple[str, Sequence[str | int]]] = []
    if wanted.owner_pubkey is not None:
        conditions.append(("owner_pubkey = ?", (wanted.owner_pubkey,)))
    if wanted.account_id:
        conditions.append(("account_id = ?", (wanted.account_id,)))
    if wanted.states:
        conditions.append((f"state IN ({', '.join('?' * len(wanted.states))})", wanted.states))
    if wanted.create_time_from_ms is not None:
        conditions.append(("create_time_ms >= ?", (wanted.create_time_from_ms,)))
    if wanted.create_time_until_ms is not None:
        conditions.append(("create_time_ms < ?", (wanted.create_time_until_ms,)))
    if wanted.after is not None:
        conditions.append((f"(create_time_ms, invoice_id) {comparison} (?, ?)", wanted.after))
    where = " AND ".join(text for text, _ in conditions) or "TRUE"
    values = [value for _, some in conditions for value in some]
    query = (
        f"SELECT {COLUMNS} FROM invoice WHERE {where}"  # noqa: S608  # only texts from above
        f" ORDER BY create_time_ms {direction}, invoice_id {direction} LIMIT ?"
    )
    return [invoice_of(row) for row in connection.execute(query, (*values, limit))]


def expire_invoices(connection: Connection, now_ms: int) -> int:
    """Expire open invoices whose time has passed, at most EXPIRE_ROWS_MAX; return how many."""
    query = f"SELECT {COLUMNS} FROM invoice WHERE state = 1 AND expire_time_ms <= ? ORDER BY expire_time_ms LIMIT ?"  # noqa: S608
    due = [invoice_of(row) for row in connection.execute(query, (now_ms, EXPIRE_ROWS_MAX)).fetchall()]
    for invoice in due:
        store_change(connection, invoice, rules.expire(invoice, now_ms))
    return len(due)


def next_expire_time_ms(connection: Connection) -> int | None:
    """Return when the next open invoice expires; None when none is open."""
    row = connection.execute("SELECT min(expire_time_ms) FROM invoice WHERE state = 1").fetchone()
    return None if row is None or row[0] is None else int(row[0])


def store_change(connection: Connection, before: Invoice, after: Invoice) -> Invoice:
    """Store an invoice's new phase, when it changed, with an event when watchers are told; return it with its sequence."""
    if after is before:
        return before
    told = rules.is_announced(before, after)
    assert told or all(getattr(before, name) == getattr(after, name) for name in _SHOWN), (
        "what is shown changes with an event"
    )
    stored = replace(after, sequence=append_change(connection, after, previous=before.state)) if told else after
    update_invoice(connection, before, stored)
    return stored


def update_invoice(connection: Connection, before: Invoice, after: Invoice) -> None:
    """Store an invoice as it is now, without an event."""
    values = (after.state, *_values(after, _CHANGING), before.invoice_id, before.phase, before.sequence)
    connection.execute(_UPDATE, values)
    assert connection.changes() == 1, "the invoice changed inside our own transaction"


def append_change(connection: Connection, invoice: Invoice, previous: State | None) -> int:
    """Write the event of a change; return its sequence."""
    return append_event(
        connection,
        kind=event_kind(invoice.state, previous),
        subject=invoice.invoice_id,
        payload=change_payload(invoice, previous),
    )


def _values(invoice: Invoice, names: Sequence[str]) -> list[str | int | bytes | None]:
    """Return fields of an invoice as values of their columns."""
    return [_value(name, getattr(invoice, name)) for name in names]


def _value(name: str, value: Any) -> str | int | bytes | None:
    """Return one field as its column holds it."""
    if type(value) in (str, int):  # most of them
        plain: str | int = value
        return plain
    if isinstance(value, SecretBytes):
        return value.reveal()
    if name == "metadata":
        return json.dumps(dict(value), sort_keys=True)
    stored: str | int | None = int(value) if isinstance(value, bool) else value
    return stored


def invoice_of(row: Sequence[Any]) -> Invoice:
    """Return the invoice of a row with COLUMNS."""
    values = dict(zip(_NAMES, row, strict=True))
    values["phase"] = Phase(values["phase"])
    values["preimage"] = None if values["preimage"] is None else SecretBytes(values["preimage"])
    values["metadata"] = json.loads(values["metadata"])
    values["hold"] = bool(values["hold"])
    values["at_node"] = AtNode(values["at_node"])
    invoice = Invoice(**values)
    invoice.check()
    return invoice

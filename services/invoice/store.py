"""Invoices in SQLite. Every change is one compare-and-set with its event in the same transaction.

All functions run inside `database.write` or `database.read`; none begins or commits. The rules are those of `domain.rules`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import apsw

from services.chassis.secret import SecretBytes
from services.invoice.domain import rules
from services.invoice.domain.invoice import Hold, HoldState, Invoice, State
from services.invoice.domain.rules import LockOrder, RefusedError
from services.invoice.domain.transitions import HOLD_STEPS, Call, Refuse
from services.invoice.wire import change_payload, event_kind
from services.storage.events import append_event

EXPIRE_ROWS_MAX: Final = 200
"""Invoices that expire in one transaction: the writer is not held up."""
_COLUMNS: Final = (
    "invoice_id, owner_pubkey, account_id, state, payment_request, payment_hash, preimage, amount_msat, amount_paid_msat,"
    " description, description_hash, create_time_ms, expire_time_ms, settle_time_ms, update_time_ms, locked_by, sequence"
)
_NAMES: Final = tuple(_COLUMNS.split(", "))


class InvoiceNotFoundError(LookupError):
    """There is no such invoice, or none that the caller may see."""


class ForgedRequestError(ValueError):
    """The payment request has the hash of an invoice of ours, and is not the one that was issued for it."""


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


def insert_invoice(connection: apsw.Connection, invoice: Invoice) -> Invoice:
    """Store a new invoice with its event; return it with its sequence."""
    invoice.check()
    assert invoice.state is State.OPEN
    stored = replace(invoice, sequence=_append(connection, invoice, previous=None))
    row = _row(stored)
    connection.execute(f"INSERT INTO invoice ({_COLUMNS}) VALUES ({', '.join('?' * len(row))})", row)  # noqa: S608
    return stored


def find_invoice(connection: apsw.Connection, key: Key, owner_pubkey: str | None = None) -> Invoice:
    """Return an invoice; with `owner_pubkey` only if it is theirs. Raises InvoiceNotFoundError."""
    query = f"SELECT {_COLUMNS} FROM invoice WHERE {key.column} = ?"  # noqa: S608  # the column is one of three names
    row = connection.execute(query, (key.value,)).fetchone()
    if row is None or (owner_pubkey is not None and row[1] != owner_pubkey):
        raise InvoiceNotFoundError(key.value)
    return _invoice(row)


def list_invoices(connection: apsw.Connection, wanted: Filter, limit: int) -> list[Invoice]:
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
        f"SELECT {_COLUMNS} FROM invoice WHERE {where}"  # noqa: S608  # only texts from above
        f" ORDER BY create_time_ms {direction}, invoice_id {direction} LIMIT ?"
    )
    return [_invoice(row) for row in connection.execute(query, (*values, limit))]


def cancel_invoice(connection: apsw.Connection, key: Key, owner_pubkey: str, now_ms: int) -> Invoice:
    """Take an invoice back. Raises InvoiceNotFoundError and RefusedError."""
    invoice = find_invoice(connection, key, owner_pubkey)
    return _store_change(connection, invoice, rules.cancel(invoice, now_ms))


def lock_invoice(
    connection: apsw.Connection, payment_request: str, payment_hash: str, order: LockOrder, now_ms: int
) -> tuple[Invoice, Hold]:
    """Let a payment hold an invoice. Raises InvoiceNotFoundError, ForgedRequestError, RefusedError and OtherInvoiceError.

    The hash finds it, not the text: a request that somebody else signed over our hash must never pass for one of another node.
    """
    invoice = find_invoice(connection, Key(column="payment_hash", value=payment_hash))
    if invoice.payment_request != payment_request:
        raise ForgedRequestError(invoice.invoice_id)
    before = find_hold(connection, order.payment_id)
    locked, hold = rules.lock(invoice, before, order, now_ms)
    stored = _store_change(connection, invoice, locked)
    if before is None:
        _put_hold(connection, hold)
    return stored, hold


def commit_invoice(connection: apsw.Connection, payment_id: str, now_ms: int) -> Invoice:
    """Settle the invoice that a payment holds. Raises RefusedError."""
    return _settle_hold(connection, payment_id, Call.COMMIT, rules.commit, now_ms)


def release_invoice(connection: apsw.Connection, payment_id: str, now_ms: int) -> Invoice | None:
    """Free what a payment holds, and let it never lock again; None when it held nothing. Raises RefusedError."""
    hold = find_hold(connection, payment_id)
    if hold is None:
        _put_hold(connection, rules.tombstone(payment_id, now_ms))
        return None
    if hold.state is HoldState.RELEASED:
        return None
    return _settle_hold(connection, payment_id, Call.RELEASE, rules.release, now_ms)


def _settle_hold(
    connection: apsw.Connection,
    payment_id: str,
    call: Call,
    rule: Callable[[Invoice, Hold, int], tuple[Invoice, Hold]],
    now_ms: int,
) -> Invoice:
    """Apply a rule to the invoice that a payment's hold is about. Raises RefusedError."""
    hold = find_hold(connection, payment_id)
    step = HOLD_STEPS[hold.state if hold else None, call]
    if isinstance(step, Refuse):
        raise RefusedError(step.reason, payment_id)
    assert hold is not None
    assert hold.invoice_id is not None
    invoice = find_invoice(connection, Key(column="invoice_id", value=hold.invoice_id))
    changed, after = rule(invoice, hold, now_ms)
    stored = _store_change(connection, invoice, changed)
    if after is not hold:
        _put_hold(connection, after)
    return stored


def expire_invoices(connection: apsw.Connection, now_ms: int) -> int:
    """Expire open invoices whose time has passed, at most EXPIRE_ROWS_MAX; return how many."""
    query = f"SELECT {_COLUMNS} FROM invoice WHERE state = 1 AND expire_time_ms <= ? ORDER BY expire_time_ms LIMIT ?"  # noqa: S608
    due = [_invoice(row) for row in connection.execute(query, (now_ms, EXPIRE_ROWS_MAX)).fetchall()]
    for invoice in due:
        _store_change(connection, invoice, rules.expire(invoice, now_ms))
    return len(due)


def next_expire_time_ms(connection: apsw.Connection) -> int | None:
    """Return when the next open invoice expires; None when none is open."""
    row = connection.execute("SELECT min(expire_time_ms) FROM invoice WHERE state = 1").fetchone()
    return None if row is None or row[0] is None else int(row[0])


def find_hold(connection: apsw.Connection, payment_id: str) -> Hold | None:
    """Return what is remembered of a payment."""
    row = connection.execute(
        "SELECT payment_id, invoice_id, state, amount_msat, actor_pubkey, update_time_ms FROM invoice_hold"
        " WHERE payment_id = ?",
        (payment_id,),
    ).fetchone()
    if row is None:
        return None
    return Hold(
        payment_id=row[0],
        invoice_id=row[1],
        state=HoldState(row[2]),
        amount_msat=row[3],
        actor_pubkey=row[4],
        update_time_ms=row[5],
    )


def _put_hold(connection: apsw.Connection, hold: Hold) -> None:
    """Store a hold, or its new state."""
    hold.check()
    connection.execute(
        "INSERT INTO invoice_hold (payment_id, invoice_id, state, amount_msat, actor_pubkey, update_time_ms)"
        " VALUES (?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (payment_id) DO UPDATE SET state = excluded.state, update_time_ms = excluded.update_time_ms",
        (hold.payment_id, hold.invoice_id, hold.state, hold.amount_msat, hold.actor_pubkey, hold.update_time_ms),
    )


def _store_change(connection: apsw.Connection, before: Invoice, after: Invoice) -> Invoice:
    """Store an invoice's new state with its event, when it changed; return it with its sequence."""
    if after is before:
        return before
    stored = replace(after, sequence=_append(connection, after, previous=before.state))
    connection.execute(
        "UPDATE invoice SET state = ?, amount_paid_msat = ?, settle_time_ms = ?, update_time_ms = ?, locked_by = ?,"
        " sequence = ? WHERE invoice_id = ? AND state = ? AND sequence = ?",
        (
            stored.state,
            stored.amount_paid_msat,
            stored.settle_time_ms,
            stored.update_time_ms,
            stored.locked_by,
            stored.sequence,
            before.invoice_id,
            before.state,
            before.sequence,
        ),
    )
    assert connection.changes() == 1, "the invoice changed inside our own transaction"
    return stored


def _append(connection: apsw.Connection, invoice: Invoice, previous: State | None) -> int:
    """Write the event of a change; return its sequence."""
    return append_event(
        connection,
        kind=event_kind(invoice.state),
        subject=invoice.invoice_id,
        payload=change_payload(invoice, previous),
    )


def _row(invoice: Invoice) -> tuple[str | int | bytes | None, ...]:
    """Return the columns of an invoice."""
    return (
        invoice.invoice_id,
        invoice.owner_pubkey,
        invoice.account_id,
        invoice.state,
        invoice.payment_request,
        invoice.payment_hash,
        invoice.preimage.reveal(),
        invoice.amount_msat,
        invoice.amount_paid_msat,
        invoice.description,
        invoice.description_hash,
        invoice.create_time_ms,
        invoice.expire_time_ms,
        invoice.settle_time_ms,
        invoice.update_time_ms,
        invoice.locked_by,
        invoice.sequence,
    )


def _invoice(row: Sequence[Any]) -> Invoice:
    """Return the invoice of a row with _COLUMNS."""
    values = dict(zip(_NAMES, row, strict=True))
    values["state"] = State(values["state"])
    values["preimage"] = SecretBytes(values["preimage"])
    invoice = Invoice(**values)
    invoice.check()
    return invoice

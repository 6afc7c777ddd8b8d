"""Rows of payments. Every function runs inside the caller's transaction or on a reading connection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from services.payment.domain.model import Failure, Payment, PaymentState, Reason, Refused
from services.storage.idempotency import RequestKey, request_id_reused
from services.storage.sql import Connection

COLUMNS = tuple(field.name for field in fields(Payment))
SELECT = f"SELECT {', '.join(COLUMNS)} FROM payment"  # noqa: S608 - built from constants
INSERT = (
    f"INSERT INTO payment ({', '.join(COLUMNS)}, request_sha256) VALUES ({', '.join('?' * len(COLUMNS))}, ?)"  # noqa: S608
    " ON CONFLICT (payment_hash) WHERE state IN (2, 3, 4, 6) DO NOTHING"
)
CHANGING = (
    "state",
    "fee_msat",
    "fee_limit_msat",
    "internal",
    "simulated",
    "payee_account_id",
    "preimage",
    "failure",
    "refunded_msat",
    "receipt_json",
    "update_time_ms",
    "settle_time_ms",
    "sequence",
)
UPDATE = f"UPDATE payment SET {', '.join(f'{name} = ?' for name in CHANGING)} WHERE payment_id = ?"  # noqa: S608


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentFilter:
    """Which payments a page holds. Empty and None mean: not asked. `owner` "" is for operators: whoever's."""

    owner: str
    account_id: str = ""
    states: tuple[int, ...] = ()
    create_time_from_ms: int | None = None
    create_time_until_ms: int | None = None
    oldest_first: bool = False


def payment_of_row(row: Sequence[Any]) -> Payment:
    """One row of COLUMNS."""
    values = dict(zip(COLUMNS, row, strict=True))
    values["state"] = PaymentState(values["state"])
    values["failure"] = Failure(values["failure"])
    values["internal"] = bool(values["internal"])
    values["simulated"] = bool(values["simulated"])
    return Payment(**values)


def payment_row(payment: Payment) -> tuple[str | int, ...]:
    """The values of COLUMNS."""
    return tuple(_plain(getattr(payment, name)) for name in COLUMNS)


def insert_payment(connection: Connection, payment: Payment, request_sha256: bytes) -> None:
    """Add a payment. Raises Refused PAYMENT_IN_FLIGHT or PAYMENT_ALREADY_PAID when its invoice has one that counts."""
    connection.execute(INSERT, (*payment_row(payment), request_sha256))
    if connection.changes() == 1:
        return
    row = connection.execute(
        "SELECT state FROM payment WHERE payment_hash = ? AND state IN (2, 3, 4, 6)", (payment.payment_hash,)
    ).fetchone()
    assert row is not None
    if row[0] in (PaymentState.RESERVED, PaymentState.IN_FLIGHT):
        raise Refused(Reason.PAYMENT_IN_FLIGHT, "a payment of this invoice is under way")
    raise Refused(Reason.PAYMENT_ALREADY_PAID, "this invoice was paid before")


def update_payment(connection: Connection, payment: Payment) -> None:
    """Write the columns that a payment's life changes."""
    connection.execute(UPDATE, (*(_plain(getattr(payment, name)) for name in CHANGING), payment.payment_id))
    assert connection.changes() == 1


def _plain(value: object) -> str | int:
    if isinstance(value, int):
        return int(value)
    assert isinstance(value, str)
    return value


def find_payment(connection: Connection, payment_id: str) -> Payment | None:
    """By its id."""
    row = connection.execute(f"{SELECT} WHERE payment_id = ?", (payment_id,)).fetchone()
    return payment_of_row(row) if row else None


def find_payments_by_hash(connection: Connection, payment_hash: str, limit: int) -> tuple[Payment, ...]:
    """The newest payments for one invoice, newest first: at most one that counts, and those that failed."""
    found: list[tuple[Any, ...]] = []
    for states in ("state IN (2, 3, 4, 6)", "state = 5"):  # each has an index of its own
        sql = f"SELECT number, {', '.join(COLUMNS)} FROM payment WHERE payment_hash = ? AND {states} ORDER BY number DESC LIMIT ?"  # noqa: S608
        found += connection.execute(sql, (payment_hash, limit)).fetchall()
    newest = sorted(found, reverse=True)[:limit]
    return tuple(payment_of_row(row[1:]) for row in newest)


def find_payment_by_request(connection: Connection, scope: str, request_id: str) -> Payment | None:
    """The payment that this caller asked for with this id."""
    row = connection.execute(f"{SELECT} WHERE request_id = ? AND scope = ?", (request_id, scope)).fetchone()
    return payment_of_row(row) if row else None


def find_begun(connection: Connection, key: RequestKey) -> Payment | None:
    """What an earlier request with this id began. Raises ServiceError REQUEST_ID_REUSED for the id of another request."""
    sql = f"SELECT request_sha256, {', '.join(COLUMNS)} FROM payment WHERE request_id = ? AND scope = ?"  # noqa: S608
    row = connection.execute(sql, (key.request_id, key.scope)).fetchone()
    if row is None:
        return None
    if row[0] != key.sha256:
        raise request_id_reused()
    return payment_of_row(row[1:])


def list_payments(
    connection: Connection, wanted: PaymentFilter, after: int | None, limit: int
) -> tuple[tuple[int, Payment], ...]:
    """One page of (row number, payment), by row number; `after` is the last number of the page before."""
    conditions: list[tuple[str, str | int | None]] = [
        ("account_id IN (SELECT account_id FROM account WHERE owner = ?)", wanted.owner or None),
        ("account_id = ?", wanted.account_id or None),
        ("create_time_ms >= ?", wanted.create_time_from_ms),
        ("create_time_ms < ?", wanted.create_time_until_ms),
        ("number > ?" if wanted.oldest_first else "number < ?", after),
    ]
    parts = ["TRUE", *(sql for sql, value in conditions if value is not None)]
    values = [value for _, value in conditions if value is not None]
    if wanted.states:
        parts.append(f"state IN ({', '.join('?' * len(wanted.states))})")
        values.extend(wanted.states)
    order = "ASC" if wanted.oldest_first else "DESC"
    sql = (
        f"SELECT number, {', '.join(COLUMNS)} FROM payment WHERE {' AND '.join(parts)} ORDER BY number {order} LIMIT ?"  # noqa: S608
    )
    rows = connection.execute(sql, (*values, limit))
    return tuple((row[0], payment_of_row(row[1:])) for row in rows)

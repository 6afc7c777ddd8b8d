"""(caller, method, request_id) -> hash of the request, and the response once there is one. Written with the effect."""

from __future__ import annotations

from dataclasses import dataclass

import apsw

from services.payment.domain.model import Reason, Refused

KEPT_MS = 7 * 24 * 3_600_000
"""A request id is remembered for 7 days; the API promises at least 24 hours."""
PURGE_ROWS_MAX = 500
"""Rows deleted per transaction: the writer must not be held up by housekeeping."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestKey:
    """Who asked for what, under which id; `sha256` is the hash of the request without its id."""

    scope: str
    method: str
    request_id: str
    sha256: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Earlier:
    """What an earlier request with this id did. `response` is None while its saga runs."""

    payment_id: str
    response: bytes | None


def find_earlier(connection: apsw.Connection, key: RequestKey) -> Earlier | None:
    """The earlier request of this id, or None. Raises Refused REQUEST_ID_REUSED when it asked for something else."""
    row = connection.execute(
        "SELECT request_sha256, payment_id, response FROM idempotency WHERE scope = ? AND method = ? AND request_id = ?",
        (key.scope, key.method, key.request_id),
    ).fetchone()
    if row is None:
        return None
    if row[0] != key.sha256:
        raise Refused(Reason.REQUEST_ID_REUSED, "another request was made with this request_id")
    return Earlier(payment_id=row[1], response=row[2])


def remember(
    connection: apsw.Connection, key: RequestKey, now_ms: int, *, payment_id: str = "", response: bytes | None = None
) -> None:
    """Store a request with its response, or, with a payment's id, as running."""
    connection.execute(
        "INSERT INTO idempotency (scope, method, request_id, request_sha256, payment_id, response, create_time_ms)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (key.scope, key.method, key.request_id, key.sha256, payment_id, response, now_ms),
    )


def answer(connection: apsw.Connection, scope: str, method: str, request_id: str, response: bytes) -> None:
    """Store the response of a running request; a better one (with its receipt) replaces the first."""
    connection.execute(
        "UPDATE idempotency SET response = ? WHERE scope = ? AND method = ? AND request_id = ?",
        (response, scope, method, request_id),
    )


def purge(connection: apsw.Connection, now_ms: int) -> int:
    """Forget requests that were answered and are old; how many."""
    connection.execute(
        "DELETE FROM idempotency WHERE (scope, method, request_id) IN ("
        "SELECT scope, method, request_id FROM idempotency WHERE create_time_ms < ? AND response IS NOT NULL LIMIT ?)",
        (now_ms - KEPT_MS, PURGE_ROWS_MAX),
    )
    return int(connection.changes())

"""Requests that take effect once: (caller, method, request_id) -> hash of the request, and its response.

One transaction, for calls that finish in it::

    key = RequestKey.of(request)          # in the servicer: who calls which method comes from the running call
    response, replayed = await database.write(
        lambda connection: run_once(connection, key, CreateKeyResponse, lambda: create_key(connection, ...)))

Longer work: `begin` with the first transaction, `complete` with the last, `wait_for_response` for a repeated call in between.
Errors are not stored: what raises in the transaction leaves no trace, and the caller may try again with the same id.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Self, TypeVar

from google.protobuf.message import Message

from services.chassis.caller import current_call, remaining_s
from services.chassis.errors import Reason, ServiceError
from services.storage.database import Database
from services.storage.sql import Connection

MessageT = TypeVar("MessageT", bound=Message)

KEPT_MS: Final = 7 * 24 * 3_600_000
"""A request_id is remembered for 7 days; the API promises at least 24 hours."""
RETRY_DELAY_MS: Final = 500
"""When to ask again about a request that still runs."""
ANSWER_MARGIN_S: Final = 0.25
"""Waiting ends this long before the deadline, so that the answer still arrives."""
WAIT_S_MAX: Final = 60.0
"""Longest wait when the call has no deadline."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestKey:
    """Who asked for what, under which id. An empty `request_id` means: nothing to remember.

    A UUID is the same in either case (RFC 9562, section 4): it is kept in lower case.
    """

    scope: str
    method: str
    request_id: str
    sha256: bytes

    def __post_init__(self) -> None:
        """Spell the id in one way."""
        object.__setattr__(self, "request_id", self.request_id.lower())

    @classmethod
    def of(cls, request: Message, *, scope: str | None = None, method: str | None = None) -> Self:
        """The key of a request with a field `request_id`; scope and method default to those of the running call."""
        call = current_call()
        request_id: str = getattr(request, "request_id")  # noqa: B009  # Message has no such attribute for the type checker
        return cls(
            scope=call.caller.scope if scope is None else scope,
            method=call.method if method is None else method,
            request_id=request_id,
            sha256=request_sha256(request),
        )


def request_sha256(request: Message) -> bytes:
    """SHA-256 of the request without its request_id, independent of field and map order."""
    rest = type(request)()
    rest.CopyFrom(request)
    rest.ClearField("request_id")
    return hashlib.sha256(rest.SerializeToString(deterministic=True)).digest()


@dataclass(frozen=True, slots=True)
class Fresh:
    """Never seen: it is recorded as running now; do it, then `complete`."""


@dataclass(frozen=True, slots=True)
class InProgress:
    """The same request runs."""


@dataclass(frozen=True, slots=True)
class Replay:
    """The same request was answered with these bytes."""

    response: bytes


Outcome = Fresh | InProgress | Replay


def begin(connection: Connection, key: RequestKey) -> Outcome:
    """Look the request up and record it as running when it is new. Raises REQUEST_ID_REUSED for the id of another request."""
    if not key.request_id:
        return Fresh()
    earlier = find(connection, key)
    if earlier is not None:
        return earlier
    connection.execute(
        "INSERT INTO storage_idempotency (scope, method, request_id, request_sha256, create_time_ms) VALUES (?, ?, ?, ?, ?)",
        (key.scope, key.method, key.request_id, key.sha256, time.time_ns() // 1_000_000),
    )
    return Fresh()


def find(connection: Connection, key: RequestKey) -> InProgress | Replay | None:
    """What became of the request, None when it was never made. Raises REQUEST_ID_REUSED. Reads only."""
    row = connection.execute(
        "SELECT request_sha256, response FROM storage_idempotency WHERE scope = ? AND method = ? AND request_id = ?",
        (key.scope, key.method, key.request_id),
    ).fetchone()
    if row is None:
        return None
    if row[0] != key.sha256:
        raise request_id_reused()
    return InProgress() if row[1] is None else Replay(response=bytes(row[1]))


def complete(connection: Connection, key: RequestKey, response: Message) -> None:
    """Store the response, in the transaction of the effect; a later one (with its receipt) replaces the first."""
    connection.execute(
        "UPDATE storage_idempotency SET response = ? WHERE scope = ? AND method = ? AND request_id = ?",
        (response.SerializeToString(deterministic=True), key.scope, key.method, key.request_id),
    )


def abandon(connection: Connection, key: RequestKey) -> None:
    """Forget a running request that had no effect, so that it may be tried again with the same id."""
    connection.execute(
        "DELETE FROM storage_idempotency WHERE scope = ? AND method = ? AND request_id = ? AND response IS NULL",
        (key.scope, key.method, key.request_id),
    )


def run_once(
    connection: Connection, key: RequestKey, response_type: type[MessageT], effect: Callable[[], MessageT]
) -> tuple[MessageT, bool]:
    """Run `effect` unless the request was answered before; return (response, replayed). For use inside one `database.write`.

    Raises REQUEST_ID_REUSED, and REQUEST_IN_PROGRESS when longer work under the same id runs.
    """
    outcome = begin(connection, key)
    if isinstance(outcome, Replay):
        return response_type.FromString(outcome.response), True
    if isinstance(outcome, InProgress):
        raise in_progress()
    response = effect()
    if key.request_id:
        complete(connection, key, response)
    return response, False


async def wait_for_response(database: Database, key: RequestKey, response_type: type[MessageT]) -> MessageT:
    """Wait until the running request is answered, at most to the call's deadline; then REQUEST_IN_PROGRESS with RetryInfo."""
    changes = database.changes()
    remaining = remaining_s()
    until_s = time.monotonic() + (WAIT_S_MAX if remaining is None else max(0.0, remaining - ANSWER_MARGIN_S))
    while True:
        outcome = await database.read(lambda connection: find(connection, key))
        if isinstance(outcome, Replay):
            return response_type.FromString(outcome.response)
        left_s = until_s - time.monotonic()
        if outcome is None or left_s <= 0:  # None: it failed and was abandoned; the caller tries again
            raise in_progress()
        await changes.wait(timeout_s=left_s)


def request_id_reused() -> ServiceError:
    """INVALID_ARGUMENT, REQUEST_ID_REUSED."""
    return ServiceError(Reason.REQUEST_ID_REUSED, "this request_id was used for another request")


def in_progress() -> ServiceError:
    """ABORTED, REQUEST_IN_PROGRESS, with RetryInfo."""
    return ServiceError(Reason.REQUEST_IN_PROGRESS, "the same request still runs", retry_delay_ms=RETRY_DELAY_MS)


def forget_old_requests(connection: Connection, now_ms: int, *, limit: int) -> int:
    """Delete at most `limit` answered requests older than the retention; return how many."""
    connection.execute(
        "DELETE FROM storage_idempotency WHERE (scope, method, request_id) IN (SELECT scope, method, request_id"
        " FROM storage_idempotency WHERE create_time_ms < ? AND response IS NOT NULL ORDER BY create_time_ms LIMIT ?)",
        (now_ms - KEPT_MS, limit),
    )
    return int(connection.changes())

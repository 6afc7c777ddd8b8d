"""Sagas with lease and fence: who may drive one, and the steps that it took."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import apsw

from services.payment.domain.model import Failure
from services.payment.domain.saga import Saga, Step

KIND = "pay_invoice"
RUNNING, DONE = 1, 2
STEP_RUNNING, STEP_DONE, STEP_FAILED, STEP_COMPENSATED = 1, 2, 3, 4
"""The numbers of `SagaStep.State`."""
OTHERS_FIRST_MS = 300
"""A driver that gave a lease back lets the other replicas try this long: its own sidecar may be what is broken."""
STEPS_KEPT_MAX = 200
"""Steps recorded per saga: a receipt that waits for days must not fill the disk. Later attempts are not recorded."""

CLAIM = """
UPDATE saga SET owner = :owner, fence = fence + 1, lease_until = :until
WHERE id IN (
  SELECT id FROM saga WHERE state = 1 AND next_run_at <= :now AND lease_until <= :now
    AND (owner <> :owner OR lease_until > 0 OR next_run_at <= :now - :others_first)
  ORDER BY next_run_at LIMIT :limit)
RETURNING id, fence, step, attempt, data
"""


class LeaseLostError(Exception):
    """Another driver has claimed the saga: whatever this one wanted to write must not be written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The right to drive one saga, until somebody claims it with a higher fence."""

    saga_id: str
    owner: str
    fence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """One attempt of one step, for the operator's view. Times in milliseconds since 1970."""

    step: str
    state: int
    attempt: int
    start_time_ms: int
    end_time_ms: int
    error: str = ""


def insert_saga(connection: apsw.Connection, saga: Saga, lease: Lease, lease_until_ms: int, now_ms: int) -> None:
    """Add a saga; the inserting process holds its first lease."""
    connection.execute(
        "INSERT INTO saga (id, kind, step, state, owner, lease_until, fence, attempt, next_run_at, data)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            saga.payment_id,
            KIND,
            saga.step.value,
            RUNNING,
            lease.owner,
            lease_until_ms,
            lease.fence,
            saga.attempt,
            now_ms,
            _data(saga),
        ),
    )


def save_saga(
    connection: apsw.Connection, lease: Lease, saga: Saga, *, lease_until_ms: int | None = None, next_run_at_ms: int = 0
) -> None:
    """Write where the saga stands. `lease_until_ms` None keeps the lease's end, 0 gives it back. Raises LeaseLostError."""
    connection.execute(
        "UPDATE saga SET step = ?, state = ?, attempt = ?, data = ?, lease_until = coalesce(?, lease_until),"
        " next_run_at = max(next_run_at, ?) WHERE id = ? AND owner = ? AND fence = ?",
        (
            saga.step.value,
            DONE if saga.step is Step.DONE else RUNNING,
            saga.attempt,
            _data(saga),
            lease_until_ms,
            next_run_at_ms,
            lease.saga_id,
            lease.owner,
            lease.fence,
        ),
    )
    if connection.changes() != 1:
        raise LeaseLostError(lease.saga_id)


def any_due(connection: apsw.Connection, now_ms: int) -> bool:
    """Whether `claim` may find something; a cheap question for a reading connection."""
    sql = "SELECT 1 FROM saga WHERE state = 1 AND next_run_at <= ? AND lease_until <= ? LIMIT 1"
    return connection.execute(sql, (now_ms, now_ms)).fetchone() is not None


def claim(
    connection: apsw.Connection, owner: str, *, now_ms: int, until_ms: int, limit: int
) -> tuple[tuple[Lease, Saga], ...]:
    """Take over sagas whose lease has ended or was given back, oldest first."""
    values = {"owner": owner, "until": until_ms, "now": now_ms, "others_first": OTHERS_FIRST_MS, "limit": limit}
    rows: list[tuple[Any, ...]] = list(connection.execute(CLAIM, values))
    return tuple(
        (Lease(saga_id=row[0], owner=owner, fence=row[1]), _saga(row[0], row[2], row[3], row[4])) for row in rows
    )


def renew(connection: apsw.Connection, owner: str, saga_ids: Iterable[str], until_ms: int) -> frozenset[str]:
    """Extend the leases that `owner` still holds; the ids that it does. The others are lost."""
    renewed = set()
    for saga_id in saga_ids:
        sql = "UPDATE saga SET lease_until = ? WHERE id = ? AND owner = ? AND lease_until > 0"
        connection.execute(sql, (until_ms, saga_id, owner))
        if connection.changes() == 1:
            renewed.add(saga_id)
    return frozenset(renewed)


def give_back(connection: apsw.Connection, leases: Iterable[Lease], now_ms: int) -> None:
    """End leases at once, so that another replica goes on. Lost ones are left alone."""
    for lease in leases:
        connection.execute(
            "UPDATE saga SET lease_until = 0, next_run_at = ? WHERE id = ? AND owner = ? AND fence = ? AND state = 1",
            (now_ms, lease.saga_id, lease.owner, lease.fence),
        )


def add_steps(connection: apsw.Connection, saga_id: str, steps: Sequence[StepRecord]) -> None:
    """Append to the saga's history, up to STEPS_KEPT_MAX."""
    for step in steps:
        connection.execute(
            "INSERT INTO saga_step (saga_id, number, step, state, attempt, start_time_ms, end_time_ms, error)"
            " SELECT ?1, n, ?2, ?3, ?4, ?5, ?6, ?7"
            " FROM (SELECT coalesce(max(number), 0) + 1 AS n FROM saga_step WHERE saga_id = ?1) WHERE n <= ?8",
            (
                saga_id,
                step.step,
                step.state,
                step.attempt,
                step.start_time_ms,
                step.end_time_ms,
                step.error,
                STEPS_KEPT_MAX,
            ),
        )


def list_steps(connection: apsw.Connection, saga_id: str) -> tuple[StepRecord, ...]:
    """The saga's history, in order."""
    rows = connection.execute(
        "SELECT step, state, attempt, start_time_ms, end_time_ms, error FROM saga_step WHERE saga_id = ? ORDER BY number",
        (saga_id,),
    )
    return tuple(
        StepRecord(step=row[0], state=row[1], attempt=row[2], start_time_ms=row[3], end_time_ms=row[4], error=row[5])
        for row in rows
    )


def _data(saga: Saga) -> str:
    return json.dumps(
        {
            "payer_account_id": saga.payer_account_id,
            "give_up_time_ms": saga.give_up_time_ms,
            "payee_account_id": saga.payee_account_id,
            "failure": int(saga.failure),
        },
        separators=(",", ":"),
    )


def _saga(saga_id: str, step: str, attempt: int, data: str) -> Saga:
    values = json.loads(data)
    failure = Failure(values.pop("failure"))
    return Saga(payment_id=saga_id, step=Step(step), attempt=attempt, failure=failure, **values)

"""Sagas with lease and fence: who may drive one, and the steps that it took."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from json.encoder import encode_basestring_ascii
from typing import Any

from services.payment.domain.model import Failure
from services.payment.domain.saga import Saga
from services.payment.domain.saga_words import Step
from services.storage.sql import Connection, value_of

COLUMNS = "id, kind, step, state, owner, lease_until, fence, attempt, next_run_at, data"
KIND = "pay_invoice"
RESERVE_BALANCE = "reserve_balance"
"""The first step of every saga."""
RUNNING, DONE, WAITING = 1, 2, 3
"""States of the row. WAITING: parked until somebody else did something; claimed after what is RUNNING, so that thousands do no harm."""
STEP_RUNNING, STEP_DONE, STEP_FAILED, STEP_COMPENSATED = 1, 2, 3, 4
"""The numbers of `SagaStep.State`."""
OTHERS_FIRST_MS = 300
"""A driver that gave a lease back lets the other replicas try this long: its own sidecar may be what is broken."""
STEPS_KEPT_MAX = 200
"""Steps recorded per saga: a receipt that waits for days must not fill the disk. Later attempts are not recorded."""

CLAIM = """
UPDATE saga SET owner = :owner, fence = fence + 1, lease_until = :until, woken = 0
WHERE lease_until <= :now AND id IN (
  SELECT id FROM saga WHERE state = {state} AND next_run_at <= :now AND lease_until <= :now
    AND (owner <> :owner OR lease_until > 0 OR next_run_at <= :now - :others_first)
  ORDER BY next_run_at LIMIT :limit)
RETURNING id, fence, step, attempt, data
"""
"""The state is a literal: each state has an index of its own. The condition stands twice for claims that wait for each other's rows."""


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


def insert_saga(connection: Connection, saga: Saga, lease: Lease, lease_until_ms: int, now_ms: int) -> None:
    """Add a saga; the inserting process holds its first lease."""
    row = saga_row(saga, lease, lease_until_ms, now_ms)
    connection.execute(f"INSERT INTO saga ({COLUMNS}) VALUES ({', '.join('?' * len(row))})", row)  # noqa: S608 - constants


def saga_row(saga: Saga, lease: Lease, lease_until_ms: int, now_ms: int) -> tuple[str | int, ...]:
    """The values of COLUMNS for a new saga."""
    return (
        saga.payment_id,
        KIND,
        saga.step.value,
        RUNNING,
        lease.owner,
        lease_until_ms,
        lease.fence,
        saga.attempt,
        now_ms,
        saga_data(saga),
    )


def save_saga(connection: Connection, lease: Lease, saga: Saga) -> None:
    """Write where the saga stands, and keep the lease. Raises LeaseLostError."""
    connection.execute(
        "UPDATE saga SET step = :step, state = :state, attempt = :attempt, data = :data"
        " WHERE id = :id AND owner = :owner AND fence = :fence",
        _values(lease, saga, DONE if saga.step is Step.DONE else RUNNING),
    )
    if connection.changes() != 1:
        raise LeaseLostError(lease.saga_id)


def park_saga(connection: Connection, lease: Lease, saga: Saga, *, next_run_at_ms: int, patient: bool) -> None:
    """Write where the saga stands, and give the lease back; it is due later, or at once when it was woken since its claim.

    Raises LeaseLostError.
    """
    assert saga.step is not Step.DONE
    connection.execute(
        "UPDATE saga SET step = :step, state = :state, attempt = :attempt, data = :data, lease_until = 0, woken = 0,"
        " next_run_at = CASE WHEN woken = 1 THEN 0 ELSE :next END"
        " WHERE id = :id AND owner = :owner AND fence = :fence",
        {**_values(lease, saga, WAITING if patient else RUNNING), "next": next_run_at_ms},
    )
    if connection.changes() != 1:
        raise LeaseLostError(lease.saga_id)


def _values(lease: Lease, saga: Saga, state: int) -> dict[str, str | int]:
    return {
        "step": saga.step.value,
        "state": state,
        "attempt": saga.attempt,
        "data": saga_data(saga),
        "id": lease.saga_id,
        "owner": lease.owner,
        "fence": lease.fence,
    }


def wake(connection: Connection, saga_id: str) -> bool:
    """Let a saga go on at once: now when it is parked, or when its driver parks it. False: there is none that could."""
    connection.execute("UPDATE saga SET woken = 1, next_run_at = 0 WHERE id = ? AND state <> 2", (saga_id,))
    return connection.changes() == 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SagaView:
    """A saga that is not done, as its row says; times in milliseconds since 1970, `lease_until_ms` 0: given back."""

    saga: Saga
    kind: str
    state: int
    owner: str
    lease_until_ms: int
    next_run_at_ms: int
    create_time_ms: int


VIEW = (
    "SELECT saga.id, saga.step, saga.attempt, saga.data, saga.kind, saga.state, saga.owner, saga.lease_until, saga.next_run_at,"
    " payment.create_time_ms FROM saga JOIN payment ON payment.payment_id = saga.id"
)


def find_saga(connection: Connection, saga_id: str) -> SagaView | None:
    """One that is not done, or None."""
    row = connection.execute(f"{VIEW} WHERE saga.id = ? AND saga.state <> 2", (saga_id,)).fetchone()
    return None if row is None else _view(row)


def list_sagas(connection: Connection, after: str, limit: int) -> tuple[SagaView, ...]:
    """Those that are not done, by id, which is by age; each state by its own index, for the done ones are millions."""
    rows: list[tuple[Any, ...]] = []
    for state in (RUNNING, WAITING):
        sql = f"{VIEW} WHERE saga.state = {state} AND saga.id > ? ORDER BY saga.id LIMIT ?"
        rows.extend(connection.execute(sql, (after, limit)).fetchall())
    return tuple(_view(row) for row in sorted(rows)[:limit])


def seize(connection: Connection, view: SagaView, owner: str) -> Lease:
    """Take a saga from whoever drives it, for this transaction: afterwards it is due, and any replica's."""
    rows = connection.execute(
        "UPDATE saga SET owner = ?, fence = fence + 1, lease_until = 0, next_run_at = 0 WHERE id = ? AND state <> 2 RETURNING fence",
        (owner, view.saga.payment_id),
    )
    row = rows.fetchone()
    assert row is not None, "it was found in this transaction"
    return Lease(saga_id=view.saga.payment_id, owner=owner, fence=row[0])


def _view(row: tuple[Any, ...]) -> SagaView:
    saga_id, step, attempt, data, kind, state, owner, lease_until_ms, next_run_at_ms, create_time_ms = row
    return SagaView(
        saga=_saga(saga_id, step, attempt, data),
        kind=kind,
        state=state,
        owner=owner,
        lease_until_ms=lease_until_ms,
        next_run_at_ms=next_run_at_ms,
        create_time_ms=create_time_ms,
    )


def any_due(connection: Connection, now_ms: int) -> bool:
    """Whether `claim` may find something; a cheap question for a reading connection."""
    for state in (RUNNING, WAITING):
        sql = f"SELECT 1 FROM saga WHERE state = {state} AND next_run_at <= ? AND lease_until <= ? LIMIT 1"  # noqa: S608
        if connection.execute(sql, (now_ms, now_ms)).fetchone() is not None:
            return True
    return False


def claim(
    connection: Connection, owner: str, *, now_ms: int, until_ms: int, limit: int
) -> tuple[tuple[Lease, Saga], ...]:
    """Take over sagas whose lease has ended or was given back: what is urgent first, then what waits; oldest first."""
    values = {"owner": owner, "until": until_ms, "now": now_ms, "others_first": OTHERS_FIRST_MS}
    rows: list[tuple[Any, ...]] = []
    for state in (RUNNING, WAITING):
        if len(rows) < limit:
            rows.extend(connection.execute(CLAIM.format(state=state), {**values, "limit": limit - len(rows)}))
    return tuple(
        (Lease(saga_id=row[0], owner=owner, fence=row[1]), _saga(row[0], row[2], row[3], row[4])) for row in rows
    )


def renew(connection: Connection, owner: str, saga_ids: Iterable[str], until_ms: int) -> frozenset[str]:
    """Extend the leases that `owner` still holds; the ids that it does. The others are lost."""
    renewed = set()
    for saga_id in saga_ids:
        sql = "UPDATE saga SET lease_until = ? WHERE id = ? AND owner = ? AND lease_until > 0"
        connection.execute(sql, (until_ms, saga_id, owner))
        if connection.changes() == 1:
            renewed.add(saga_id)
    return frozenset(renewed)


def give_back(connection: Connection, leases: Iterable[Lease], now_ms: int) -> None:
    """End leases at once, so that another replica goes on. Lost ones are left alone."""
    for lease in leases:
        connection.execute(
            "UPDATE saga SET lease_until = 0, next_run_at = ? WHERE id = ? AND owner = ? AND fence = ? AND state <> 2",
            (now_ms, lease.saga_id, lease.owner, lease.fence),
        )


def add_steps(connection: Connection, saga_id: str, steps: Sequence[StepRecord]) -> None:
    """Append to the saga's history, up to STEPS_KEPT_MAX."""
    for step in steps:
        connection.execute(
            "INSERT INTO saga_step (saga_id, number, step, state, attempt, start_time_ms, end_time_ms, error)"
            " SELECT :saga_id, n, :step, :state, :attempt, :start, :end, :error"
            " FROM (SELECT coalesce(max(number), 0) + 1 AS n FROM saga_step WHERE saga_id = :saga_id) AS next"
            " WHERE n <= :kept",
            {
                "saga_id": saga_id,
                "step": step.step,
                "state": step.state,
                "attempt": step.attempt,
                "start": step.start_time_ms,
                "end": step.end_time_ms,
                "error": step.error,
                "kept": STEPS_KEPT_MAX,
            },
        )


def list_steps(connection: Connection, saga_id: str) -> tuple[StepRecord, ...]:
    """The saga's history, in order.

    It begins with the reservation, which has no row of its own: it is the transaction that the saga came with, and the payment's row
    says when that was. (Before that was so, it had one.)
    """
    rows = connection.execute(
        "SELECT step, state, attempt, start_time_ms, end_time_ms, error FROM saga_step WHERE saga_id = ? ORDER BY number",
        (saga_id,),
    )
    steps = tuple(
        StepRecord(step=row[0], state=row[1], attempt=row[2], start_time_ms=row[3], end_time_ms=row[4], error=row[5])
        for row in rows
    )
    if steps and steps[0].step == RESERVE_BALANCE:
        return steps
    sql = "SELECT payment.create_time_ms FROM saga JOIN payment ON payment.payment_id = saga.id WHERE saga.id = ?"
    reserved_ms = value_of(connection.execute(sql, (saga_id,)))
    return steps if reserved_ms is None else (_reserved(reserved_ms), *steps)


def _reserved(time_ms: int) -> StepRecord:
    return StepRecord(step=RESERVE_BALANCE, state=STEP_DONE, attempt=1, start_time_ms=time_ms, end_time_ms=time_ms)


def saga_data(saga: Saga) -> str:
    """What is kept of it beside its step, JSON. It is written with every step: `json.dumps` takes three times as long."""
    return (
        f'{{"payer_account_id":{encode_basestring_ascii(saga.payer_account_id)},"give_up_time_ms":{saga.give_up_time_ms:d},'
        f'"payee_account_id":{encode_basestring_ascii(saga.payee_account_id)},"failure":{saga.failure:d},'
        f'"hold":{"true" if saga.hold else "false"},"step_time_ms":{saga.step_time_ms:d},"moved_time_ms":{saga.moved_time_ms:d},'
        f'"error":{encode_basestring_ascii(saga.error)}}}'
    )


def _saga(saga_id: str, step: str, attempt: int, data: str) -> Saga:
    values = json.loads(data)
    failure = Failure(values.pop("failure"))
    return Saga(payment_id=saga_id, step=Step(step), attempt=attempt, failure=failure, **values)


def step_of(connection: Connection, saga_id: str) -> Step:
    """Where a saga stands. It exists."""
    row = connection.execute("SELECT step FROM saga WHERE id = ?", (saga_id,)).fetchone()
    assert row is not None, "a payment has a saga"
    return Step(row[0])

"""Durable work for connections: requests of apps, notifications, info events; each is worked on, then published, by whichever replica.

Whoever takes a row sets `next_run_ms` ahead by the lease and counts `fence` up; what it did is stored only if nobody took the row since.
So a replica that dies leaves its rows to the others once its lease is over, and one that was only slow stores nothing twice. What the row
says to publish is signed and stored before it is published: whoever publishes it, and however often, it is the same event.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any, Final

from services.nip.domain.nip47.connection import WalletConnection
from services.nip.domain.nip47.envelope import Envelope
from services.nip.domain.nip47.words import Code
from services.nip.wallet.store import find_connection, note_use
from services.nostr.event import Event
from services.nostr.event_json import event_of_members, members_of_event
from services.storage.sql import Connection, value_of

LEASE_MS: Final = 3_000
"""So long is a row left to whoever took it, unless they say that they still work on it."""
RATE_WINDOW_MS: Final = 60_000
RATE_MAX: Final = 60
"""Requests of an app in a minute; more are answered RATE_LIMITED, and twice as many not at all."""
STRANGERS_MAX: Final = 10
"""Requests in a minute that others send to the key of a connection: answered UNAUTHORIZED, then not at all."""
REPEAT_AFTER_MS: Final = 2_000
"""A request that comes again so long after its answer is answered again, with the same event; sooner it is another relay's copy."""
KEPT_MS: Final = 7 * 24 * 3_600_000
"""Done work is remembered for 7 days: far longer than a request counts."""

_COLUMNS: Final = (
    "task_id, connection_id, kind, state, stranger, input, output, method, code, fence, attempt, next_run_ms, taken, create_time_ms,"
    " answer_time_ms"
)
_SELECT: Final = f"SELECT {_COLUMNS} FROM wallet_task"  # noqa: S608  # only names from above


class TaskKind(IntEnum):
    """What is to be done."""

    REQUEST = 1
    NOTIFICATION = 2
    INFO = 3


class TaskState(IntEnum):
    """How far it is."""

    WORK = 1
    PUBLISH = 2
    DONE = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A row. `input` of a request is its event as JSON, of a notification its topic and what it is about; `code` is the answer's."""

    task_id: str
    connection_id: str
    kind: TaskKind
    state: TaskState = TaskState.WORK
    stranger: bool = False
    input: str = ""
    output: tuple[Event, ...] = ()
    method: str = ""
    code: str = ""
    fence: int = 1
    attempt: int = 0
    next_run_ms: int
    taken: bool = False
    create_time_ms: int
    answer_time_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of the work: the events to publish, and for the audit the method and the code of the answer."""

    output: tuple[Event, ...]
    method: str = ""
    code: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """A request that this replica is to work on, for this connection; or one that is known."""

    task: Task
    wallet: WalletConnection = field(repr=False)
    fresh: bool


def accept_request(connection: Connection, envelope: Envelope, event_json: str, now_ms: int) -> Accepted | None:
    """Take a verified request in, once, with the lease; None when nobody is to answer it: its wallet is unknown, or there are too many."""
    wallet = find_connection(connection, "service_pubkey", envelope.service_pubkey)
    if wallet is None:
        return None
    known = find_task(connection, envelope.event_id)
    if known is not None:
        return Accepted(task=_repeated(connection, known, now_ms), wallet=wallet, fresh=False)
    stranger = envelope.client_pubkey != wallet.client_pubkey
    recent = _recent(connection, wallet.connection_id, stranger, now_ms)
    if recent >= (STRANGERS_MAX if stranger else 2 * RATE_MAX):
        return None
    task = Task(
        task_id=envelope.event_id,
        connection_id=wallet.connection_id,
        kind=TaskKind.REQUEST,
        stranger=stranger,
        input=event_json,
        code=Code.RATE_LIMITED if recent >= RATE_MAX else "",
        next_run_ms=now_ms + LEASE_MS,
        taken=True,
        create_time_ms=now_ms,
    )
    add_task(connection, task)
    if not stranger:
        note_use(connection, wallet.connection_id, now_ms)
    return Accepted(task=task, wallet=wallet, fresh=True)


def add_task(connection: Connection, task: Task) -> bool:
    """Add a row, unless there is one with this id. Returns whether it is new."""
    connection.execute(
        f"INSERT INTO wallet_task ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (task_id) DO NOTHING",  # noqa: S608
        (
            *(task.task_id, task.connection_id, int(task.kind), int(task.state), int(task.stranger), task.input),
            *(_output(task.output), task.method, task.code, task.fence, task.attempt, task.next_run_ms),
            *(int(task.taken), task.create_time_ms, task.answer_time_ms),
        ),
    )
    return connection.changes() == 1


def find_task(connection: Connection, task_id: str) -> Task | None:
    """By its id."""
    row = connection.execute(f"{_SELECT} WHERE task_id = ?", (task_id,)).fetchone()
    return None if row is None else _task(row)


def next_due_ms(connection: Connection) -> int | None:
    """When the next row is due; None when there is nothing to do."""
    due = value_of(connection.execute("SELECT min(next_run_ms) FROM wallet_task WHERE state < 3"))
    return None if due is None else int(due)


def claim_due(connection: Connection, now_ms: int, limit: int) -> list[Task]:
    """Take rows whose time has come, oldest first, each for the time of a lease."""
    sql = f"{_SELECT} WHERE state < 3 AND next_run_ms <= ? ORDER BY next_run_ms LIMIT ?"
    due = [_task(row) for row in connection.execute(sql, (now_ms, limit)).fetchall()]
    for task in due:
        connection.execute(
            "UPDATE wallet_task SET fence = fence + 1, attempt = attempt + 1, next_run_ms = ?, taken = 1 WHERE task_id = ?",
            (now_ms + LEASE_MS, task.task_id),
        )
    return [_taken(task, now_ms) for task in due]


def answer(connection: Connection, task: Task, outcome: Outcome, now_ms: int) -> bool:
    """Store what is to be published; it stays leased. Returns whether the row was still this replica's."""
    connection.execute(
        "UPDATE wallet_task SET state = 2, output = ?, method = ?, code = ?, answer_time_ms = ?, attempt = 0, next_run_ms = ?,"
        " taken = 1 WHERE task_id = ? AND fence = ? AND state = 1",
        (
            *(_output(outcome.output), outcome.method, outcome.code, now_ms, now_ms + LEASE_MS),
            *(task.task_id, task.fence),
        ),
    )
    return connection.changes() == 1


def finish(connection: Connection, task: Task) -> None:
    """It is published, or was given up."""
    connection.execute(
        "UPDATE wallet_task SET state = 3 WHERE task_id = ? AND fence = ? AND state < 3", (task.task_id, task.fence)
    )


def postpone(connection: Connection, task: Task, next_run_ms: int, now_ms: int) -> None:
    """Give the row back: it is due again at a time, or at once when it was nudged meanwhile."""
    connection.execute(
        "UPDATE wallet_task SET next_run_ms = CASE taken WHEN 2 THEN ? ELSE ? END, taken = 0"
        " WHERE task_id = ? AND fence = ? AND state < 3",
        (now_ms, next_run_ms, task.task_id, task.fence),
    )


def renew(connection: Connection, working: Sequence[tuple[str, int]], now_ms: int) -> None:
    """Keep rows (id and fence) for another lease, whose work takes longer."""
    for task_id, fence in working:
        connection.execute(
            "UPDATE wallet_task SET next_run_ms = ? WHERE task_id = ? AND fence = ? AND state < 3 AND taken > 0",
            (now_ms + LEASE_MS, task_id, fence),
        )


def nudge(connection: Connection, task_id: str, now_ms: int) -> None:
    """Something happened that the row waits for: it is due at once, or as soon as whoever works on it now gives it back."""
    connection.execute(
        "UPDATE wallet_task SET next_run_ms = CASE taken WHEN 0 THEN ? ELSE next_run_ms END,"
        " taken = CASE taken WHEN 0 THEN 0 ELSE 2 END WHERE task_id = ? AND state = 1",
        (now_ms, task_id),
    )


def forget_old_tasks(connection: Connection, now_ms: int, limit: int) -> int:
    """Delete at most `limit` rows that were done long ago; return how many."""
    connection.execute(
        "DELETE FROM wallet_task WHERE task_id IN"
        " (SELECT task_id FROM wallet_task WHERE state = 3 AND create_time_ms < ? ORDER BY create_time_ms LIMIT ?)",
        (now_ms - KEPT_MS, limit),
    )
    return int(connection.changes())


def _repeated(connection: Connection, known: Task, now_ms: int) -> Task:
    """A request that came again: long after its answer, that is published again."""
    if known.state is TaskState.DONE and now_ms - (known.answer_time_ms or 0) >= REPEAT_AFTER_MS:
        connection.execute(
            "UPDATE wallet_task SET state = 2, attempt = 0, next_run_ms = ?, taken = 0, answer_time_ms = ? WHERE task_id = ?",
            (now_ms, now_ms, known.task_id),
        )
    return known


def _recent(connection: Connection, connection_id: str, stranger: bool, now_ms: int) -> int:
    sql = (
        "SELECT count(*) FROM wallet_task WHERE connection_id = ? AND stranger = ? AND create_time_ms > ? AND kind = 1"
    )
    return int(value_of(connection.execute(sql, (connection_id, int(stranger), now_ms - RATE_WINDOW_MS))))


def _taken(task: Task, now_ms: int) -> Task:
    return replace(task, fence=task.fence + 1, attempt=task.attempt + 1, next_run_ms=now_ms + LEASE_MS, taken=True)


def _output(events: Sequence[Event]) -> str:
    members = [members_of_event(event) for event in events]
    return json.dumps(members, ensure_ascii=False, separators=(",", ":"))


def _task(row: tuple[Any, ...]) -> Task:
    return Task(
        task_id=row[0],
        connection_id=row[1],
        kind=TaskKind(row[2]),
        state=TaskState(row[3]),
        stranger=bool(row[4]),
        input=row[5],
        output=tuple(event_of_members(members) for members in json.loads(row[6])),
        method=row[7],
        code=row[8],
        fence=row[9],
        attempt=row[10],
        next_run_ms=row[11],
        taken=bool(row[12]),
        create_time_ms=row[13],
        answer_time_ms=row[14],
    )

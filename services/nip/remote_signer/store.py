"""The rows of the remote signer: connections, requests with their answers, events that were seen. SQL stands here and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from services.nip.domain.remote_signer.connection import Connection, ConnectionState, Will
from services.nip.domain.remote_signer.log import Outcome, Recorded
from services.nip.remote_signer.rows import CONNECTION_COLUMNS, connection_of, row_of
from services.storage import sql
from services.storage.sql import value_of

KEPT_US: Final = 30 * 24 * 3_600 * 1_000_000
"""Requests are shown, and their answers given again, for 30 days."""

_REQUEST_COLUMNS: Final = (
    "approval_id, connection_id, owner, client_pubkey, request_id, method, kind, outcome, will, message, message_time_s, relay, answer,"
    " unpublished, attempts, create_time_us, update_time_us"
)


def insert_connection(rows: sql.Connection, connection: Connection) -> None:
    """Insert a connection, for all who listen to see."""
    marks = ", ".join("?" * 17)
    statement = f"INSERT INTO signer_connection ({CONNECTION_COLUMNS}, change_number) VALUES ({marks})"  # noqa: S608  # own names
    rows.execute(statement, (*row_of(connection), _next_change(rows)))


def update_connection(rows: sql.Connection, connection: Connection, *, noticed: bool) -> None:
    """Write a connection; `noticed`: whoever listens for it is to see it."""
    columns = CONNECTION_COLUMNS.split(", ")
    values = dict(zip(columns, row_of(connection), strict=True))
    changing = ("state", "client_pubkey", "client", "permissions", "connect_time_us")
    sets = ", ".join(f"{name} = ?" for name in changing)
    new: list[Any] = [values[name] for name in changing]
    if noticed:
        sets += ", change_number = ?"
        new.append(_next_change(rows))
    rows.execute(f"UPDATE signer_connection SET {sets} WHERE connection_id = ?", (*new, connection.connection_id))  # noqa: S608
    assert rows.changes() == 1, "read in this transaction"


def find_connection(rows: sql.Connection, connection_id: str) -> Connection | None:
    """Return a connection by its id."""
    query = f"SELECT {CONNECTION_COLUMNS} FROM signer_connection WHERE connection_id = ?"  # noqa: S608  # own names
    row = rows.execute(query, (connection_id,)).fetchone()
    return None if row is None else connection_of(row)


def count_connections(rows: sql.Connection, owner: str) -> int:
    """How many connections of an owner live."""
    query = "SELECT count(*) FROM signer_connection WHERE owner = ? AND state IN ('PENDING', 'CONNECTED')"
    return int(value_of(rows.execute(query, (owner,))))


def connections_of(
    rows: sql.Connection, owner: str, *, key_id: str, before: str | None, limit: int
) -> tuple[Connection, ...]:
    """Return at most `limit` connections of an owner, newest first; `key_id` empty: to any key."""
    where, values = "owner = ?", [owner]
    for condition, value in (("connection_id < ?", before), ("key_id = ?", key_id)):
        if value:
            where += f" AND {condition}"
            values.append(value)
    query = f"SELECT {CONNECTION_COLUMNS} FROM signer_connection WHERE {where} ORDER BY connection_id DESC LIMIT ?"  # noqa: S608
    return tuple(connection_of(row) for row in rows.execute(query, (*values, limit)))


def changed_connections(rows: sql.Connection, change_number: int, limit: int) -> list[tuple[int, Connection]]:
    """Return connections that were changed after `change_number`, with the numbers of their changes, in order."""
    query = (
        f"SELECT change_number, {CONNECTION_COLUMNS} FROM signer_connection WHERE change_number > ?"  # noqa: S608  # own names
        " ORDER BY change_number LIMIT ?"
    )
    return [(int(row[0]), connection_of(row[1:])) for row in rows.execute(query, (change_number, limit))]


def see(rows: sql.Connection, event_id: str, forget_time_us: int) -> bool:
    """Take an event; False when it was taken before, on whatever replica."""
    statement = "INSERT INTO signer_seen (event_id, forget_time_us) VALUES (?, ?) ON CONFLICT DO NOTHING"
    rows.execute(statement, (event_id, forget_time_us))
    return rows.changes() == 1


def find_request(
    rows: sql.Connection, connection_id: str, client_pubkey: str, request_id: str
) -> tuple[Recorded, int] | None:
    """Return what was recorded of an app's request, and until when somebody works on it."""
    query = (
        f"SELECT {_REQUEST_COLUMNS}, lease_until_us FROM signer_request"  # noqa: S608  # own names
        " WHERE connection_id = ? AND client_pubkey = ? AND request_id = ?"
    )
    row = rows.execute(query, (connection_id, client_pubkey, request_id)).fetchone()
    return None if row is None else (_recorded(row[:-1]), int(row[-1]))


def request_by_id(rows: sql.Connection, approval_id: str) -> Recorded | None:
    """Return what was recorded under an id of ours."""
    query = f"SELECT {_REQUEST_COLUMNS} FROM signer_request WHERE approval_id = ?"  # noqa: S608  # own names
    row = rows.execute(query, (approval_id,)).fetchone()
    return None if row is None else _recorded(row)


def insert_request(rows: sql.Connection, recorded: Recorded, lease_owner: str, lease_until_us: int) -> None:
    """Record a request that somebody works on from now on."""
    marks = ", ".join("?" * 19)
    statement = f"INSERT INTO signer_request ({_REQUEST_COLUMNS}, lease_owner, lease_until_us) VALUES ({marks})"  # noqa: S608
    rows.execute(statement, (*_values(recorded), lease_owner, lease_until_us))


def update_request(rows: sql.Connection, recorded: Recorded, lease_owner: str, lease_until_us: int) -> None:
    """Write what became of a request."""
    statement = (
        "UPDATE signer_request SET outcome = ?, will = ?, message = ?, answer = ?, unpublished = ?, attempts = ?, update_time_us = ?,"
        " lease_owner = ?, lease_until_us = ? WHERE approval_id = ?"
    )
    values = (
        recorded.outcome.value,
        recorded.will.value,
        recorded.message,
        recorded.answer,
        int(recorded.unpublished),
        recorded.attempts,
        recorded.update_time_us,
        lease_owner,
        lease_until_us,
        recorded.approval_id,
    )
    rows.execute(statement, values)
    assert rows.changes() == 1, "read in this transaction"


def mark_published(rows: sql.Connection, approval_ids: Sequence[str], asked_until_us: int) -> None:
    """The answers are out; a request that waits for its user is looked at again at `asked_until_us`."""
    marks = ", ".join("?" * len(approval_ids))
    statement = (
        "UPDATE signer_request SET unpublished = 0, lease_until_us = CASE outcome WHEN 'ASKED' THEN ? ELSE lease_until_us END"  # noqa: S608
        f" WHERE approval_id IN ({marks})"
    )
    rows.execute(statement, (asked_until_us, *approval_ids))


def overdue_requests(rows: sql.Connection, now_us: int, limit: int) -> list[Recorded]:
    """Return requests that somebody left: without an answer, with one that is not out, or whose user did not decide."""
    query = (
        f"SELECT {_REQUEST_COLUMNS} FROM signer_request WHERE lease_until_us <= ?"  # noqa: S608  # own names
        " AND (outcome IN ('RUNNING', 'ASKED') OR unpublished = 1) ORDER BY lease_until_us LIMIT ?"
    )
    return [_recorded(row) for row in rows.execute(query, (now_us, limit)).fetchall()]


def asked_requests(rows: sql.Connection, owner: str, *, after: str, limit: int) -> tuple[Recorded, ...]:
    """Return at most `limit` requests that wait for their user, oldest first."""
    query = (
        f"SELECT {_REQUEST_COLUMNS} FROM signer_request WHERE owner = ? AND outcome = 'ASKED' AND approval_id > ?"  # noqa: S608
        " ORDER BY approval_id LIMIT ?"
    )
    return tuple(_recorded(row) for row in rows.execute(query, (owner, after, limit)))


def requests_of(
    rows: sql.Connection, owner: str, *, connection_id: str, before: str | None, limit: int
) -> tuple[Recorded, ...]:
    """Return at most `limit` requests over the connections of an owner, newest first; `connection_id` empty: over any."""
    where, values = "owner = ?", [owner]
    for condition, value in (("connection_id = ?", connection_id), ("approval_id < ?", before)):
        if value:
            where += f" AND {condition}"
            values.append(value)
    query = f"SELECT {_REQUEST_COLUMNS} FROM signer_request WHERE {where} ORDER BY approval_id DESC LIMIT ?"  # noqa: S608
    return tuple(_recorded(row) for row in rows.execute(query, (*values, limit)))


def forget_old(rows: sql.Connection, now_us: int, limit: int) -> int:
    """Delete at most `limit` requests and events each that are kept long enough; return how many went."""
    rows.execute(
        "DELETE FROM signer_seen WHERE event_id IN"
        " (SELECT event_id FROM signer_seen WHERE forget_time_us <= ? ORDER BY forget_time_us LIMIT ?)",
        (now_us, limit),
    )
    gone = rows.changes()
    rows.execute(
        "DELETE FROM signer_request WHERE approval_id IN"
        " (SELECT approval_id FROM signer_request WHERE create_time_us <= ? ORDER BY create_time_us LIMIT ?)",
        (now_us - KEPT_US, limit),
    )
    return gone + rows.changes()


def revoke(rows: sql.Connection, connection: Connection) -> None:
    """What waits for its user over a connection that ended is denied at once."""
    assert connection.state in (ConnectionState.REVOKED, ConnectionState.LOGGED_OUT), "it ended"
    rows.execute(
        "UPDATE signer_request SET lease_until_us = 0 WHERE connection_id = ? AND outcome = 'ASKED'",
        (connection.connection_id,),
    )


def _next_change(rows: sql.Connection) -> int:
    """One transaction writes at a time: nobody else takes the number."""
    return int(value_of(rows.execute("SELECT COALESCE(max(change_number), 0) + 1 FROM signer_connection")))


def _recorded(row: tuple[Any, ...]) -> Recorded:
    return Recorded(
        approval_id=row[0],
        connection_id=row[1],
        owner=row[2],
        client_pubkey=row[3],
        request_id=row[4],
        method=row[5],
        kind=row[6],
        outcome=Outcome(row[7]),
        will=Will(row[8]),
        message=row[9],
        message_time_s=row[10],
        relay=row[11],
        answer=row[12],
        unpublished=bool(row[13]),
        attempts=row[14],
        create_time_us=row[15],
        update_time_us=row[16],
    )


def _values(recorded: Recorded) -> tuple[Any, ...]:
    return (
        recorded.approval_id,
        recorded.connection_id,
        recorded.owner,
        recorded.client_pubkey,
        recorded.request_id,
        recorded.method,
        recorded.kind,
        recorded.outcome.value,
        recorded.will.value,
        recorded.message,
        recorded.message_time_s,
        recorded.relay,
        recorded.answer,
        int(recorded.unpublished),
        recorded.attempts,
        recorded.create_time_us,
        recorded.update_time_us,
    )

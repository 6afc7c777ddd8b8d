"""The entries of the ledger as rows: the head of the chain, and what is appended to it, inside the caller's transaction.

One transaction at a time writes a database, on either engine: the head that it reads is the newest that there is until it ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from services.payment.domain.chain import Head, entry_sha256
from services.payment.domain.model import AccountEvent, AccountEventKind, Purpose, Transfer, TransferKind
from services.storage.sql import Connection

EntryT = TypeVar("EntryT", Transfer, AccountEvent)

TRANSFER_COLUMNS = (
    "number, transfer_id, kind, debit_account_id, credit_account_id, amount_msat, purpose, pending_transfer_id, payment_id,"
    " reference, create_time_ms, sha256"
)
ACCOUNT_EVENT_COLUMNS = "number, account_id, kind, actor, reason, details, create_time_ms, sha256"
FIND_HEAD = """
SELECT number, sha256, create_time_ms FROM (
  SELECT * FROM (SELECT number, sha256, create_time_ms FROM transfer ORDER BY number DESC LIMIT 1) AS newest_transfer
  UNION ALL
  SELECT * FROM (SELECT number, sha256, create_time_ms FROM account_event ORDER BY number DESC LIMIT 1) AS newest_event
) AS newest ORDER BY number DESC LIMIT 1
"""
INSERT_TRANSFER = f"""
INSERT INTO transfer ({TRANSFER_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (transfer_id) DO NOTHING
"""  # noqa: S608 - built from constants
INSERT_ACCOUNT_EVENT = f"INSERT INTO account_event ({ACCOUNT_EVENT_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608


def find_head(connection: Connection) -> Head:
    """The newest entry."""
    row = connection.execute(FIND_HEAD).fetchone()
    return Head() if row is None else Head(number=row[0], sha256=bytes(row[1]), create_time_ms=row[2])


def head_of(entry: Transfer | AccountEvent) -> Head:
    """The head once `entry` is recorded."""
    return Head(number=entry.number, sha256=entry.sha256, create_time_ms=entry.create_time_ms)


def chained(head: Head, entry: EntryT) -> EntryT:
    """The entry as it follows `head`: its number, a time not earlier than what stands before, its hash."""
    number, create_time_ms = head.number + 1, max(head.create_time_ms, entry.create_time_ms)
    sha256 = entry_sha256(head.sha256, entry, number, create_time_ms)
    return replace(entry, number=number, create_time_ms=create_time_ms, sha256=sha256)


def transfer_row(transfer: Transfer) -> tuple[str | int | bytes | None, ...]:
    """The values of TRANSFER_COLUMNS."""
    return (
        transfer.number,
        transfer.transfer_id,
        int(transfer.kind),
        transfer.debit_account_id,
        transfer.credit_account_id,
        transfer.amount_msat,
        int(transfer.purpose),
        transfer.pending_transfer_id or None,
        transfer.payment_id or None,
        transfer.reference,
        transfer.create_time_ms,
        transfer.sha256,
    )


def insert_transfer(connection: Connection, transfer: Transfer) -> bool:
    """Add a chained transfer. False: one with its id is there already."""
    connection.execute(INSERT_TRANSFER, transfer_row(transfer))
    return connection.changes() == 1


def append_account_event(connection: Connection, event: AccountEvent) -> AccountEvent:
    """Chain an event to the head and add it; the event as recorded."""
    recorded = chained(find_head(connection), event)
    insert_account_event(connection, recorded)
    return recorded


def insert_account_event(connection: Connection, event: AccountEvent) -> None:
    """Add a chained event."""
    connection.execute(
        INSERT_ACCOUNT_EVENT,
        (
            event.number,
            event.account_id,
            int(event.kind),
            event.actor,
            event.reason,
            event.details,
            event.create_time_ms,
            event.sha256,
        ),
    )


def transfer_of_row(row: Sequence[object]) -> Transfer:
    """One row of TRANSFER_COLUMNS."""
    number, transfer_id, kind, debit, credit, amount, purpose, pending_id, payment_id, reference, created, sha256 = row
    return Transfer(
        number=integer(number),
        transfer_id=str(transfer_id),
        kind=TransferKind(integer(kind)),
        debit_account_id=str(debit),
        credit_account_id=str(credit),
        amount_msat=integer(amount),
        purpose=Purpose(integer(purpose)),
        pending_transfer_id=str(pending_id or ""),
        payment_id=str(payment_id or ""),
        reference=str(reference),
        create_time_ms=integer(created),
        sha256=octets(sha256),
    )


def account_event_of_row(row: Sequence[object]) -> AccountEvent:
    """One row of ACCOUNT_EVENT_COLUMNS."""
    number, account_id, kind, actor, reason, details, created, sha256 = row
    return AccountEvent(
        number=integer(number),
        account_id=str(account_id),
        kind=AccountEventKind(integer(kind)),
        actor=str(actor),
        reason=str(reason),
        details=str(details),
        create_time_ms=integer(created),
        sha256=octets(sha256),
    )


def integer(value: object) -> int:
    """A column that is an integer and not NULL."""
    assert isinstance(value, int)
    return value


def octets(value: object) -> bytes:
    """A column that is bytes and not NULL."""
    assert isinstance(value, bytes | bytearray | memoryview)
    return bytes(value)

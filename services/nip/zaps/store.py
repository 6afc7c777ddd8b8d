"""Receipts of zaps and their publications in SQL.

All functions run inside `database.write` or `database.read`; none begins or commits.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from services.nostr.event import Event
from services.nostr.event_json import event_of_json, json_of_event
from services.storage.sql import Connection

LEASE_MS: Final = 15_000
"""Who tries a publication has this long; then another replica does. More than one attempt may take."""
GIVE_UP_MS: Final = 24 * 3_600_000
"""A relay that does not answer for a day is given up: a zap that nobody saw by then is no news."""


class State(enum.IntEnum):
    """Where a publication stands: the numbers of GetZapReceiptResponse.Publication.State. The last three are final."""

    PENDING = 1
    ACCEPTED = 2
    REFUSED = 3
    GIVEN_UP = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """A signed receipt, and whose invoice it is for."""

    invoice_id: str
    owner_pubkey: str
    event: Event


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """A receipt on its way to one relay. `next_run_ms` None: it has come to its end. `attempts` counts the one that runs."""

    invoice_id: str
    event: Event
    relay_url: str
    state: State
    attempts: int
    next_run_ms: int | None
    give_up_time_ms: int
    problem: str


_COLUMNS: Final = (
    "zap_receipt.invoice_id, zap_receipt.event, publication.relay_url, publication.state, publication.attempts,"
    " publication.next_run_ms, publication.give_up_time_ms, publication.problem"
)
_JOINED: Final = "nostr_publication AS publication JOIN zap_receipt ON zap_receipt.event_id = publication.event_id"


def insert_receipt(connection: Connection, receipt: Receipt, relay_urls: Sequence[str], now_ms: int) -> bool:
    """Store a receipt, to be published now; False when there is one for the invoice already."""
    connection.execute(
        "INSERT INTO zap_receipt (invoice_id, owner_pubkey, event_id, event, create_time_ms) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT DO NOTHING",
        (receipt.invoice_id, receipt.owner_pubkey, receipt.event.id, json_of_event(receipt.event), now_ms),
    )
    if connection.changes() == 0:
        return False
    for url in relay_urls:
        connection.execute(
            "INSERT INTO nostr_publication (event_id, relay_url, state, attempts, next_run_ms, give_up_time_ms, problem)"
            " VALUES (?, ?, ?, 0, ?, ?, '')",
            (receipt.event.id, url, int(State.PENDING), now_ms, now_ms + GIVE_UP_MS),
        )
    return True


def find_receipt(connection: Connection, invoice_id: str) -> tuple[Receipt, tuple[Publication, ...]] | None:
    """Return the receipt of an invoice and its publications."""
    row = connection.execute(
        "SELECT owner_pubkey, event FROM zap_receipt WHERE invoice_id = ?", (invoice_id,)
    ).fetchone()
    if row is None:
        return None
    receipt = Receipt(invoice_id=invoice_id, owner_pubkey=row[0], event=event_of_json(row[1]))
    query = f"SELECT {_COLUMNS} FROM {_JOINED} WHERE zap_receipt.invoice_id = ? ORDER BY publication.relay_url"  # noqa: S608
    return receipt, tuple(_publication(each) for each in connection.execute(query, (invoice_id,)))


def next_run_ms(connection: Connection) -> int | None:
    """Return when the next publication is due; None when none is."""
    query = "SELECT min(next_run_ms) FROM nostr_publication WHERE next_run_ms IS NOT NULL"
    row = connection.execute(query).fetchone()
    return None if row is None or row[0] is None else int(row[0])


def claim(connection: Connection, now_ms: int, *, limit: int) -> list[Publication]:
    """Return at most `limit` publications that are due, each one attempt further and claimed for LEASE_MS."""
    claimed = connection.execute(
        "UPDATE nostr_publication SET next_run_ms = ?, attempts = attempts + 1 WHERE next_run_ms <= ? AND (event_id, relay_url) IN"
        " (SELECT event_id, relay_url FROM nostr_publication WHERE next_run_ms <= ? ORDER BY next_run_ms LIMIT ?)"
        " RETURNING event_id, relay_url",
        (now_ms + LEASE_MS, now_ms, now_ms, limit),
    ).fetchall()
    query = f"SELECT {_COLUMNS} FROM {_JOINED} WHERE publication.event_id = ? AND publication.relay_url = ?"  # noqa: S608
    rows = [connection.execute(query, key).fetchone() for key in claimed]
    return [_publication(row) for row in rows if row is not None]


def finish(connection: Connection, tried: Publication, state: State, next_ms: int | None, problem: str) -> bool:
    """Write down what came of an attempt; False when its lease was over and another took it."""
    assert (state is State.PENDING) == (next_ms is not None), "only what is not at its end is tried again"
    connection.execute(
        "UPDATE nostr_publication SET state = ?, next_run_ms = ?, problem = ?"
        " WHERE event_id = ? AND relay_url = ? AND state = ? AND attempts = ?",
        (int(state), next_ms, problem, tried.event.id, tried.relay_url, int(State.PENDING), tried.attempts),
    )
    return connection.changes() == 1


def _publication(row: Sequence[Any]) -> Publication:
    invoice_id, event, relay_url, state, attempts, run_ms, give_up_time_ms, problem = row
    return Publication(
        invoice_id=invoice_id,
        event=event_of_json(event),
        relay_url=relay_url,
        state=State(state),
        attempts=attempts,
        next_run_ms=run_ms,
        give_up_time_ms=give_up_time_ms,
        problem=problem,
    )

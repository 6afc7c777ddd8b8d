"""Rows of connections and of what they spend. Every function runs inside the caller's transaction; none begins or commits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from services.nip.domain.nip47 import budget as rules
from services.nip.domain.nip47.budget import Budget, Renewal, Spend, SpendState, Usage
from services.nip.domain.nip47.connection import Terms, WalletConnection
from services.nip.domain.nip47.words import Method, Topic
from services.storage.sql import Connection, value_of

_COLUMNS: Final = (
    "connection_id, owner_pubkey, account_id, display_name, key_id, service_pubkey, client_pubkey, relays, methods, topics, budget_msat,"
    " renewal, payment_msat_max, expire_time_ms, period_start_ms, spent_msat, pending_msat, revision, create_time_ms, update_time_ms,"
    " revoke_time_ms, use_time_ms"
)
_SELECT: Final = f"SELECT {_COLUMNS} FROM wallet_connection"  # noqa: S608  # only names from above
_MARKS: Final = ", ".join("?" * len(_COLUMNS.split(",")))
HEARD_MS: Final = 7 * 24 * 3_600_000
"""So long after its end the app of a connection is still answered UNAUTHORIZED."""
_LIVE: Final = "revoke_time_ms IS NULL AND (expire_time_ms IS NULL OR expire_time_ms > ?)"
_SPEND: Final = "amount_msat, fee_limit_msat, reserve_time_ms, state, spent_msat"


@dataclass(frozen=True, slots=True, kw_only=True)
class SpendRow:
    """What one request spends; `request_id` is its payment's."""

    event_id: str
    connection_id: str
    owner_pubkey: str
    request_id: str
    payment_hash: str
    metadata: str
    spend: Spend


def insert_connection(connection: Connection, new: WalletConnection) -> None:
    """Add a connection."""
    connection.execute(f"INSERT INTO wallet_connection ({_COLUMNS}) VALUES ({_MARKS})", _row(new))  # noqa: S608


def find_connection(connection: Connection, column: str, value: str) -> WalletConnection | None:
    """By `connection_id` or `service_pubkey`, its usage that of the running period as far as it was written down."""
    assert column in ("connection_id", "service_pubkey")
    row = connection.execute(f"{_SELECT} WHERE {column} = ?", (value,)).fetchone()
    return None if row is None else _connection(row)


def connections_of_owner(
    connection: Connection, owner_pubkey: str, before: str | None, limit: int
) -> list[WalletConnection]:
    """One page, newest first."""
    after = "" if before is None else " AND connection_id < ?"
    values = (owner_pubkey, limit) if before is None else (owner_pubkey, before, limit)
    sql = f"{_SELECT} WHERE owner_pubkey = ?{after} ORDER BY connection_id DESC LIMIT ?"
    return [_connection(row) for row in connection.execute(sql, values)]


def heard_connections(connection: Connection, now_ms: int) -> list[WalletConnection]:
    """All whose requests are listened for: the live ones, and those that ended lately, whose apps are to be told so."""
    rows = connection.execute(
        f"{_SELECT} WHERE coalesce(revoke_time_ms, expire_time_ms, ?) > ?", (now_ms, now_ms - HEARD_MS)
    )
    return [_connection(row) for row in rows]


def live_connections_of_account(connection: Connection, account_id: str, now_ms: int) -> list[WalletConnection]:
    """Those of one account."""
    rows = connection.execute(f"{_SELECT} WHERE account_id = ? AND {_LIVE}", (account_id, now_ms))
    return [_connection(row) for row in rows]


def count_live(connection: Connection, owner_pubkey: str, now_ms: int) -> int:
    """How many live connections a user has."""
    sql = f"SELECT count(*) FROM wallet_connection WHERE owner_pubkey = ? AND {_LIVE}"  # noqa: S608
    return int(value_of(connection.execute(sql, (owner_pubkey, now_ms))))


def store_terms(connection: Connection, changed: WalletConnection) -> None:
    """Write new terms, or the revocation, and the usage that counts from now on."""
    budget, usage = changed.terms.budget, changed.usage
    connection.execute(
        "UPDATE wallet_connection SET methods = ?, topics = ?, budget_msat = ?, renewal = ?, payment_msat_max = ?, expire_time_ms = ?,"
        " period_start_ms = ?, spent_msat = ?, pending_msat = ?, revision = ?, update_time_ms = ?, revoke_time_ms = ?"
        " WHERE connection_id = ?",
        (
            *(" ".join(changed.terms.methods), " ".join(changed.terms.topics)),
            *(budget.limit_msat, int(budget.renewal), budget.payment_msat_max, changed.terms.expire_time_ms),
            *(usage.period_start_ms, usage.spent_msat, usage.pending_msat),
            *(changed.revision, changed.update_time_ms, changed.revoke_time_ms, changed.connection_id),
        ),
    )
    assert connection.changes() == 1


def note_use(connection: Connection, connection_id: str, now_ms: int) -> None:
    """Remember when the app last asked for something."""
    connection.execute("UPDATE wallet_connection SET use_time_ms = ? WHERE connection_id = ?", (now_ms, connection_id))


def usage_at(connection: Connection, of: WalletConnection, now_ms: int) -> Usage:
    """What counts in the period of a time: what is written down, or, once the period is another one, the sum of its spends."""
    start_ms = rules.period_start_ms(of.terms.budget.renewal, now_ms)
    return of.usage if start_ms == of.usage.period_start_ms else sum_usage(connection, of.connection_id, start_ms)


def sum_usage(connection: Connection, connection_id: str, start_ms: int) -> Usage:
    """The usage, counted anew from the spends since a time."""
    sql = (
        "SELECT coalesce(sum(CASE WHEN state = 2 THEN spent_msat ELSE 0 END), 0),"
        " coalesce(sum(CASE WHEN state = 1 THEN amount_msat + fee_limit_msat ELSE 0 END), 0)"
        " FROM wallet_spend WHERE connection_id = ? AND reserve_time_ms >= ?"
    )
    row = connection.execute(sql, (connection_id, start_ms)).fetchone()
    assert row is not None
    usage = Usage(period_start_ms=start_ms, spent_msat=int(row[0]), pending_msat=int(row[1]))
    usage.check()
    return usage


def reserve_spend(
    connection: Connection, connection_id: str, new: SpendRow, amount_msat: int, now_ms: int
) -> SpendRow | None:
    """Reserve what a request will spend; None when it did before. `new` lacks only what is reserved. Raises Failure QUOTA_EXCEEDED.

    The budget is read and written in one transaction, and transactions write one after the other: payments at the same time cannot
    outrun it.
    """
    if find_spend(connection, new.event_id) is not None:
        return None
    of = find_connection(connection, "connection_id", connection_id)
    assert of is not None, "connections are never deleted"
    usage = usage_at(connection, of, now_ms)
    row = replace(new, spend=rules.reserve(of.terms.budget, usage, amount_msat, now_ms))
    connection.execute(
        "INSERT INTO wallet_spend (event_id, connection_id, owner_pubkey, request_id, payment_hash, amount_msat, fee_limit_msat, state,"
        " spent_msat, metadata, reserve_time_ms) VALUES (?, ?, ?, ?, ?, ?, ?, 1, 0, ?, ?)",
        (
            *(row.event_id, connection_id, row.owner_pubkey, row.request_id, row.payment_hash),
            *(row.spend.amount_msat, row.spend.fee_limit_msat, row.metadata, now_ms),
        ),
    )
    _store_usage(connection, connection_id, rules.reserved(usage, row.spend))
    return row


def settle_spend(connection: Connection, event_id: str, spent_msat: int | None, now_ms: int) -> bool:
    """Replace what is pending by what was spent (amount and fees), or free it (None). Returns whether that was news."""
    row = find_spend(connection, event_id)
    if row is None:
        return False
    of = find_connection(connection, "connection_id", row.connection_id)
    assert of is not None, "connections are never deleted"
    usage, spend = rules.settle(of.usage, row.spend, spent_msat)
    if spend is row.spend:
        return False
    connection.execute(
        "UPDATE wallet_spend SET state = ?, spent_msat = ?, final_time_ms = ? WHERE event_id = ?",
        (int(spend.state), spend.spent_msat, now_ms, event_id),
    )
    _store_usage(connection, row.connection_id, usage)
    return True


def find_spend(connection: Connection, event_id: str) -> SpendRow | None:
    """What a request spends."""
    return _find_spend(connection, "event_id", event_id)


def find_spend_of_payment(connection: Connection, request_id: str) -> SpendRow | None:
    """What is spent by the payment with this request_id."""
    return _find_spend(connection, "request_id", request_id)


def metadata_of(connection: Connection, owner_pubkey: str, payment_hashes: Sequence[str]) -> dict[str, str]:
    """What apps of a user noted with payments, by payment hash."""
    found: dict[str, str] = {}
    for payment_hash in payment_hashes:
        sql = (
            "SELECT metadata FROM wallet_spend WHERE payment_hash = ? AND owner_pubkey = ? AND metadata <> ''"
            " ORDER BY reserve_time_ms DESC LIMIT 1"
        )
        row = connection.execute(sql, (payment_hash, owner_pubkey)).fetchone()
        if row is not None:
            found[payment_hash] = row[0]
    return found


def _find_spend(connection: Connection, column: str, value: str) -> SpendRow | None:
    sql = f"SELECT event_id, connection_id, owner_pubkey, request_id, payment_hash, metadata, {_SPEND} FROM wallet_spend WHERE {column} = ?"  # noqa: S608
    row = connection.execute(sql, (value,)).fetchone()
    if row is None:
        return None
    spend = Spend(
        amount_msat=row[6], fee_limit_msat=row[7], reserve_time_ms=row[8], state=SpendState(row[9]), spent_msat=row[10]
    )
    return SpendRow(
        event_id=row[0],
        connection_id=row[1],
        owner_pubkey=row[2],
        request_id=row[3],
        payment_hash=row[4],
        metadata=row[5],
        spend=spend,
    )


def _store_usage(connection: Connection, connection_id: str, usage: Usage) -> None:
    usage.check()
    connection.execute(
        "UPDATE wallet_connection SET period_start_ms = ?, spent_msat = ?, pending_msat = ? WHERE connection_id = ?",
        (usage.period_start_ms, usage.spent_msat, usage.pending_msat, connection_id),
    )


def _row(of: WalletConnection) -> tuple[Any, ...]:
    budget, usage = of.terms.budget, of.usage
    return (
        *(of.connection_id, of.owner_pubkey, of.account_id, of.display_name, of.key_id, of.service_pubkey),
        *(of.client_pubkey, " ".join(of.relays), " ".join(of.terms.methods), " ".join(of.terms.topics)),
        *(budget.limit_msat, int(budget.renewal), budget.payment_msat_max, of.terms.expire_time_ms),
        *(usage.period_start_ms, usage.spent_msat, usage.pending_msat, of.revision, of.create_time_ms),
        *(of.update_time_ms, of.revoke_time_ms, of.use_time_ms),
    )


def _connection(row: tuple[Any, ...]) -> WalletConnection:
    budget = Budget(limit_msat=row[10], renewal=Renewal(row[11]), payment_msat_max=row[12])
    terms = Terms(
        methods=tuple(Method(word) for word in row[8].split()),
        topics=tuple(Topic(word) for word in row[9].split()),
        budget=budget,
        expire_time_ms=row[13],
    )
    return WalletConnection(
        connection_id=row[0],
        owner_pubkey=row[1],
        account_id=row[2],
        display_name=row[3],
        key_id=row[4],
        service_pubkey=row[5],
        client_pubkey=row[6],
        relays=tuple(row[7].split()),
        terms=terms,
        usage=Usage(period_start_ms=row[14], spent_msat=row[15], pending_msat=row[16]),
        revision=row[17],
        create_time_ms=row[18],
        update_time_ms=row[19],
        revoke_time_ms=row[20],
        use_time_ms=row[21],
    )

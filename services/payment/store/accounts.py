"""What changes about accounts apart from their money: each change is an event in the ledger's chain, in the same transaction."""

from __future__ import annotations

from dataclasses import dataclass

from services.payment.domain.chain import opened_details, quota_details
from services.payment.domain.model import (
    Account,
    AccountEvent,
    AccountEventKind,
    AccountState,
    Quota,
    Reason,
    Refused,
)
from services.payment.store.entries import append_account_event
from services.payment.store.ledger import find_account
from services.storage.sql import Connection

STATE_EVENTS = {
    AccountState.ACTIVE: AccountEventKind.UNFROZEN,
    AccountState.FROZEN: AccountEventKind.FROZEN,
    AccountState.CLOSED: AccountEventKind.CLOSED,
}
"""The event that leads to each state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """Who wants a change, why and when. `actor` is the token's subject, else the SPIFFE id."""

    actor: str = ""
    reason: str = ""
    now_ms: int = 0


def insert_account(connection: Connection, account: Account, order: Order | None = None) -> None:
    """Add a customer's account; without an order its owner opens it."""
    connection.execute(
        "INSERT INTO account (account_id, owner, state, must_cover, create_time_ms) VALUES (?, ?, ?, 1, ?)",
        (account.account_id, account.owner, int(account.state), account.create_time_ms),
    )
    order = order or Order(actor=account.owner, now_ms=account.create_time_ms)
    _record(connection, account.account_id, AccountEventKind.OPENED, order, opened_details(account))


def set_account_state(
    connection: Connection, account_id: str, state: AccountState, order: Order | None = None
) -> Account:
    """Freeze or unfreeze; the same state again is success and no event. Raises Refused ACCOUNT_NOT_FOUND, ACCOUNT_CLOSED."""
    assert state is not AccountState.CLOSED, "an account is closed by close_account"
    account = _customer(connection, account_id)
    if account.state is AccountState.CLOSED:
        raise Refused(Reason.ACCOUNT_CLOSED, "the account is closed")
    return account if account.state is state else _set_state(connection, account_id, state, order or Order())


def close_account(connection: Connection, account_id: str, order: Order) -> Account:
    """Close an empty account for good; one that is closed stays so. Raises Refused ACCOUNT_NOT_FOUND, ACCOUNT_NOT_EMPTY."""
    account = _customer(connection, account_id)
    if account.state is AccountState.CLOSED:
        return account
    if account.credits_posted_msat != account.debits_posted_msat:
        raise Refused(Reason.ACCOUNT_NOT_EMPTY, "the account holds money")
    if account.debits_pending_msat or account.credits_pending_msat:
        raise Refused(Reason.ACCOUNT_NOT_EMPTY, "money is reserved in the account, or on its way to it")
    return _set_state(connection, account_id, AccountState.CLOSED, order)


def set_quota(connection: Connection, account_id: str, quota: Quota, order: Order) -> Account:
    """Replace all limits; the same again is success and no event. Raises Refused ACCOUNT_NOT_FOUND, ACCOUNT_CLOSED."""
    account = _customer(connection, account_id)
    if account.state is AccountState.CLOSED:
        raise Refused(Reason.ACCOUNT_CLOSED, "the account is closed")
    if account.quota == quota:
        return account
    connection.execute(
        "UPDATE account SET quota_payment_msat = ?, quota_day_msat = ?, quota_pending_msat = ? WHERE account_id = ?",
        (quota.payment_msat_max, quota.day_msat_max, quota.pending_msat_max, account_id),
    )
    _record(connection, account_id, AccountEventKind.QUOTA_SET, order, quota_details(quota))
    return _customer(connection, account_id)


def _customer(connection: Connection, account_id: str) -> Account:
    account = find_account(connection, account_id)
    if account is None or not account.must_cover:
        raise Refused(Reason.ACCOUNT_NOT_FOUND, "there is no such account")
    return account


def _set_state(connection: Connection, account_id: str, state: AccountState, order: Order) -> Account:
    connection.execute("UPDATE account SET state = ? WHERE account_id = ?", (int(state), account_id))
    _record(connection, account_id, STATE_EVENTS[state], order)
    return _customer(connection, account_id)


def _record(
    connection: Connection, account_id: str, kind: AccountEventKind, order: Order, details: str = ""
) -> AccountEvent:
    event = AccountEvent(
        account_id=account_id,
        kind=kind,
        actor=order.actor,
        reason=order.reason,
        details=details,
        create_time_ms=order.now_ms,
    )
    return append_account_event(connection, event)

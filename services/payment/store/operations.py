"""Transfers that are no part of a payment: those of owners between accounts, and those of operators. Each is one transaction."""

from __future__ import annotations

from dataclasses import dataclass, replace

from services.payment.domain.model import (
    CUSTOMER_PREFIX,
    Account,
    AccountState,
    Purpose,
    Reason,
    Refused,
    Transfer,
    TransferKind,
)
from services.payment.store.ledger import find_account, find_transfer, post
from services.payment.store.transactions import owned_account
from services.storage.sql import Connection


def move_own(connection: Connection, transfer: Transfer, owner: str) -> tuple[Transfer, Account]:
    """Move money out of an account of `owner`; the transfer as recorded, and the account after it.

    Raises Refused: ACCOUNT_NOT_FOUND, ACCOUNT_CLOSED and the ledger's reasons.
    """
    assert transfer.purpose is Purpose.TRANSFER
    owned_account(connection, transfer.debit_account_id, owner)
    credited = find_account(connection, transfer.credit_account_id)
    if credited is None or not credited.account_id.startswith(CUSTOMER_PREFIX):
        raise Refused(Reason.ACCOUNT_NOT_FOUND, "there is no such account to credit")
    if credited.state is AccountState.CLOSED:
        raise Refused(Reason.ACCOUNT_CLOSED, "the account to credit is closed")
    return move(connection, transfer, transfer.debit_account_id)


def move(connection: Connection, transfer: Transfer, account_id: str) -> tuple[Transfer, Account]:
    """Apply one new transfer; as recorded, and the named one of its accounts after it. Raises Refused."""
    for each in (transfer.debit_account_id, transfer.credit_account_id):
        if find_account(connection, each) is None:
            raise Refused(Reason.ACCOUNT_NOT_FOUND, "no such account")
    (recorded,) = post(connection, (transfer,))
    account = find_account(connection, account_id)
    assert account is not None, "accounts are never deleted"
    return recorded, account


@dataclass(frozen=True, slots=True, kw_only=True)
class EndOfHold:
    """How an operator ends a hold. `amount_msat` None: all that is held is posted; with VOID_PENDING all is freed."""

    transfer_id: str
    pending_transfer_id: str
    kind: TransferKind
    amount_msat: int | None
    reference: str
    now_ms: int


def end_hold(connection: Connection, end: EndOfHold) -> Transfer:
    """Post or void a hold that an operator made, never one of a payment or an invoice; the transfer as recorded.

    Raises Refused: TRANSFER_NOT_FOUND, TRANSFER_NOT_PENDING, TRANSFER_RESOLVED, TRANSFER_EXCEEDS_PENDING and the ledger's reasons.
    """
    held = find_transfer(connection, end.pending_transfer_id)
    if held is None:
        raise Refused(Reason.TRANSFER_NOT_FOUND, "no such transfer")
    if held.kind is not TransferKind.PENDING or held.purpose is not Purpose.ADJUSTMENT:
        raise Refused(Reason.TRANSFER_NOT_PENDING, "the transfer is no hold of an operator")
    sql = "SELECT transfer_id FROM transfer WHERE pending_transfer_id = ?"
    if connection.execute(sql, (held.transfer_id,)).fetchone() is not None:
        raise Refused(Reason.TRANSFER_RESOLVED, "the hold was posted or voided before")
    amount_msat = held.amount_msat if end.amount_msat is None else end.amount_msat
    if amount_msat > held.amount_msat:
        raise Refused(Reason.TRANSFER_EXCEEDS_PENDING, f"{held.amount_msat} msat are held")
    ending = replace(
        held,
        transfer_id=end.transfer_id,
        kind=end.kind,
        pending_transfer_id=held.transfer_id,
        amount_msat=amount_msat,
        reference=end.reference,
        create_time_ms=end.now_ms,
    )
    (recorded,) = post(connection, (ending,))
    return recorded

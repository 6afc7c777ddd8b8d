"""What payments of this mesh and the owners do to stored invoices: the invoice and the payment's hold change in one transaction.

All functions run inside `database.write` or `database.read`; none begins or commits. The rules are those of `domain.rules`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from services.chassis.errors import Reason
from services.chassis.secret import SecretBytes
from services.invoice.domain import rules
from services.invoice.domain.invoice import Hold, HoldState, Invoice, Phase
from services.invoice.domain.rules import LockOrder, RefusedError
from services.invoice.domain.transitions import HOLD_STEPS, Call, Refuse
from services.invoice.store import InvoiceNotFoundError, Key, find_invoice, store_change
from services.lightning.bolt11 import decode
from services.storage.sql import Connection

_HOLD: Final = "payment_id, invoice_id, state, amount_msat, actor_pubkey, update_time_ms"
_PUT_HOLD: Final = (
    f"INSERT INTO invoice_hold ({_HOLD}) VALUES (?, ?, ?, ?, ?, ?)"  # noqa: S608  # only names from above
    " ON CONFLICT (payment_id) DO UPDATE SET state = excluded.state, update_time_ms = excluded.update_time_ms"
)


class ForgedRequestError(ValueError):
    """The payment request has the hash of an invoice of ours, and is not the one that was issued for it."""


def cancel_invoice(connection: Connection, key: Key, owner_pubkey: str, now_ms: int) -> tuple[Invoice, Invoice]:
    """Take an invoice back; return it before and after. Raises InvoiceNotFoundError and RefusedError."""
    before = find_invoice(connection, key, owner_pubkey)
    return before, decide(connection, before, rules.cancel(before, now_ms), now_ms)


def settle_invoice(
    connection: Connection, key: Key, owner_pubkey: str, preimage: SecretBytes | None, now_ms: int
) -> tuple[Invoice, Invoice]:
    """Let the owner take what is held; return the invoice before and after.

    Raises InvoiceNotFoundError, RefusedError and PreimageMissingError.
    """
    before = find_invoice(connection, key, owner_pubkey)
    return before, decide(connection, before, rules.settle(before, preimage, now_ms), now_ms)


def decide(connection: Connection, before: Invoice, after: Invoice, now_ms: int) -> Invoice:
    """Store what the owner, or a deadline, decided, and with it what the payment that waits for it will be told."""
    stored = store_change(connection, before, after)
    if before.phase is Phase.RESERVED and stored is not before:
        hold = find_hold(connection, before.locked_by or "")
        assert hold is not None, "a reserved invoice has a payment"
        put_hold(connection, rules.decided_hold(hold, stored, now_ms))
    return stored


def lock_invoice(connection: Connection, payment_request: str, order: LockOrder, now_ms: int) -> tuple[Invoice, Hold]:
    """Let a payment hold an invoice. Raises what `requested_invoice` raises, RefusedError and OtherInvoiceError."""
    invoice = requested_invoice(connection, payment_request)
    before = find_hold(connection, order.payment_id)
    locked, hold = rules.lock(invoice, before, order, now_ms)
    stored = store_change(connection, invoice, locked)
    if before is None:
        put_hold(connection, hold)
    return stored, hold


def requested_invoice(connection: Connection, payment_request: str) -> Invoice:
    """Return the invoice of this mesh with this payment request. Raises InvoiceNotFoundError, ForgedRequestError, Bolt11Error.

    The text finds it, which costs no signature check. One that is unknown is read: a request that somebody else signed over a hash of
    ours must never pass for one of another node.
    """
    try:
        return find_invoice(connection, Key(column="payment_request", value=payment_request))
    except InvoiceNotFoundError:
        payment_hash = decode(payment_request).payment_hash
    forged = find_invoice(connection, Key(column="payment_hash", value=payment_hash))
    raise ForgedRequestError(forged.invoice_id)


def commit_invoice(connection: Connection, payment_id: str, now_ms: int) -> tuple[Invoice, Hold]:
    """Settle the invoice that a payment holds, or reserve it for its owner's decision. Raises RefusedError."""
    return _change_hold(connection, payment_id, Call.COMMIT, rules.commit, now_ms)


def release_invoice(connection: Connection, payment_id: str, now_ms: int) -> Invoice | None:
    """Free what a payment holds, and let it never lock again; None when it held nothing. Raises RefusedError."""
    hold = find_hold(connection, payment_id)
    if hold is None:
        put_hold(connection, rules.tombstone(payment_id, now_ms))
        return None
    if hold.state in (HoldState.RELEASED, HoldState.RETURNED):
        return None
    return _change_hold(connection, payment_id, Call.RELEASE, rules.release, now_ms)[0]


def _change_hold(
    connection: Connection,
    payment_id: str,
    call: Call,
    rule: Callable[[Invoice, Hold, int], tuple[Invoice, Hold]],
    now_ms: int,
) -> tuple[Invoice, Hold]:
    """Apply a rule to the invoice that a payment's hold is about. Raises RefusedError."""
    hold = find_hold(connection, payment_id)
    step = HOLD_STEPS[hold.state if hold else None, call]
    if isinstance(step, Refuse):
        raise RefusedError(step.reason, payment_id)
    assert hold is not None
    assert hold.invoice_id is not None
    invoice = find_invoice(connection, Key(column="invoice_id", value=hold.invoice_id))
    changed, after = rule(invoice, hold, now_ms)
    stored = store_change(connection, invoice, changed)
    if after is not hold:
        put_hold(connection, after)
    return stored, after


def held_invoice(connection: Connection, payment_id: str) -> tuple[Hold, Invoice | None]:
    """Return what a payment did, and the invoice that it touched. Raises RefusedError INVOICE_NOT_LOCKED when it did nothing."""
    hold = find_hold(connection, payment_id)
    if hold is None:
        raise RefusedError(Reason.INVOICE_NOT_LOCKED, payment_id)
    if hold.invoice_id is None:
        return hold, None
    return hold, find_invoice(connection, Key(column="invoice_id", value=hold.invoice_id))


def find_hold(connection: Connection, payment_id: str) -> Hold | None:
    """Return what is remembered of a payment."""
    query = f"SELECT {_HOLD} FROM invoice_hold WHERE payment_id = ?"  # noqa: S608  # only names from above
    row = connection.execute(query, (payment_id,)).fetchone()
    if row is None:
        return None
    return Hold(
        payment_id=row[0],
        invoice_id=row[1],
        state=HoldState(row[2]),
        amount_msat=row[3],
        actor_pubkey=row[4],
        update_time_ms=row[5],
    )


def put_hold(connection: Connection, hold: Hold) -> None:
    """Store a hold, or its new state."""
    hold.check()
    values = (hold.payment_id, hold.invoice_id, hold.state, hold.amount_msat, hold.actor_pubkey, hold.update_time_ms)
    connection.execute(_PUT_HOLD, values)

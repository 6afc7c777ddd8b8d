"""Which transfers each step of a payment makes. Their ids are derived, so that a repeated step is the same transfer.

reserve    PENDING       payer -> node:lightning   amount
dispatch   PENDING       payer -> fees:routing     fee limit           (payments through a node only)
post       VOID_PENDING the reservation, POSTED payer -> payee amount  (the pivot of a payment inside the mesh)
settle     POST_PENDING both reservations, the fee's in part           (through a node)
hold       VOID_PENDING the reservation, PENDING payer -> payee amount (a hold invoice of this mesh: its owner decides)
post_held  POST_PENDING  what is held for the payee
fail       VOID_PENDING what is reserved, or held for the payee
refund     POSTED        payee, or node:lightning -> payer

credit     PENDING       node:lightning -> payee   amount              (an invoice that somebody outside pays; then POST or VOID)
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Final

from services.payment.domain.model import (
    NODE_ACCOUNT,
    ROUTING_FEES_ACCOUNT,
    Payment,
    PaymentState,
    Purpose,
    Transfer,
    TransferKind,
)
from services.payment.domain.receipt import derived_request_id

HOLDS: Final = ("hold", "fee_hold", "payee_hold")
"""Names of a payment's transfers that reserve."""


def hold(payment: Payment, now_ms: int) -> Transfer:
    """Reserve the amount."""
    return _transfer(payment, "hold", TransferKind.PENDING, NODE_ACCOUNT, payment.amount_msat, now_ms)


def fee_hold(payment: Payment, now_ms: int) -> tuple[Transfer, ...]:
    """Reserve the fee limit, when there is one."""
    if payment.fee_limit_msat == 0:
        return ()
    kind, credit = TransferKind.PENDING, ROUTING_FEES_ACCOUNT
    return (_transfer(payment, "fee_hold", kind, credit, payment.fee_limit_msat, now_ms),)


def post_inside(payment: Payment, payee_account_id: str, now_ms: int) -> tuple[Transfer, ...]:
    """The pivot: what was reserved for the node goes to the payee instead."""
    void = _transfer(payment, "void", TransferKind.VOID_PENDING, NODE_ACCOUNT, payment.amount_msat, now_ms)
    return (void, _transfer(payment, "post", TransferKind.POSTED, payee_account_id, payment.amount_msat, now_ms))


def hold_for_payee(payment: Payment, payee_account_id: str, now_ms: int) -> tuple[Transfer, ...]:
    """What was reserved for the node is reserved for the owner of a hold invoice instead."""
    void = _transfer(payment, "void", TransferKind.VOID_PENDING, NODE_ACCOUNT, payment.amount_msat, now_ms)
    return (void, _transfer(payment, "payee_hold", TransferKind.PENDING, payee_account_id, payment.amount_msat, now_ms))


def post_held(payment: Payment, now_ms: int) -> Transfer:
    """The owner of the hold invoice settled it."""
    kind, payee = TransferKind.POST_PENDING, payment.payee_account_id
    return _transfer(payment, "payee_post", kind, payee, payment.amount_msat, now_ms)


def settle_outside(payment: Payment, fee_msat: int, now_ms: int) -> tuple[Transfer, ...]:
    """Post the amount and the fee, release the rest of the fee limit."""
    assert 0 <= fee_msat <= payment.fee_limit_msat
    post = _transfer(payment, "post", TransferKind.POST_PENDING, NODE_ACCOUNT, payment.amount_msat, now_ms)
    if payment.fee_limit_msat == 0:
        return (post,)
    if fee_msat == 0:
        return (post, _fee_void(payment, now_ms))
    kind, credit = TransferKind.POST_PENDING, ROUTING_FEES_ACCOUNT
    return (post, _transfer(payment, "fee_post", kind, credit, fee_msat, now_ms))


def release(payment: Payment, now_ms: int) -> tuple[Transfer, ...]:
    """Release what is reserved: the amount, and after the dispatch the fee limit; or what is held for the payee."""
    if payment.state is PaymentState.IN_FLIGHT and payment.internal:
        kind, payee = TransferKind.VOID_PENDING, payment.payee_account_id
        return (_transfer(payment, "payee_void", kind, payee, payment.amount_msat, now_ms),)
    void = _transfer(payment, "void", TransferKind.VOID_PENDING, NODE_ACCOUNT, payment.amount_msat, now_ms)
    dispatched = payment.state is PaymentState.IN_FLIGHT
    return (void, _fee_void(payment, now_ms)) if dispatched and payment.fee_limit_msat > 0 else (void,)


def refund(payment: Payment, transfer_id: str, amount_msat: int, reference: str, now_ms: int) -> Transfer:
    """A new transfer back to who paid."""
    return Transfer(
        transfer_id=transfer_id,
        kind=TransferKind.POSTED,
        debit_account_id=payment.payee_account_id if payment.internal else NODE_ACCOUNT,
        credit_account_id=payment.account_id,
        amount_msat=amount_msat,
        purpose=Purpose.REFUND,
        payment_id=payment.payment_id,
        reference=reference,
        create_time_ms=now_ms,
    )


def _fee_void(payment: Payment, now_ms: int) -> Transfer:
    kind, credit = TransferKind.VOID_PENDING, ROUTING_FEES_ACCOUNT
    return _transfer(payment, "fee_void", kind, credit, payment.fee_limit_msat, now_ms)


def _transfer(payment: Payment, name: str, kind: TransferKind, credit: str, amount_msat: int, now_ms: int) -> Transfer:
    fee = name.startswith("fee_")
    resolves = kind is TransferKind.POST_PENDING or kind is TransferKind.VOID_PENDING
    held = "fee_hold" if fee else "payee_hold" if name.startswith("payee_") else "hold"
    return Transfer(
        transfer_id=transfer_id_of(payment.payment_id, name),
        kind=kind,
        debit_account_id=payment.account_id,
        credit_account_id=credit,
        amount_msat=amount_msat,
        purpose=Purpose.ROUTING_FEE if fee else Purpose.PAYMENT,
        pending_transfer_id=transfer_id_of(payment.payment_id, held) if resolves else "",
        payment_id=payment.payment_id,
        create_time_ms=now_ms,
    )


def hold_id(payment_id: str) -> str:
    """The id of `hold`."""
    return transfer_id_of(payment_id, "hold")


def transfer_id_of(payment_id: str, name: str) -> str:
    """The id of one of a payment's transfers: a UUIDv8 that begins with the milliseconds of the payment's UUIDv7.

    So ids rise with time, and new rows stand together in the index of ids: those at random places cost a page each.
    """
    digest = hashlib.sha256(f"{payment_id}/{name}".encode()).hexdigest()
    return f"{payment_id[:13]}-8{digest[:3]}-8{digest[3:6]}-{digest[6:18]}"


def earlier_hold_id(transfer: Transfer) -> str:
    """What the reservation that `transfer` resolves is called when it was made before ids rose with time; "" when it is no payment's."""
    ids = {transfer_id_of(transfer.payment_id, name): name for name in HOLDS}
    name = ids.get(transfer.pending_transfer_id)
    return derived_request_id(transfer.payment_id, name) if name is not None else ""


def credit_id(invoice_id: str) -> str:
    """The id of the transfer that reserves an invoice's credit."""
    return derived_request_id(invoice_id, "credit_hold")


def credit_hold(invoice_id: str, account_id: str, amount_msat: int, now_ms: int) -> Transfer:
    """Reserve for an account what the node holds for an invoice of this mesh."""
    return Transfer(
        transfer_id=credit_id(invoice_id),
        kind=TransferKind.PENDING,
        debit_account_id=NODE_ACCOUNT,
        credit_account_id=account_id,
        amount_msat=amount_msat,
        purpose=Purpose.RECEIVED,
        reference=invoice_id,
        create_time_ms=now_ms,
    )


def credit_end(held: Transfer, kind: TransferKind, now_ms: int) -> Transfer:
    """Post or void what was reserved for an invoice."""
    assert kind in (TransferKind.POST_PENDING, TransferKind.VOID_PENDING)
    name = "credit_post" if kind is TransferKind.POST_PENDING else "credit_void"
    return replace(
        held,
        transfer_id=derived_request_id(held.reference, name),
        kind=kind,
        pending_transfer_id=held.transfer_id,
        create_time_ms=now_ms,
    )

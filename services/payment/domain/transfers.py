"""Which transfers each step of a payment makes. Their ids are derived, so that a repeated step is the same transfer.

reserve    PENDING       payer -> node:lightning   amount
dispatch   PENDING       payer -> fees:routing     fee limit           (payments through a node only)
post       VOID_PENDING the reservation, POSTED payer -> payee amount  (the pivot of a payment inside the mesh)
settle     POST_PENDING both reservations, the fee's in part           (through a node)
fail       VOID_PENDING what is reserved
refund     POSTED        payee, or node:lightning -> payer
"""

from __future__ import annotations

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
    """Release what is reserved: the amount, and after the dispatch the fee limit."""
    void = _transfer(payment, "void", TransferKind.VOID_PENDING, NODE_ACCOUNT, payment.amount_msat, now_ms)
    dispatched = payment.state is PaymentState.IN_FLIGHT and not payment.internal
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
    resolves = kind in (TransferKind.POST_PENDING, TransferKind.VOID_PENDING)
    return Transfer(
        transfer_id=derived_request_id(payment.payment_id, name),
        kind=kind,
        debit_account_id=payment.account_id,
        credit_account_id=credit,
        amount_msat=amount_msat,
        purpose=Purpose.ROUTING_FEE if fee else Purpose.PAYMENT,
        pending_transfer_id=derived_request_id(payment.payment_id, "fee_hold" if fee else "hold") if resolves else "",
        payment_id=payment.payment_id,
        create_time_ms=now_ms,
    )

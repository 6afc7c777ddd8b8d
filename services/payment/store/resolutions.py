"""What operators decide about payments whose outcome nobody else can tell; one transaction, and the decision is kept."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256

from services.lightning.node import NodeFailed, NodeFailure, NodePaid
from services.payment.domain.model import Payment, PaymentState, Reason, Refused
from services.payment.domain.saga import decide, overdue
from services.payment.domain.saga_words import Step
from services.payment.store import payments, sagas, transactions
from services.storage.sql import Connection


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolution:
    """An operator's word. `paid` None: the payment failed, for certain."""

    payment_id: str
    operator: str
    paid: NodePaid | None
    reason: str
    now_ms: int


def resolve_payment(connection: Connection, resolution: Resolution) -> Payment:
    """End a payment as the node would have; whoever drives its saga loses the lease. The payment after it.

    Raises Refused: PAYMENT_NOT_FOUND, PAYMENT_NOT_STUCK, PREIMAGE_MISMATCH.
    """
    payment, view = _stuck(connection, resolution)
    paid, now_ms = resolution.paid, resolution.now_ms
    if paid is not None and sha256(bytes.fromhex(paid.preimage)).hexdigest() != payment.payment_hash:
        raise Refused(Reason.PREIMAGE_MISMATCH, "the preimage is not that of the payment's hash")
    if paid is not None and paid.fee_msat > payment.fee_limit_msat:
        paid = NodePaid(paid.preimage, payment.fee_limit_msat)
    step = sagas.StepRecord(
        step="resolve_payment",
        state=sagas.STEP_DONE if paid is not None else sagas.STEP_FAILED,
        attempt=1,
        start_time_ms=now_ms,
        end_time_ms=now_ms,
    )
    progress = transactions.Progress(
        lease=sagas.seize(connection, view, resolution.operator),
        decision=decide(view.saga, paid or NodeFailed(NodeFailure.ERROR), now_ms),
        payment=payment,
        simulated=payment.simulated,
        steps=(step,),
        now_ms=now_ms,
    )
    after = transactions.advance(connection, progress)
    _keep(connection, resolution)
    return after


def _stuck(connection: Connection, resolution: Resolution) -> tuple[Payment, sagas.SagaView]:
    payment = payments.find_payment(connection, resolution.payment_id)
    if payment is None:
        raise Refused(Reason.PAYMENT_NOT_FOUND, "no such payment")
    view = sagas.find_saga(connection, resolution.payment_id)
    waits = view is not None and view.saga.step is Step.PROCESS_PAYMENT
    if view is None or not waits or not overdue(view.saga, resolution.now_ms, payment.create_time_ms):
        raise Refused(Reason.PAYMENT_NOT_STUCK, "only the node's answer, when it is overdue, is an operator's to give")
    assert payment.state is PaymentState.IN_FLIGHT
    assert not payment.internal
    return payment, view


def _keep(connection: Connection, resolution: Resolution) -> None:
    connection.execute(
        "INSERT INTO payment_resolution (payment_id, operator, succeeded, reason, create_time_ms) VALUES (?, ?, ?, ?, ?)",
        (
            resolution.payment_id,
            resolution.operator,
            int(resolution.paid is not None),
            resolution.reason,
            resolution.now_ms,
        ),
    )

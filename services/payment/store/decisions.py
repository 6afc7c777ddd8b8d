"""The recovery log of two-phase commits. Presumed abort: what is not in the log, and cannot come into it any more, is rolled back.

COMMIT is written in the transaction that moves the money, ROLLBACK before anybody is told so: neither is ever changed.
"""

from __future__ import annotations

from enum import IntEnum

from services.payment.domain.model import PaymentState, Reason, Refused
from services.payment.domain.saga_words import Step
from services.payment.store import payments, sagas
from services.storage.sql import Connection

_INSERT = "INSERT INTO two_phase_decision (payment_id, decision, decide_time_ms) VALUES (?, ?, ?) ON CONFLICT (payment_id) DO NOTHING"


class Decision(IntEnum):
    """As the log has it."""

    COMMIT = 1
    ROLLBACK = 2


def decide_commit(connection: Connection, payment_id: str, now_ms: int) -> None:
    """Log COMMIT, with the money that moves. Raises Refused PAYMENT_NOT_FOUND when ROLLBACK was said: a payment of a restored database."""
    connection.execute(_INSERT, (payment_id, Decision.COMMIT, now_ms))
    if connection.changes() != 1 and _logged(connection, payment_id) is not Decision.COMMIT:
        raise Refused(Reason.PAYMENT_NOT_FOUND, "the payment was given up")


def finish(connection: Connection, payment_id: str, now_ms: int) -> None:
    """Log that the invoice service did as it was told."""
    sql = "UPDATE two_phase_decision SET finish_time_ms = ? WHERE payment_id = ? AND finish_time_ms IS NULL"
    connection.execute(sql, (now_ms, payment_id))


def decision_of(connection: Connection, payment_id: str, now_ms: int) -> Decision | None:
    """What is logged, or follows from where the payment is (then it is logged); None while it may still decide."""
    logged = _logged(connection, payment_id)
    if logged is not None:
        return logged
    decision = _following(connection, payment_id)
    if decision is not None:
        connection.execute(_INSERT, (payment_id, decision, now_ms))
    return decision


def _logged(connection: Connection, payment_id: str) -> Decision | None:
    row = connection.execute("SELECT decision FROM two_phase_decision WHERE payment_id = ?", (payment_id,)).fetchone()
    return None if row is None else Decision(row[0])


def _following(connection: Connection, payment_id: str) -> Decision | None:
    """Also for payments that went on while two-phase commit was switched off: nothing was logged then."""
    payment = payments.find_payment(connection, payment_id)
    if payment is None or payment.state is PaymentState.FAILED:
        return Decision.ROLLBACK
    if payment.state is PaymentState.RESERVED:
        return None if sagas.step_of(connection, payment_id) is Step.LOCK_INVOICE else Decision.ROLLBACK
    return Decision.COMMIT if payment.internal else Decision.ROLLBACK

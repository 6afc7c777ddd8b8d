"""The recovery log of two-phase commits: presumed abort, and no decision changes."""

from __future__ import annotations

import apsw
import pytest

from services.payment.domain.model import Payment, PaymentState, Reason, Refused
from services.payment.domain.saga import Saga
from services.payment.domain.saga_words import Step
from services.payment.store import decisions, payments, sagas
from services.payment.store.decisions import Decision
from support.ledger_rows import open_payment_database


@pytest.fixture
def connection() -> apsw.Connection:
    return open_payment_database()


def pay(connection: apsw.Connection, state: PaymentState, step: Step, *, internal: bool) -> None:
    """A payment `p` that got so far."""
    payment = Payment(
        payment_id="p",
        account_id="node:lightning",
        scope="aa" * 32,
        request_id="r",
        state=state,
        payment_request="lnbcrt1",
        payment_hash="bb" * 32,
        amount_msat=1_000,
        fee_limit_msat=0,
        internal=internal,
        create_time_ms=1,
        update_time_ms=1,
    )
    payments.insert_payment(connection, payment, bytes(32))
    payments.update_payment(connection, payment)
    lease = sagas.Lease(saga_id="p", owner="one", fence=1)
    saga = Saga(payment_id="p", payer_account_id="customer:a", give_up_time_ms=60_000, step=step)
    sagas.insert_saga(connection, saga, lease, lease_until_ms=2_000, now_ms=1)


@pytest.mark.parametrize(
    ("state", "step", "internal", "decision"),
    [
        (PaymentState.RESERVED, Step.LOCK_INVOICE, False, None),
        (PaymentState.RESERVED, Step.RELEASE_INVOICE, False, Decision.ROLLBACK),
        (PaymentState.FAILED, Step.DONE, False, Decision.ROLLBACK),
        (PaymentState.FAILED, Step.DONE, True, Decision.ROLLBACK),
        (PaymentState.IN_FLIGHT, Step.COMMIT_INVOICE, True, Decision.COMMIT),
        (PaymentState.IN_FLIGHT, Step.PROCESS_PAYMENT, False, Decision.ROLLBACK),
        (PaymentState.SUCCEEDED, Step.SIGN_RECEIPT, True, Decision.COMMIT),
        (PaymentState.REFUNDED, Step.DONE, True, Decision.COMMIT),
    ],
)
def test_what_is_not_logged_follows_from_the_payment(
    connection: apsw.Connection, state: PaymentState, step: Step, internal: bool, decision: Decision | None
) -> None:
    pay(connection, state, step, internal=internal)
    assert decisions.decision_of(connection, "p", 5) is decision
    logged = list(connection.execute("SELECT payment_id, decision, decide_time_ms FROM two_phase_decision"))
    assert logged == ([] if decision is None else [("p", decision, 5)])


def test_an_unknown_payment_is_given_up_for_ever(connection: apsw.Connection) -> None:
    assert decisions.decision_of(connection, "p", 5) is Decision.ROLLBACK
    pay(connection, PaymentState.RESERVED, Step.LOCK_INVOICE, internal=False)
    with pytest.raises(Refused) as caught:
        decisions.decide_commit(connection, "p", 6)
    assert caught.value.reason is Reason.PAYMENT_NOT_FOUND
    assert decisions.decision_of(connection, "p", 7) is Decision.ROLLBACK


def test_a_commit_is_logged_once_and_finished_once(connection: apsw.Connection) -> None:
    decisions.decide_commit(connection, "p", 5)
    decisions.decide_commit(connection, "p", 6)
    assert decisions.decision_of(connection, "p", 7) is Decision.COMMIT
    decisions.finish(connection, "p", 8)
    decisions.finish(connection, "p", 9)
    assert list(connection.execute("SELECT * FROM two_phase_decision")) == [("p", Decision.COMMIT, 5, 8)]

"""Leases and fences in SQL: one driver at a time, and an old one writes nothing."""

from __future__ import annotations

from dataclasses import replace

import apsw
import pytest

from services.payment.domain.saga import Saga
from services.payment.domain.saga_words import Step
from services.payment.store import sagas
from services.payment.store.sagas import Lease, LeaseLostError
from support.ledger_rows import open_payment_database

SAGA = Saga(payment_id="p", payer_account_id="customer:a", give_up_time_ms=60_000)
FIRST = Lease(saga_id="p", owner="one", fence=1)


@pytest.fixture
def connection() -> apsw.Connection:
    connection = open_payment_database()
    sagas.insert_saga(connection, SAGA, FIRST, lease_until_ms=2_000, now_ms=0)
    return connection


def claim(connection: apsw.Connection, owner: str, now_ms: int) -> list[tuple[Lease, Saga]]:
    return list(sagas.claim(connection, owner, now_ms=now_ms, until_ms=now_ms + 2_000, limit=10))


def test_nobody_claims_a_lease_that_lasts(connection: apsw.Connection) -> None:
    assert not sagas.any_due(connection, 1_999)
    assert claim(connection, "two", 1_999) == []
    assert sagas.any_due(connection, 2_000)


def test_a_claim_fences_the_old_driver_off(connection: apsw.Connection) -> None:
    ((lease, saga),) = claim(connection, "two", 2_000)
    assert (lease.owner, lease.fence, saga) == ("two", 2, SAGA)
    with pytest.raises(LeaseLostError):
        sagas.save_saga(connection, FIRST, replace(SAGA, step=Step.COMMIT_INVOICE))
    assert sagas.renew(connection, "one", ["p"], 9_000) == frozenset()
    sagas.give_back(connection, [FIRST], 2_500)
    assert claim(connection, "three", 3_000) == []
    sagas.save_saga(connection, lease, replace(saga, step=Step.COMMIT_INVOICE))


def test_the_same_process_fences_its_own_past_off(connection: apsw.Connection) -> None:
    ((lease, _),) = claim(connection, "one", 2_000)
    with pytest.raises(LeaseLostError):
        sagas.save_saga(connection, FIRST, SAGA)
    sagas.save_saga(connection, lease, SAGA)


def test_a_renewed_lease_lasts(connection: apsw.Connection) -> None:
    assert sagas.renew(connection, "one", ["p", "gone"], 4_000) == {"p"}
    assert claim(connection, "two", 3_999) == []


def test_a_parked_saga_is_offered_to_others_first_and_is_not_renewed(connection: apsw.Connection) -> None:
    sagas.park_saga(connection, FIRST, SAGA, next_run_at_ms=1_000, patient=False)
    assert sagas.renew(connection, "one", ["p"], 9_000) == frozenset()
    assert claim(connection, "two", 999) == []
    assert claim(connection, "one", 1_000) == []
    assert len(claim(connection, "one", 1_000 + sagas.OTHERS_FIRST_MS)) == 1


def test_thousands_that_wait_do_not_keep_an_urgent_one_waiting(connection: apsw.Connection) -> None:
    for number in range(3_000):
        waits = replace(SAGA, payment_id=f"w{number}", step=Step.AWAIT_DECISION)
        lease = Lease(saga_id=waits.payment_id, owner="one", fence=1)
        sagas.insert_saga(connection, waits, lease, lease_until_ms=2_000, now_ms=0)
        sagas.park_saga(connection, lease, waits, next_run_at_ms=1_000, patient=True)
    found = claim(connection, "two", 2_000)
    assert found[0][0].saga_id == "p", "its lease ended after they were due"
    assert len(found) == 10
    plan = [
        row[3]
        for row in connection.execute(
            "EXPLAIN QUERY PLAN " + sagas.CLAIM.format(state=3),
            dict.fromkeys(("owner", "until", "now", "others_first", "limit"), 1),
        )
    ]
    assert any("saga_waiting" in line for line in plan), plan


def test_one_that_is_woken_goes_on_at_once_whether_it_is_parked_or_driven(connection: apsw.Connection) -> None:
    sagas.park_saga(connection, FIRST, SAGA, next_run_at_ms=90_000, patient=True)
    assert sagas.wake(connection, "p")
    ((lease, saga),) = claim(connection, "one", 1_000)
    assert sagas.wake(connection, "p"), "while it is driven"
    sagas.park_saga(connection, lease, saga, next_run_at_ms=90_000, patient=True)
    ((lease, saga),) = claim(connection, "one", 1_001)
    sagas.park_saga(connection, lease, saga, next_run_at_ms=90_000, patient=True)
    assert claim(connection, "one", 2_000) == [], "a word counts once"
    assert not sagas.wake(connection, "nobody")


def test_a_saga_that_is_done_is_nobodys(connection: apsw.Connection) -> None:
    sagas.save_saga(connection, FIRST, replace(SAGA, step=Step.DONE))
    assert not sagas.wake(connection, "p")
    assert not sagas.any_due(connection, 99_999)
    assert claim(connection, "two", 99_999) == []


def test_history_is_bounded(connection: apsw.Connection) -> None:
    step = sagas.StepRecord(
        step="sign_receipt", state=1, attempt=1, start_time_ms=1, end_time_ms=2, error="UNAVAILABLE"
    )
    sagas.add_steps(connection, "p", [step] * (sagas.STEPS_KEPT_MAX + 50))
    assert sagas.list_steps(connection, "p") == (step,) * sagas.STEPS_KEPT_MAX

"""The saga's decisions: every path, every refusal, and random walks that keep its promises."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.payment.domain.model import Failure
from services.payment.domain.saga import (
    RETRY_DELAY_MS_MAX,
    RETRY_DELAY_MS_MAX_PATIENT,
    Action,
    Committed,
    Decision,
    Dispatch,
    Event,
    Fail,
    Locked,
    LockRefused,
    NodeFailed,
    NodeFree,
    NodeHolds,
    NodePaid,
    NodePending,
    NodeUnknown,
    NotOurs,
    Park,
    PostTransfer,
    Released,
    Remember,
    Resumed,
    Saga,
    SaveReceipt,
    Settle,
    Signed,
    Step,
    Succeed,
    Unavailable,
    WriteRefused,
    Written,
    decide,
    retry_delay_ms,
)

NOW = 1_000
START = Saga(payment_id="p", payer_account_id="customer:a", give_up_time_ms=NOW + 60_000)


def run(saga: Saga, *events: Event, now_ms: int = NOW) -> Decision:
    decision = Decision(saga=saga)
    for event in events:
        decision = decide(decision.saga, event, now_ms)
    return decision


def test_internal_payment_goes_forward() -> None:
    assert run(START, Resumed()).action is Action.LOCK
    locked = run(START, Resumed(), Locked("customer:b"))
    assert (locked.action, locked.commit) == (Action.CANCEL_AT_NODE, None)
    pivot = run(locked.saga, NodeFree())
    assert pivot.commit == PostTransfer("customer:b")
    assert pivot.saga.step is Step.COMMIT_INVOICE
    assert run(pivot.saga, Written()).action is Action.COMMIT
    done = run(pivot.saga, Written(), Committed("00"))
    assert (done.commit, done.saga.step) == (Succeed("00"), Step.SIGN_RECEIPT)
    signed = run(done.saga, Written(), Signed("{}"))
    assert (signed.commit, signed.saga.step) == (SaveReceipt("{}"), Step.DONE)
    assert run(signed.saga, Written()) == Decision(saga=signed.saga)


def test_outside_payment_is_in_flight_before_the_node_hears_of_it() -> None:
    dispatch = run(START, Resumed(), NotOurs())
    assert (dispatch.commit, dispatch.saga.step) == (Dispatch(), Step.PROCESS_PAYMENT)
    assert run(dispatch.saga, Written()).action is Action.PAY
    settled = run(dispatch.saga, Written(), NodePaid("00", 5))
    assert (settled.commit, settled.saga.step) == (Settle("00", 5), Step.SIGN_RECEIPT)


def test_a_resumed_node_payment_is_tracked_and_never_simply_paid_again() -> None:
    saga = replace(START, step=Step.PROCESS_PAYMENT)
    assert run(saga, Resumed()).action is Action.TRACK


@pytest.mark.parametrize("event", [NodePending(), Unavailable()])
def test_an_unknown_outcome_stays_in_flight(event: Event) -> None:
    saga = replace(START, step=Step.PROCESS_PAYMENT)
    for now_ms in (NOW, START.give_up_time_ms + 1):
        decision = run(saga, event, now_ms=now_ms)
        assert isinstance(decision.commit, Park)
        assert decision.saga.step is Step.PROCESS_PAYMENT


def test_a_payment_that_the_node_does_not_know_is_handed_over_again_only_while_it_may_be() -> None:
    saga = replace(START, step=Step.PROCESS_PAYMENT)
    assert run(saga, NodeUnknown()).action is Action.PAY
    late = run(saga, NodeUnknown(), now_ms=START.give_up_time_ms)
    assert isinstance(late.commit, Park), "never refunded on NOT_FOUND"


def test_a_definite_failure_of_the_node_releases_the_money() -> None:
    saga = replace(START, step=Step.PROCESS_PAYMENT)
    decision = run(saga, NodeFailed(Failure.NO_ROUTE))
    assert (decision.commit, decision.saga.step) == (Fail(Failure.NO_ROUTE), Step.DONE)


@pytest.mark.parametrize(
    ("events", "failure"),
    [
        ((Locked("customer:a"),), Failure.SAME_ACCOUNT),
        ((Locked("customer:b"), NodeHolds()), Failure.INVOICE_NOT_PAYABLE),
        ((Locked("customer:b"), NodeFree(), "refused"), Failure.NODE_ERROR),
    ],
)
def test_after_a_lock_the_invoice_is_released_before_the_money(events: tuple[object, ...], failure: Failure) -> None:
    saga = START
    for event in events:
        if event == "refused":  # the shell keeps the saga from before the commit that was refused
            event = WriteRefused(failure)
            saga = replace(saga, step=Step.LOCK_INVOICE)
        decision = run(saga, event)  # type: ignore[arg-type]
        saga = decision.saga
    assert (decision.commit, saga.step) == (Remember(), Step.RELEASE_INVOICE)
    assert run(saga, Written()).action is Action.RELEASE
    failed = run(saga, Released())
    assert isinstance(failed.commit, Fail)
    assert failed.commit.failure is failure


def test_a_refused_lock_or_dispatch_fails_at_once() -> None:
    expired = run(START, LockRefused(Failure.INVOICE_EXPIRED))
    assert (expired.commit, expired.saga.step) == (Fail(Failure.INVOICE_EXPIRED), Step.DONE)
    poor = run(START, WriteRefused(Failure.INSUFFICIENT_BALANCE))
    assert (poor.commit, poor.saga.step) == (Fail(Failure.INSUFFICIENT_BALANCE), Step.DONE)


def test_a_lock_that_cannot_be_made_is_given_up_and_released() -> None:
    assert isinstance(run(START, Unavailable()).commit, Park)
    late = run(START, Unavailable(), now_ms=START.give_up_time_ms)
    assert (late.commit, late.saga.step) == (Remember(), Step.RELEASE_INVOICE), "the lock may exist"
    assert late.saga.failure is Failure.TIMEOUT


@pytest.mark.parametrize("step", [Step.COMMIT_INVOICE, Step.RELEASE_INVOICE, Step.SIGN_RECEIPT])
def test_forward_steps_are_retried_for_ever(step: Step) -> None:
    decision = run(replace(START, step=step), *[Unavailable()] * 1_000, now_ms=START.give_up_time_ms * 2)
    patient = step is Step.SIGN_RECEIPT
    assert decision.commit == Park(RETRY_DELAY_MS_MAX_PATIENT if patient else RETRY_DELAY_MS_MAX)
    assert decision.saga.step is step


@given(st.integers(min_value=0, max_value=10_000))
def test_pauses_are_bounded(attempt: int) -> None:
    assert 100 <= retry_delay_ms(attempt) <= RETRY_DELAY_MS_MAX


ANSWERS: dict[Action, list[Event]] = {
    Action.LOCK: [
        Locked("customer:a"),
        Locked("customer:b"),
        LockRefused(Failure.INVOICE_EXPIRED),
        NotOurs(),
        Unavailable(),
    ],
    Action.CANCEL_AT_NODE: [NodeFree(), NodeHolds(), Unavailable()],
    Action.COMMIT: [Committed("00"), Unavailable()],
    Action.RELEASE: [Released(), Unavailable()],
    Action.PAY: [NodePaid("", 1), NodeFailed(Failure.NO_ROUTE), NodePending(), Unavailable()],
    Action.TRACK: [NodePaid("", 1), NodeFailed(Failure.NO_ROUTE), NodePending(), NodeUnknown(), Unavailable()],
    Action.SIGN: [Signed("{}"), Unavailable()],
}


@given(st.data())
def test_random_walks_with_crashes_pay_once_or_not_at_all(data: st.DataObject) -> None:
    """At any point the process may die (only what was committed counts) or the clock jump; money moves once or never."""
    stored, now_ms, moved, final = START, NOW, 0, False
    held, decision = True, decide(START, Resumed(), NOW)
    for _ in range(60):
        if data.draw(st.integers(0, 9), "crash") == 0:
            decision = decide(stored, Resumed(), now_ms)
        elif decision.commit is not None:
            refusable = isinstance(decision.commit, PostTransfer | Dispatch)
            if refusable and data.draw(st.booleans(), "refuse"):
                decision = decide(replace(decision.saga, step=stored.step), WriteRefused(Failure.NODE_ERROR), now_ms)
                continue
            match decision.commit:
                case PostTransfer() | Settle():
                    assert held
                    moved, held = moved + 1, False
                case Fail():
                    assert held, "only what is reserved is released"
                    held = False
                case SaveReceipt() | Succeed():
                    assert moved == 1
            final = decision.saga.step is Step.DONE
            stored = decision.saga
            decision = decide(stored, Resumed() if isinstance(decision.commit, Park) else Written(), now_ms)
        elif decision.action is not None:
            now_ms += data.draw(st.sampled_from([1, 100, 70_000]), "time")
            decision = decide(decision.saga, data.draw(st.sampled_from(ANSWERS[decision.action])), now_ms)
        else:
            assert final
    assert moved <= 1
    assert held + moved <= 1

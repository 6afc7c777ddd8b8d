"""The saga's decisions: every path, every refusal, every order of parallel answers."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.lightning.node import NodeFailed, NodeFailure, NodePaid, NodePending, NodeUnknown
from services.payment.domain.model import Failure
from services.payment.domain.saga import NODE_FAILURES, Decision, Saga, decide, overdue
from services.payment.domain.saga_words import (
    ANSWERED,
    CALL_SECONDS,
    LOOK_DELAY_MS_MAX,
    RECEIPT_GRACE_MS,
    RETRY_DELAY_MS_MAX,
    RETRY_DELAY_MS_MAX_PATIENT,
    SAGA_SECONDS,
    STEP_LIMITS,
    Accepted,
    Action,
    Answer,
    Committed,
    Dispatch,
    Event,
    Fail,
    GraceOver,
    HoldEnded,
    HoldForPayee,
    Locked,
    LockRefused,
    NotOurs,
    Park,
    PostHeld,
    PostTransfer,
    Released,
    Remember,
    Resumed,
    SaveReceipt,
    Settle,
    Signed,
    Step,
    Succeed,
    Unavailable,
    Undecided,
    WriteRefused,
    Written,
    look_delay_ms,
    retry_delay_ms,
)

NOW = 1_000
START = Saga(payment_id="p", payer_account_id="customer:a", give_up_time_ms=NOW + 60_000, step_time_ms=NOW)
COMMITTING = replace(START, step=Step.COMMIT_INVOICE, payee_account_id="customer:b", moved_time_ms=NOW)
HELD = replace(COMMITTING, hold=True)
AWAITING = replace(HELD, step=Step.AWAIT_DECISION)
PROCESSING = replace(START, step=Step.PROCESS_PAYMENT)


def run(saga: Saga, *events: Event, now_ms: int = NOW) -> Decision:
    decision = Decision(saga=saga)
    for event in events:
        decision = decide(decision.saga, event, now_ms)
    return decision


def test_inside_the_mesh_invoice_and_receipt_are_dealt_with_at_once() -> None:
    assert run(START, Resumed()).actions == {Action.LOCK}
    pivot = run(START, Resumed(), Locked("customer:b"))
    assert pivot.commit == PostTransfer("customer:b")
    assert (pivot.saga.step, pivot.saga.moved_time_ms) == (Step.COMMIT_INVOICE, NOW)
    both = run(pivot.saga, Written())
    assert both.actions == both.saga.outstanding == {Action.COMMIT, Action.SIGN}


@pytest.mark.parametrize("events", [(Signed("{}"), Committed("00")), (Committed("00"), Signed("{}"))])
def test_either_order_of_the_parallel_answers_is_one_commit(events: tuple[Event, ...]) -> None:
    first = run(COMMITTING, Written(), events[0])
    assert (first.commit, first.actions) == (None, frozenset())
    done = run(first.saga, events[1])
    assert (done.commit, done.saga.step, done.saga.outstanding) == (Succeed("00", "{}"), Step.DONE, frozenset())
    assert run(done.saga, Written()) == Decision(saga=done.saga)


def test_success_waits_for_the_receipt_only_for_a_moment_and_the_signature_goes_on() -> None:
    waiting = run(COMMITTING, Written(), Committed("00"))
    assert (waiting.commit, waiting.grace_ms) == (None, RECEIPT_GRACE_MS)
    done = run(waiting.saga, GraceOver())
    assert (done.commit, done.saga.step) == (Succeed("00"), Step.SIGN_RECEIPT)
    goes_on = run(done.saga, Written())
    assert (goes_on.actions, goes_on.saga.outstanding) == (frozenset(), {Action.SIGN}), "it is not begun twice"
    assert run(goes_on.saga, Signed("{}")).commit == SaveReceipt("{}")


@pytest.mark.parametrize(
    "events", [(Unavailable(Action.SIGN), Committed("00")), (Committed("00"), Unavailable(Action.SIGN))]
)
def test_a_receipt_that_cannot_be_signed_delays_nothing(events: tuple[Event, ...]) -> None:
    done = run(COMMITTING, Written(), *events)
    assert (done.commit, done.saga.step) == (Succeed("00"), Step.SIGN_RECEIPT)
    assert run(done.saga, Written()).actions == {Action.SIGN}


def test_an_invoice_that_cannot_be_committed_parks_whatever_the_signature_does() -> None:
    for events in ((Signed("{}"), Unavailable(Action.COMMIT, "X")), (Unavailable(Action.COMMIT, "X"),)):
        parked = run(COMMITTING, Written(), *events)
        assert isinstance(parked.commit, Park)
        assert (parked.saga.step, parked.saga.outstanding, parked.saga.error) == (Step.COMMIT_INVOICE, frozenset(), "X")
        assert run(parked.saga, Resumed()).actions == {Action.COMMIT, Action.SIGN}


def test_a_hold_invoice_is_its_owners_to_decide() -> None:
    held = run(START, Resumed(), Locked("customer:b", hold=True))
    assert (held.commit, held.saga.step, held.saga.hold) == (HoldForPayee("customer:b"), Step.COMMIT_INVOICE, True)
    assert run(held.saga, Written()).actions == {Action.COMMIT}, "nothing is signed before the owner decided"
    waiting = run(held.saga, Written(), Accepted())
    assert (waiting.commit, waiting.saga.step) == (Park(1_000, patient=True), Step.AWAIT_DECISION)
    looking = run(waiting.saga, Resumed())
    assert looking.actions == {Action.LOOK}
    undecided = run(looking.saga, Undecided(), now_ms=NOW + 5)
    assert (undecided.commit, undecided.saga.step_time_ms) == (Park(2_000, patient=True), NOW + 5)
    settled = run(looking.saga, Committed("00"))
    assert (settled.commit, settled.saga.step) == (PostHeld("00"), Step.SIGN_RECEIPT)
    ended = run(looking.saga, HoldEnded())
    assert (ended.commit, ended.saga.step) == (Fail(Failure.INVOICE_CANCELED), Step.DONE)


def test_a_hold_that_was_settled_before_it_was_committed_is_posted() -> None:
    assert run(HELD, Resumed(), Committed("00")).commit == PostHeld("00")


@pytest.mark.parametrize("saga", [HELD, AWAITING])
def test_after_hold_for_payee_time_and_failures_release_nothing(saga: Saga) -> None:
    (action,) = run(saga, Resumed()).actions
    for now_ms in (NOW, START.give_up_time_ms * 100):
        parked = run(saga, *[Unavailable(action)] * 50, now_ms=now_ms)
        assert isinstance(parked.commit, Park)
        assert parked.saga.step is saga.step


def test_outside_payment_is_in_flight_before_the_node_hears_of_it() -> None:
    dispatch = run(START, Resumed(), NotOurs())
    assert (dispatch.commit, dispatch.saga.step) == (Dispatch(), Step.PROCESS_PAYMENT)
    assert run(dispatch.saga, Written()).actions == {Action.PAY}
    settled = run(dispatch.saga, Written(), NodePaid("00", 5))
    assert (settled.commit, settled.saga.step) == (Settle("00", 5), Step.SIGN_RECEIPT)
    assert run(settled.saga, Written()).actions == {Action.SIGN}, "the fee is in the receipt"


def test_a_resumed_node_payment_is_tracked_and_never_simply_paid_again() -> None:
    assert run(PROCESSING, Resumed()).actions == {Action.TRACK}


@pytest.mark.parametrize("event", [NodePending(), Unavailable(Action.PAY), Unavailable(Action.TRACK)])
def test_an_unknown_outcome_stays_in_flight(event: Event) -> None:
    for now_ms in (NOW, START.give_up_time_ms + 1):
        decision = run(PROCESSING, event, now_ms=now_ms)
        assert isinstance(decision.commit, Park)
        assert decision.commit.patient
        assert decision.saga.step is Step.PROCESS_PAYMENT


def test_a_payment_that_the_node_does_not_know_is_handed_over_again_only_while_it_may_be() -> None:
    assert run(PROCESSING, Resumed(), NodeUnknown()).actions == {Action.PAY}
    late = run(PROCESSING, NodeUnknown(), now_ms=START.give_up_time_ms)
    assert isinstance(late.commit, Park), "never refunded on NOT_FOUND"
    assert late.saga.error == "NODE_UNKNOWN"


@pytest.mark.parametrize("failure", NodeFailure)
def test_a_definite_failure_of_the_node_releases_the_money(failure: NodeFailure) -> None:
    decision = run(PROCESSING, NodeFailed(failure))
    assert (decision.commit, decision.saga.step) == (Fail(NODE_FAILURES[failure]), Step.DONE)
    assert NODE_FAILURES[failure] is not Failure.INSUFFICIENT_BALANCE, "the payer's balance did suffice"


@pytest.mark.parametrize("commit", [PostTransfer("customer:b"), HoldForPayee("customer:b")])
def test_after_a_lock_the_invoice_is_released_before_the_money(commit: PostTransfer | HoldForPayee) -> None:
    for undone in (run(START, Locked("customer:a")), run(START, WriteRefused(Failure.SAME_ACCOUNT, commit))):
        assert (undone.commit, undone.saga.step) == (Remember(), Step.RELEASE_INVOICE)
        assert run(undone.saga, Written()).actions == {Action.RELEASE}
        assert run(undone.saga, Written(), Released()).commit == Fail(Failure.SAME_ACCOUNT)


def test_a_refused_lock_or_dispatch_fails_at_once() -> None:
    expired = run(START, LockRefused(Failure.INVOICE_EXPIRED))
    assert (expired.commit, expired.saga.step) == (Fail(Failure.INVOICE_EXPIRED), Step.DONE)
    poor = run(START, WriteRefused(Failure.INSUFFICIENT_BALANCE, Dispatch()))
    assert (poor.commit, poor.saga.step) == (Fail(Failure.INSUFFICIENT_BALANCE), Step.DONE)


def test_a_lock_that_cannot_be_made_is_given_up_and_released() -> None:
    parked = run(START, Unavailable(Action.LOCK, "UNAVAILABLE"))
    assert parked.commit == Park(100, patient=False)
    late = run(START, Unavailable(Action.LOCK), now_ms=START.give_up_time_ms)
    assert (late.commit, late.saga.step) == (Remember(), Step.RELEASE_INVOICE), "the lock may exist"
    assert late.saga.failure is Failure.TIMEOUT


@pytest.mark.parametrize(
    ("step", "action"),
    [
        (Step.COMMIT_INVOICE, Action.COMMIT),
        (Step.RELEASE_INVOICE, Action.RELEASE),
        (Step.SIGN_RECEIPT, Action.SIGN),
    ],
)
def test_forward_steps_are_retried_for_ever(step: Step, action: Action) -> None:
    decision = run(replace(START, step=step), *[Unavailable(action)] * 1_000, now_ms=START.give_up_time_ms * 2)
    patient = step is Step.SIGN_RECEIPT
    assert decision.commit == Park(RETRY_DELAY_MS_MAX_PATIENT if patient else RETRY_DELAY_MS_MAX, patient=patient)
    assert decision.saga.step is step


@given(st.integers(min_value=0, max_value=10_000))
def test_pauses_are_bounded(attempt: int) -> None:
    assert 100 <= retry_delay_ms(attempt) <= RETRY_DELAY_MS_MAX
    assert 1_000 <= look_delay_ms(attempt) <= LOOK_DELAY_MS_MAX


def test_every_step_and_every_call_has_a_time_limit() -> None:
    assert set(STEP_LIMITS) == set(Step) - {Step.DONE}
    assert set(CALL_SECONDS) == set(Action)
    assert set(ANSWERED) == set(Answer.__args__) - {Unavailable}  # type: ignore[attr-defined]


@pytest.mark.parametrize("step", STEP_LIMITS)
def test_a_step_whose_time_is_over_is_overdue(step: Step) -> None:
    saga, limit_ms = replace(START, step=step), int(STEP_LIMITS[step].seconds * 1_000)
    assert not overdue(saga, NOW + limit_ms - 1, NOW)
    assert overdue(saga, NOW + limit_ms, NOW)


def test_a_saga_that_is_at_work_for_too_long_is_overdue_and_one_that_waits_for_others_is_not() -> None:
    old_ms = NOW - int(SAGA_SECONDS * 1_000)
    assert overdue(COMMITTING, NOW, old_ms)
    assert not overdue(AWAITING, NOW, old_ms)
    assert not overdue(replace(START, step=Step.DONE), NOW + 10**9, NOW)

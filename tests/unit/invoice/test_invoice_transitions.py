"""The state tables, cell by cell, against the table as the design writes it."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest

from nipmesh.invoice.v1 import invoice_pb2
from services.chassis.errors import CODE_OF, Reason
from services.chassis.secret import SecretBytes
from services.invoice.domain import rules
from services.invoice.domain.invoice import (
    AT_WORK,
    DECIDABLE,
    FINAL,
    NODE,
    AtNode,
    Hold,
    HoldState,
    Invoice,
    Phase,
    State,
)
from services.invoice.domain.rules import (
    LEASE_MS,
    TEXTS,
    LockOrder,
    OtherInvoiceError,
    PreimageMissingError,
    RefusedError,
)
from services.invoice.domain.transitions import HOLD_STEPS, TRANSITIONS, Call, Event, Move, Refuse, Stay, Step

EXPIRE_MS = 10_000
PAYMENT, OTHER = "payment-1", "payment-2"
PREIMAGE = SecretBytes(b"\x01" * 32)
HASH = hashlib.sha256(b"\x01" * 32).hexdigest()
P, S = Phase, State

TABLE = """
           lock      late      commit    commit+   release   late      settle    cancel    deadline  expire
OPEN       LOCKED    !expired  !notlock  !notlock  !notlock  !notlock  !notacc   CANCELED  =         EXPIRED
LOCKED     !locked   !locked   SETTLED   RESERVED  OPEN      EXPIRED   !notacc   !locked   =         =
RESERVED   !locked   !locked   =         =         !locked   !locked   SETTLED   CANCELED  CANCELED  =
ARRIVED    !locked   !locked   !notlock  !notlock  !notlock  !notlock  !notacc   !locked   =         =
HELD       !locked   !locked   !notlock  !notlock  !notlock  !notlock  SETTLING  CANCELING CANCELING =
SETTLING   !locked   !locked   !notlock  !notlock  !notlock  !notlock  =         !locked   =         =
POSTING    !locked   !locked   !notlock  !notlock  !notlock  !notlock  =         !settled  =         =
CANCELING  !locked   !locked   !notlock  !notlock  !notlock  !notlock  !canceled =         =         =
VOIDING    !locked   !locked   !notlock  !notlock  !notlock  !notlock  !canceled =         =         =
SETTLED    !settled  !settled  =         =         !settled  !settled  =         !settled  =         =
CANCELED   !canceled !canceled !notlock  !notlock  !notlock  !notlock  !canceled =         =         =
EXPIRED    !expired  !expired  !notlock  !notlock  !notlock  !notlock  !expired  =         =         =
"""
OUTSIDE = """
           arrive    credit    credit+   refused   taken     gone      posted    voided
OPEN       ARRIVED   =         =         =         =         =         =         =
LOCKED     !locked   =         =         =         =         =         =         =
RESERVED   !locked   =         =         =         =         =         =         =
ARRIVED    =         SETTLING  HELD      CANCELING =         VOIDING   =         =
HELD       =         =         =         =         =         VOIDING   =         =
SETTLING   =         =         =         =         POSTING   VOIDING   =         =
POSTING    =         =         =         =         =         =         SETTLED   =
CANCELING  =         =         =         =         =         VOIDING   =         =
VOIDING    =         =         =         =         =         =         =         CANCELED
SETTLED    !settled  =         =         =         =         =         =         =
CANCELED   !canceled =         =         =         =         =         =         =
EXPIRED    !expired  =         =         =         =         =         =         =
"""
REASONS = {
    "!expired": Reason.INVOICE_EXPIRED,
    "!locked": Reason.INVOICE_LOCKED,
    "!notlock": Reason.INVOICE_NOT_LOCKED,
    "!notacc": Reason.INVOICE_NOT_ACCEPTED,
    "!settled": Reason.INVOICE_ALREADY_SETTLED,
    "!canceled": Reason.INVOICE_ALREADY_CANCELED,
}


def _cells(table: str, events: list[Event]) -> list[tuple[Phase, Event, str]]:
    rows = [line.split() for line in table.strip().splitlines()[1:]]
    return [(Phase[row[0]], event, cell) for row in rows for event, cell in zip(events, row[1:], strict=True)]


CELLS = _cells(TABLE, list(Event)[:10]) + _cells(OUTSIDE, list(Event)[10:])


def an_invoice(phase: Phase = P.OPEN, *, amount_msat: int | None = 1_000, hold: bool | None = None) -> Invoice:
    held = phase.state in (S.ACCEPTED, S.SETTLED)
    hold = phase in DECIDABLE if hold is None else hold
    decided = hold and phase in DECIDABLE | {P.SETTLING, P.POSTING, P.SETTLED}
    invoice = Invoice(
        invoice_id="invoice-1",
        owner_pubkey="aa" * 32,
        account_id="customer:1",
        phase=phase,
        payment_request="lnbcrt1",
        payment_hash=HASH,
        preimage=PREIMAGE,
        amount_msat=amount_msat,
        amount_held_msat=1_000 if phase.state is S.ACCEPTED else 0,
        amount_paid_msat=1_000 if phase is P.SETTLED else 0,
        description="tea",
        description_hash="",
        hold=hold,
        settle_duration_s=60 if hold else 0,
        create_time_ms=1_000,
        expire_time_ms=EXPIRE_MS,
        accept_time_ms=2_000 if decided else None,
        settle_deadline_ms=62_000 if decided else None,
        settle_time_ms=2_000 if phase is P.SETTLED else None,
        update_time_ms=2_000,
        locked_by=(NODE if phase in AT_WORK | {P.HELD} else PAYMENT) if held else None,
    )
    invoice.check()
    return invoice


def a_hold(state: HoldState = HoldState.HELD) -> Hold:
    return Hold(
        payment_id=PAYMENT,
        invoice_id="invoice-1",
        state=state,
        amount_msat=1_000,
        actor_pubkey="cc" * 32,
        update_time_ms=1,
    )


def an_order(payment_id: str = PAYMENT, amount_msat: int = 1_000) -> LockOrder:
    return LockOrder(payment_id=payment_id, amount_msat=amount_msat, actor_pubkey="cc" * 32)


def refused(reason: Reason) -> object:
    return pytest.raises(RefusedError, match=f"^{reason}:")


@pytest.mark.parametrize(("phase", "event", "expected"), CELLS)
def test_each_cell(phase: Phase, event: Event, expected: str) -> None:
    hold = event in (Event.COMMIT_HOLD, Event.CREDIT_HOLD) or phase in DECIDABLE
    invoice = an_invoice(phase, hold=hold)
    facts = {
        Event.LOCK: {"locked_by": PAYMENT, "amount_held_msat": 1_000},
        Event.ARRIVE: {"locked_by": NODE, "amount_held_msat": 1_000},
        Event.COMMIT_HOLD: {"accept_time_ms": 3_000, "settle_deadline_ms": 63_000},
        Event.CREDIT_HOLD: {"accept_time_ms": 3_000, "settle_deadline_ms": 63_000},
    }.get(event, {})
    outcome = TRANSITIONS[phase, event]
    if expected.startswith("!"):
        assert outcome == Refuse(REASONS[expected])
        with refused(REASONS[expected]):
            rules.apply(invoice, event, 3_000, **facts)
    elif expected == "=":
        assert outcome == Stay()
        assert rules.apply(invoice, event, 3_000, **facts) is invoice
    else:
        assert outcome == Move(Phase[expected])
        moved = rules.apply(invoice, event, 3_000, **facts)
        assert moved.phase is Phase[expected]
        assert moved.update_time_ms == (3_000 if rules.is_announced(invoice, moved) else 2_000)
        moved.check()


def test_the_table_is_complete_and_final_states_are_final() -> None:
    assert set(TRANSITIONS) == {(phase, event) for phase in Phase for event in Event}
    assert len(CELLS) == len(TRANSITIONS)
    assert set(HOLD_STEPS) == {(hold, call) for hold in (None, *HoldState) for call in Call}
    assert not [1 for (phase, _), cell in TRANSITIONS.items() if phase.state in FINAL and isinstance(cell, Move)]


def test_each_phase_with_work_has_somebody_who_does_it() -> None:
    for phase in Phase:
        run_ms = rules.next_run_ms(an_invoice(phase), 3_000)
        assert (run_ms == 3_000 + LEASE_MS) == (phase in AT_WORK)
        assert (run_ms == 62_000) == (phase in DECIDABLE)
        assert (run_ms == 3_000) == (phase.state in FINAL), "to be closed at the node"
        assert rules.next_run_ms(replace(an_invoice(phase), at_node=AtNode.CLOSED), 3_000) in (
            (None,) if phase.state in FINAL else (run_ms,)
        )


@pytest.mark.parametrize(
    ("state", "call", "step"),
    [
        (HoldState.RESERVED, Call.LOCK, Step.REPEAT),
        (HoldState.RESERVED, Call.COMMIT, Step.REPEAT),
        (HoldState.RESERVED, Call.RELEASE, Refuse(Reason.INVOICE_LOCKED)),
        (HoldState.RETURNED, Call.LOCK, Refuse(Reason.INVOICE_NOT_LOCKED)),
        (HoldState.RETURNED, Call.COMMIT, Step.REPEAT),
        (HoldState.RETURNED, Call.RELEASE, Step.REPEAT),
    ],
)
def test_a_payment_of_a_hold_invoice_waits_for_its_owner(state: HoldState, call: Call, step: Step | Refuse) -> None:
    assert HOLD_STEPS[state, call] == step


def test_the_states_are_those_of_the_wire() -> None:
    names = {name.removeprefix("STATE_"): number for name, number in invoice_pb2.Invoice.State.items()}
    assert {state.name: state.value for state in State} == {
        name: names[name] for name in names if name != "UNSPECIFIED"
    }


def test_every_refusal_has_a_text_and_a_code() -> None:
    reasons = {cell.reason for cell in (*TRANSITIONS.values(), *HOLD_STEPS.values()) if isinstance(cell, Refuse)}
    assert reasons <= set(TEXTS)
    assert reasons <= set(CODE_OF)


def test_lock_then_commit_pays_the_held_amount() -> None:
    locked, hold = rules.lock(an_invoice(amount_msat=None), None, an_order(amount_msat=77), 3_000)
    assert (locked.phase, locked.locked_by, locked.amount_held_msat, locked.amount_paid_msat) == (
        P.LOCKED,
        PAYMENT,
        77,
        0,
    )
    settled, committed = rules.commit(locked, hold, 4_000)
    assert (settled.phase, settled.amount_held_msat, settled.amount_paid_msat, settled.settle_time_ms) == (
        P.SETTLED,
        0,
        77,
        4_000,
    )
    assert committed.state is HoldState.COMMITTED


@pytest.mark.parametrize("state", [HoldState.HELD, HoldState.COMMITTED])
def test_the_same_payment_locks_again_with_the_same_answer(state: HoldState) -> None:
    invoice = an_invoice(P.LOCKED if state is HoldState.HELD else P.SETTLED)
    assert rules.lock(invoice, a_hold(state), an_order(), EXPIRE_MS + 1) == (invoice, a_hold(state))


def test_the_same_payment_cannot_lock_another_invoice_or_another_amount() -> None:
    with pytest.raises(OtherInvoiceError):
        rules.lock(replace(an_invoice(), invoice_id="invoice-2"), a_hold(), an_order(), 3_000)
    with refused(Reason.INVOICE_AMOUNT_MISMATCH):
        rules.lock(an_invoice(P.LOCKED, amount_msat=None), a_hold(), an_order(amount_msat=5), 3_000)


@pytest.mark.parametrize("amount_msat", [999, 1_001])
def test_the_amount_must_be_the_invoice_s(amount_msat: int) -> None:
    with refused(Reason.INVOICE_AMOUNT_MISMATCH):
        rules.lock(an_invoice(), None, an_order(amount_msat=amount_msat), 3_000)


@pytest.mark.parametrize(
    ("now_ms", "state"), [(EXPIRE_MS - 1, S.OPEN), (EXPIRE_MS, S.EXPIRED), (EXPIRE_MS + 1, S.EXPIRED)]
)
def test_release_opens_the_invoice_again_or_expires_it(now_ms: int, state: State) -> None:
    freed, hold = rules.release(an_invoice(P.LOCKED), a_hold(), now_ms)
    assert (freed.state, freed.locked_by, hold.state) == (state, None, HoldState.RELEASED)


def test_from_its_expire_time_on_an_invoice_cannot_be_locked() -> None:
    assert rules.lock(an_invoice(), None, an_order(), EXPIRE_MS - 1)[0].phase is P.LOCKED
    with refused(Reason.INVOICE_EXPIRED):
        rules.lock(an_invoice(), None, an_order(), EXPIRE_MS)


def test_a_released_payment_never_locks_or_commits_again() -> None:
    for tombstone in (a_hold(HoldState.RELEASED), rules.tombstone(PAYMENT, 1)):
        with refused(Reason.INVOICE_NOT_LOCKED):
            rules.lock(an_invoice(), tombstone, an_order(), 3_000)
        with refused(Reason.INVOICE_NOT_LOCKED):
            rules.commit(an_invoice(), tombstone, 3_000)


def test_a_committed_payment_cannot_be_released() -> None:
    with refused(Reason.INVOICE_ALREADY_SETTLED):
        rules.release(an_invoice(P.SETTLED), a_hold(HoldState.COMMITTED), 3_000)


def test_only_an_open_invoice_whose_time_has_passed_expires() -> None:
    assert rules.expire(an_invoice(), EXPIRE_MS - 1).phase is P.OPEN
    assert rules.expire(an_invoice(), EXPIRE_MS).phase is P.EXPIRED
    for phase in Phase:
        if phase.state is S.ACCEPTED:
            assert rules.expire(an_invoice(phase), EXPIRE_MS + 1).phase is phase


def test_a_clock_that_goes_back_does_not_take_the_update_time_with_it() -> None:
    assert rules.cancel(an_invoice(), 5).update_time_ms == 2_000


def test_a_hold_and_an_invoice_that_disagree_are_a_programmer_s_mistake() -> None:
    with pytest.raises(AssertionError):
        rules.commit(replace(an_invoice(P.LOCKED), locked_by=OTHER), a_hold(), 3_000)
    with pytest.raises(AssertionError):
        replace(an_invoice(), locked_by=PAYMENT).check()
    with pytest.raises(AssertionError):
        replace(a_hold(), invoice_id=None).check()
    with pytest.raises(AssertionError, match="nobody could settle"):
        replace(an_invoice(), preimage=None).check()


# Hold invoices


def test_a_committed_hold_invoice_is_reserved_until_the_deadline() -> None:
    locked, hold = rules.lock(an_invoice(hold=True), None, an_order(), 3_000)
    reserved, held = rules.commit(locked, hold, 4_000)
    assert (reserved.phase, reserved.accept_time_ms, reserved.settle_deadline_ms) == (P.RESERVED, 4_000, 64_000)
    assert (reserved.next_run_ms, held.state) == (64_000, HoldState.RESERVED)
    assert rules.commit(reserved, held, 5_000) == (reserved, held)
    assert rules.miss_deadline(reserved, 63_999) is reserved
    assert rules.miss_deadline(reserved, 64_000).phase is P.CANCELED
    with refused(Reason.INVOICE_LOCKED):
        rules.release(reserved, held, 5_000)


def test_the_owner_s_decision_is_what_the_payment_is_told() -> None:
    reserved, hold = an_invoice(P.RESERVED), a_hold(HoldState.RESERVED)
    settled, canceled = rules.settle(reserved, None, 3_000), rules.cancel(reserved, 3_000)
    assert (settled.phase, settled.amount_paid_msat) == (P.SETTLED, 1_000)
    assert rules.decided_hold(hold, settled, 3_000).state is HoldState.COMMITTED
    assert (canceled.phase, canceled.locked_by) == (P.CANCELED, None)
    assert rules.decided_hold(hold, canceled, 3_000).state is HoldState.RETURNED


@pytest.mark.parametrize("phase", [P.RESERVED, P.HELD])
def test_whoever_keeps_the_preimage_must_say_it(phase: Phase) -> None:
    secret = replace(an_invoice(phase), preimage=None)
    with pytest.raises(PreimageMissingError):
        rules.settle(secret, None, 3_000)
    with refused(Reason.PREIMAGE_MISMATCH):
        rules.settle(secret, SecretBytes(bytes(32)), 3_000)
    assert rules.settle(secret, PREIMAGE, 3_000).preimage == PREIMAGE
    with refused(Reason.INVOICE_NOT_ACCEPTED):
        rules.settle(replace(an_invoice(hold=True), preimage=None), None, 3_000)


# From outside


@pytest.mark.parametrize("amount_msat", [999, 1_001])
def test_money_of_another_amount_goes_back(amount_msat: int) -> None:
    with refused(Reason.INVOICE_AMOUNT_MISMATCH):
        rules.arrive(an_invoice(), amount_msat, 3_000)
    assert rules.arrive(an_invoice(amount_msat=None), amount_msat, 3_000).amount_held_msat == amount_msat


def test_money_that_comes_late_goes_back() -> None:
    assert rules.arrive(an_invoice(), 1_000, EXPIRE_MS - 1).phase is P.ARRIVED
    with refused(Reason.INVOICE_EXPIRED):
        rules.arrive(an_invoice(), 1_000, EXPIRE_MS)
    assert rules.arrive(an_invoice(P.SETTLING), 1_000, EXPIRE_MS).phase is P.SETTLING, "heard of twice"


@pytest.mark.parametrize(
    ("node_deadline_ms", "deadline_ms"),
    [
        (None, 63_000),
        (10_000_000, 63_000),
        (3_000 + 4 * 60_000, 63_000),
        (3_000 + 60_000, 33_000),
        (3_000 + 2_000, 4_000),
        (1_000, 1_000),
    ],
)
def test_the_owner_s_time_ends_before_the_node_s(node_deadline_ms: int | None, deadline_ms: int) -> None:
    held = rules.credited(an_invoice(P.ARRIVED, hold=True), node_deadline_ms, 3_000)
    assert (held.phase, held.settle_deadline_ms) == (P.HELD, deadline_ms)
    assert rules.credited(held, node_deadline_ms, 9_000) is held
    long = replace(an_invoice(P.ARRIVED, hold=True), settle_duration_s=10**6)
    assert rules.credited(long, 10_000_000, 3_000).settle_deadline_ms == 10_000_000 - rules.NODE_MARGIN_MS

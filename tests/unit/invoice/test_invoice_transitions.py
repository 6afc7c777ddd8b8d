"""The state tables, cell by cell, against the table as the design writes it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nipmesh.invoice.v1 import invoice_pb2
from services.chassis.errors import CODE_OF, Reason
from services.chassis.secret import SecretBytes
from services.invoice.domain import rules
from services.invoice.domain.invoice import FINAL, Hold, HoldState, Invoice, State
from services.invoice.domain.rules import TEXTS, LockOrder, OtherInvoiceError, RefusedError
from services.invoice.domain.transitions import HOLD_STEPS, TRANSITIONS, Call, Event, Move, Refuse, Stay

EXPIRE_MS = 10_000
PAYMENT, OTHER = "payment-1", "payment-2"
O, A, S, C, E = State.OPEN, State.ACCEPTED, State.SETTLED, State.CANCELED, State.EXPIRED  # noqa: E741

EXPECTED = {
    # state: lock, lock late, commit, release, release late, cancel, expire
    O: (A, "EXPIRED", "NOT_LOCKED", "NOT_LOCKED", "NOT_LOCKED", C, E),
    A: ("LOCKED", "LOCKED", S, O, E, "LOCKED", "same"),
    S: ("ALREADY_SETTLED", "ALREADY_SETTLED", "same", *["ALREADY_SETTLED"] * 3, "same"),
    C: ("ALREADY_CANCELED", "ALREADY_CANCELED", "NOT_LOCKED", "NOT_LOCKED", "NOT_LOCKED", "same", "same"),
    E: ("EXPIRED", "EXPIRED", "NOT_LOCKED", "NOT_LOCKED", "NOT_LOCKED", "same", "same"),
}
CELLS = [(state, event, EXPECTED[state][at]) for state in State for at, event in enumerate(Event)]


def an_invoice(state: State = State.OPEN, *, amount_msat: int | None = 1_000, locked_by: str = PAYMENT) -> Invoice:
    held = state in (State.ACCEPTED, State.SETTLED)
    invoice = Invoice(
        invoice_id="invoice-1",
        owner_pubkey="aa" * 32,
        account_id="customer:1",
        state=state,
        payment_request="lnbcrt1",
        payment_hash="bb" * 32,
        preimage=SecretBytes(bytes(32)),
        amount_msat=amount_msat,
        amount_paid_msat=1_000 if state is State.SETTLED else 0,
        description="tea",
        description_hash="",
        create_time_ms=1_000,
        expire_time_ms=EXPIRE_MS,
        settle_time_ms=2_000 if state is State.SETTLED else None,
        update_time_ms=2_000,
        locked_by=locked_by if held else None,
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


@pytest.mark.parametrize(("state", "event", "expected"), CELLS)
def test_each_cell(state: State, event: Event, expected: State | str) -> None:
    invoice = an_invoice(state)
    outcome = TRANSITIONS[state, event]
    if isinstance(expected, State):
        assert outcome == Move(expected)
        moved = rules.apply(invoice, event, 3_000, hold=a_hold())
        assert (moved.state, moved.update_time_ms) == (expected, 3_000)
        moved.check()
    elif expected == "same":
        assert outcome == Stay()
        assert rules.apply(invoice, event, 3_000, hold=a_hold()) is invoice
    else:
        assert outcome == Refuse(Reason[f"INVOICE_{expected}"])
        with refused(Reason[f"INVOICE_{expected}"]):
            rules.apply(invoice, event, 3_000, hold=a_hold())


def test_the_table_is_complete_and_final_states_are_final() -> None:
    assert set(TRANSITIONS) == {(state, event) for state in State for event in Event}
    assert set(HOLD_STEPS) == {(hold, call) for hold in (None, *HoldState) for call in Call}
    assert not [1 for (state, _), outcome in TRANSITIONS.items() if state in FINAL and isinstance(outcome, Move)]


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
    assert (locked.state, locked.locked_by, locked.amount_paid_msat) == (A, PAYMENT, 0)
    settled, committed = rules.commit(locked, hold, 4_000)
    assert (settled.state, settled.amount_paid_msat, settled.settle_time_ms) == (S, 77, 4_000)
    assert committed.state is HoldState.COMMITTED


@pytest.mark.parametrize("state", [HoldState.HELD, HoldState.COMMITTED])
def test_the_same_payment_locks_again_with_the_same_answer(state: HoldState) -> None:
    invoice = an_invoice(A if state is HoldState.HELD else S)
    assert rules.lock(invoice, a_hold(state), an_order(), EXPIRE_MS + 1) == (invoice, a_hold(state))


def test_the_same_payment_cannot_lock_another_invoice_or_another_amount() -> None:
    with pytest.raises(OtherInvoiceError):
        rules.lock(replace(an_invoice(), invoice_id="invoice-2"), a_hold(), an_order(), 3_000)
    with refused(Reason.INVOICE_AMOUNT_MISMATCH):
        rules.lock(an_invoice(A, amount_msat=None), a_hold(), an_order(amount_msat=5), 3_000)


@pytest.mark.parametrize("amount_msat", [999, 1_001])
def test_the_amount_must_be_the_invoice_s(amount_msat: int) -> None:
    with refused(Reason.INVOICE_AMOUNT_MISMATCH):
        rules.lock(an_invoice(), None, an_order(amount_msat=amount_msat), 3_000)


@pytest.mark.parametrize(("now_ms", "state"), [(EXPIRE_MS - 1, O), (EXPIRE_MS, E), (EXPIRE_MS + 1, E)])
def test_release_opens_the_invoice_again_or_expires_it(now_ms: int, state: State) -> None:
    freed, hold = rules.release(an_invoice(A), a_hold(), now_ms)
    assert (freed.state, freed.locked_by, hold.state) == (state, None, HoldState.RELEASED)


def test_from_its_expire_time_on_an_invoice_cannot_be_locked() -> None:
    assert rules.lock(an_invoice(), None, an_order(), EXPIRE_MS - 1)[0].state is A
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
        rules.release(an_invoice(S), a_hold(HoldState.COMMITTED), 3_000)


def test_only_an_open_invoice_whose_time_has_passed_expires() -> None:
    assert rules.expire(an_invoice(), EXPIRE_MS - 1).state is O
    assert rules.expire(an_invoice(), EXPIRE_MS).state is E
    assert rules.expire(an_invoice(A), EXPIRE_MS + 1).state is A


def test_a_clock_that_goes_back_does_not_take_the_update_time_with_it() -> None:
    assert rules.cancel(an_invoice(), 5).update_time_ms == 2_000


def test_a_hold_and_an_invoice_that_disagree_are_a_programmer_s_mistake() -> None:
    with pytest.raises(AssertionError):
        rules.commit(an_invoice(A, locked_by=OTHER), a_hold(), 3_000)
    with pytest.raises(AssertionError):
        replace(an_invoice(), locked_by=PAYMENT).check()
    with pytest.raises(AssertionError):
        replace(a_hold(), invoice_id=None).check()

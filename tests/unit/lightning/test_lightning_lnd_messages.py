"""What the adapter of lnd makes of lnd's messages, and which ways it asks lnd about."""

from __future__ import annotations

from typing import Any

import pytest

from services.lightning.lnd.routes import Stretch, stretches
from services.lightning.lnd.translation import BLOCK_MS, outcome, received
from services.lightning.lnd.wire import lightning_pb2 as lnrpc
from services.lightning.node import (
    NodeFailed,
    NodeFailure,
    NodePaid,
    NodePending,
    NodeUnavailableError,
    Received,
    ReceivedState,
)
from services.lightning.payment_request import PaymentRequest, RouteHop

HASH = bytes(range(32))
PREIMAGE = "ab" * 32
OWN_KEY, PAYEE, NEIGHBOUR, GATE = ("02" + digit * 64 for digit in "1234")


def part(*, amount_msat: int = 1_000, blocks: int = 83, accept_time: int = 1_000, state: int = lnrpc.ACCEPTED) -> Any:
    return lnrpc.InvoiceHTLC(
        amt_msat=amount_msat,
        accept_height=300,
        expiry_height=300 + blocks,
        accept_time=accept_time,
        state=lnrpc.InvoiceHTLCState.ValueType(state),
    )


def invoice(state: Any, *parts: Any, paid_msat: int = 0) -> lnrpc.Invoice:
    return lnrpc.Invoice(r_hash=HASH, state=state, htlcs=parts, amt_paid_msat=paid_msat)


def test_what_is_held_is_the_sum_of_its_parts_until_the_first_of_them_is_due() -> None:
    held = invoice(
        lnrpc.Invoice.ACCEPTED,
        part(amount_msat=700, accept_time=1_000),
        part(amount_msat=300, accept_time=1_060, blocks=60),
        part(amount_msat=9_999, blocks=40, state=lnrpc.CANCELED),
        paid_msat=1_000,
    )
    assert received(held) == Received(
        payment_hash=HASH.hex(),
        state=ReceivedState.ACCEPTED,
        amount_msat=1_000,
        settle_deadline_ms=1_060_000 + (60 - 12 - 24) * BLOCK_MS,
    )


def test_a_part_that_leaves_no_time_is_due_when_it_comes() -> None:
    assert received(invoice(lnrpc.Invoice.ACCEPTED, part(blocks=20))).settle_deadline_ms == 1_000_000


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (lnrpc.Invoice.OPEN, Received(payment_hash=HASH.hex(), state=ReceivedState.OPEN)),
        (lnrpc.Invoice.SETTLED, Received(payment_hash=HASH.hex(), state=ReceivedState.SETTLED, amount_msat=1_000)),
        (lnrpc.Invoice.CANCELED, Received(payment_hash=HASH.hex(), state=ReceivedState.CANCELED)),
    ],
)
def test_only_what_is_held_has_a_deadline(state: Any, expected: Received) -> None:
    assert received(invoice(state, part(), paid_msat=1_000)) == expected


def test_states_that_a_later_lnd_may_have_are_no_answer() -> None:
    with pytest.raises(NodeUnavailableError):
        received(invoice(9))
    for status in (lnrpc.Payment.UNKNOWN, 9):
        with pytest.raises(NodeUnavailableError):
            outcome(lnrpc.Payment(status=status))


@pytest.mark.parametrize(
    ("payment", "expected"),
    [
        (lnrpc.Payment(status=lnrpc.Payment.INITIATED), NodePending()),
        (lnrpc.Payment(status=lnrpc.Payment.IN_FLIGHT, fee_msat=5), NodePending()),
        (
            lnrpc.Payment(status=lnrpc.Payment.SUCCEEDED, payment_preimage=PREIMAGE, fee_msat=5),
            NodePaid(PREIMAGE, 5),
        ),
        *(
            (lnrpc.Payment(status=lnrpc.Payment.FAILED, failure_reason=reason), NodeFailed(failure))
            for reason, failure in (
                (lnrpc.FAILURE_REASON_TIMEOUT, NodeFailure.TIMEOUT),
                (lnrpc.FAILURE_REASON_NO_ROUTE, NodeFailure.NO_ROUTE),
                (lnrpc.FAILURE_REASON_ERROR, NodeFailure.ERROR),
                (lnrpc.FAILURE_REASON_INCORRECT_PAYMENT_DETAILS, NodeFailure.INCORRECT_PAYMENT_DETAILS),
                (lnrpc.FAILURE_REASON_INSUFFICIENT_BALANCE, NodeFailure.INSUFFICIENT_BALANCE),
                (lnrpc.FAILURE_REASON_CANCELED, NodeFailure.ERROR),
            )
        ),
    ],
)
def test_a_payments_status_is_its_outcome(payment: lnrpc.Payment, expected: object) -> None:
    assert outcome(payment) == expected


# ---- ways


def hop(pubkey: str, base_msat: int, millionths: int, delay: int) -> RouteHop:
    return RouteHop(
        pubkey=pubkey,
        short_channel_id=1,
        fee_base_msat=base_msat,
        fee_proportional_millionths=millionths,
        cltv_expiry_delta=delay,
    )


def ways(*hints: tuple[RouteHop, ...]) -> list[Stretch]:
    request = PaymentRequest(
        currency="sb",
        payee_pubkey=PAYEE,
        payment_hash="00" * 32,
        payment_secret="00" * 32,
        amount_msat=1_000_000,
        create_time_s=0,
        description="",
        route_hints=hints,
    )
    return list(stretches(request, 1_000_001, OWN_KEY))


def test_without_hints_the_payee_is_the_goal_and_the_amount_is_rounded_up() -> None:
    [straight] = ways()
    assert straight == Stretch(destination=PAYEE, amount_msat=1_000_001)
    assert straight.amount_sat == 1_001


def test_a_hints_hops_charge_for_what_they_carry_the_last_first() -> None:
    _, hinted = ways((hop(GATE, 100, 0, 40), hop(NEIGHBOUR, 1_000, 10_000, 30)))
    last = 1_000 + 10_000
    assert hinted == Stretch(
        destination=GATE, amount_msat=1_000_001 + last + 100, rest_fee_msat=last + 100, rest_delay_blocks=70
    )


def test_ones_own_channel_charges_nothing() -> None:
    _, hinted = ways((hop(OWN_KEY, 5_000, 5_000, 40), hop(NEIGHBOUR, 7, 0, 30)))
    assert hinted == Stretch(destination=OWN_KEY, amount_msat=1_000_008, rest_fee_msat=7, rest_delay_blocks=30)

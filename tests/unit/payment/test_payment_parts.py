"""The small pure parts: transfers of a payment, receipts, reading invoices, enums of the API."""

from __future__ import annotations

import time
from dataclasses import replace
from enum import IntEnum
from typing import Any

import pytest

from nipmesh.common.v1 import error_pb2
from nipmesh.payment.v1 import payment_pb2
from services.payment.domain import model, transfers
from services.payment.domain.invoice import amount_to_pay_msat, read_invoice
from services.payment.domain.ledger import net_deltas
from services.payment.domain.model import Payment, PaymentState, Reason, Refused, TransferKind
from services.payment.domain.receipt import derived_request_id, receipt_tags
from services.payment.store import sagas
from support.settlement import payment_request

PAYMENT = Payment(
    payment_id="01a1fdd1-177a-7167-8620-8206803123ef",
    account_id="customer:a",
    scope="a1" * 32,
    request_id="r",
    state=PaymentState.RESERVED,
    payment_request="lnbcrt1",
    payment_hash="00" * 32,
    amount_msat=1_000,
    fee_limit_msat=10,
)


@pytest.mark.parametrize(
    ("ours", "theirs", "prefix"),
    [
        (model.AccountState, payment_pb2.Account.State, "STATE_"),
        (model.TransferKind, payment_pb2.Transfer.Kind, "KIND_"),
        (model.Purpose, payment_pb2.Transfer.Purpose, "PURPOSE_"),
        (model.PaymentState, payment_pb2.Payment.State, "STATE_"),
        (model.Failure, payment_pb2.Payment.FailureReason, "FAILURE_REASON_"),
    ],
)
def test_our_numbers_are_those_of_the_api(ours: type[IntEnum], theirs: Any, prefix: str) -> None:
    wanted = {name.removeprefix(prefix): number for name, number in theirs.items() if number}
    assert {item.name: item.value for item in ours if item.value} == wanted


def test_our_reasons_are_those_of_the_api() -> None:
    names = {name.removeprefix("ERROR_REASON_") for name, _ in error_pb2.ErrorReason.items()}
    assert {reason.value for reason in Reason} <= names


def test_step_states_are_those_of_the_api() -> None:
    states = payment_pb2.SagaStep.State
    assert (
        states.Value("STATE_RUNNING"),
        states.Value("STATE_DONE"),
        states.Value("STATE_FAILED"),
        states.Value("STATE_COMPENSATED"),
    ) == (sagas.STEP_RUNNING, sagas.STEP_DONE, sagas.STEP_FAILED, sagas.STEP_COMPENSATED)


def totals(*made: model.Transfer) -> dict[str, tuple[int, int]]:
    """Per account what is available and what is pending, after these transfers."""
    pending = {transfer.transfer_id: transfer for transfer in made if transfer.kind is TransferKind.PENDING}
    return {
        delta.account_id: (delta.available_msat, delta.debits_pending_msat + delta.credits_pending_msat)
        for delta in net_deltas(made, pending)
    }


def test_a_payment_inside_moves_the_amount_and_leaves_nothing_held() -> None:
    hold = transfers.hold(PAYMENT, 1)
    assert totals(hold)["customer:a"] == (-1_000, 1_000)
    moved = totals(hold, *transfers.post_inside(PAYMENT, "customer:b", 2))
    assert moved == {"customer:a": (-1_000, 0), "customer:b": (1_000, 0), "node:lightning": (0, 0)}


@pytest.mark.parametrize("fee_msat", [0, 3, 10])
def test_a_payment_outside_costs_amount_and_fee(fee_msat: int) -> None:
    held = (transfers.hold(PAYMENT, 1), *transfers.fee_hold(PAYMENT, 1))
    moved = totals(*held, *transfers.settle_outside(PAYMENT, fee_msat, 2))
    assert moved["customer:a"] == (-1_000 - fee_msat, 0)
    assert moved["node:lightning"] == (1_000, 0)
    assert moved["fees:routing"] == (fee_msat, 0)


def test_a_failure_frees_what_was_held_at_that_point() -> None:
    hold = transfers.hold(PAYMENT, 1)
    assert totals(hold, *transfers.release(PAYMENT, 2))["customer:a"] == (0, 0)
    flying = replace(PAYMENT, state=PaymentState.IN_FLIGHT)
    assert totals(hold, *transfers.fee_hold(flying, 1), *transfers.release(flying, 2))["customer:a"] == (0, 0)
    free = replace(flying, fee_limit_msat=0)
    assert transfers.fee_hold(free, 1) == ()
    assert totals(hold, *transfers.release(free, 2))["customer:a"] == (0, 0)


@pytest.mark.parametrize(("settled", "payer", "payee"), [(True, -1_000, 1_000), (False, 0, 0)])
def test_what_is_held_for_a_payee_is_moved_or_freed(settled: bool, payer: int, payee: int) -> None:
    hold = transfers.hold(PAYMENT, 1)
    held = (hold, *transfers.hold_for_payee(PAYMENT, "customer:b", 2))
    assert totals(*held) == {"customer:a": (-1_000, 1_000), "customer:b": (0, 1_000), "node:lightning": (0, 0)}
    flying = replace(PAYMENT, state=PaymentState.IN_FLIGHT, internal=True, payee_account_id="customer:b")
    end = (transfers.post_held(flying, 3),) if settled else transfers.release(flying, 3)
    assert totals(*held, *end) == {"customer:a": (payer, 0), "customer:b": (payee, 0), "node:lightning": (0, 0)}


def test_derived_ids_are_the_same_for_every_attempt() -> None:
    assert derived_request_id("p", "hold") == derived_request_id("p", "hold")
    assert len({derived_request_id("p", step) for step in ("hold", "post", "void", "sign_receipt")}) == 4


def test_receipts_say_when_no_bitcoin_moved() -> None:
    names = [tag[0] for tag in receipt_tags(PAYMENT, "a1" * 32, "")]
    assert "simulated" not in names
    assert "p" not in names
    assert "simulated" in [tag[0] for tag in receipt_tags(replace(PAYMENT, simulated=True), "a1" * 32, "")]


def test_invoices_are_read() -> None:
    now_s = int(time.time())
    text = payment_request(amount_msat=None, description="tea", create_time_s=now_s, expiry_s=60)
    invoice = read_invoice(text.upper(), "bcrt")
    assert (invoice.payment_request, invoice.description) == (text, "tea")
    assert invoice.expire_time_ms == (now_s + 60) * 1_000
    assert amount_to_pay_msat(invoice, 5) == 5
    with pytest.raises(Refused) as caught:
        read_invoice(text[:-1] + ("q" if text[-1] != "q" else "p"), "bcrt")
    assert caught.value.reason is Reason.PAYMENT_REQUEST_INVALID

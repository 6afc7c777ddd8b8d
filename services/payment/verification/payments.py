"""Every payment against its transfers and its saga."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from services.payment.domain.model import (
    FINAL_STATES,
    NODE_ACCOUNT,
    ROUTING_FEES_ACCOUNT,
    Payment,
    PaymentState,
    Purpose,
    Transfer,
    TransferKind,
)
from services.payment.store.entries import TRANSFER_COLUMNS, transfer_of_row
from services.payment.store.payments import COLUMNS, payment_of_row
from services.payment.store.sagas import DONE
from services.payment.verification.report import Report
from services.storage.sql import Connection

ROWS_MAX: Final = 500
"""Payments read at a time, with all their transfers."""
ORPHANS_MAX: Final = 100
"""Transfers of no payment, and sagas of none, that are shown."""
RECEIPT_STEP: Final = "sign_receipt"
"""The one step that is left for a saga once its payment is final."""
_PAYMENTS: Final = f"SELECT number, {', '.join(COLUMNS)} FROM payment WHERE number > ? ORDER BY number LIMIT ?"  # noqa: S608
_ORPHANS: Final = (
    "SELECT transfer.number, transfer.transfer_id FROM transfer LEFT JOIN payment ON payment.payment_id = transfer.payment_id"
    " WHERE transfer.payment_id IS NOT NULL AND payment.payment_id IS NULL ORDER BY transfer.number LIMIT ?"
)
_LONELY_SAGAS: Final = (
    "SELECT saga.id FROM saga LEFT JOIN payment ON payment.payment_id = saga.id WHERE payment.payment_id IS NULL"
    " ORDER BY saga.id LIMIT ?"
)


@dataclass(slots=True)
class Money:
    """What the transfers of one payment add up to. `held` and `moved`: (purpose, credited account) -> millisatoshi."""

    held: dict[tuple[Purpose, str], int] = field(default_factory=dict)
    moved: dict[tuple[Purpose, str], int] = field(default_factory=dict)
    refunded_msat: int = 0
    strange: list[Transfer] = field(default_factory=list)
    """Transfers that do not debit the payer, or are refunds that do not credit it."""


def check_payments(connection: Connection, report: Report) -> None:
    """All payments, then what belongs to none."""
    after = 0
    while rows := connection.execute(_PAYMENTS, (after, ROWS_MAX)).fetchall():
        after = rows[-1][0]
        payments = [payment for row in rows if (payment := _read(row, report)) is not None]
        transfers, sagas = _transfers(connection, payments), _sagas(connection, payments)
        for payment in payments:
            report.checked["payments"] += 1
            _check_money(report, payment, _money(payment, transfers.get(payment.payment_id, ())))
            _check_saga(report, payment, sagas.get(payment.payment_id))
    for number, transfer_id in connection.execute(_ORPHANS, (ORPHANS_MAX,)).fetchall():
        report.violate("payment.kept", "the payment of this transfer is gone", f"entry {number}", transfer_id)
    for (saga_id,) in connection.execute(_LONELY_SAGAS, (ORPHANS_MAX,)).fetchall():
        report.violate("saga.payment", "the payment of this saga is gone", saga_id)


def _read(row: Sequence[Any], report: Report) -> Payment | None:
    try:
        return payment_of_row(row[1:])
    except (ValueError, TypeError):
        report.violate("payment.readable", "a column holds what was never written there", f"payment row {row[0]}")
        return None


def _transfers(connection: Connection, payments: Sequence[Payment]) -> dict[str, list[Transfer]]:
    found: dict[str, list[Transfer]] = {}
    marks = ", ".join("?" * len(payments))
    sql = f"SELECT {TRANSFER_COLUMNS} FROM transfer WHERE payment_id IN ({marks}) ORDER BY number"  # noqa: S608
    for row in connection.execute(sql, [payment.payment_id for payment in payments]).fetchall() if payments else ():
        try:
            transfer = transfer_of_row(row)
        except (ValueError, AssertionError):
            continue  # reported by the walk along the chain
        found.setdefault(transfer.payment_id, []).append(transfer)
    return found


def _sagas(connection: Connection, payments: Sequence[Payment]) -> dict[str, tuple[str, int]]:
    """(step, state) by payment."""
    marks = ", ".join("?" * len(payments))
    sql = f"SELECT id, step, state FROM saga WHERE id IN ({marks})"  # noqa: S608
    rows = connection.execute(sql, [payment.payment_id for payment in payments]).fetchall() if payments else ()
    return {row[0]: (row[1], row[2]) for row in rows}


def _money(payment: Payment, transfers: Sequence[Transfer]) -> Money:
    money = Money()
    reserved = {one.transfer_id: one for one in transfers if one.kind is TransferKind.PENDING}
    for transfer in transfers:
        refund = transfer.purpose is Purpose.REFUND
        payer = transfer.credit_account_id if refund else transfer.debit_account_id
        if payer != payment.account_id or (refund and transfer.kind is not TransferKind.POSTED):
            money.strange.append(transfer)
        elif refund:
            money.refunded_msat += transfer.amount_msat
        else:
            _add(money, transfer, reserved)
    return money


def _add(money: Money, transfer: Transfer, reserved: dict[str, Transfer]) -> None:
    key = (transfer.purpose, transfer.credit_account_id)
    if transfer.kind is TransferKind.PENDING:
        money.held[key] = money.held.get(key, 0) + transfer.amount_msat
    elif transfer.kind is not TransferKind.POSTED:
        held = reserved.get(transfer.pending_transfer_id)
        money.held[key] = money.held.get(key, 0) - (held.amount_msat if held is not None else 0)
    if transfer.kind in (TransferKind.POSTED, TransferKind.POST_PENDING):
        money.moved[key] = money.moved.get(key, 0) + transfer.amount_msat


def _check_money(report: Report, payment: Payment, money: Money) -> None:
    name, state = payment.payment_id, payment.state
    for transfer in money.strange:
        report.violate("payment.accounts", "a transfer of it is not the payer's", name, transfer.transfer_id)
    held = {key: value for key, value in money.held.items() if value}
    moved = {key: value for key, value in money.moved.items() if value}
    allowed = (held, moved) in _allowed(payment)
    words = f"in state {state.name} it holds {_words(held)} and has moved {_words(moved)}"
    report.expect(allowed, "payment.money", words, name)
    meaning = f"it says {payment.refunded_msat} msat were given back, its transfers say {money.refunded_msat}"
    report.expect(payment.refunded_msat == money.refunded_msat, "payment.refunds", meaning, name)
    if state in (PaymentState.SUCCEEDED, PaymentState.REFUNDED):
        whole = payment.refunded_msat == payment.amount_msat
        report.expect(whole == (state is PaymentState.REFUNDED), "payment.refunded", "state and refunds differ", name)
    fits = 0 <= payment.fee_msat <= payment.fee_limit_msat
    report.expect(fits, "payment.fee", f"a fee of {payment.fee_msat} msat, at most {payment.fee_limit_msat}", name)


Sums = dict[tuple[Purpose, str], int]


def _allowed(payment: Payment) -> tuple[tuple[Sums, Sums], ...]:
    """What a payment may hold and have moved in its state, as pairs."""
    credited = payment.payee_account_id if payment.internal else NODE_ACCOUNT
    amount: Sums = {(Purpose.PAYMENT, credited): payment.amount_msat}
    fee_key = (Purpose.ROUTING_FEE, ROUTING_FEES_ACCOUNT)
    match payment.state:
        case PaymentState.RESERVED:
            return (({(Purpose.PAYMENT, NODE_ACCOUNT): payment.amount_msat}, {}),)
        case PaymentState.IN_FLIGHT if payment.internal:  # moved at the pivot, or held for the owner of a hold invoice
            return (({}, amount), (amount, {}))
        case PaymentState.IN_FLIGHT:
            limit: Sums = {fee_key: payment.fee_limit_msat} if payment.fee_limit_msat else {}
            return ((amount | limit, {}),)
        case PaymentState.SUCCEEDED | PaymentState.REFUNDED:
            fee: Sums = {fee_key: payment.fee_msat} if payment.fee_msat else {}
            return (({}, amount | fee),)
        case _:
            return (({}, {}),)


def _words(sums: Sums) -> str:
    parts = [f"{value} msat for {account} ({purpose.name})" for (purpose, account), value in sorted(sums.items())]
    return ", ".join(parts) or "nothing"


def _check_saga(report: Report, payment: Payment, saga: tuple[str, int] | None) -> None:
    """Whoever holds money is driven; what is final is done, or only waits for its receipt."""
    if saga is None:
        driven = payment.state is PaymentState.FAILED
        report.expect(driven, "saga.kept", f"in state {payment.state.name} nobody drives it", payment.payment_id)
        return
    report.checked["sagas"] += 1
    step, state = saga
    final = payment.state in FINAL_STATES
    done = state == DONE
    meaning = f"its saga is {'done' if done else 'not done'} at {step}, the payment is {payment.state.name}"
    agrees = final if done or step == RECEIPT_STEP else not final
    report.expect(agrees, "saga.state", meaning, payment.payment_id)

"""What happens in the simulated network, as functions inside a transaction: payments begin, end, arrive, are taken and given back.

Nothing moves by itself: `advance` does all whose time has come, and whoever asks calls it first.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any, Final

from services.lightning.node import (
    NodeFailed,
    NodeFailure,
    NodePaid,
    NodePending,
    NodeRefusedError,
    NodeUnknown,
    Received,
    ReceivedState,
)
from services.lightning.payment_request import PaymentRequest
from services.lightning.simulated import received as invoices
from services.lightning.simulated.channels import Balances, free, held_of, hold, route_of, route_text
from services.lightning.simulated.network import Network
from services.lightning.simulated.planning import Fate, Plan, Task, plan_payment
from services.lightning.simulated.profile import Profile
from services.lightning.simulated.words import Behaviour, Words
from services.storage.sql import Connection, value_of

Outcome = NodePaid | NodeFailed | NodePending | NodeUnknown
IN_FLIGHT, PAID, FAILED = 1, 2, 3
BEFORE_EXPIRY_BLOCKS: Final = 12
"""Held money goes back this long before its time lock passes, as lnd does: else the payer's side closes the channel."""
ADVANCED_MAX: Final = 256
"""Payments that one transaction moves on; the next one does the rest."""
RULED_HANG_BLOCKS: Final = 144
"""A day: how long a payment hangs that somebody ordered to."""
NOWHERE: Final = ""
"""The route of an attempt that found none."""
MS_PER_SECOND: Final = 1_000
OVERPAID_FACTOR_MAX: Final = 2
"""BOLT4: a payee accepts up to twice what the invoice asks for."""

BEGIN: Final = """
INSERT INTO attempt (payment_hash, state, fate, failure, payee, amount_msat, fee_msat, preimage, route, final_delta_blocks,
  arrived, due_time_ms, times_begun, times_paid)
VALUES (:payment_hash, 1, :fate, :failure, :payee, :amount_msat, :fee_msat, :preimage, :route, :final_delta_blocks,
  0, :due_time_ms, 1, 0)
ON CONFLICT (payment_hash) DO UPDATE SET
  state = 1, fate = :fate, failure = :failure, payee = :payee, amount_msat = :amount_msat, fee_msat = :fee_msat,
  preimage = :preimage, route = :route, final_delta_blocks = :final_delta_blocks, arrived = 0, due_time_ms = :due_time_ms,
  times_begun = attempt.times_begun + 1
WHERE attempt.state = 3
"""
DUE: Final = """
SELECT payment_hash, fate, failure, payee, amount_msat, preimage, final_delta_blocks FROM attempt
WHERE state = 1 AND arrived = 0 AND due_time_ms <= ? ORDER BY due_time_ms, payment_hash LIMIT ?
"""
FINISH: Final = """
UPDATE attempt SET state = :state, failure = :failure, preimage = :preimage, times_paid = times_paid + :paid
WHERE payment_hash = :payment_hash AND state = 1
"""
NEXT: Final = """
SELECT min(moment_ms) FROM (
  SELECT min(due_time_ms) AS moment_ms FROM attempt WHERE state = 1 AND arrived = 0
  UNION ALL SELECT min(deadline_ms) FROM received WHERE state = 2
) AS moments
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What does not change: the network, and how it behaves."""

    network: Network
    profile: Profile

    def held_until_ms(self, final_delta_blocks: int, now_ms: int) -> int:
        """When money that arrives now must go back."""
        return now_ms + max(1, final_delta_blocks - BEFORE_EXPIRY_BLOCKS) * self.profile.block_ms


# ---- paying


def begin(connection: Connection, world: World, task: Task, preimage: str, now_ms: int) -> bool:
    """Begin to pay unless an attempt runs or has paid; whether it began. `preimage` is what the payee would reveal."""
    advance(connection, world, now_ms)
    state, times = _standing(connection, task.payment_hash)
    if state in (IN_FLIGHT, PAID):
        return False
    task = replace(task, number=times + 1, words=_ruled(connection, task))
    plan = plan_payment(world.network, world.profile, Balances(connection), task)
    _insert(connection, task, plan, preimage, now_ms + plan.delay_ms)
    advance(connection, world, now_ms)
    return True


def _insert(connection: Connection, task: Task, plan: Plan, preimage: str, due_time_ms: int) -> None:
    held = held_of(plan.route)
    values = {
        "payment_hash": task.payment_hash,
        "fate": plan.fate.value,
        "failure": plan.failure.value,
        "payee": task.payee,
        "amount_msat": task.amount_msat,
        "fee_msat": plan.fee_msat,
        "preimage": preimage,
        "route": NOWHERE if plan.route is None else route_text(held),
        "final_delta_blocks": task.final_delta_blocks,
        "due_time_ms": due_time_ms,
    }
    connection.execute(BEGIN, values)
    assert connection.changes() == 1, "only a failed attempt is followed by another"
    hold(connection, held)


def _standing(connection: Connection, payment_hash: str) -> tuple[int, int]:
    """State of the newest attempt and how many there were; zeros when there was none."""
    sql = "SELECT state, times_begun FROM attempt WHERE payment_hash = ?"
    row = connection.execute(sql, (payment_hash,)).fetchone()
    return (0, 0) if row is None else (row[0], row[1])


def _ruled(connection: Connection, task: Task) -> Words:
    """What the description asks for, unless somebody ruled otherwise."""
    word = value_of(connection.execute("SELECT word FROM ruling WHERE payment_hash = ?", (task.payment_hash,)))
    return task.words if word is None else replace(task.words, behaviour=Behaviour(word))


def outcome_of(connection: Connection, payment_hash: str) -> Outcome:
    """What became of the newest attempt, as far as it was moved on."""
    sql = "SELECT state, failure, preimage, fee_msat FROM attempt WHERE payment_hash = ?"
    row = connection.execute(sql, (payment_hash,)).fetchone()
    if row is None:
        return NodeUnknown()
    state, failure, preimage, fee_msat = row
    if state == IN_FLIGHT:
        return NodePending()
    return NodePaid(preimage, fee_msat) if state == PAID else NodeFailed(NodeFailure(failure))


def rule(connection: Connection, world: World, payment_hash: str, behaviour: Behaviour, now_ms: int) -> None:
    """Order what becomes of a payment: of the attempt that is on its way, and of those that begin later."""
    sql = """
    INSERT INTO ruling (payment_hash, word) VALUES (:payment_hash, :word)
    ON CONFLICT (payment_hash) DO UPDATE SET word = :word
    """
    connection.execute(sql, {"payment_hash": payment_hash, "word": behaviour.value})
    fate = {Behaviour.PAY: Fate.PAID, Behaviour.FAIL: Fate.FAILED, Behaviour.HANG: Fate.HANGS}[behaviour]
    failure = NodeFailure.TIMEOUT if fate is Fate.HANGS else NodeFailure.NO_ROUTE
    due_ms = now_ms if fate is not Fate.HANGS else now_ms + RULED_HANG_BLOCKS * world.profile.block_ms
    sql = """
    UPDATE attempt SET fate = ?, failure = ?, due_time_ms = ?
    WHERE payment_hash = ? AND state = 1 AND arrived = 0 AND route <> ?
    """
    connection.execute(sql, (fate.value, failure.value, due_ms, payment_hash, NOWHERE))
    advance(connection, world, now_ms)


def next_moment_ms(connection: Connection) -> int | None:
    """When something happens next by itself."""
    moment_ms = value_of(connection.execute(NEXT))
    return None if moment_ms is None else int(moment_ms)


def advance(connection: Connection, world: World, now_ms: int) -> None:
    """Do what is due: attempts end or arrive, money that was held too long goes back."""
    moment_ms = next_moment_ms(connection)
    if moment_ms is None or moment_ms > now_ms:
        return
    for row in connection.execute(DUE, (now_ms, ADVANCED_MAX)).fetchall():
        _end(connection, world, row, now_ms)
    for payment_hash in invoices.overdue(connection, now_ms, ADVANCED_MAX):
        cancel(connection, payment_hash, now_ms)


def _end(connection: Connection, world: World, row: tuple[Any, ...], now_ms: int) -> None:
    """An attempt ends as it was planned; at a payee that shares the file, the payee decides."""
    payment_hash, fate, failure, payee, amount_msat, preimage, deadline_blocks = row
    if fate != Fate.PAID:
        _finish(connection, payment_hash, FAILED, NodeFailure(failure))
    elif not invoices.is_receiver(connection, payee):
        _finish(connection, payment_hash, PAID, preimage=preimage)
    elif invoices.find_received(connection, payment_hash) is not None:
        _finish(connection, payment_hash, FAILED, NodeFailure.INCORRECT_PAYMENT_DETAILS)
    else:
        deadline_ms = world.held_until_ms(deadline_blocks, now_ms)
        accept(connection, payment_hash, amount_msat, deadline_ms, now_ms, payer=invoices.NODE)
        connection.execute("UPDATE attempt SET arrived = 1 WHERE payment_hash = ?", (payment_hash,))


def _finish(
    connection: Connection,
    payment_hash: str,
    state: int,
    failure: NodeFailure = NodeFailure.ERROR,
    *,
    preimage: str = "",
) -> None:
    """The end of an attempt: written once, and the channels are free again."""
    sql = "SELECT route FROM attempt WHERE payment_hash = ? AND state = 1"
    route = value_of(connection.execute(sql, (payment_hash,)))
    assert route is not None, "an attempt ends once"
    values = {"state": state, "failure": failure.value, "preimage": preimage, "paid": int(state == PAID)}
    connection.execute(FINISH, {"payment_hash": payment_hash, **values})
    if route != NOWHERE:
        free(connection, route_of(route), arrived=state == PAID)


# ---- being paid


def accept(
    connection: Connection, payment_hash: str, amount_msat: int, deadline_ms: int, now_ms: int, *, payer: str
) -> Received:
    """Money came for an invoice: it is held."""
    received = Received(
        payment_hash=payment_hash,
        state=ReceivedState.ACCEPTED,
        amount_msat=amount_msat,
        settle_deadline_ms=deadline_ms,
    )
    invoices.store_received(connection, received, now_ms, payer=payer)
    return received


def pay_from_outside(
    connection: Connection, world: World, request: PaymentRequest, amount_msat: int, now_ms: int
) -> Received:
    """Somebody outside pays an invoice of a node of this file, or has paid it. Raises NodeRefusedError."""
    advance(connection, world, now_ms)
    if not invoices.is_receiver(connection, request.payee_pubkey):
        raise NodeRefusedError("unknown", "no node here made this invoice")
    found = invoices.find_received(connection, request.payment_hash)
    if found is not None:
        if (
            found.state is ReceivedState.CANCELED
            or invoices.payer_of(connection, request.payment_hash) != invoices.OUTSIDE
        ):
            raise NodeRefusedError(found.state.value, "the invoice takes no money any more")
        return found
    if not is_payable(request, amount_msat, now_ms):
        raise NodeRefusedError("details", "the invoice is expired, or the amount is not what it asks for")
    deadline_ms = world.held_until_ms(request.min_final_cltv_expiry_delta, now_ms)
    return accept(connection, request.payment_hash, amount_msat, deadline_ms, now_ms, payer=invoices.OUTSIDE)


def is_payable(request: PaymentRequest, amount_msat: int, now_ms: int) -> bool:
    """Whether the payee accepts so much now."""
    if now_ms >= request.expire_time_s * MS_PER_SECOND or amount_msat <= 0:
        return False
    asked_msat = request.amount_msat
    return asked_msat is None or asked_msat <= amount_msat <= asked_msat * OVERPAID_FACTOR_MAX


def settle(connection: Connection, world: World, preimage: bytes, now_ms: int) -> None:
    """Take what is held; whoever pays gets the preimage. Raises NodeRefusedError."""
    advance(connection, world, now_ms)
    payment_hash = hashlib.sha256(preimage).hexdigest()
    found = invoices.find_received(connection, payment_hash)
    if found is not None and found.state is ReceivedState.SETTLED:
        return
    if found is None or found.state is not ReceivedState.ACCEPTED:
        reason = "open" if found is None else found.state.value
        raise NodeRefusedError(reason, "no money is held for this preimage")
    received = replace(found, state=ReceivedState.SETTLED, settle_deadline_ms=None)
    invoices.store_received(connection, received, now_ms, preimage=preimage.hex())
    if invoices.payer_of(connection, payment_hash) == invoices.NODE:
        _finish(connection, payment_hash, PAID, preimage=preimage.hex())


def cancel(connection: Connection, payment_hash: str, now_ms: int) -> None:
    """Give back what is held, and take nothing for this hash any more. Raises NodeRefusedError when it was settled."""
    canceled = Received(payment_hash=payment_hash, state=ReceivedState.CANCELED)
    if invoices.store_first(connection, canceled):
        return
    found = invoices.find_received(connection, payment_hash)
    if found is not None and found.state is ReceivedState.SETTLED:
        raise NodeRefusedError("settled", "the invoice is settled")
    if found == canceled:
        return
    invoices.store_received(connection, canceled, now_ms)
    if invoices.payer_of(connection, payment_hash) == invoices.NODE:
        _finish(connection, payment_hash, FAILED, NodeFailure.INCORRECT_PAYMENT_DETAILS)

"""Drives one saga: asks `decide`, writes what it decides, does what it says, until the saga is done or its lease is gone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Final

import structlog

from services.chassis.errors import Reason as ErrorReason
from services.chassis.errors import ServiceError
from services.chassis.failpoints import failpoint
from services.lightning.bolt11 import decode
from services.lightning.node import (
    NodeFailed,
    NodePaid,
    NodeRefusedError,
    NodeUnavailableError,
    PayingNode,
    PaymentOrder,
)
from services.payment.changefeed import ChangeFeed
from services.payment.clients import InvoiceClient, ReceiptClient, StepUnavailableError
from services.payment.domain.model import Failure, Payment, Reason, Refused
from services.payment.domain.saga import Decision, Saga, decide
from services.payment.domain.saga_words import (
    CALL_SECONDS,
    Action,
    Answer,
    Dispatch,
    Event,
    Fail,
    GraceOver,
    HoldForPayee,
    LockRefused,
    Park,
    PostHeld,
    PostTransfer,
    Remember,
    SaveReceipt,
    Settle,
    Signed,
    Succeed,
    Unavailable,
    WriteRefused,
    Written,
)
from services.payment.receipts import ReceiptKey
from services.payment.store import sagas, transactions
from services.storage.database import Database

COMMIT_NAMES: Final = {
    PostTransfer: "post_transfer",
    HoldForPayee: "hold_for_payee",
    Dispatch: "dispatch",
    Succeed: "succeed",
    PostHeld: "post_held",
    Settle: "settle",
    Fail: "fail",
    SaveReceipt: "save_receipt",
    Remember: "remember",
    Park: "park",
}
STEPS_SHOWN: Final = frozenset({PostTransfer, HoldForPayee, PostHeld, Dispatch, Settle, Fail})
"""Commits that are steps of their own in a payment's history; the others only write down what a call did."""
REFUSALS: Final = {
    Reason.INSUFFICIENT_BALANCE: Failure.INSUFFICIENT_BALANCE,
    Reason.ACCOUNT_FROZEN: Failure.INSUFFICIENT_BALANCE,
}
"""Why the ledger may refuse a step, in the payment's words: a frozen account has nothing available for fees. All else is the payee's."""

_log = structlog.stdlib.get_logger()


def now_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a driver works with."""

    database: Database
    feed: ChangeFeed
    invoices: InvoiceClient
    receipts: ReceiptClient
    receipt_key: ReceiptKey
    node: PayingNode
    two_phase: bool = False
    """Whether the settlement is prepared before the money moves, and the decision logged with it."""
    clock: Callable[[], int] = now_ms


@dataclass(slots=True)
class SagaDriver:
    """One saga under one lease. `payment` is the row as this driver last wrote it."""

    parts: Parts
    lease: sagas.Lease
    saga: Saga
    payment: Payment
    steps: list[sagas.StepRecord] = field(default_factory=list)
    calls: dict[Action, asyncio.Task[Answer]] = field(default_factory=dict)

    async def run(self, event: Event) -> None:
        """Go on after `event` until nothing is left to do or the lease was given back. Raises LeaseLostError."""
        try:
            next_event: Event | None = event
            while next_event is not None:
                decision = decide(self.saga, next_event, self.parts.clock())
                next_event = await (self._write(decision) if decision.commit is not None else self._follow(decision))
        finally:
            await self._drop_calls()

    async def _follow(self, decision: Decision) -> Event | None:
        """Begin the calls of a decision, wait for the first answer; None when nothing is outstanding any more."""
        self.saga = decision.saga
        if len(decision.actions) == 1 and not self.calls:
            return await self._act(*decision.actions)
        for action in decision.actions:
            name = f"saga {self.saga.payment_id} {action.value}"
            self.calls[action] = asyncio.create_task(self._act(action), name=name)
        assert set(self.calls) == self.saga.outstanding
        return await self._first_answer(decision.grace_ms) if self.calls else None

    async def _first_answer(self, grace_ms: int | None) -> Event:
        timeout_s = None if grace_ms is None else grace_ms / 1_000
        done, _ = await asyncio.wait(self.calls.values(), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        answered = next((action for action, call in self.calls.items() if call in done), None)
        return GraceOver() if answered is None else self.calls.pop(answered).result()

    async def _drop_calls(self) -> None:
        """Calls that nobody waits for any more: each can be repeated, so none needs its end."""
        calls = tuple(self.calls.values())
        self.calls.clear()
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)

    async def _write(self, decision: Decision) -> Event | None:
        """Write one decision; what it means for the saga. None after giving the lease back."""
        assert decision.commit is not None
        name = COMMIT_NAMES[type(decision.commit)]
        start_ms = self.parts.clock()
        failpoint(name)
        if type(decision.commit) in STEPS_SHOWN:
            state = sagas.STEP_COMPENSATED if isinstance(decision.commit, Fail) else sagas.STEP_DONE
            shown = "void_transfer" if isinstance(decision.commit, Fail) else name
            self._record(shown, state, start_ms)
        progress = self._progress(decision)
        try:
            self.payment = await self.parts.database.write(
                lambda connection: transactions.advance(connection, progress)
            )
        except Refused as refused:
            self._record(name, sagas.STEP_FAILED, start_ms, refused.reason, replaces=True)
            failure = REFUSALS.get(refused.reason, Failure.INVOICE_NOT_PAYABLE)
            return WriteRefused(failure, decision.commit)
        self.saga = decision.saga
        del self.steps[: len(progress.steps)]  # a call beside this write may have added its own
        self.parts.feed.publish(self.payment)
        failpoint(f"{name}.done")
        return None if isinstance(decision.commit, Park) else Written()

    def _progress(self, decision: Decision) -> transactions.Progress:
        return transactions.Progress(
            lease=self.lease,
            decision=decision,
            payment=self.payment,
            simulated=self.parts.node.simulated,
            two_phase=self.parts.two_phase,
            steps=tuple(self.steps),
            now_ms=self.parts.clock(),
        )

    async def _act(self, action: Action) -> Answer:
        """Do one call; its answer, or that there was none in time."""
        failpoint(action.value)
        start_ms = self.parts.clock()
        try:
            async with asyncio.timeout(CALL_SECONDS[action]):
                answer = await self._call(action)
        except (StepUnavailableError, NodeUnavailableError, NodeRefusedError, ServiceError, TimeoutError) as error:
            reason = _reason_of(error)
            self._record(action.value, sagas.STEP_RUNNING, start_ms, reason)
            _log.warning("payment.step_unavailable", payment_id=self.saga.payment_id, step=action.value, reason=reason)
            return Unavailable(action, reason)
        refused = isinstance(answer, LockRefused | NodeFailed)
        self._record(action.value, sagas.STEP_FAILED if refused else sagas.STEP_DONE, start_ms)
        failpoint(f"{action.value}.done")
        return answer

    async def _call(self, action: Action) -> Answer:
        parts, payment = self.parts, self.payment
        match action:
            case Action.LOCK:
                return await parts.invoices.lock(payment, prepare=parts.two_phase)
            case Action.COMMIT:
                return await parts.invoices.commit(payment, hold=self.saga.hold)
            case Action.LOOK:
                return await parts.invoices.look(payment)
            case Action.RELEASE:
                return await parts.invoices.release(payment.payment_id)
            case Action.PAY:
                return self._checked(await parts.node.pay(order_of(payment)))
            case Action.TRACK:
                return self._checked(await parts.node.track(payment.payment_hash))
            case Action.SIGN:
                moved_ms = payment.settle_time_ms or self.saga.moved_time_ms
                return Signed(await parts.receipt_key.sign(parts.receipts, payment, moved_ms))

    def _checked(self, answer: Answer) -> Answer:
        """A node that spent more than it was allowed is our loss, never the payer's; one that proves another payment said nothing."""
        if not isinstance(answer, NodePaid):
            return answer
        unproven = self.parts.node.simulated and not answer.preimage
        if not unproven and sha256(bytes.fromhex(answer.preimage)).hexdigest() != self.payment.payment_hash:
            raise StepUnavailableError(ErrorReason.PREIMAGE_MISMATCH, "the node named a preimage of another hash")
        if answer.fee_msat > self.payment.fee_limit_msat:
            _log.error("payment.fee_above_limit", payment_id=self.payment.payment_id, fee_msat=answer.fee_msat)
            return replace(answer, fee_msat=self.payment.fee_limit_msat)
        return answer

    def _record(self, step: str, state: int, start_ms: int, error: str = "", *, replaces: bool = False) -> None:
        if replaces and self.steps and self.steps[-1].step == step:
            self.steps.pop()
        record = sagas.StepRecord(
            step=step,
            state=state,
            attempt=self.saga.attempt + 1,
            start_time_ms=start_ms,
            end_time_ms=self.parts.clock(),
            error=error,
        )
        self.steps.append(record)


def order_of(payment: Payment) -> PaymentOrder:
    """The node's order for a payment; its payment request was read before, when it was recorded."""
    return PaymentOrder(
        payment_hash=payment.payment_hash,
        payment_request=payment.payment_request,
        amount_msat=payment.amount_msat,
        fee_limit_msat=payment.fee_limit_msat,
        amount_is_open=decode(payment.payment_request).amount_msat is None,
    )


def _reason_of(error: Exception) -> str:
    """One word for operators."""
    if isinstance(error, TimeoutError):
        return str(ErrorReason.DEADLINE_EXCEEDED)
    return str(getattr(error, "reason", ErrorReason.BACKEND_UNAVAILABLE))

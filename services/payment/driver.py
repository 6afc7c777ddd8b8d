"""Drives one saga: asks `decide`, writes what it decides, does what it says, until the saga is done or its lease is gone."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

import structlog

from services.chassis.errors import Reason as ErrorReason
from services.chassis.errors import ServiceError
from services.payment.changefeed import ChangeFeed
from services.payment.clients import InvoiceClient, ReceiptClient, StepUnavailableError
from services.payment.domain.model import Failure, Payment, Reason, Refused
from services.payment.domain.saga import (
    Action,
    Decision,
    Dispatch,
    Event,
    Fail,
    LockRefused,
    NodeFailed,
    NodeHolds,
    NodePaid,
    Park,
    PostTransfer,
    Remember,
    Saga,
    SaveReceipt,
    Settle,
    Signed,
    Succeed,
    Unavailable,
    WriteRefused,
    Written,
    decide,
)
from services.payment.failpoints import failpoint
from services.payment.node.port import LightningNode, NodeUnavailableError, order_of
from services.payment.receipts import ReceiptKey
from services.payment.store import sagas, transactions
from services.storage.database import Database

COMMIT_NAMES: Final = {
    PostTransfer: "post_transfer",
    Dispatch: "dispatch",
    Succeed: "succeed",
    Settle: "settle",
    Fail: "fail",
    SaveReceipt: "save_receipt",
    Remember: "remember",
    Park: "park",
}
STEPS_SHOWN: Final = frozenset({PostTransfer, Dispatch, Settle, Fail})
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
    node: LightningNode
    clock: Callable[[], int] = now_ms


@dataclass(slots=True)
class SagaDriver:
    """One saga under one lease. `payment` is the row as this driver last wrote it."""

    parts: Parts
    lease: sagas.Lease
    saga: Saga
    payment: Payment
    steps: list[sagas.StepRecord] = field(default_factory=list)

    async def run(self, event: Event) -> None:
        """Go on after `event` until nothing is left to do or the lease was given back. Raises LeaseLostError."""
        while True:
            decision = decide(self.saga, event, self.parts.clock())
            if decision.commit is not None:
                event = await self._write(decision)
                if isinstance(decision.commit, Park):
                    return
            elif decision.action is not None:
                self.saga = decision.saga
                event = await self._act(decision.action)
            else:
                return

    async def _write(self, decision: Decision) -> Event:
        """Write one decision; what it means for the saga."""
        assert decision.commit is not None
        name = COMMIT_NAMES[type(decision.commit)]
        start_ms = self.parts.clock()
        failpoint(name)
        if type(decision.commit) in STEPS_SHOWN:
            state = sagas.STEP_COMPENSATED if isinstance(decision.commit, Fail) else sagas.STEP_DONE
            shown = "void_transfer" if isinstance(decision.commit, Fail) else name
            self._record(shown, state, start_ms)
        try:
            progress = self._progress(decision)
            self.payment = await self.parts.database.write(
                lambda connection: transactions.advance(connection, progress)
            )
        except Refused as refused:
            self._record(name, sagas.STEP_FAILED, start_ms, refused.reason, replaces=True)
            return WriteRefused(REFUSALS.get(refused.reason, Failure.INVOICE_NOT_PAYABLE))
        self.saga = decision.saga
        self.steps.clear()
        self.parts.feed.publish(self.payment)
        failpoint(f"{name}.done")
        return Written()

    def _progress(self, decision: Decision) -> transactions.Progress:
        return transactions.Progress(
            lease=self.lease,
            decision=decision,
            payment=self.payment,
            simulated=self.parts.node.simulated,
            steps=tuple(self.steps),
            now_ms=self.parts.clock(),
        )

    async def _act(self, action: Action) -> Event:
        """Do one call; its answer, or that there was none."""
        failpoint(action.value)
        start_ms = self.parts.clock()
        try:
            event = await self._call(action)
        except (StepUnavailableError, NodeUnavailableError, ServiceError) as error:
            reason = getattr(error, "reason", ErrorReason.BACKEND_UNAVAILABLE)
            self._record(action.value, sagas.STEP_RUNNING, start_ms, str(reason))
            _log.warning(
                "payment.step_unavailable", payment_id=self.saga.payment_id, step=action.value, reason=str(reason)
            )
            return Unavailable()
        refused = isinstance(event, LockRefused | NodeFailed | NodeHolds)
        self._record(action.value, sagas.STEP_FAILED if refused else sagas.STEP_DONE, start_ms)
        failpoint(f"{action.value}.done")
        return event

    async def _call(self, action: Action) -> Event:
        parts, payment = self.parts, self.payment
        match action:
            case Action.LOCK:
                return await parts.invoices.lock(payment)
            case Action.CANCEL_AT_NODE:
                return await parts.node.cancel(payment.payment_hash)
            case Action.COMMIT:
                return await parts.invoices.commit(payment.payment_id)
            case Action.RELEASE:
                return await parts.invoices.release(payment.payment_id)
            case Action.PAY:
                return self._within_limit(await parts.node.pay(order_of(payment)))
            case Action.TRACK:
                return self._within_limit(await parts.node.track(payment.payment_hash))
            case Action.SIGN:
                return Signed(await parts.receipt_key.sign(parts.receipts, payment))

    def _within_limit(self, event: Event) -> Event:
        """A node that spent more than it was allowed is our loss, never the payer's."""
        if not isinstance(event, NodePaid) or event.fee_msat <= self.payment.fee_limit_msat:
            return event
        _log.error("payment.fee_above_limit", payment_id=self.payment.payment_id, fee_msat=event.fee_msat)
        return replace(event, fee_msat=self.payment.fee_limit_msat)

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

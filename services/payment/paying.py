"""PayInvoice: begins the saga, or finds what began before, and waits for it as long as the caller wants."""

from __future__ import annotations

import time
from typing import Final

from nipmesh.payment.v1 import payment_pb2
from nipmesh.payment.v1 import payment_service_pb2 as pb
from services.chassis.caller import current_caller, remaining_s, require_subject
from services.chassis.errors import Reason, ServiceError, precondition_failed, unavailable
from services.chassis.failpoints import failpoint
from services.payment.border import write
from services.payment.changefeed import ChangeFeed
from services.payment.domain.fees import fee_limit_msat
from services.payment.domain.invoice import Invoice, amount_to_pay_msat, read_invoice
from services.payment.domain.model import FINAL_STATES, Payment, PaymentState, Refused
from services.payment.domain.saga import Saga
from services.payment.domain.saga_words import STEP_LIMITS, Step
from services.payment.driver import now_ms
from services.payment.engine import SagaEngine
from services.payment.store.beginning import begin_write
from services.payment.store.payments import find_begun
from services.payment.store.transactions import Begun
from services.payment.wire import payment_message
from services.storage.database import Database
from services.storage.idempotency import RequestKey, in_progress
from services.storage.ids import new_id

GIVE_UP_MS: Final = int(STEP_LIMITS[Step.LOCK_INVOICE].seconds * 1_000)
"""An invoice that cannot be locked, or handed to the node, so long is not paid any more."""
WAIT_SECONDS_MAX: Final = 60.0
"""Longest wait of a call without a deadline; the field wait_duration allows no more either."""
ANSWER_MARGIN_SECONDS: Final = 0.25
"""The wait ends this long before the deadline, so that the answer still arrives."""
RECEIPT_WAIT_SECONDS: Final = 0.5
"""The answer about a succeeded payment waits this long for its receipt: a broken NIP service must not slow it down further."""


class InvoicePayer:
    """What PayInvoice does."""

    def __init__(self, database: Database, engine: SagaEngine, feed: ChangeFeed, currency: str) -> None:
        self._database = database
        self._engine = engine
        self._feed = feed
        self._currency = currency

    async def pay(self, request: pb.PayInvoiceRequest) -> pb.PayInvoiceResponse:
        """Pay, or say how far an earlier request with this id got. Neither deadline nor cancellation touch what began."""
        key = RequestKey.of(request)
        until_s = time.monotonic() + _wait_seconds(request)
        draft = await self._draft(request, key)
        if self._engine.full:
            raise unavailable("too many payments are under way", reason=Reason.OVERLOADED)
        outcome = await self._begin(draft, key)
        payment = await self._wait(outcome, until_s)
        if payment.state not in FINAL_STATES and not outcome.fresh and not request.HasField("wait_duration"):
            raise in_progress()
        return _answer(pb.PayInvoiceResponse(payment=payment_message(payment), replayed=not outcome.fresh))

    async def _draft(self, request: pb.PayInvoiceRequest, key: RequestKey) -> tuple[Payment, Saga]:
        """The payment as it is recorded when it is new. An expired invoice is refused, unless it was paid with this id before."""
        require_subject()
        try:
            invoice = read_invoice(request.payment_request, self._currency)
            amount_msat = amount_to_pay_msat(invoice, request.amount_msat if request.HasField("amount_msat") else None)
        except Refused as refused:
            raise ServiceError(refused.reason.value, refused.message) from refused
        moment_ms = now_ms()
        if (
            moment_ms >= invoice.expire_time_ms
            and await self._database.read(lambda connection: find_begun(connection, key)) is None
        ):
            raise precondition_failed(Reason.INVOICE_EXPIRED, "the invoice has expired", subject=invoice.payment_hash)
        limit_msat = fee_limit_msat(amount_msat, request.fee_limit_msat if request.HasField("fee_limit_msat") else None)
        payment = Payment(
            payment_id=new_id(),
            account_id=request.account_id,
            scope=current_caller().scope,
            request_id=key.request_id,
            state=PaymentState.RESERVED,
            payment_request=invoice.payment_request,
            payment_hash=invoice.payment_hash,
            amount_msat=amount_msat,
            fee_limit_msat=limit_msat,
            create_time_ms=moment_ms,
            update_time_ms=moment_ms,
        )
        return payment, _saga(payment, invoice)

    async def _begin(self, draft: tuple[Payment, Saga], key: RequestKey) -> Begun:
        payment, saga = draft
        lease, until_ms = self._engine.first_lease(payment.payment_id)
        outcome = await write(
            self._database,
            begin_write(key, payment, saga, lease, until_ms),
            payment.account_id,
        )
        failpoint("reserve_balance.done")
        if outcome.fresh and outcome.payment.state is PaymentState.RESERVED:
            self._engine.run(lease, saga, outcome.payment)
        return outcome

    async def _wait(self, outcome: Begun, until_s: float) -> Payment:
        """Until it is final, then a little for its receipt; the payment as it is by then."""
        local = outcome.fresh and not self._engine.stopping
        payment = await self._feed.wait(
            outcome.payment, lambda found: found.state in FINAL_STATES, until_s - time.monotonic(), local=local
        )
        if payment.state is not PaymentState.SUCCEEDED or payment.receipt_json:
            return payment
        seconds = min(RECEIPT_WAIT_SECONDS, until_s - time.monotonic())
        return await self._feed.wait(payment, lambda found: bool(found.receipt_json), seconds, local=local)


def _saga(payment: Payment, invoice: Invoice) -> Saga:
    give_up_ms = min(payment.create_time_ms + GIVE_UP_MS, invoice.expire_time_ms)
    return Saga(
        payment_id=payment.payment_id,
        payer_account_id=payment.account_id,
        give_up_time_ms=give_up_ms,
        step_time_ms=payment.create_time_ms,
    )


def _wait_seconds(request: pb.PayInvoiceRequest) -> float:
    """How long this call may wait: what it asks for, what its deadline leaves, at most a minute."""
    left_s = remaining_s()
    seconds = WAIT_SECONDS_MAX if left_s is None else min(WAIT_SECONDS_MAX, left_s - ANSWER_MARGIN_SECONDS)
    if request.HasField("wait_duration"):
        seconds = min(seconds, request.wait_duration.ToMilliseconds() / 1_000)
    return max(0.0, seconds)


def _answer(response: pb.PayInvoiceResponse) -> pb.PayInvoiceResponse:
    """A payment for which the money did not suffice is an error; it is recorded all the same."""
    if response.payment.failure_reason != payment_pb2.Payment.FAILURE_REASON_INSUFFICIENT_BALANCE:
        return response
    message = "the account's available balance does not cover the payment"
    error = precondition_failed(Reason.INSUFFICIENT_BALANCE, message, subject=response.payment.account_id)
    error.metadata["payment_id"] = response.payment.payment_id
    raise error

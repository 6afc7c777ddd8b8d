"""PaymentService: payments for the owners of the accounts that pay."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

from nipmesh.payment.v1 import payment_pb2
from nipmesh.payment.v1 import payment_service_pb2 as pb
from nipmesh.payment.v1.payment_service_pb2_grpc import PaymentServiceServicer
from services.chassis.caller import Caller, current_caller, require_subject
from services.chassis.errors import Reason, not_found
from services.chassis.failpoints import failpoint
from services.payment.border import Context, owner_filter, sees_payment, write
from services.payment.domain.model import Payment
from services.payment.driver import now_ms
from services.payment.estimating import FeeEstimator
from services.payment.paying import InvoicePayer
from services.payment.store import payments as rows
from services.payment.store.ledger import find_account
from services.payment.store.sagas import StepRecord, list_steps
from services.payment.store.transactions import RefundOrder, refund
from services.payment.watching import PaymentWatcher
from services.payment.wire import payment_message, time_ms_of, transfer_message
from services.storage.cache import Entry, EntryKind, Reads
from services.storage.database import Database
from services.storage.idempotency import RequestKey, run_once
from services.storage.ids import new_id
from services.storage.pages import PageTokens
from services.storage.sql import Connection

PAYMENTS_PER_HASH_MAX = 100
"""Attempts to pay one invoice that GetPayment looks through for the newest one that the caller may see."""

PAYMENT: Final = EntryKind(name="payment", message_type=payment_pb2.Payment)
"""What may be cached."""


class PaymentServicer(PaymentServiceServicer):
    """Thin: reads the request, asks payer, store and watcher, renders."""

    def __init__(
        self,
        database: Database,
        reads: Reads,
        payer: InvoicePayer,
        estimator: FeeEstimator,
        watcher: PaymentWatcher,
        tokens: PageTokens,
    ) -> None:
        self._database = database
        self._reads = reads
        self._payer = payer
        self._estimator = estimator
        self._watcher = watcher
        self._tokens = tokens

    async def PayInvoice(self, request: pb.PayInvoiceRequest, context: Context) -> pb.PayInvoiceResponse:
        """Pay an invoice out of an account of the caller."""
        return await self._payer.pay(request)

    async def EstimateFee(self, request: pb.EstimateFeeRequest, context: Context) -> pb.EstimateFeeResponse:
        """What paying an invoice would cost now."""
        return await self._estimator.estimate(request)

    async def GetPayment(self, request: pb.GetPaymentRequest, context: Context) -> pb.GetPaymentResponse:
        """One payment that the caller may see."""
        caller = current_caller()
        if request.WhichOneof("key") == "payment_id" and request.view != pb.PAYMENT_VIEW_FULL:
            return await self._get_by_id(request, caller)

        def work(connection: Connection) -> tuple[Payment, tuple[StepRecord, ...]]:
            payment = _visible_payment(connection, request, caller)
            full = request.view == pb.PAYMENT_VIEW_FULL
            return payment, list_steps(connection, payment.payment_id) if full else ()

        payment, steps = await self._database.read(work, min_sequence=request.min_sequence)
        return pb.GetPaymentResponse(payment=payment_message(payment, steps))

    async def _get_by_id(self, request: pb.GetPaymentRequest, caller: Caller) -> pb.GetPaymentResponse:
        """The payment without its steps, through the cache: its events are about its id."""
        payment_id = request.payment_id
        entry = await self._reads.read(
            PAYMENT, payment_id, lambda connection: _entry(connection, payment_id), min_sequence=request.min_sequence
        )
        if not caller.operator and not (caller.subject and entry.owner == caller.subject):
            raise not_found(Reason.PAYMENT_NOT_FOUND, "payment")
        return pb.GetPaymentResponse(payment=entry.message)

    async def ListPayments(self, request: pb.ListPaymentsRequest, context: Context) -> pb.ListPaymentsResponse:
        """The caller's payments; an operator's list holds all."""
        require_subject()
        page = self._tokens.page(request)
        after = int(page.after[0]) if page.after else None
        wanted = _filter_of(request)
        full = request.view == pb.PAYMENT_VIEW_FULL

        def work(connection: Connection) -> tuple[list[int], list[payment_pb2.Payment]]:
            found = rows.list_payments(connection, wanted, after, page.size + 1)
            messages = [
                payment_message(payment, list_steps(connection, payment.payment_id) if full else ())
                for _, payment in found[: page.size]
            ]
            return [number for number, _ in found], messages

        numbers, messages = await self._database.read(work, min_sequence=request.min_sequence)
        response = pb.ListPaymentsResponse(payments=messages)
        if len(numbers) > page.size:
            response.next_page_token = self._tokens.next(request, (numbers[page.size - 1],))
        return response

    async def WatchPayments(
        self, request: pb.WatchPaymentsRequest, context: Context
    ) -> AsyncIterator[pb.WatchPaymentsResponse]:
        """Every change of the payments that the caller may see."""
        async for response in self._watcher.watch(request):
            yield response

    async def RefundPayment(self, request: pb.RefundPaymentRequest, context: Context) -> pb.RefundPaymentResponse:
        """Give money of a succeeded payment back."""
        subject = require_subject()
        key = RequestKey.of(request)
        order = RefundOrder(
            payment_id=request.payment_id,
            transfer_id=new_id(),
            amount_msat=None if request.all else request.amount_msat,
            reference=request.reason,
            subject=subject,
            operator=current_caller().operator,
            now_ms=now_ms(),
        )

        def effect(connection: Connection) -> pb.RefundPaymentResponse:
            transfer, payment = refund(connection, order)
            return pb.RefundPaymentResponse(
                transfer=transfer_message(transfer),
                payment_state=payment_pb2.Payment.State.ValueType(payment.state),
                refunded_msat=payment.refunded_msat,
            )

        failpoint("refund")
        response, replayed = await write(
            self._database,
            lambda connection: run_once(connection, key, pb.RefundPaymentResponse, lambda: effect(connection)),
            request.payment_id,
        )
        failpoint("refund.done")
        response.replayed = replayed
        return response


def _entry(connection: Connection, payment_id: str) -> Entry[payment_pb2.Payment]:
    """A payment and the owner of the account that pays, which never changes. Raises PAYMENT_NOT_FOUND."""
    payment = rows.find_payment(connection, payment_id)
    if payment is None:
        raise not_found(Reason.PAYMENT_NOT_FOUND, "payment")
    account = find_account(connection, payment.account_id)
    return Entry(owner="" if account is None else account.owner, message=payment_message(payment))


def _visible_payment(connection: Connection, request: pb.GetPaymentRequest, caller: Caller) -> Payment:
    """The newest payment that the key names and the caller may see. Raises PAYMENT_NOT_FOUND."""
    found: tuple[Payment | None, ...]
    match request.WhichOneof("key"):
        case "payment_hash":
            found = rows.find_payments_by_hash(connection, request.payment_hash, PAYMENTS_PER_HASH_MAX)
        case "request_id":
            found = (rows.find_payment_by_request(connection, caller.scope, request.request_id.lower()),)
        case _:
            found = (rows.find_payment(connection, request.payment_id),)
    for payment in found:
        if payment is not None and sees_payment(connection, payment, caller):
            return payment
    raise not_found(Reason.PAYMENT_NOT_FOUND, "payment")


def _filter_of(request: pb.ListPaymentsRequest) -> rows.PaymentFilter:
    return rows.PaymentFilter(
        owner=owner_filter(),
        account_id=request.account_id,
        states=tuple(int(state) for state in request.states),
        create_time_from_ms=time_ms_of(request, "create_time_from"),
        create_time_until_ms=time_ms_of(request, "create_time_until"),
        oldest_first=request.oldest_first,
    )

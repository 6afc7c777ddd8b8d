"""The calls that a payment's saga makes to other services, under this service's own identity, through the sidecar.

Each has a deadline of its own. A definite answer becomes an event of the saga; whatever leaves open what happened raises
StepUnavailableError. A code alone proves nothing (a sidecar answers NOT_FOUND or PERMISSION_DENIED as well): only the reason in the
ErrorInfo of our own services counts.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Final

import grpc

from nipmesh.invoice.v1 import invoice_service_pb2
from nipmesh.invoice.v1.invoice_service_pb2_grpc import InvoiceSettlementServiceStub
from nipmesh.nip.v1 import nip_pb2, nip_service_pb2
from nipmesh.nip.v1.nip_service_pb2_grpc import NipServiceStub
from services.chassis.errors import Reason, ServiceError, reason_of
from services.payment.domain.model import Failure, Payment
from services.payment.domain.receipt import RECEIPT_CONTENT, RECEIPT_KIND, derived_request_id, receipt_tags
from services.payment.domain.saga_words import (
    Accepted,
    Committed,
    HoldEnded,
    Locked,
    LockRefused,
    NotOurs,
    Released,
    Undecided,
)
from services.payment.wire import event_json

CALL_SECONDS: Final = 2.0
"""Deadline of each call, told to the callee; the saga's own limits (`saga_words`) end the waiting."""
KEY_REQUEST_ID: Final = derived_request_id("receipt-key", "create")
"""Fixed, so that replicas that start at once make one key."""
KEY_NAME: Final = "payment receipts"

LOCK_REFUSALS: Final = {
    Reason.INVOICE_EXPIRED: Failure.INVOICE_EXPIRED,
    Reason.INVOICE_LOCKED: Failure.INVOICE_NOT_PAYABLE,
    Reason.INVOICE_NOT_LOCKED: Failure.INVOICE_NOT_PAYABLE,
    Reason.INVOICE_ALREADY_SETTLED: Failure.INVOICE_NOT_PAYABLE,
    Reason.INVOICE_ALREADY_CANCELED: Failure.INVOICE_NOT_PAYABLE,
    Reason.INVOICE_AMOUNT_MISMATCH: Failure.INCORRECT_PAYMENT_DETAILS,
    Reason.REQUEST_INVALID: Failure.INCORRECT_PAYMENT_DETAILS,
    Reason.PAYMENT_REQUEST_INVALID: Failure.INCORRECT_PAYMENT_DETAILS,
}
"""What a definite refusal of LockInvoice means for the payment."""


class StepUnavailableError(Exception):
    """A step's call gave no definite answer; `reason` is an ErrorReason or a gRPC code, for the operator's view."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason


class InvoiceClient:
    """The invoice service's side of a payment inside the mesh."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = InvoiceSettlementServiceStub(channel)

    async def lock(self, payment: Payment, *, prepare: bool = False) -> Locked | LockRefused | NotOurs:
        """Hold the invoice for this payment; with `prepare` its settlement is prepared as well, where that is possible."""
        request = invoice_service_pb2.LockInvoiceRequest(
            payment_id=payment.payment_id,
            payment_request=payment.payment_request,
            amount_msat=payment.amount_msat,
            actor_pubkey=payment.actor,
            prepare=prepare,
        )
        try:
            response = await self._stub.LockInvoice(request, timeout=CALL_SECONDS, wait_for_ready=False)
        except grpc.aio.AioRpcError as error:
            return _lock_refusal(error)
        if response.payment_hash != payment.payment_hash or response.amount_msat != payment.amount_msat:
            raise StepUnavailableError(Reason.INTERNAL, "the invoice service locked something else")
        return Locked(response.account_id, hold=response.hold)

    async def commit(self, payment: Payment, *, hold: bool) -> Committed | Accepted:
        """Settle the invoice that this payment holds, or let the owner of a hold invoice decide. No way back: failures are repeated.

        A hold invoice that was released by then is not locked any more; which it is, `look` says.
        """
        request = invoice_service_pb2.CommitInvoiceRequest(payment_id=payment.payment_id)
        try:
            response = await self._stub.CommitInvoice(request, timeout=CALL_SECONDS, wait_for_ready=False)
        except grpc.aio.AioRpcError as error:
            if hold and reason_of(error) == Reason.INVOICE_NOT_LOCKED:
                return Accepted()
            raise unavailable(error) from error
        if hold and not response.preimage:
            return Accepted()
        return _proven(payment, response.preimage)

    async def look(self, payment: Payment) -> Committed | Undecided | HoldEnded:
        """What the owner of the hold invoice decided."""
        request = invoice_service_pb2.GetHoldRequest(payment_id=payment.payment_id)
        try:
            response = await self._stub.GetHold(request, timeout=CALL_SECONDS, wait_for_ready=False)
        except grpc.aio.AioRpcError as error:
            raise unavailable(error) from error
        states = invoice_service_pb2.GetHoldResponse.State
        if response.state == states.STATE_SETTLED:
            return _proven(payment, response.preimage)
        if response.state == states.STATE_RELEASED:
            return HoldEnded()
        if response.state == states.STATE_HELD:
            return Undecided()
        raise StepUnavailableError(Reason.INTERNAL, f"the invoice service knows a state {response.state} of holds")

    async def is_ours(self, payment_request: str) -> bool:
        """Whether an invoice is of this mesh. Raises StepUnavailableError, and PAYMENT_REQUEST_INVALID for a forgery of one that is."""
        request = invoice_service_pb2.FindInvoiceRequest(payment_request=payment_request)
        try:
            await self._stub.FindInvoice(request, timeout=CALL_SECONDS, wait_for_ready=False)
        except grpc.aio.AioRpcError as error:
            reason = reason_of(error)
            if reason == Reason.INVOICE_NOT_FOUND:
                return False
            if reason == Reason.PAYMENT_REQUEST_INVALID:
                raise ServiceError(
                    reason, "this is not the payment request that was issued for its payment hash"
                ) from error
            raise unavailable(error) from error
        return True

    async def release(self, payment_id: str) -> Released:
        """Let go of the invoice, whether or not this payment held it."""
        request = invoice_service_pb2.ReleaseInvoiceRequest(payment_id=payment_id)
        try:
            await self._stub.ReleaseInvoice(request, timeout=CALL_SECONDS, wait_for_ready=False)
        except grpc.aio.AioRpcError as error:
            raise unavailable(error) from error
        return Released()


def _proven(payment: Payment, preimage: str) -> Committed:
    """A settled invoice, when the preimage is that of the payment's hash; what proves something else says nothing."""
    if sha256(bytes.fromhex(preimage)).hexdigest() != payment.payment_hash:
        raise StepUnavailableError(Reason.PREIMAGE_MISMATCH, "the invoice service named a preimage of another hash")
    return Committed(preimage)


def _lock_refusal(error: grpc.aio.AioRpcError) -> LockRefused | NotOurs:
    reason = reason_of(error)
    if reason == Reason.INVOICE_NOT_FOUND:
        return NotOurs()
    for refusal, failure in LOCK_REFUSALS.items():
        if reason == refusal:
            return LockRefused(failure)
    raise unavailable(error) from error


def unavailable(error: grpc.aio.AioRpcError) -> StepUnavailableError:
    """A call's failure as one that says nothing definite."""
    return StepUnavailableError(reason_of(error) or error.code().name, error.details() or "")


class ReceiptClient:
    """The NIP service, which keeps this service's key and signs its receipts."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = NipServiceStub(channel)

    async def create_key(self) -> str:
        """The id of the receipt key; the same one for every replica while the NIP service remembers the request."""
        request = nip_service_pb2.CreateKeyRequest(request_id=KEY_REQUEST_ID, display_name=KEY_NAME, fresh=True)
        try:
            response = await self._stub.CreateKey(request, timeout=CALL_SECONDS, wait_for_ready=False)
        except grpc.aio.AioRpcError as error:
            raise unavailable(error) from error
        return response.key.key_id

    async def sign(self, key_id: str, payment: Payment, payee: str, moved_ms: int) -> str:
        """The receipt as JSON; the same bytes for every attempt, `created_at` being when the money moved (milliseconds since 1970).

        A signature follows from the key, the content and the time: where these are given the NIP service needs no request_id, and
        keeps no memory of the call.
        """
        assert moved_ms > 0
        template = nip_pb2.EventTemplate(
            kind=RECEIPT_KIND,
            tags=[nip_pb2.Tag(values=tag) for tag in receipt_tags(payment, payment.actor, payee)],
            content=RECEIPT_CONTENT,
            created_at=moved_ms // 1_000,
        )
        request = nip_service_pb2.SignEventRequest(key_id=key_id, template=template)
        try:
            response = await self._stub.SignEvent(request, timeout=CALL_SECONDS, wait_for_ready=False)
        except grpc.aio.AioRpcError as error:
            raise unavailable(error) from error
        return event_json(response.event)

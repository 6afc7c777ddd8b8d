"""Between the domain and the messages of nipmesh.invoice.v1 and nipmesh.events.v1."""

from __future__ import annotations

from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from nipmesh.events.v1 import events_pb2
from nipmesh.invoice.v1 import invoice_pb2
from nipmesh.invoice.v1 import invoice_service_pb2 as pb
from services.invoice.domain.invoice import Invoice, State
from services.lightning.payment_request import PaymentRequest

NANOSECONDS_PER_MS: Final = 1_000_000
MS_PER_SECOND: Final = 1_000


def timestamp_of_ms(time_ms: int) -> Timestamp:
    """Return milliseconds since 1970 as a Timestamp."""
    seconds, rest_ms = divmod(time_ms, MS_PER_SECOND)
    return Timestamp(seconds=seconds, nanos=rest_ms * NANOSECONDS_PER_MS)


def ms_of_timestamp(timestamp: Timestamp) -> int:
    """Return a Timestamp as milliseconds since 1970, fractions rounded up: a bound stays on its side of what is stored."""
    return timestamp.seconds * MS_PER_SECOND + -(-timestamp.nanos // NANOSECONDS_PER_MS)


def invoice_message(invoice: Invoice, *, reveal: bool = False, sequence: int | None = None) -> invoice_pb2.Invoice:
    """Return the message; the preimage only with `reveal` (for the owner) and once it is settled."""
    message = invoice_pb2.Invoice(
        invoice_id=invoice.invoice_id,
        account_id=invoice.account_id,
        state=_state(invoice.state),
        payment_request=invoice.payment_request,
        payment_hash=invoice.payment_hash,
        preimage=invoice.preimage.reveal().hex() if reveal and invoice.state is State.SETTLED else "",
        amount_paid_msat=invoice.amount_paid_msat,
        description=invoice.description,
        description_hash=invoice.description_hash,
        create_time=timestamp_of_ms(invoice.create_time_ms),
        expire_time=timestamp_of_ms(invoice.expire_time_ms),
        update_time=timestamp_of_ms(invoice.update_time_ms),
        sequence=invoice.sequence if sequence is None else sequence,
    )
    if invoice.settle_time_ms is not None:
        message.settle_time.CopyFrom(timestamp_of_ms(invoice.settle_time_ms))
    if invoice.amount_msat is None:
        message.any_amount = True
    else:
        message.amount_msat = invoice.amount_msat
    return message


def _state(state: State | None) -> invoice_pb2.Invoice.State.ValueType:
    """Return the state's number on the wire, which is its own; None is STATE_UNSPECIFIED."""
    return invoice_pb2.Invoice.State.ValueType(state or 0)


def event_kind(state: State) -> str:
    """Return the CloudEvents type of a change to this state."""
    return f"nipmesh.invoice.v1.{state.name.lower()}"


def change_payload(invoice: Invoice, previous: State | None) -> bytes:
    """Return the serialized InvoiceChanged, without preimage; its sequence is given when it is committed."""
    changed = events_pb2.InvoiceChanged(
        invoice=invoice_message(invoice, sequence=0),
        previous_state=_state(previous),
        owner_pubkey=invoice.owner_pubkey,
    )
    return changed.SerializeToString(deterministic=True)


def decoded_message(request: PaymentRequest) -> pb.DecodePaymentRequestResponse:
    """Return what a payment request says."""
    message = pb.DecodePaymentRequestResponse(
        payee_pubkey=request.payee_pubkey,
        payment_hash=request.payment_hash,
        payment_secret=request.payment_secret,
        description=request.description or "",
        description_hash=request.description_hash or "",
        create_time=Timestamp(seconds=request.create_time_s),
        expire_time=Timestamp(seconds=request.expire_time_s),
        min_final_cltv_expiry_delta=request.min_final_cltv_expiry_delta,
        currency=request.currency,
        feature_bits=request.feature_bits,
    )
    if request.amount_msat is None:
        message.any_amount = True
    else:
        message.amount_msat = request.amount_msat
    return message


def lowered(payment_request: str) -> str:
    """Return a payment request that is all upper case in lower case, any other as it is: mixed case is not bech32."""
    return payment_request.lower() if payment_request == payment_request.upper() else payment_request

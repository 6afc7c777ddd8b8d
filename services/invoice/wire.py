"""Between the domain and the messages of nipmesh.invoice.v1 and nipmesh.events.v1."""

from __future__ import annotations

from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from nipmesh.events.v1 import events_pb2
from nipmesh.invoice.v1 import invoice_pb2
from nipmesh.invoice.v1 import invoice_service_pb2 as pb
from services.invoice.domain.invoice import Hold, HoldState, Invoice, State
from services.lightning.payment_request import PaymentRequest

NANOSECONDS_PER_MS: Final = 1_000_000
MS_PER_SECOND: Final = 1_000
KIND_PREFIX: Final = "nipmesh.invoice.v1."
"""CloudEvents types of changes; the state follows."""
HELD_KIND: Final = f"{KIND_PREFIX}held"
"""CloudEvents type of the one change without another state."""


def timestamp_of_ms(time_ms: int) -> Timestamp:
    """Return milliseconds since 1970 as a Timestamp."""
    seconds, rest_ms = divmod(time_ms, MS_PER_SECOND)
    return Timestamp(seconds=seconds, nanos=rest_ms * NANOSECONDS_PER_MS)


def ms_of_timestamp(timestamp: Timestamp) -> int:
    """Return a Timestamp as milliseconds since 1970, fractions rounded up: a bound stays on its side of what is stored."""
    return timestamp.seconds * MS_PER_SECOND + -(-timestamp.nanos // NANOSECONDS_PER_MS)


def invoice_message(invoice: Invoice, *, reveal: bool = False, sequence: int | None = None) -> invoice_pb2.Invoice:
    """Return the message; with `reveal` (for the owner) its metadata, and the preimage once it is settled."""
    message = invoice_pb2.Invoice(
        invoice_id=invoice.invoice_id,
        account_id=invoice.account_id,
        state=_state(invoice.state),
        payment_request=invoice.payment_request,
        payment_hash=invoice.payment_hash,
        preimage=preimage_of(invoice) if reveal else "",
        amount_held_msat=invoice.amount_held_msat,
        amount_paid_msat=invoice.amount_paid_msat,
        description=invoice.description,
        description_hash=invoice.description_hash,
        create_time=timestamp_of_ms(invoice.create_time_ms),
        expire_time=timestamp_of_ms(invoice.expire_time_ms),
        update_time=timestamp_of_ms(invoice.update_time_ms),
        accept_time=_optional(invoice.accept_time_ms),
        settle_deadline_time=_optional(invoice.settle_deadline_ms),
        settle_time=_optional(invoice.settle_time_ms),
        hold=invoice.hold,
        payer=_payer(invoice),
        metadata=invoice.metadata if reveal else None,
        zap_request=invoice.zap_request,
        sequence=invoice.sequence if sequence is None else sequence,
    )
    if invoice.amount_msat is None:
        message.any_amount = True
    else:
        message.amount_msat = invoice.amount_msat
    return message


def conceal(message: invoice_pb2.Invoice) -> None:
    """Take out what is for the owner alone."""
    message.ClearField("preimage")
    message.ClearField("metadata")


def preimage_of(invoice: Invoice) -> str:
    """Return the proof of payment in hex; empty until it is settled."""
    if invoice.state is not State.SETTLED:
        return ""
    assert invoice.preimage is not None
    return invoice.preimage.reveal().hex()


def _optional(time_ms: int | None) -> Timestamp | None:
    """Return milliseconds since 1970 as a Timestamp, or None."""
    return None if time_ms is None else timestamp_of_ms(time_ms)


def _payer(invoice: Invoice) -> invoice_pb2.Invoice.Payer.ValueType:
    """Return where the money comes from."""
    if invoice.locked_by is None:
        return invoice_pb2.Invoice.PAYER_UNSPECIFIED
    return invoice_pb2.Invoice.PAYER_OUTSIDE if invoice.outside else invoice_pb2.Invoice.PAYER_INSIDE


def _state(state: State | None) -> invoice_pb2.Invoice.State.ValueType:
    """Return the state's number on the wire, which is its own; None is STATE_UNSPECIFIED."""
    return invoice_pb2.Invoice.State.ValueType(state or 0)


def hold_message(hold: Hold, invoice: Invoice | None) -> pb.GetHoldResponse:
    """Return what a payment's hold has come to; the preimage of an invoice that it settled."""
    states = {
        HoldState.HELD: pb.GetHoldResponse.STATE_HELD,
        HoldState.COMMITTED: pb.GetHoldResponse.STATE_SETTLED,
        HoldState.RELEASED: pb.GetHoldResponse.STATE_RELEASED,
        HoldState.RESERVED: pb.GetHoldResponse.STATE_HELD,
        HoldState.RETURNED: pb.GetHoldResponse.STATE_RELEASED,
    }
    message = pb.GetHoldResponse(state=states[hold.state])
    if hold.state is HoldState.COMMITTED:
        assert invoice is not None
        assert invoice.settle_time_ms is not None
        message.preimage = preimage_of(invoice)
        message.settle_time.CopyFrom(timestamp_of_ms(invoice.settle_time_ms))
    return message


def committed_message(invoice: Invoice) -> pb.CommitInvoiceResponse:
    """Return what a payment that committed is told of the invoice as it is now."""
    return pb.CommitInvoiceResponse(
        preimage=preimage_of(invoice), settle_time=_optional(invoice.settle_time_ms), invoice=invoice_message(invoice)
    )


def event_kind(state: State, previous: State | None) -> str:
    """Return the CloudEvents type of a change to this state; of one inside a state, which is that the owner may decide now."""
    if state is previous:
        assert state is State.ACCEPTED, "no other state has a change inside"
        return HELD_KIND
    return f"{KIND_PREFIX}{state.name.lower()}"


def change_payload(invoice: Invoice, previous: State | None) -> bytes:
    """Return the serialized InvoiceChanged, without preimage and metadata; its sequence is given when it is committed."""
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

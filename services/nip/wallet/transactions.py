"""Invoices and payments as the transactions of NIP-47; nothing is decided here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from google.protobuf.timestamp_pb2 import Timestamp

from nipmesh.invoice.v1 import invoice_pb2
from nipmesh.payment.v1 import payment_pb2
from services.lightning.bolt11 import decode
from services.lightning.payment_request import Bolt11Error

METADATA_KEY: Final = "nwc"
"""An app's metadata lies in the invoice's, in pieces: "nwc.0", "nwc.1", …"""
METADATA_PIECE_CHARACTERS: Final = 256
"""Longest value in an invoice's metadata; 16 of them hold the 4,096 characters that NIP-47 allows."""

_Invoice = invoice_pb2.Invoice
INVOICE_STATES: Final[Mapping[int, str]] = {
    _Invoice.STATE_OPEN: "pending",
    _Invoice.STATE_ACCEPTED: "pending",
    _Invoice.STATE_SETTLED: "settled",
    _Invoice.STATE_CANCELED: "failed",
    _Invoice.STATE_EXPIRED: "expired",
}
_Payment = payment_pb2.Payment
PAYMENT_STATES: Final[Mapping[int, str]] = {
    _Payment.STATE_INITIATED: "pending",
    _Payment.STATE_RESERVED: "pending",
    _Payment.STATE_IN_FLIGHT: "pending",
    _Payment.STATE_SUCCEEDED: "settled",
    _Payment.STATE_FAILED: "failed",
    _Payment.STATE_REFUNDED: "settled",
}


def transaction_of_invoice(invoice: _Invoice) -> dict[str, Any]:
    """Return what an app is told of an invoice. "accepted": its owner may decide about what is held."""
    decidable = invoice.state == _Invoice.STATE_ACCEPTED and invoice.HasField("accept_time")
    amount_msat = invoice.amount_paid_msat or invoice.amount_held_msat or invoice.amount_msat
    return _present(
        {
            "type": "incoming",
            "state": "accepted" if decidable else INVOICE_STATES[invoice.state],
            "invoice": invoice.payment_request,
            "description": invoice.description,
            "description_hash": invoice.description_hash,
            "preimage": invoice.preimage,
            "payment_hash": invoice.payment_hash,
            "amount": amount_msat,
            "fees_paid": 0,
            "created_at": invoice.create_time.seconds,
            "expires_at": invoice.expire_time.seconds,
            "settled_at": _seconds(invoice, "settle_time"),
            "metadata": _metadata(joined_metadata(invoice.metadata)),
        }
    )


def transaction_of_payment(payment: _Payment, metadata: str = "") -> dict[str, Any]:
    """Return what an app is told of a payment; the description comes out of its payment request."""
    said = _said(payment.payment_request)
    return _present(
        {
            "type": "outgoing",
            "state": PAYMENT_STATES[payment.state],
            "invoice": payment.payment_request,
            **said,
            "preimage": payment.preimage,
            "payment_hash": payment.payment_hash,
            "amount": payment.amount_msat,
            "fees_paid": payment.fee_msat,
            "created_at": payment.create_time.seconds,
            "settled_at": _seconds(payment, "settle_time"),
            "metadata": _metadata(metadata),
        }
    )


def split_metadata(metadata: str) -> dict[str, str]:
    """Return an app's metadata in pieces that an invoice keeps."""
    starts = range(0, len(metadata), METADATA_PIECE_CHARACTERS)
    pieces = [metadata[start : start + METADATA_PIECE_CHARACTERS] for start in starts]
    return {f"{METADATA_KEY}.{number}": piece for number, piece in enumerate(pieces)}


def joined_metadata(kept: Mapping[str, str]) -> str:
    """Return what `split_metadata` took apart; empty for an invoice that no app made."""
    pieces: list[str] = []
    while (piece := kept.get(f"{METADATA_KEY}.{len(pieces)}")) is not None:
        pieces.append(piece)
    return "".join(pieces)


def _metadata(text: str) -> Any:  # what the app once said
    try:
        value = json.loads(text) if text else None
    except ValueError:  # the owner wrote under these names, too
        return None
    return value if isinstance(value, dict) else None


def _said(payment_request: str) -> dict[str, Any]:
    try:
        request = decode(payment_request)
    except Bolt11Error:
        return {}
    return {
        "description": request.description or "",
        "description_hash": request.description_hash or "",
        "expires_at": request.expire_time_s,
    }


def _seconds(message: _Invoice | _Payment, name: str) -> int | None:
    value: Timestamp = getattr(message, name)
    return value.seconds if message.HasField(name) else None  # type: ignore[arg-type]  # both have these fields


def _present(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is not there: every such field is optional."""
    return {name: value for name, value in fields.items() if value is not None and value != ""}

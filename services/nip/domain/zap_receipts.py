"""NIP-57: zap receipts, the word of the recipient's server that a zap was paid. How one is made, and how one is checked.

Specification: https://github.com/nostr-protocol/nips/blob/master/57.md, appendices E and F
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from services.lightning.bolt11 import decode
from services.lightning.payment_request import Bolt11Error, PaymentRequest
from services.nostr.event import Event, Template
from services.nostr.zaps import (
    KIND_ZAP_RECEIPT,
    ZapError,
    ZapProblem,
    ZapRequest,
    check_genuine,
    parse_zap_request,
    read_zap_request,
    sole_value,
)

_HEX_32 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidReceipt:
    """What a valid receipt says: the zap request, and the invoice that was paid for it."""

    request: ZapRequest
    invoice: PaymentRequest


def receipt_template(request_text: str, payment_request: str, *, settle_time_seconds: int) -> Template:
    """Return the receipt to sign for an invoice that was made for a zap request. Raises ZapError when the text is none.

    All of it follows from the invoice: whoever makes it again, makes the same event. No preimage: the events of invoices carry none, and
    the NIP calls it no proof.
    """
    request = parse_zap_request(request_text)
    event = request.event
    tags: list[tuple[str, ...]] = [tag for tag in event.tags if tag and tag[0] in ("p", "e", "a", "k")]
    tags += [("P", event.pubkey), ("bolt11", payment_request), ("description", request_text)]
    # "The `created_at` date SHOULD be set to the invoice `paid_at` date for idempotency."
    return Template(kind=KIND_ZAP_RECEIPT, tags=tuple(tags), content="", created_at=settle_time_seconds)


def validate_receipt(receipt: Event, *, nostr_pubkey: str, lnurl: str = "") -> ValidReceipt:
    """Check a receipt as a client must before it shows it; signatures last. Raises ZapError. `lnurl` "": not compared.

    The NIP demands the author, the amount and the LNURL; that all belongs together (request, description hash, tags) it says of receipts
    themselves (appendix E).
    """
    if receipt.kind != KIND_ZAP_RECEIPT:
        raise ZapError(ZapProblem.WRONG_KIND)
    # "The `zap receipt` event's `pubkey` MUST be the same as the recipient's lnurl provider's `nostrPubkey`"
    if receipt.pubkey != nostr_pubkey:
        raise ZapError(ZapProblem.WRONG_AUTHOR)
    invoice = _invoice_of(receipt)
    request = _request_of(receipt, invoice, lnurl)
    _check_tags(receipt, request)
    _check_preimage(receipt, invoice)
    check_genuine(receipt)
    return ValidReceipt(request=request, invoice=invoice)


def _invoice_of(receipt: Event) -> PaymentRequest:
    text = sole_value(receipt, "bolt11")
    if not text:
        raise ZapError(ZapProblem.WRONG_INVOICE)
    try:
        return decode(text)
    except Bolt11Error as error:
        raise ZapError(ZapProblem.WRONG_INVOICE) from error


def _request_of(receipt: Event, invoice: PaymentRequest, lnurl: str) -> ZapRequest:
    text = sole_value(receipt, "description")
    # The NIP: "`SHA256(description)` SHOULD match the description hash in the bolt11 invoice."
    if not text or _sha256(text) != invoice.description_hash:
        raise ZapError(ZapProblem.WRONG_DESCRIPTION)
    try:
        # The NIP: "The `invoiceAmount` ... MUST equal the `amount` tag of the `zap request` (if present)."
        return read_zap_request(text, amount_msat=invoice.amount_msat, lnurl=lnurl)
    except ZapError as error:
        shown = (ZapProblem.WRONG_AMOUNT, ZapProblem.WRONG_LNURL)
        raise ZapError(error.problem if error.problem in shown else ZapProblem.WRONG_DESCRIPTION) from error


def _check_tags(receipt: Event, request: ZapRequest) -> None:
    """Check what the receipt repeats of the request, and that its `P`, if there is one, is the sender. Raises ZapError."""
    wanted = {"p": request.recipient_pubkey, "e": request.event_id, "a": request.coordinate}
    if any(sole_value(receipt, name) != value for name, value in wanted.items()):
        raise ZapError(ZapProblem.WRONG_TAGS)
    if sole_value(receipt, "P") not in ("", request.event.pubkey):
        raise ZapError(ZapProblem.WRONG_SENDER)
    if request.receipt_pubkey not in ("", receipt.pubkey):
        raise ZapError(ZapProblem.WRONG_SENDER)


def _check_preimage(receipt: Event, invoice: PaymentRequest) -> None:
    preimage = sole_value(receipt, "preimage")
    if preimage == "":
        return
    if preimage is None or _HEX_32.fullmatch(preimage) is None:
        raise ZapError(ZapProblem.WRONG_PREIMAGE)
    if hashlib.sha256(bytes.fromhex(preimage)).hexdigest() != invoice.payment_hash:
        raise ZapError(ZapProblem.WRONG_PREIMAGE)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

"""What a payer has to know of a BOLT11 payment request."""

from __future__ import annotations

from dataclasses import dataclass

from services.lightning.bolt11 import Bolt11Error, decode
from services.payment.domain.model import Reason, Refused


@dataclass(frozen=True, slots=True, kw_only=True)
class Invoice:
    """A payment request, in lower case. `amount_msat` None: the payer chooses."""

    payment_request: str
    payment_hash: str
    amount_msat: int | None
    description: str
    expire_time_ms: int


def read_invoice(payment_request: str, currency: str) -> Invoice:
    """Decode a payment request and check its signature and its network, the node's: a real invoice must never look paid.

    Raises Refused PAYMENT_REQUEST_INVALID.
    """
    try:
        request = decode(payment_request)
    except Bolt11Error as error:
        raise Refused(Reason.PAYMENT_REQUEST_INVALID, f"not a payment request: {error}") from error
    if request.currency != currency:
        raise Refused(Reason.PAYMENT_REQUEST_INVALID, f"the payment request is of another network than {currency}")
    return Invoice(
        payment_request=payment_request.lower(),
        payment_hash=request.payment_hash,
        amount_msat=request.amount_msat,
        description=request.description or "",
        expire_time_ms=request.expire_time_s * 1_000,
    )


def amount_to_pay_msat(invoice: Invoice, named_msat: int | None) -> int:
    """The invoice's amount, or the payer's where the invoice leaves it open.

    Raises Refused PAYMENT_AMOUNT_REQUIRED, PAYMENT_AMOUNT_NOT_ALLOWED.
    """
    if invoice.amount_msat is None:
        if named_msat is None:
            raise Refused(Reason.PAYMENT_AMOUNT_REQUIRED, "the invoice leaves the amount to the payer: name one")
        return named_msat
    if named_msat is not None:
        raise Refused(Reason.PAYMENT_AMOUNT_NOT_ALLOWED, "the invoice fixes the amount: name none")
    return invoice.amount_msat

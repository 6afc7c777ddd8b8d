"""The receipt of a payment: a Nostr event that the NIP service signs with this service's key.

Kind 4,919 is a regular event of our own (NIP-01: 1,000 <= kind < 10,000); no NIP assigns it, and a zap receipt (9735) would be
wrong: that one answers a zap request. `created_at` is when the money moved, so signing again gives the same event. The preimage is not
in it: whoever watches the payment sees the receipt, and the proof is for the payer alone.

    payment_hash             what was paid
    amount, fee              millisatoshi, decimal
    payment                  the payment's id
    P, p                     public keys of payer and payee, as in NIP-57; p only for internal payments
    simulated                present when a simulated Lightning node paid: no bitcoin moved
"""

from __future__ import annotations

import uuid

from services.payment.domain.model import Payment

RECEIPT_KIND = 4_919
RECEIPT_CONTENT = "nipmesh payment receipt"
REQUEST_NAMESPACE = uuid.UUID("5f0c8a52-6d0e-5a43-9f0b-0f6f9a1f2c11")
"""Request ids of calls to other services are derived in this namespace, so that a retry is the same request."""


def derived_request_id(payment_id: str, step: str) -> str:
    """The request id of one step's call for one payment: always the same, for any replica and attempt."""
    return str(uuid.uuid5(REQUEST_NAMESPACE, f"{payment_id}/{step}"))


def receipt_tags(payment: Payment, payer: str, payee: str) -> tuple[tuple[str, ...], ...]:
    """The tags of the receipt; `payer` and `payee` are the owners' public keys, `payee` is "" outside this mesh."""
    tags: list[tuple[str, ...]] = [
        ("payment_hash", payment.payment_hash),
        ("amount", str(payment.amount_msat)),
        ("fee", str(payment.fee_msat)),
        ("payment", payment.payment_id),
        ("P", payer),
    ]
    if payee:
        tags.append(("p", payee))
    if payment.simulated:
        tags.append(("simulated", "no bitcoin moved"))
    return tuple(tags)

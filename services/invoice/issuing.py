"""Making an invoice: a fresh preimage, and a payment request signed by the node."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from typing import Final

from services.chassis.secret import SecretBytes
from services.invoice.domain.invoice import Invoice, State
from services.lightning.bolt11 import encode
from services.lightning.node_key import NodeKey
from services.lightning.payment_request import REGTEST, PaymentRequest
from services.storage.ids import new_id

PREIMAGE_BYTES: Final = 32
PAYMENT_SECRET_BYTES: Final = 32
EXPIRY_S_DEFAULT: Final = 24 * 3_600
"""An invoice can be paid for a day unless its maker says otherwise."""
NETWORK: Final = REGTEST
"""The Lightning node is simulated: its invoices must not look like ones for real bitcoin."""
MIN_FINAL_CLTV_EXPIRY_DELTA: Final = 80
"""Blocks left to the payee by the last hop: lnd's default. Said in every invoice, as BOLT11 recommends."""
MS_PER_SECOND: Final = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What an owner asks for. `amount_msat` None: the payer chooses. At most one of the descriptions is not empty."""

    owner_pubkey: str
    account_id: str
    amount_msat: int | None
    description: str
    description_hash: str
    expiry_s: int


def issue(terms: Terms, node_key: NodeKey, now_ms: int) -> Invoice:
    """Return a new invoice, OPEN, not yet stored.

    BOLT11 counts in seconds: the time to pay runs from the whole second that `now_ms` is in. Raises Bolt11Error.
    """
    preimage = SecretBytes(secrets.token_bytes(PREIMAGE_BYTES))
    request = PaymentRequest(
        currency=NETWORK,
        payee_pubkey=node_key.public_key,
        payment_hash=hashlib.sha256(preimage.reveal()).hexdigest(),
        payment_secret=secrets.token_hex(PAYMENT_SECRET_BYTES),
        amount_msat=terms.amount_msat,
        create_time_s=now_ms // MS_PER_SECOND,
        description=None if terms.description_hash else terms.description,
        description_hash=terms.description_hash or None,
        expiry_s=terms.expiry_s,
        min_final_cltv_expiry_delta=MIN_FINAL_CLTV_EXPIRY_DELTA,
    )
    return Invoice(
        invoice_id=new_id(),
        owner_pubkey=terms.owner_pubkey,
        account_id=terms.account_id,
        state=State.OPEN,
        payment_request=encode(request, node_key),
        payment_hash=request.payment_hash,
        preimage=preimage,
        amount_msat=terms.amount_msat,
        description=terms.description,
        description_hash=terms.description_hash,
        create_time_ms=now_ms,
        expire_time_ms=request.expire_time_s * MS_PER_SECOND,
        update_time_ms=now_ms,
    )

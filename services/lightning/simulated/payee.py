"""Simulated payees that take money at once: their invoices, and the preimages that they reveal.

The preimage of such an invoice follows from the payee's key and the invoice's payment secret, so nothing has to be remembered, and
the payee's side can be played by whoever knows the seed.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import Final

from services.lightning.bolt11 import encode
from services.lightning.payment_request import REGTEST, PaymentRequest
from services.lightning.simulated.attempts import World
from services.lightning.simulated.chance import secret
from services.lightning.simulated.network import node_key

SECRET_BYTES: Final = 32
PAYEE: Final = "payee"
HERMIT: Final = "hermit"
"""A node without any channel: there is no route to it."""


def automatic_invoice(
    world: World, amount_msat: int | None, now_ms: int, *, description: str = "", payee: str = PAYEE
) -> str:
    """A payment request of a simulated payee; `amount_msat` None leaves the amount to the payer. Raises Bolt11Error."""
    key = node_key(world.profile.seed, payee)
    payment_secret = secrets.token_bytes(SECRET_BYTES)
    preimage = _preimage(world.profile.seed, payee, payment_secret)
    request = PaymentRequest(
        currency=REGTEST,
        payee_pubkey=key.public_key,
        payment_hash=hashlib.sha256(preimage).hexdigest(),
        payment_secret=payment_secret.hex(),
        amount_msat=amount_msat,
        create_time_s=now_ms // 1_000,
        description=description,
    )
    return encode(request, key)


def preimage_of(world: World, request: PaymentRequest) -> str:
    """The preimage that the payee reveals, when it is one of the simulated payees; else "". It always fits the payment hash."""
    if request.payee_pubkey != world.network.payee:
        return ""
    preimage = _preimage(world.profile.seed, PAYEE, bytes.fromhex(request.payment_secret))
    return preimage.hex() if hashlib.sha256(preimage).hexdigest() == request.payment_hash else ""


def _preimage(seed: int, payee: str, payment_secret: bytes) -> bytes:
    return hmac.digest(secret(seed, "preimages", payee), payment_secret, hashlib.sha256)

"""Invoices of a node outside the mesh, made with an independent BOLT11 library."""

from __future__ import annotations

import secrets
import time

import bolt11


def foreign_payment_request(*, amount_msat: int, description: str) -> str:
    """A signed regtest invoice of a node that exists for this call only."""
    tags = bolt11.Tags(
        [
            bolt11.Tag(bolt11.TagChar.payment_hash, secrets.token_hex(32)),
            bolt11.Tag(bolt11.TagChar.payment_secret, secrets.token_hex(32)),
            bolt11.Tag(bolt11.TagChar.description, description),
            bolt11.Tag(bolt11.TagChar.expire_time, 3600),
            bolt11.Tag(bolt11.TagChar.min_final_cltv_expiry, 18),
        ]
    )
    invoice = bolt11.Bolt11(
        currency="bcrt", date=int(time.time()), tags=tags, amount_msat=bolt11.MilliSatoshi(amount_msat)
    )
    return str(bolt11.encode(invoice, private_key=secrets.token_hex(32)))

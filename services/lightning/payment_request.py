"""What a BOLT11 payment request says, typed.

Hashes, secrets and keys are lower-case hex, amounts millisatoshi, times seconds since 1970.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

CURRENCIES: Final = ("bc", "tb", "tbs", "bcrt", "sb")
"""Bitcoin's main net, test net, signet and regtest, as BIP-173 and BOLT11 abbreviate them, and btcd's simnet."""
REGTEST: Final = "bcrt"
EXPIRY_S_DEFAULT: Final = 3_600
"""BOLT11: "Default is 3600 (1 hour) if not specified"."""
EXPIRY_S_MAX: Final = 2**35 - 1
"""A thousand years: keeps every expire time a date that the API can say."""
CREATE_TIME_S_MAX: Final = 2**35 - 1
"""BOLT11's timestamp has 35 bits."""
MIN_FINAL_CLTV_EXPIRY_DELTA_DEFAULT: Final = 18
MIN_FINAL_CLTV_EXPIRY_DELTA_MAX: Final = 2**31 - 1
"""More blocks than will ever be; the API has 32 bits."""
AMOUNT_MSAT_MAX: Final = 2_100_000_000_000_000_000
"""All bitcoin that can exist."""
FIELD_WORDS_MAX: Final = 1_023
"""A field's length has 10 bits."""
DESCRIPTION_BYTES_MAX: Final = FIELD_WORDS_MAX * 5 // 8
"""639 bytes: what a field holds."""
FEATURE_BIT_MAX: Final = FIELD_WORDS_MAX * 5 - 1
VAR_ONION_REQUIRED: Final = 8
PAYMENT_SECRET_REQUIRED: Final = 14
FEATURE_BITS_KNOWN: Final = frozenset({8, 14, 16, 24, 36, 48})
"""Even feature bits that may be required of a payer (BOLT 9): variable onions, payment secret, multi-part payments,
route blinding, attributable failures, payment metadata."""
FEATURE_BITS_DEFAULT: Final = (VAR_ONION_REQUIRED, PAYMENT_SECRET_REQUIRED)


class Bolt11Error(ValueError):
    """The text is no payment request, or the values make none; `where` names the part ("amount", "field p", …)."""

    def __init__(self, where: str, message: str) -> None:
        """Say what is wrong, without repeating the text."""
        super().__init__(f"{where}: {message}")
        self.where = where
        self.message = message


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteHop:
    """One channel on the way from a public node to the payee; the forward route is a tuple of these."""

    pubkey: str
    short_channel_id: int
    fee_base_msat: int
    fee_proportional_millionths: int
    cltv_expiry_delta: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FallbackAddress:
    """An on-chain address: witness version (0 to 16) and program, or 17 and a key's hash, or 18 and a script's."""

    version: int
    program: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentRequest:
    """A payment request.

    `amount_msat` None: the payer chooses. Exactly one of `description` and `description_hash` is not None.
    """

    currency: str
    payee_pubkey: str
    payment_hash: str
    payment_secret: str
    amount_msat: int | None
    create_time_s: int
    description: str | None = None
    description_hash: str | None = None
    expiry_s: int = EXPIRY_S_DEFAULT
    min_final_cltv_expiry_delta: int = MIN_FINAL_CLTV_EXPIRY_DELTA_DEFAULT
    feature_bits: tuple[int, ...] = FEATURE_BITS_DEFAULT
    route_hints: tuple[tuple[RouteHop, ...], ...] = ()
    fallback_addresses: tuple[FallbackAddress, ...] = ()
    metadata: bytes | None = None

    @property
    def expire_time_s(self) -> int:
        """From here on the request is not to be paid."""
        return self.create_time_s + self.expiry_s

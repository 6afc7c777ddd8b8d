"""Payment requests with any values, as hypothesis draws them."""

from __future__ import annotations

from typing import Final

from hypothesis import strategies as st

from services.chassis.secret import SecretBytes
from services.lightning.node_key import NodeKey
from services.lightning.payment_request import (
    AMOUNT_MSAT_MAX,
    CURRENCIES,
    EXPIRY_S_MAX,
    FEATURE_BITS_KNOWN,
    FallbackAddress,
    PaymentRequest,
    RouteHop,
)

KEY: Final = NodeKey(SecretBytes(b"\x01" * 32))

hashes = st.binary(min_size=32, max_size=32).map(bytes.hex)
amounts = st.none() | st.integers(1, AMOUNT_MSAT_MAX) | st.sampled_from([1, 10, 100, 10**5, 10**8, 10**11])
descriptions = st.text(st.characters(codec="utf-8"), max_size=159)
hops = st.builds(
    RouteHop,
    pubkey=st.binary(min_size=33, max_size=33).map(bytes.hex),
    short_channel_id=st.integers(0, 2**64 - 1),
    fee_base_msat=st.integers(0, 2**32 - 1),
    fee_proportional_millionths=st.integers(0, 2**32 - 1),
    cltv_expiry_delta=st.integers(0, 2**16 - 1),
)
routes = st.lists(hops, min_size=1, max_size=3).map(tuple)
addresses = st.builds(
    FallbackAddress, version=st.integers(0, 16), program=st.binary(min_size=2, max_size=40)
) | st.builds(FallbackAddress, version=st.sampled_from([17, 18]), program=st.binary(min_size=20, max_size=20))
odd_bits = st.integers(0, 300).map(lambda number: number * 2 + 1)
features = st.sets(odd_bits | st.sampled_from(sorted(FEATURE_BITS_KNOWN)), max_size=6).map(lambda s: tuple(sorted(s)))


@st.composite
def requests(draw: st.DrawFn) -> PaymentRequest:
    hashed = draw(st.booleans())
    return PaymentRequest(
        currency=draw(st.sampled_from(CURRENCIES)),
        payee_pubkey=KEY.public_key,
        payment_hash=draw(hashes),
        payment_secret=draw(hashes),
        amount_msat=draw(amounts),
        create_time_s=draw(st.integers(0, 2**35 - 1)),
        description=None if hashed else draw(descriptions),
        description_hash=draw(hashes) if hashed else None,
        expiry_s=draw(st.integers(0, EXPIRY_S_MAX)),
        min_final_cltv_expiry_delta=draw(st.integers(0, 2**31 - 1)),
        feature_bits=draw(features),
        route_hints=tuple(draw(st.lists(routes, max_size=2))),
        fallback_addresses=tuple(draw(st.lists(addresses, max_size=2))),
        metadata=draw(st.none() | st.binary(max_size=100)),
    )

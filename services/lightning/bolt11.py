"""BOLT11 payment requests: text to `PaymentRequest` and back, in one pass, with the signature checked.

https://github.com/lightning/bolts/blob/master/11-payment-encoding.md

    request = decode(text)                          # Bolt11Error says what is wrong and where
    text = encode(request, node_key)                # decode(encode(request, key)) == request

A decoded request may be expired: whoever pays compares `expire_time_s` with a clock.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import coincurve
from coincurve.ecdsa import cdata_to_der, deserialize_compact

from services.encoding import bech32
from services.encoding.bech32 import Bech32Error, bytes_of_words, integer_of_words, words_of_bytes, words_of_integer
from services.lightning.amount import decode_prefix, encode_prefix
from services.lightning.node_key import NodeKey
from services.lightning.payment_request import (
    CREATE_TIME_S_MAX,
    DESCRIPTION_BYTES_MAX,
    EXPIRY_S_DEFAULT,
    EXPIRY_S_MAX,
    FEATURE_BIT_MAX,
    FEATURE_BITS_KNOWN,
    FIELD_WORDS_MAX,
    MIN_FINAL_CLTV_EXPIRY_DELTA_DEFAULT,
    MIN_FINAL_CLTV_EXPIRY_DELTA_MAX,
    Bolt11Error,
    FallbackAddress,
    PaymentRequest,
    RouteHop,
)

__all__ = ["Bolt11Error", "PaymentRequest", "decode", "encode"]

TIMESTAMP_WORDS: Final = 7
SIGNATURE_WORDS: Final = 104
HEADER_WORDS: Final = 3
HASH_WORDS: Final = 52
PUBKEY_WORDS: Final = 53
HOP_BYTES: Final = 51
FALLBACK_VERSION_MAX: Final = 18
WITNESS_VERSION_MAX: Final = 16
ADDRESS_HASH_BYTES: Final = 20
WITNESS_PROGRAM_BYTES: Final = range(2, 41)
HALF_ORDER: Final = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0
"""Half the order of secp256k1: a signature is low-S up to here."""

_TYPES: Final = {letter: bech32.CHARSET.index(letter) for letter in "psdmnhxcfr9"}
_LETTERS: Final = {number: letter for letter, number in _TYPES.items()}
_FIXED_WORDS: Final = {"p": HASH_WORDS, "s": HASH_WORDS, "h": HASH_WORDS, "n": PUBKEY_WORDS}


def decode(text: str) -> PaymentRequest:
    """Read a payment request, in lower or upper case, without `lightning:`. Raises Bolt11Error."""
    try:
        prefix, words = bech32.decode(text)
    except Bech32Error as error:
        raise Bolt11Error("bech32", str(error)) from None
    currency, amount_msat = decode_prefix(prefix)
    if len(words) < TIMESTAMP_WORDS + SIGNATURE_WORDS:
        raise Bolt11Error("data", "is too short for a timestamp and a signature")
    signed, signature = words[:-SIGNATURE_WORDS], words[-SIGNATURE_WORDS:]
    first, repeated = _fields(signed)
    message = prefix.encode("ascii") + bech32.padded_bytes_of_words(signed)
    return PaymentRequest(
        currency=currency,
        amount_msat=amount_msat,
        create_time_s=integer_of_words(signed[:TIMESTAMP_WORDS]),
        payee_pubkey=_payee(first.get("n"), message, bytes_of_words(signature)),
        payment_hash=_hash(first, "p", "the payment hash"),
        payment_secret=_hash(first, "s", "the payment secret"),
        expiry_s=_number(first, "x", EXPIRY_S_DEFAULT, EXPIRY_S_MAX),
        min_final_cltv_expiry_delta=_number(
            first, "c", MIN_FINAL_CLTV_EXPIRY_DELTA_DEFAULT, MIN_FINAL_CLTV_EXPIRY_DELTA_MAX
        ),
        feature_bits=_feature_bits(first.get("9", b"")),
        route_hints=tuple(_route(field) for letter, field in repeated if letter == "r"),
        fallback_addresses=tuple(_fallbacks(field for letter, field in repeated if letter == "f")),
        metadata=_bytes("m", first["m"]) if "m" in first else None,
        **_description(first),
    )


def _fields(words: bytes) -> tuple[dict[str, bytes], list[tuple[str, bytes]]]:
    """Return the tagged fields: the first of each type, and all of those that may be repeated, in order.

    A field of unknown type is skipped, and one of a fixed length with another length as well, as the specification's
    example "including fields which must be ignored" wants: should it have been the only one, its absence is the error.
    """
    first: dict[str, bytes] = {}
    repeated: list[tuple[str, bytes]] = []
    at, end = TIMESTAMP_WORDS, len(words)
    while at < end:
        if at + HEADER_WORDS > end:
            raise Bolt11Error("data", f"ends inside a field's header, {end - at} words before the signature")
        letter = _LETTERS.get(words[at], "")
        length = words[at + 1] << 5 | words[at + 2]
        at += HEADER_WORDS
        if at + length > end:
            raise Bolt11Error(f"field {letter or bech32.CHARSET[words[at - HEADER_WORDS]]}", "is longer than the data")
        field = words[at : at + length]
        at += length
        if letter in ("r", "f"):
            repeated.append((letter, field))
        elif letter and _FIXED_WORDS.get(letter, length) == length:
            first.setdefault(letter, field)
    return first, repeated


def _bytes(letter: str, words: bytes) -> bytes:
    """Return a field's words as bytes."""
    try:
        return bytes_of_words(words)
    except Bech32Error as error:
        raise Bolt11Error(f"field {letter}", str(error)) from None


def _hash(fields: dict[str, bytes], letter: str, name: str) -> str:
    """Return a required 32-byte field."""
    if letter not in fields:
        raise Bolt11Error(f"field {letter}", f"{name} is missing")
    return _bytes(letter, fields[letter]).hex()


def _minimal(letter: str, words: bytes) -> bytes:
    """Return the words, unless they begin with 0.

    "if a c, x, or 9 field is provided which has a non-minimal data_length: SHOULD treat the invoice as invalid".
    """
    if words and words[0] == 0:
        raise Bolt11Error(f"field {letter}", "begins with a zero: its length is not minimal")
    return words


def _number(fields: dict[str, bytes], letter: str, default: int, largest: int) -> int:
    """Return a number field, or its default."""
    if letter not in fields:
        return default
    value = integer_of_words(_minimal(letter, fields[letter]))
    if value > largest:
        raise Bolt11Error(f"field {letter}", f"is more than {largest}")
    return value


def _description(fields: dict[str, bytes]) -> dict[str, str]:
    """Return `description` or `description_hash`.

    "MUST fail the payment if neither a d field nor a h field is present, or if both are present".
    """
    if ("d" in fields) == ("h" in fields):
        raise Bolt11Error("field d", "exactly one of description (d) and description hash (h) must be there")
    if "h" in fields:
        return {"description_hash": _bytes("h", fields["h"]).hex()}
    try:
        return {"description": _bytes("d", fields["d"]).decode("utf-8")}
    except UnicodeDecodeError as error:
        raise Bolt11Error("field d", f"the description is not UTF-8 at byte {error.start}") from None


def _feature_bits(words: bytes) -> tuple[int, ...]:
    """Return the feature bits that are set, rising. "unknown even bits that are non-zero: MUST fail the payment"."""
    value = integer_of_words(_minimal("9", words))
    bits = []
    while value:
        lowest = value & -value
        bit = lowest.bit_length() - 1
        if bit % 2 == 0 and bit not in FEATURE_BITS_KNOWN:
            raise Bolt11Error("field 9", f"requires the unknown feature {bit}")
        bits.append(bit)
        value ^= lowest
    return tuple(bits)


def _route(words: bytes) -> tuple[RouteHop, ...]:
    """Return the hops of one `r` field."""
    data = _bytes("r", words)
    if not data or len(data) % HOP_BYTES:
        raise Bolt11Error("field r", f"must be one or more hops of {HOP_BYTES} bytes")
    return tuple(_hop(data[at : at + HOP_BYTES]) for at in range(0, len(data), HOP_BYTES))


def _hop(data: bytes) -> RouteHop:
    """51 bytes: public key 33, short channel id 8, base fee 4, proportional fee 4, CLTV delta 2."""
    return RouteHop(
        pubkey=data[:33].hex(),
        short_channel_id=int.from_bytes(data[33:41], "big"),
        fee_base_msat=int.from_bytes(data[41:45], "big"),
        fee_proportional_millionths=int.from_bytes(data[45:49], "big"),
        cltv_expiry_delta=int.from_bytes(data[49:51], "big"),
    )


def _fallbacks(fields: Iterator[bytes]) -> Iterator[FallbackAddress]:
    """Return the on-chain addresses. "MUST skip over f fields that use an unknown version"."""
    for words in fields:
        if not words:
            raise Bolt11Error("field f", "has no version")
        if words[0] > FALLBACK_VERSION_MAX:
            continue
        address = FallbackAddress(version=words[0], program=_bytes("f", words[1:]))
        _check_fallback(address)
        yield address


def _check_fallback(address: FallbackAddress) -> None:
    """Refuse a program of a length that its version cannot have."""
    length = len(address.program)
    fits = length in WITNESS_PROGRAM_BYTES if address.version <= WITNESS_VERSION_MAX else length == ADDRESS_HASH_BYTES
    if not 0 <= address.version <= FALLBACK_VERSION_MAX or not fits:
        raise Bolt11Error("field f", f"version {address.version} cannot have a program of {length} bytes")


def _payee(field: bytes | None, message: bytes, signature: bytes) -> str:
    """Return the public key that signed: the one in `n`, verified, or the one that the signature yields."""
    if signature[64] > 3:
        raise Bolt11Error("signature", "the recovery id is not 0 to 3")
    if field is not None:
        return _verified(_bytes("n", field), message, signature[:64])
    try:
        recovered = coincurve.PublicKey.from_signature_and_message(signature, message)
    except ValueError:
        raise Bolt11Error("signature", "yields no public key") from None
    key: bytes = recovered.format()
    return key.hex()


def _verified(key: bytes, message: bytes, signature: bytes) -> str:
    """Return the key of an `n` field, when it made the signature.

    "If the signature is not compliant with the low-S standard rule: MUST fail the payment".
    """
    if int.from_bytes(signature[32:], "big") > HALF_ORDER:
        raise Bolt11Error("signature", "is not low-S, which field n demands")
    try:
        public_key = coincurve.PublicKey(key)
        valid = public_key.verify(cdata_to_der(deserialize_compact(signature)), message)
    except ValueError:
        raise Bolt11Error("field n", "is no public key, or the signature is out of range") from None
    if not valid:
        raise Bolt11Error("signature", "was not made by the key in field n")
    return key.hex()


def encode(request: PaymentRequest, key: NodeKey) -> str:
    """Return the signed payment request, lower case. Raises Bolt11Error for values that no payment request can have.

    To be called on the event loop: a thread for it costs more processor time than it takes off the loop
    (`python -m benchmarks.services crypto`).
    """
    if request.payee_pubkey != key.public_key:
        raise Bolt11Error("field n", "the payee is not the node that signs")
    prefix = encode_prefix(request.currency, request.amount_msat)
    if not 0 <= request.create_time_s <= CREATE_TIME_S_MAX:
        raise Bolt11Error("timestamp", "must have at most 35 bits")
    words = words_of_integer(request.create_time_s, TIMESTAMP_WORDS) + b"".join(_encoded_fields(request))
    signature = key.sign(prefix.encode("ascii") + bech32.padded_bytes_of_words(words))
    text = bech32.encode(prefix, words + words_of_bytes(signature))
    if len(text) > bech32.CHARACTERS_MAX:
        raise Bolt11Error("data", f"the payment request is longer than {bech32.CHARACTERS_MAX} characters")
    return text


def _encoded_fields(request: PaymentRequest) -> Iterator[bytes]:
    """Return the tagged fields, in the order of the specification's examples."""
    yield _field("s", words_of_bytes(_hash_bytes("s", request.payment_secret)))
    yield _field("p", words_of_bytes(_hash_bytes("p", request.payment_hash)))
    yield _encoded_description(request)
    if request.metadata is not None:
        yield _field("m", words_of_bytes(request.metadata))
    if request.expiry_s != EXPIRY_S_DEFAULT:
        yield _field("x", _number_words("x", request.expiry_s, EXPIRY_S_MAX))
    if request.min_final_cltv_expiry_delta != MIN_FINAL_CLTV_EXPIRY_DELTA_DEFAULT:
        yield _field("c", _number_words("c", request.min_final_cltv_expiry_delta, MIN_FINAL_CLTV_EXPIRY_DELTA_MAX))
    for address in request.fallback_addresses:
        _check_fallback(address)
        yield _field("f", bytes((address.version,)) + words_of_bytes(address.program))
    for route in request.route_hints:
        yield _field("r", words_of_bytes(b"".join(_hop_bytes(hop) for hop in route)))
    if request.feature_bits:
        yield _field("9", _feature_words(request.feature_bits))


def _field(letter: str, words: bytes) -> bytes:
    """Type, length and words."""
    if len(words) > FIELD_WORDS_MAX:
        raise Bolt11Error(f"field {letter}", f"has {len(words)} words of 5 bits, there is room for {FIELD_WORDS_MAX}")
    return bytes((_TYPES[letter], len(words) >> 5, len(words) & 31)) + words


def _hash_bytes(letter: str, value: str) -> bytes:
    """32 bytes from 64 hex digits."""
    return _hex_bytes(letter, value, 32)


def _hex_bytes(letter: str, value: str, length: int) -> bytes:
    """`length` bytes from lower-case hex."""
    try:
        data = bytes.fromhex(value)
    except ValueError:
        data = b""
    if len(data) != length or data.hex() != value:
        raise Bolt11Error(f"field {letter}", f"must be {length * 2} lower-case hex digits")
    return data


def _encoded_description(request: PaymentRequest) -> bytes:
    """Return the `d` or the `h` field."""
    if (request.description is None) == (request.description_hash is None):
        raise Bolt11Error("field d", "exactly one of description and description_hash must be given")
    if request.description_hash is not None:
        return _field("h", words_of_bytes(_hash_bytes("h", request.description_hash)))
    assert request.description is not None
    try:
        data = request.description.encode("utf-8")
    except UnicodeEncodeError as error:
        raise Bolt11Error("field d", f"the description is not Unicode at character {error.start}") from None
    if len(data) > DESCRIPTION_BYTES_MAX:
        raise Bolt11Error("field d", f"the description has {len(data)} bytes, at most are {DESCRIPTION_BYTES_MAX}")
    return _field("d", words_of_bytes(data))


def _number_words(letter: str, value: int, largest: int) -> bytes:
    """Return a number in as few words as possible."""
    if not 0 <= value <= largest:
        raise Bolt11Error(f"field {letter}", f"must be 0 to {largest}")
    return words_of_integer(value)


def _feature_words(bits: tuple[int, ...]) -> bytes:
    """Return the feature vector in as few words as possible."""
    if list(bits) != sorted(set(bits)) or not 0 <= bits[0] <= bits[-1] <= FEATURE_BIT_MAX:
        raise Bolt11Error("field 9", f"the feature bits must rise, from 0 to {FEATURE_BIT_MAX}")
    unknown = [bit for bit in bits if bit % 2 == 0 and bit not in FEATURE_BITS_KNOWN]
    if unknown:
        raise Bolt11Error("field 9", f"requires the unknown feature {unknown[0]}")
    return words_of_integer(sum(1 << bit for bit in bits))


def _hop_bytes(hop: RouteHop) -> bytes:
    """51 bytes, see `_hop`."""
    sizes = (
        (hop.short_channel_id, 8),
        (hop.fee_base_msat, 4),
        (hop.fee_proportional_millionths, 4),
        (hop.cltv_expiry_delta, 2),
    )
    try:
        return _hex_bytes("r", hop.pubkey, 33) + b"".join(value.to_bytes(size, "big") for value, size in sizes)
    except OverflowError:
        raise Bolt11Error("field r", "a number of a hop is negative or too large") from None

"""BOLT11: any values survive, a second implementation agrees, hostile text gives a Bolt11Error and nothing else."""

from __future__ import annotations

import secrets
from dataclasses import replace

import bolt11 as second
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from services.chassis.secret import SecretBytes
from services.encoding import bech32
from services.lightning import bolt11
from services.lightning.amount import decode_prefix, encode_prefix
from services.lightning.bolt11 import decode, encode
from services.lightning.node_key import NodeKey, NodeKeyError
from services.lightning.payment_request import (
    AMOUNT_MSAT_MAX,
    CURRENCIES,
    EXPIRY_S_MAX,
    Bolt11Error,
    FallbackAddress,
    PaymentRequest,
)
from support.payment_requests import KEY, amounts, hashes, requests

ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
THOUSAND_BITCOIN_MSAT = 10**14


def plain(**changes: object) -> PaymentRequest:
    values = {
        "currency": "bcrt",
        "payee_pubkey": KEY.public_key,
        "payment_hash": "ab" * 32,
        "payment_secret": "cd" * 32,
        "amount_msat": 1_000,
        "create_time_s": 1_700_000_000,
        "description": "tea",
    }
    return PaymentRequest(**(values | changes))  # type: ignore[arg-type]


@given(requests())
def test_what_was_encoded_decodes(request: PaymentRequest) -> None:
    text = encode(request, KEY)
    assert decode(text) == request
    assert decode(text.upper()) == request
    assert text.isascii()
    assert text == text.lower()


@given(
    amounts,
    hashes,
    hashes,
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=159),
    st.integers(1, 2**31),
    st.integers(1, 1000),
)
def test_the_second_implementation_reads_what_we_write(
    amount_msat: int | None, payment_hash: str, secret: str, description: str, expiry_s: int, delta: int
) -> None:
    ours = plain(
        amount_msat=amount_msat,
        payment_hash=payment_hash,
        payment_secret=secret,
        description=description,
        expiry_s=expiry_s,
        min_final_cltv_expiry_delta=delta,
    )
    theirs = second.decode(encode(ours, KEY), strict=delta != 18)  # strict demands what the default leaves out
    assert (theirs.currency, theirs.payee, theirs.date) == (ours.currency, ours.payee_pubkey, ours.create_time_s)
    assert (theirs.payment_hash, theirs.payment_secret) == (payment_hash, secret)
    assert (theirs.amount_msat, theirs.description) == (amount_msat, description)
    assert (theirs.expiry or 3_600) == expiry_s
    assert (theirs.min_final_cltv_expiry or 18) == delta


@given(amounts, hashes, hashes, st.text(st.characters(codec="utf-8"), min_size=1, max_size=159), st.integers(1, 2**31))
def test_we_read_what_the_second_implementation_writes(
    amount_msat: int | None, payment_hash: str, secret: str, description: str, expiry_s: int
) -> None:
    # The package divides whole thousands of bitcoin once too often; it does not even read these back itself.
    assume(amount_msat is None or amount_msat % THOUSAND_BITCOIN_MSAT)
    tags = second.Tags()
    tags.add(second.TagChar.payment_hash, payment_hash)
    tags.add(second.TagChar.payment_secret, secret)
    tags.add(second.TagChar.description, description)
    tags.add(second.TagChar.expire_time, expiry_s)
    invoice = second.Bolt11(
        currency="bc",
        date=1_700_000_000,
        tags=tags,
        amount_msat=None if amount_msat is None else second.MilliSatoshi(amount_msat),
    )
    ours = decode(second.encode(invoice, private_key="01" * 32))
    assert (ours.currency, ours.payee_pubkey, ours.amount_msat) == ("bc", KEY.public_key, amount_msat)
    assert (ours.payment_hash, ours.payment_secret, ours.description) == (payment_hash, secret, description)
    assert (ours.expiry_s, ours.expire_time_s) == (expiry_s, 1_700_000_000 + expiry_s)


@given(st.text(max_size=300))
@example("lnbc1")
@example("lightning:lnbc1")
@example("lnbc" + "9" * 70 + "1qqqqqq")
def test_any_text_gives_a_bolt11_error(text: str) -> None:
    with pytest.raises(Bolt11Error):
        decode(text)


@given(st.sampled_from(["lnbc", "lnbcrt10u", "lntb1p", "lntbs01", "lnbc٣", "ln", "lnbc1x"]), st.binary(max_size=400))
def test_any_words_under_a_right_checksum_give_a_request_or_a_bolt11_error(prefix: str, data: bytes) -> None:
    words = bytes(byte & 31 for byte in data)
    try:
        text = bech32.encode(prefix, words)
        decode(text)
    except (Bolt11Error, bech32.Bech32Error):
        return


@given(st.lists(st.tuples(st.sampled_from("psdmnhxcfr9qz"), st.binary(max_size=60)), max_size=8), st.integers(0, 7))
def test_any_fields_signed_by_a_node_give_a_request_or_a_bolt11_error(
    fields: list[tuple[str, bytes]], recovery: int
) -> None:
    words = bech32.words_of_integer(1_700_000_000, 7)
    for letter, data in fields:
        value = bytes(byte & 31 for byte in data)
        words += bytes((bech32.CHARSET.index(letter), len(value) >> 5, len(value) & 31)) + value
    signature = bytearray(KEY.sign(b"lnbc" + bech32.padded_bytes_of_words(words)))
    signature[64] ^= recovery & 4
    try:
        request = decode(bech32.encode("lnbc", words + bech32.words_of_bytes(bytes(signature))))
    except Bolt11Error:
        return
    assert request.payee_pubkey == KEY.public_key


@given(amounts, st.sampled_from(CURRENCIES))
def test_amounts_survive_and_use_the_largest_multiplier(amount_msat: int | None, currency: str) -> None:
    prefix = encode_prefix(currency, amount_msat)
    assert decode_prefix(prefix) == (currency, amount_msat)
    assert prefix[-1].isdigit() or not prefix[:-1].endswith("000")


def test_the_currency_of_simnet_is_known() -> None:
    assert decode_prefix("lnsb20u") == ("sb", 2_000_000)
    assert encode_prefix("sb", None) == "lnsb"


@pytest.mark.parametrize(
    ("prefix", "cause"),
    [
        ("lnbc0m", "begin with 0"),
        ("lnbc00", "begin with 0"),
        ("lnbc1q", "unknown multiplier"),
        ("lnbcm", "known currency"),
        ("lnltc1m", "known currency"),
        ("bc1m", "known currency"),
        ("lnbc1mm", "known currency"),
        ("lnbc11p", "fraction of a millisatoshi"),
        ("lnbc21000001", "all bitcoin"),
        ("lnbc" + "9" * 60, "all bitcoin"),
    ],
)
def test_wrong_prefixes_are_refused(prefix: str, cause: str) -> None:
    with pytest.raises(Bolt11Error, match=cause):
        decode_prefix(prefix)


@pytest.mark.parametrize(
    ("prefix", "amount_msat"),
    [("lnbc1", 10**11), ("lnbc1000m", 10**11), ("lnbc10p", 1), ("lnbc21000000", AMOUNT_MSAT_MAX)],
)
def test_amounts_need_not_be_in_the_largest_multiplier(prefix: str, amount_msat: int) -> None:
    assert decode_prefix(prefix) == ("bc", amount_msat)


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"amount_msat": 0}, "amount"),
        ({"amount_msat": AMOUNT_MSAT_MAX + 1}, "amount"),
        ({"currency": "ltc"}, "currency"),
        ({"create_time_s": 2**35}, "timestamp"),
        ({"create_time_s": -1}, "timestamp"),
        ({"payment_hash": "ab" * 31}, "field p"),
        ({"payment_hash": "AB" * 32}, "field p"),
        ({"payment_secret": "zz" * 32}, "field s"),
        ({"description": None}, "field d"),
        ({"description_hash": "ab" * 32}, "field d"),
        ({"description": "ä" * 320}, "field d"),
        ({"description": "\ud800"}, "field d"),
        ({"expiry_s": -1}, "field x"),
        ({"expiry_s": EXPIRY_S_MAX + 1}, "field x"),
        ({"min_final_cltv_expiry_delta": 2**31}, "field c"),
        ({"feature_bits": (14, 8)}, "field 9"),
        ({"feature_bits": (100,)}, "field 9"),
        ({"feature_bits": (5_115,)}, "field 9"),
        ({"feature_bits": (-1,)}, "field 9"),
        ({"metadata": bytes(640)}, "field m"),
        ({"payee_pubkey": "02" * 33}, "field n"),
        ({"fallback_addresses": (FallbackAddress(version=17, program=bytes(19)),)}, "field f"),
        ({"fallback_addresses": (FallbackAddress(version=19, program=bytes(20)),)}, "field f"),
        ({"fallback_addresses": (FallbackAddress(version=-1, program=bytes(20)),)}, "field f"),
    ],
)
def test_values_that_make_no_request_are_refused(changes: dict[str, object], cause: str) -> None:
    with pytest.raises(Bolt11Error) as refused:
        encode(plain(**changes), KEY)
    assert refused.value.where == cause


def _text(fields: bytes, *, signer: NodeKey = KEY) -> str:
    words = bech32.words_of_integer(1_700_000_000, 7) + fields
    return bech32.encode(
        "lnbc", words + bech32.words_of_bytes(signer.sign(b"lnbc" + bech32.padded_bytes_of_words(words)))
    )


def _field(letter: str, words: bytes) -> bytes:
    return bytes((bech32.CHARSET.index(letter), len(words) >> 5, len(words) & 31)) + words


PAY = _field("p", bech32.words_of_bytes(b"\xab" * 32))
SECRET = _field("s", bech32.words_of_bytes(b"\xcd" * 32))
TEA = _field("d", bech32.words_of_bytes(b"tea"))
TEA_HASH = _field("h", bech32.words_of_bytes(b"\xef" * 32))
NODE = _field("n", bech32.words_of_bytes(bytes.fromhex(KEY.public_key)))


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        (SECRET + TEA, "field p"),
        (PAY + TEA, "field s"),
        (PAY + SECRET, "field d"),
        (PAY + SECRET + TEA + TEA_HASH, "field d"),
        (PAY + SECRET + _field("d", bech32.words_of_bytes(b"\xff")), "field d"),
        (PAY + SECRET + TEA + _field("x", b"\0\1"), "field x"),
        (PAY + SECRET + TEA + _field("c", b"\0"), "field c"),
        (PAY + SECRET + TEA + _field("9", b"\0\x08"), "field 9"),
        (PAY + SECRET + TEA + _field("x", b"\1" * 20), "field x"),
        (PAY + SECRET + TEA + _field("r", b""), "field r"),
        (PAY + SECRET + TEA + _field("r", bytes(80)), "field r"),
        (PAY + SECRET + TEA + _field("f", b""), "field f"),
        (PAY + SECRET + TEA + _field("f", b"\x11" + bytes(8)), "field f"),
        (PAY[:-1] + b"\1" + SECRET + TEA, "field p"),
        (PAY + SECRET + TEA + b"\1\1", "data"),
        (PAY + SECRET + TEA + b"\1\1\1", "field p"),
        (PAY + SECRET + TEA + b"\2\1\1", "field z"),
    ],
)
def test_wrong_fields_are_refused_with_their_place(fields: bytes, where: str) -> None:
    with pytest.raises(Bolt11Error) as refused:
        decode(_text(fields))
    assert refused.value.where == where


def test_the_first_field_of_a_type_counts_and_unknown_ones_are_skipped() -> None:
    again = _field("p", bech32.words_of_bytes(bytes(32)))
    unknown = _field("f", b"\x13" + bytes(5)) + _field("z", b"\1\2") + _field("s", bytes(51))
    request = decode(_text(unknown + PAY + again + SECRET + TEA))
    assert request.payment_hash == "ab" * 32
    assert request.fallback_addresses == ()


def test_a_node_field_must_be_the_signer() -> None:
    assert decode(_text(PAY + SECRET + TEA + NODE)).payee_pubkey == KEY.public_key
    with pytest.raises(Bolt11Error, match="not made by the key in field n"):
        decode(_text(PAY + SECRET + TEA + NODE, signer=NodeKey(SecretBytes(b"\x02" * 32))))
    with pytest.raises(Bolt11Error, match="no public key"):
        decode(_text(PAY + SECRET + TEA + _field("n", bech32.words_of_bytes(bytes(33)))))


def test_a_high_s_signature_is_accepted_only_without_a_node_field() -> None:
    def flipped(fields: bytes) -> str:
        words = bech32.words_of_integer(1_700_000_000, 7) + fields
        signature = KEY.sign(b"lnbc" + bech32.padded_bytes_of_words(words))
        high = (ORDER - int.from_bytes(signature[32:64], "big")).to_bytes(32, "big")
        made = signature[:32] + high + bytes((signature[64] ^ 1,))
        return bech32.encode("lnbc", words + bech32.words_of_bytes(made))

    assert decode(flipped(PAY + SECRET + TEA)).payee_pubkey == KEY.public_key
    with pytest.raises(Bolt11Error, match="low-S"):
        decode(flipped(PAY + SECRET + TEA + NODE))


def test_our_signatures_are_low_s() -> None:
    for number in range(1, 50):
        signature = KEY.sign(number.to_bytes(4, "big"))
        assert int.from_bytes(signature[32:64], "big") <= bolt11.HALF_ORDER


def test_a_changed_prefix_breaks_the_signature_or_names_another_payee() -> None:
    prefix, words = bech32.decode(encode(plain(), KEY))
    assert prefix == "lnbcrt10n"
    try:
        payee = decode(bech32.encode("lnbcrt20n", words)).payee_pubkey
    except Bolt11Error:
        return
    assert payee != KEY.public_key


def test_an_error_never_repeats_the_text() -> None:
    text = encode(plain(description="very private"), KEY)
    with pytest.raises(Bolt11Error) as refused:
        decode(text[:-1] + ("q" if text[-1] != "q" else "p"))
    assert text[:20] not in str(refused.value)


@pytest.mark.parametrize("secret", [b"", bytes(32), b"\xff" * 32, b"\x01" * 31, b"\x01" * 33])
def test_what_is_no_private_key_is_refused(secret: bytes) -> None:
    with pytest.raises(NodeKeyError):
        NodeKey(SecretBytes(secret))


def test_a_node_key_never_shows_its_secret() -> None:
    secret = secrets.token_bytes(32)
    key = NodeKey(SecretBytes(secret))
    assert secret.hex() not in repr(key)
    assert key.public_key in repr(key)


def test_a_request_is_frozen_and_compares_by_value() -> None:
    assert replace(plain(), amount_msat=2) != plain()
    with pytest.raises(AttributeError):
        plain().amount_msat = 2  # type: ignore[misc]

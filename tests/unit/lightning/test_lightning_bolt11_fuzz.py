"""Mutated payment requests: refused with a Bolt11Error, or read to a meaning that survives encoding. Never anything else.

Mutations work at five levels: characters, the prefix, words of 5 bits, tagged fields, the signature; all but the first under a right
checksum, those of fields under a right signature. NIPMESH_BOLT11_EXAMPLES sets how many of each are tried; hypothesis prints what
replays a failure.
"""

from __future__ import annotations

from dataclasses import replace

import bolt11 as second
import pytest
from hypothesis import currently_in_test_context, event, example, given, settings
from hypothesis import strategies as st

from services.encoding import bech32
from services.lightning.bolt11 import HALF_ORDER, decode, encode
from services.lightning.payment_request import CURRENCIES, Bolt11Error, PaymentRequest
from support.fuzzing import setting
from support.payment_requests import KEY, requests

EXAMPLES = setting("NIPMESH_BOLT11_EXAMPLES", 150)
SIGNATURE_WORDS, TIMESTAMP_WORDS = 104, 7
LETTERS = "psdmnhxcfr9"
pytestmark = pytest.mark.timeout(120 + EXAMPLES // 5)
fuzzed = settings(max_examples=EXAMPLES, print_blob=True)

characters = st.sampled_from([*bech32.CHARSET, *"bio1QPZ0lnA", "\0", "é", "\u212a", "\u0661", " "])
kinds = st.sampled_from(["put", "insert", "drop", "swap", "cut"])
edits = st.lists(st.tuples(kinds, st.integers(0, 10**6), st.integers(0, 31)), min_size=1, max_size=4)
field_words = st.binary(max_size=80).map(lambda data: bytes(byte & 31 for byte in data))
fields = st.lists(st.tuples(st.sampled_from(LETTERS + "qz7l"), field_words), max_size=5)


def checked(text: str) -> PaymentRequest | None:
    """Decode; what was accepted keeps its meaning when it is encoded anew, and in upper case."""
    try:
        request = decode(text)
    except Bolt11Error as error:
        refusal = error
    else:
        keeps_its_meaning(text, request)
        note("accepted")
        return request
    assert refusal.where
    assert refusal.message
    assert len(text) < 20 or text[8:] not in str(refusal)
    note(f"refused: {refusal.where}")
    return None


def keeps_its_meaning(text: str, request: PaymentRequest) -> None:
    ours = replace(request, payee_pubkey=KEY.public_key)
    again = encode(ours, KEY)
    assert decode(again) == ours
    assert encode(decode(again), KEY) == again
    assert decode(text.upper()) == decode(text.lower()) == request


def note(text: str) -> None:
    """For `--hypothesis-show-statistics`."""
    if currently_in_test_context():
        event(text)


def agrees(text: str, request: PaymentRequest) -> None:
    """What the second implementation reads as well, it reads the same. What it does not: see below."""
    try:
        theirs = second.decode(text)
    except Exception:  # noqa: BLE001  # it fails in many ways, and refuses what it does not support
        note("refused by the second implementation")
        return
    first_choice = (theirs.description or None) == (request.description or None)
    assert (theirs.currency, theirs.date, theirs.payee) == (
        request.currency,
        request.create_time_s,
        request.payee_pubkey,
    )
    assert (theirs.payment_hash, theirs.payment_secret) == (request.payment_hash, request.payment_secret)
    assert (theirs.amount_msat, theirs.description_hash) == (request.amount_msat, request.description_hash)
    assert first_choice
    note("read alike by both")


def edited(data: list[str], changes: list[tuple[str, int, int]], alphabet: str) -> list[str]:
    """The text after some small edits."""
    for kind, at, value in changes:
        at %= len(data) + 1
        new = alphabet[value % len(alphabet)]
        if kind == "put" and at < len(data):
            data[at] = new
        elif kind == "insert":
            data.insert(at, new)
        elif kind == "drop":
            del data[at : at + 1]
        elif kind == "swap" and at + 1 < len(data):
            data[at], data[at + 1] = data[at + 1], data[at]
        elif kind == "cut":
            del data[at : at + value]
    return data


@given(requests(), edits, characters)
@fuzzed
def test_changed_characters(request: PaymentRequest, changes: list[tuple[str, int, int]], other: str) -> None:
    text = encode(request, KEY)
    mutated = "".join(edited(list(text), changes, bech32.CHARSET + other))
    found = checked(mutated)
    assert found is None or mutated.lower() == text, "a checksum of 30 bits misses nothing of up to four changes"


@given(requests(), edits)
@fuzzed
@example(
    PaymentRequest(
        currency="bc", payee_pubkey=KEY.public_key, payment_hash="ab" * 32, payment_secret="cd" * 32, amount_msat=1_000,
        create_time_s=0, description="",
    ),
    [("insert", 4, 9)],
)  # fmt: skip
def test_changed_prefixes(request: PaymentRequest, changes: list[tuple[str, int, int]]) -> None:
    prefix, words = bech32.decode(encode(request, KEY))
    mutated = "".join(edited(list(prefix), changes, "lnbctrsmup0123456789x"))
    if not mutated:
        return
    found = checked(bech32.encode(mutated, words))
    if found is not None and mutated != prefix:
        assert found.currency in CURRENCIES
        assert found.payee_pubkey != KEY.public_key, "the prefix is signed, too"


@given(requests(), edits)
@fuzzed
def test_changed_words(request: PaymentRequest, changes: list[tuple[str, int, int]]) -> None:
    prefix, words = bech32.decode(encode(request, KEY))
    data = edited([bech32.CHARSET[word] for word in words], changes, bech32.CHARSET)
    text = bech32.encode(prefix, bytes(bech32.CHARSET.index(letter) for letter in data))
    found = checked(text)
    if found is not None:
        agrees(text, found)


def signed(prefix: str, words: bytes) -> str:
    """The words under a signature of ours."""
    signature = KEY.sign(prefix.encode("ascii") + bech32.padded_bytes_of_words(words))
    return bech32.encode(prefix, words + bech32.words_of_bytes(signature))


def fields_of(words: bytes) -> list[bytes]:
    """The tagged fields, each with its header."""
    found, at = [], 0
    while at < len(words):
        end = at + 3 + (words[at + 1] << 5 | words[at + 2])
        found.append(words[at:end])
        at = end
    return found


@given(requests(), fields, st.randoms(use_true_random=False))
@fuzzed
def test_fields_that_are_added_dropped_doubled_and_shuffled(
    request: PaymentRequest, more: list[tuple[str, bytes]], random: st.DataObject
) -> None:
    prefix, words = bech32.decode(encode(request, KEY))
    known = fields_of(words[TIMESTAMP_WORDS:-SIGNATURE_WORDS])
    new = [bytes((bech32.CHARSET.index(letter), len(data) >> 5, len(data) & 31)) + data for letter, data in more]
    mixed = [*known, *new, *(field for field in known if random.random() < 0.1)]  # type: ignore[attr-defined]
    random.shuffle(mixed)  # type: ignore[attr-defined]
    kept = [field for field in mixed if random.random() < 0.97]  # type: ignore[attr-defined]
    text = signed(prefix, words[:TIMESTAMP_WORDS] + b"".join(kept))
    if len(text) > bech32.CHARACTERS_MAX:
        return
    found = checked(text)
    if found is not None:
        assert found.payee_pubkey == KEY.public_key
        agrees(text, found)


@given(requests(), st.binary(min_size=65, max_size=65) | st.integers(0, 519), st.booleans())
@fuzzed
@example(
    PaymentRequest(
        currency="bcrt", payee_pubkey=KEY.public_key, payment_hash="ab" * 32, payment_secret="cd" * 32, amount_msat=None,
        create_time_s=1, description="tea",
    ),
    bytes(65),
    True,
)  # fmt: skip
def test_changed_signatures(request: PaymentRequest, change: bytes | int, named: bool) -> None:
    prefix, words = bech32.decode(encode(request, KEY))
    body = words[:-SIGNATURE_WORDS]
    if named:
        body += bytes((bech32.CHARSET.index("n"), 1, 21)) + bech32.words_of_bytes(bytes.fromhex(KEY.public_key))
    signature = bytearray(KEY.sign(prefix.encode("ascii") + bech32.padded_bytes_of_words(body)))
    if isinstance(change, bytes):
        signature = bytearray(change)
    else:
        signature[change // 8] ^= 1 << change % 8
    found = checked(bech32.encode(prefix, body + bech32.words_of_bytes(bytes(signature))))
    if found is not None and named:
        assert change in range(512, 520), "only the recovery id does not matter beside a node field"
        assert int.from_bytes(signature[32:64], "big") <= HALF_ORDER
    elif found is not None:
        assert found.payee_pubkey != KEY.public_key


@given(
    st.integers(0, bech32.CHARACTERS_MAX),
    st.sampled_from(bech32.CHARSET),
    st.sampled_from(["lnbc", "lnbcrt1", "ln" + "9" * 81]),
)
@settings(max_examples=60)
def test_the_longest_texts_are_read_or_refused(length: int, letter: str, prefix: str) -> None:
    words = bytes((bech32.CHARSET.index(letter),)) * min(length, bech32.CHARACTERS_MAX - len(prefix) - 7)
    checked(bech32.encode(prefix, words))
    checked(letter * length)


@pytest.mark.parametrize("letter", LETTERS)
def test_a_field_of_the_greatest_length_is_read_or_refused(letter: str) -> None:
    words = bech32.words_of_integer(1_700_000_000, TIMESTAMP_WORDS)
    for fill in (0, 1, 16, 31):
        field = bytes((bech32.CHARSET.index(letter), 31, 31)) + bytes((fill,)) * 1_023
        checked(signed("lnbc", words + field * 5))

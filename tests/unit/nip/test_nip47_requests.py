"""NIP-47's requests: whatever bytes an app sends become a command or a failure that it is told, never anything else."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.nip.domain.nip47 import requests, results
from services.nip.domain.nip47.words import Code, Failure, Method
from services.nip.wallet.transactions import joined_metadata, split_metadata

EXAMPLES = int(os.environ.get("NIPMESH_NIP47_EXAMPLES", "100"))
NAMES = (
    *("invoice", "amount", "metadata", "description", "description_hash", "expiry", "payment_hash", "preimage"),
    *("from", "until", "limit", "offset", "unpaid", "type", "min_cltv_expiry_delta"),
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters())
    | st.sampled_from(["ab" * 32, "AB" * 32, "incoming", "lnbc1", "lightning:lnbc1", 1, 0, 2**63, -1])
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)


def parsed(text: str) -> requests.Command | Failure:
    try:
        name, params = requests.split(text)
        return requests.command_of(requests.method_of(name), params)
    except Failure as failure:
        return failure


@settings(max_examples=EXAMPLES)
@given(method=st.sampled_from(list(Method)), params=st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=6))
def test_any_parameters_are_a_command_or_a_failure(method: Method, params: dict[str, Any]) -> None:
    found = parsed(json.dumps({"method": method, "params": params}))
    if isinstance(found, Failure):
        assert json.loads(results.failure_text(method, found))["error"]["code"] == found.code
    if isinstance(found, requests.PayInvoice | requests.MakeInvoice):
        assert found.amount_msat is None or 1 <= found.amount_msat <= requests.AMOUNT_MSAT_MAX
        assert len(found.metadata) <= requests.METADATA_CHARACTERS_MAX
        found.metadata.encode()
    if isinstance(found, requests.ListTransactions):
        assert 1 <= found.limit <= requests.LIMIT_MAX
        assert found.incoming or found.outgoing


@settings(max_examples=EXAMPLES)
@given(document=VALUES)
def test_any_json_is_a_command_or_a_failure(document: Any) -> None:
    parsed(json.dumps(document))
    parsed(json.dumps({"method": document, "params": document}))


@settings(max_examples=EXAMPLES)
@given(text=st.text(st.characters()))
def test_any_text_is_a_failure(text: str) -> None:
    assert isinstance(parsed(text), Failure)


@pytest.mark.parametrize(
    "text", ["", "{", "[" * 100_000, '{"method":"pay_invoice","params":' + "9" * 5_000 + "}", "NaN"]
)
def test_what_breaks_readers_is_a_failure(text: str) -> None:
    assert isinstance(parsed(text), Failure)


@pytest.mark.parametrize("length", [1, 255, 256, 257, 4_095, 4_096])
def test_metadata_goes_through_an_invoice_in_pieces(length: int) -> None:
    text = "é" * length
    pieces = split_metadata(text)
    assert len(pieces) <= 16
    assert all(1 <= len(piece) <= 256 for piece in pieces.values())
    assert joined_metadata({**pieces, "mine": "x"}) == text


@pytest.mark.parametrize(("characters", "kept"), [(4_088, True), (4_089, False)])
def test_longer_metadata_is_dropped_as_the_specification_says(characters: int, kept: bool) -> None:
    params = {"amount": 1, "metadata": {"a": "x" * characters}}
    found = parsed(json.dumps({"method": "make_invoice", "params": params}))
    assert isinstance(found, requests.MakeInvoice)
    assert (len(found.metadata) == 4_096) is kept
    assert bool(found.metadata) is kept


@pytest.mark.parametrize(
    ("metadata"), [None, [], "text", 7, {}, {"a": float("nan")}, {"a": "\ud800"}, {"a": float("inf")}]
)
def test_metadata_that_cannot_be_kept_is_dropped(metadata: Any) -> None:
    found = parsed(json.dumps({"method": "make_invoice", "params": {"amount": 1, "metadata": metadata}}))
    assert isinstance(found, requests.MakeInvoice)
    assert found.metadata == ""


def test_an_answer_has_the_form_of_the_specification() -> None:
    success = json.loads(results.result_text("get_balance", {"balance": 1}))
    assert success == {"result_type": "get_balance", "error": None, "result": {"balance": 1}}
    failure = json.loads(results.failure_text("pay_invoice", Failure(Code.QUOTA_EXCEEDED, "no")))
    error = {"code": "QUOTA_EXCEEDED", "message": "no"}
    assert failure == {"result_type": "pay_invoice", "error": error, "result": None}


def test_a_list_that_is_too_long_for_an_event_is_shortened_from_its_end() -> None:
    transactions = [{"n": number, "metadata": "x" * 4_000} for number in range(20)]
    text = results.list_text("list_transactions", transactions)
    assert len(text.encode()) <= results.RESULT_BYTES_MAX
    shown = json.loads(text)["result"]["transactions"]
    assert [found["n"] for found in shown] == list(range(len(shown)))
    assert len(shown) >= 6

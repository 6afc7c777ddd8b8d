"""Events as JSON objects: what is read, what is refused, and that nothing but a refusal comes of hostile text."""

from __future__ import annotations

import json
from typing import Any

import nostr_sdk
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.chassis.secret import SecretBytes
from services.nostr.bip340 import Signer
from services.nostr.event import Event, MalformedEventError, Template, Verdict, sign_event, verify_event
from services.nostr.event_json import EVENT_JSON_BYTES_MAX, event_of_json, json_of_event, members_of_event

SIGNER = Signer(SecretBytes(b"\x07" * 32))
text = st.text(max_size=40)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=10,
)


def _event(content: str = "hello", tags: tuple[tuple[str, ...], ...] = (("p", "x", ""),)) -> Event:
    template = Template(kind=1, tags=tags, content=content, created_at=1_700_000_000)
    return sign_event(SIGNER, template, created_at=1_700_000_000, auxiliary_key=b"\x01" * 32)


@given(content=text, tags=st.lists(st.lists(text, min_size=1, max_size=3).map(tuple), max_size=4).map(tuple))
def test_what_is_written_is_read_by_us_and_by_nostr_sdk(content: str, tags: tuple[tuple[str, ...], ...]) -> None:
    event = _event(content, tags)
    document = json_of_event(event)
    assert event_of_json(document) == event == event_of_json(document.encode())
    assert nostr_sdk.Event.from_json(document).verify()


def test_members_stand_in_the_order_of_nip_01_and_without_spaces() -> None:
    document = json_of_event(_event())
    assert list(json.loads(document)) == ["id", "pubkey", "created_at", "kind", "tags", "content", "sig"]
    assert ": " not in document


def test_members_without_meaning_are_ignored() -> None:
    assert event_of_json(json.dumps({**members_of_event(_event()), "relay": ["wss://x"]})) == _event()


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": True},
        {"kind": "1"},
        {"kind": 1.0},
        {"created_at": None},
        {"created_at": float("nan")},
        {"content": 1},
        {"tags": {}},
        {"tags": ["p"]},
        {"tags": [["p", 1]]},
        {"id": None},
        {"sig": b"".hex().split()},
    ],
)
def test_members_of_another_type_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(MalformedEventError, match=r"needs the member|list of strings"):
        event_of_json(json.dumps({**members_of_event(_event()), **changes}))


@pytest.mark.parametrize("missing", ["id", "pubkey", "created_at", "kind", "tags", "content", "sig"])
def test_a_missing_member_is_named(missing: str) -> None:
    members = {name: value for name, value in members_of_event(_event()).items() if name != missing}
    with pytest.raises(MalformedEventError, match=f"`{missing}`"):
        event_of_json(json.dumps(members))


@pytest.mark.parametrize(
    "document",
    [
        "",
        "null",
        "[]",
        "[" * 100_000,
        '{"a":' * 20_000,
        "1" * 5_000,
        "\ufeff{}",
        b"\xff\xfe\xfd",
        json_of_event(_event())[:-1] + ',"kind":1}',
        " " * (EVENT_JSON_BYTES_MAX + 1),
    ],
)
def test_hostile_documents_are_refused(document: str | bytes) -> None:
    with pytest.raises(MalformedEventError):
        event_of_json(document)


def test_text_that_is_not_unicode_is_read_and_then_malformed() -> None:
    event = event_of_json(json.dumps({**members_of_event(_event()), "content": "\ud800"}))
    assert verify_event(event) is Verdict.MALFORMED


@given(members=st.dictionaries(st.sampled_from([*members_of_event(_event())]), values), noise=st.binary(max_size=80))
def test_noise_is_an_event_or_refused(members: dict[str, Any], noise: bytes) -> None:
    for document in (json.dumps({**members_of_event(_event()), **members}), noise):
        try:
            event = event_of_json(document)
        except MalformedEventError:
            continue
        assert verify_event(event) in Verdict

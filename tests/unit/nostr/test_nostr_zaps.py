"""NIP-57: each rule of a zap request by itself, the printed example, and hostile text."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.nostr.event import Event
from services.nostr.event_json import json_of_event, members_of_event
from services.nostr.zaps import (
    ZAP_REQUEST_BYTES_MAX,
    Zap,
    ZapError,
    ZapProblem,
    read_zap_request,
    zap_request_template,
)
from support.zaps import RECIPIENT, SENDER, ZAPPED, signed, zap_event, zap_text

NIP_57 = Path(__file__).resolve().parents[4] / "shared" / "vectors" / "nips" / "57.md"
RELAYS = ("relays", "wss://relay.example.com")
P = ("p", RECIPIENT)
COORDINATE = f"30023:{RECIPIENT}:an article"


def _problem(event: Event | str, amount_msat: int | None = 21_000, lnurl: str = "") -> ZapProblem:
    with pytest.raises(ZapError) as refused:
        read_zap_request(
            event if isinstance(event, str) else json_of_event(event), amount_msat=amount_msat, lnurl=lnurl
        )
    return refused.value.problem


def _event(*tags: tuple[str, ...], kind: int = 9_734) -> Event:
    return signed(kind=kind, tags=tags, created_at=1_700_000_000)


def test_what_a_zap_request_says() -> None:
    text = zap_text(
        ("amount", "21000"),
        ("lnurl", "lnurl1abc"),
        ("e", ZAPPED, "wss://hint.example.com"),
        ("a", COORDINATE),
        ("k", "30023"),
        ("P", "ef" * 32),
        relays=("WSS://Relay.example.com/", "https://no.example.com", "wss://relay.example.com", "ws://b.example.com"),
    )
    found = read_zap_request(text, amount_msat=21_000, lnurl="LNURL1ABC")
    assert found.text == text
    assert found.event.pubkey == SENDER.public_key.hex()
    assert found.recipient_pubkey == RECIPIENT
    assert found.relays == ("wss://relay.example.com", "ws://b.example.com")
    assert (found.amount_msat, found.lnurl) == (21_000, "lnurl1abc")
    assert (found.event_id, found.coordinate, found.receipt_pubkey) == (ZAPPED, COORDINATE, "ef" * 32)
    assert found.description_hash == hashlib.sha256(text.encode()).hexdigest()


def test_the_invoice_commits_to_the_very_text_that_came() -> None:
    spaced = json.dumps(members_of_event(zap_event()), indent=1)
    found = read_zap_request(spaced, amount_msat=1)
    assert found.description_hash == hashlib.sha256(spaced.encode()).hexdigest()


@pytest.mark.parametrize("amount_msat", [None, 1, 21_000])
def test_a_request_without_an_amount_fits_every_invoice(amount_msat: int | None) -> None:
    assert read_zap_request(zap_text(), amount_msat=amount_msat).amount_msat is None


@pytest.mark.parametrize(
    ("event", "problem"),
    [
        (_event(RELAYS, P, kind=9_735), ZapProblem.WRONG_KIND),
        (_event(RELAYS, P, kind=1), ZapProblem.WRONG_KIND),
        (_event(), ZapProblem.WRONG_RECIPIENT),
        (_event(RELAYS), ZapProblem.WRONG_RECIPIENT),
        (_event(RELAYS, ("p",)), ZapProblem.WRONG_RECIPIENT),
        (_event(RELAYS, ("p", "AB" * 32)), ZapProblem.WRONG_RECIPIENT),
        (_event(RELAYS, P, P), ZapProblem.WRONG_RECIPIENT),
        (_event(RELAYS, P, ("e", "x")), ZapProblem.WRONG_TARGET),
        (_event(RELAYS, P, ("e",)), ZapProblem.WRONG_TARGET),
        (_event(RELAYS, P, ("e", ZAPPED), ("e", ZAPPED)), ZapProblem.WRONG_TARGET),
        (_event(RELAYS, P, ("k", "65536")), ZapProblem.WRONG_TARGET),
        (_event(RELAYS, P, ("k", "-1")), ZapProblem.WRONG_TARGET),
        (_event(RELAYS, P, ("a", "30023")), ZapProblem.WRONG_COORDINATE),
        (_event(RELAYS, P, ("a", f"99999:{RECIPIENT}:")), ZapProblem.WRONG_COORDINATE),
        (_event(RELAYS, P, ("a", "30023:npub1:x")), ZapProblem.WRONG_COORDINATE),
        (_event(RELAYS, P, ("a", COORDINATE), ("a", COORDINATE)), ZapProblem.WRONG_COORDINATE),
        (_event(P), ZapProblem.NO_RELAYS),
        (_event(("relays",), P), ZapProblem.NO_RELAYS),
        (_event(("relays", "https://a.example"), P), ZapProblem.NO_RELAYS),
        (_event(RELAYS, RELAYS, P), ZapProblem.NO_RELAYS),
        (_event(RELAYS, P, ("amount", "21001")), ZapProblem.WRONG_AMOUNT),
        (_event(RELAYS, P, ("amount", "021000")), ZapProblem.WRONG_AMOUNT),
        (_event(RELAYS, P, ("amount", "21000.0")), ZapProblem.WRONG_AMOUNT),
        (_event(RELAYS, P, ("amount", "-21000")), ZapProblem.WRONG_AMOUNT),
        (_event(RELAYS, P, ("amount", "٢١")), ZapProblem.WRONG_AMOUNT),
        (_event(RELAYS, P, ("amount", "9" * 19)), ZapProblem.WRONG_AMOUNT),
        (_event(RELAYS, P, ("amount",)), ZapProblem.WRONG_AMOUNT),
        (_event(RELAYS, P, ("lnurl", "lnurl1x")), ZapProblem.WRONG_LNURL),
        (_event(RELAYS, P, ("P", "x")), ZapProblem.WRONG_SENDER),
        (_event(RELAYS, P, ("P", RECIPIENT), ("P", RECIPIENT)), ZapProblem.WRONG_SENDER),
        (replace(zap_event(), content="changed"), ZapProblem.WRONG_ID),
        (replace(zap_event(), sig="00" * 64), ZapProblem.WRONG_SIGNATURE),
        (replace(zap_event(), sig=""), ZapProblem.NOT_AN_EVENT),
    ],
)
def test_each_rule(event: Event, problem: ZapProblem) -> None:
    assert _problem(event, lnurl="lnurl1abc") is problem


def test_an_amount_needs_an_invoice_that_fixes_it() -> None:
    assert _problem(zap_event(("amount", "21000")), amount_msat=None) is ZapProblem.WRONG_AMOUNT


@pytest.mark.parametrize(
    "text", ["", "null", "[]", "{", "[" * 20_000, zap_text() + " " * ZAP_REQUEST_BYTES_MAX, "\ud800"]
)
def test_what_is_no_event(text: str) -> None:
    assert _problem(text) is ZapProblem.NOT_AN_EVENT


def test_the_example_printed_in_nip_57_has_a_wrong_id() -> None:
    if not NIP_57.exists():
        pytest.skip("the NIPs are not beside the checkout (../shared/vectors)")
    printed = re.search(r"```json\n(.*?)```", NIP_57.read_text(), re.DOTALL)
    assert printed is not None
    assert _problem(printed[1]) is ZapProblem.WRONG_ID
    assert _problem(printed[1], amount_msat=1) is ZapProblem.WRONG_AMOUNT, "all but the id is as the NIP wants it"


def test_what_is_made_here_is_accepted_here() -> None:
    zap = Zap(
        recipient_pubkey=RECIPIENT,
        relays=("wss://a.example.com", "wss://b.example.com/"),
        amount_msat=5,
        lnurl="lnurl1x",
        event_id=ZAPPED,
        coordinate=COORDINATE,
        kind=1,
        content="é",
    )
    template = zap_request_template(zap)
    event = signed(kind=template.kind, tags=template.tags, content=template.content)
    found = read_zap_request(json_of_event(event), amount_msat=5, lnurl="lnurl1x")
    assert (found.relays, found.event_id, found.coordinate) == (
        ("wss://a.example.com", "wss://b.example.com"),
        ZAPPED,
        COORDINATE,
    )


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"relays": ("http://a.example",)}, ZapProblem.NO_RELAYS),
        ({"relays": ("wss://a.example", "")}, ZapProblem.NO_RELAYS),
        ({"coordinate": "x"}, ZapProblem.WRONG_COORDINATE),
    ],
)
def test_what_cannot_be_made(changes: dict[str, Any], problem: ZapProblem) -> None:
    with pytest.raises(ZapError) as refused:
        zap_request_template(replace(Zap(recipient_pubkey=RECIPIENT, relays=("wss://a.example",)), **changes))
    assert refused.value.problem is problem


values = st.lists(
    st.sampled_from(["p", "e", "a", "k", "P", "relays", "amount", "lnurl", RECIPIENT, "1", ""]) | st.text(max_size=9)
)


@given(tags=st.lists(values, max_size=6), text=st.text(max_size=60))
def test_any_tags_and_any_text_are_a_zap_request_or_refused(tags: list[list[str]], text: str) -> None:
    event = signed(kind=9_734, tags=[tag for tag in tags if tag], created_at=1)
    for document in (json_of_event(event), text, json.dumps({**members_of_event(event), "tags": tags})):
        try:
            found = read_zap_request(document, amount_msat=1)
        except ZapError:
            continue
        assert found.relays
        assert found.recipient_pubkey == RECIPIENT

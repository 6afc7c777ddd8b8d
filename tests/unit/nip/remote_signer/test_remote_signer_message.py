"""NIP-46 messages and URIs: what is read, what is refused, and that nothing else ever happens."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.nip.domain.remote_signer.message import (
    Answer,
    MalformedRequestError,
    ParameterError,
    Request,
    answer_of_text,
    client_of,
    kind_of,
    peer_of,
    request_of,
    template_of,
    text_of_answer,
    text_of_request,
)
from services.nip.domain.remote_signer.uri import NostrConnectUriError, bunker_uri, nostr_connect_of

PUBKEY = "ab" * 32
GOOD = {"id": "1", "method": "ping", "params": []}
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "5",
        "[]",
        "nul",
        "[" * 100_000,
        "x" * 300_000,
        json.dumps({**GOOD, "id": 5}),
        json.dumps({**GOOD, "id": ""}),
        json.dumps({**GOOD, "id": "x" * 257}),
        json.dumps({**GOOD, "id": "\ud800"}),
        json.dumps({**GOOD, "id": "\0"}),
        json.dumps({**GOOD, "method": None}),
        json.dumps({**GOOD, "method": "m" * 65}),
        json.dumps({**GOOD, "params": "x"}),
        json.dumps({**GOOD, "params": [5]}),
        json.dumps({**GOOD, "params": ["\udc00"]}),
        json.dumps({**GOOD, "params": [""] * 9}),
    ],
)
def test_what_is_no_request_is_refused(text: str) -> None:
    with pytest.raises(MalformedRequestError):
        request_of(text)


def test_a_request_is_read_and_written() -> None:
    request = request_of(json.dumps({"id": "1", "method": "connect", "params": [PUBKEY, None, "perms"], "more": 1}))
    assert request == Request(id="1", method="connect", params=(PUBKEY, "", "perms"))
    assert request_of(text_of_request(request)) == request
    assert request_of('{"id":"1","method":"ping"}').params == ()


@given(st.text(max_size=200) | json_values.map(json.dumps))
def test_reading_ends_one_way_or_the_other(text: str) -> None:
    try:
        request = request_of(text)
    except MalformedRequestError:
        return
    assert request.id


@given(st.lists(st.text(max_size=100) | json_values.map(json.dumps), max_size=4).map(tuple))
def test_parameters_of_any_kind_raise_nothing_unexpected(params: tuple[str, ...]) -> None:
    request = Request(id="1", method="sign_event", params=params)
    kind_of(request)
    client_of(request)
    for read in (lambda: template_of(request, created_at=1), lambda: peer_of(request)):
        with contextlib.suppress(ParameterError):
            read()


def test_an_event_without_a_time_gets_that_of_the_request() -> None:
    request = Request(id="1", method="sign_event", params=('{"kind":1}',))
    template = template_of(request, created_at=77)
    assert (template.kind, template.tags, template.content, template.created_at) == (1, (), "", 77)


@pytest.mark.parametrize(
    "event", [{"kind": True}, {"kind": 1.0}, {"kind": -1}, {"kind": 65_536}, {"kind": 1, "created_at": "5"}]
)
def test_an_event_of_a_wrong_form_is_refused(event: dict[str, Any]) -> None:
    with pytest.raises(ParameterError):
        template_of(Request(id="1", method="sign_event", params=(json.dumps(event),)), created_at=1)


def test_answers_hold_only_strings_and_never_an_empty_result() -> None:
    assert json.loads(text_of_answer("1", Answer(result="pong"))) == {"id": "1", "result": "pong"}
    assert json.loads(text_of_answer("1", Answer(error="no"))) == {"id": "1", "error": "no"}
    with pytest.raises(AssertionError):
        Answer()
    asked = Answer(result="auth_url", error="https://x")
    assert answer_of_text(text_of_answer("1", asked)) == asked


def test_a_bunker_uri_is_written_as_the_nip_says() -> None:
    uri = bunker_uri(PUBKEY, ["wss://one.example", "wss://two.example/x?y=1"], "s")
    assert uri == (
        f"bunker://{PUBKEY}?relay=wss%3A%2F%2Fone.example&relay=wss%3A%2F%2Ftwo.example%2Fx%3Fy%3D1&secret=s"
    )


def test_the_nips_own_nostrconnect_uri_is_read() -> None:
    found = nostr_connect_of(
        "nostrconnect://83f3b2ae6aa368e8275397b9c26cf550101d63ebaab900d19dd4a4429f5ad8f5?relay=wss%3A%2F%2Frelay1.example.com"
        "&perms=nip44_encrypt%2Cnip44_decrypt%2Csign_event%3A13%2Csign_event%3A14%2Csign_event%3A1059&name=My+Client&secret=0s8j2djs"
        "&relay=wss%3A%2F%2Frelay2.example2.com"
    )
    assert found.client_pubkey.startswith("83f3b2ae")
    assert found.relays == ("wss://relay1.example.com", "wss://relay2.example2.com")
    assert found.secret.reveal() == b"0s8j2djs"
    assert found.client.display_name == "My Client"
    assert found.client.requested_permissions.endswith("sign_event:1059")


@pytest.mark.parametrize(
    "uri",
    [
        "",
        f"bunker://{PUBKEY}?relay=wss://x.example&secret=s",
        "nostrconnect://short?relay=wss://x.example&secret=s",
        f"nostrconnect://{PUBKEY}?relay=wss://x.example",
        f"nostrconnect://{PUBKEY}?secret=s",
        f"nostrconnect://{PUBKEY}?relay=http://x.example&secret=s",
        f"nostrconnect://{PUBKEY}?secret=s" + "".join(f"&relay=wss://{number}.example" for number in range(9)),
        f"nostrconnect://{PUBKEY}?relay=wss://x.example&secret=" + "s" * 257,
        f"nostrconnect://{PUBKEY}?" + "&".join(["a=b"] * 100),
        "nostrconnect://[",
    ],
)
def test_what_is_no_nostrconnect_uri_is_refused(uri: str) -> None:
    with pytest.raises(NostrConnectUriError):
        nostr_connect_of(uri)


@given(st.text(max_size=100).map(lambda rest: "nostrconnect://" + rest) | st.text(max_size=100))
def test_uris_of_any_kind_raise_nothing_unexpected(uri: str) -> None:
    try:
        nostr_connect_of(uri)
    except NostrConnectUriError:
        return

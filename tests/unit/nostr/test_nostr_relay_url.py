"""Relay URLs: what means the same relay, and what names none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.nostr.relay_url import RelayUrlError, normal_relay_url


@pytest.mark.parametrize(
    ("written", "normal"),
    [
        ("wss://relay.example.com", "wss://relay.example.com"),
        ("wss://relay.example.com/", "wss://relay.example.com"),
        ("WSS://Relay.Example.COM:443/", "wss://relay.example.com"),
        ("wss://relay.example.com.", "wss://relay.example.com"),
        ("ws://127.0.0.1:80", "ws://127.0.0.1"),
        ("ws://relay.example.com:443", "ws://relay.example.com:443"),
        ("wss://relay.example.com:80", "wss://relay.example.com:80"),
        ("wss://relay.example.com/Inbox/", "wss://relay.example.com/Inbox"),
        ("wss://relay.example.com/?key=A", "wss://relay.example.com?key=A"),
        ("ws://[2001:DB8::1]:7777/", "ws://[2001:db8::1]:7777"),
        ("wss://xn--bcher-kva.example", "wss://xn--bcher-kva.example"),
    ],
)
def test_one_form_for_one_relay(written: str, normal: str) -> None:
    assert normal_relay_url(written) == normal == normal_relay_url(normal)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "relay.example.com",
        "https://relay.example.com",
        "wss://",
        "wss:relay.example.com",
        "wss:///path",
        "wss://user@relay.example.com",
        "wss://user:secret@relay.example.com",
        "wss://@relay.example.com",
        "wss://relay.example.com#part",
        "wss://relay.example.com:0",
        "wss://relay.example.com:99999",
        "wss://relay.example.com:port",
        "wss://relay .example.com",
        "wss://relay.example.com\n",
        "wss://bücher.example",
        "wss://[::1",
        "wss://[fe80::1%25eth0]",
        "wss://-relay.example.com",
        "wss://" + "a" * 512,
    ],
)
def test_what_is_no_relay(text: str) -> None:
    with pytest.raises(RelayUrlError):
        normal_relay_url(text)


@given(text=st.text(max_size=60) | st.text(max_size=60).map(lambda rest: "wss://" + rest))
def test_any_text_is_a_relay_or_refused_and_the_normal_form_is_final(text: str) -> None:
    try:
        normal = normal_relay_url(text)
    except RelayUrlError:
        return
    assert normal_relay_url(normal) == normal

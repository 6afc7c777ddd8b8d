"""NIP-42: challenges that nobody else can make, every check of an answer by itself, and nostr-sdk as the client."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
from dataclasses import replace
from typing import Any

import nostr_sdk
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.chassis.secret import SecretBytes
from services.nip.domain.nip42 import (
    CHALLENGE_CHARACTERS_MAX,
    Challenge,
    ChallengeError,
    Refusal,
    make_challenge,
    read_challenge,
    verify_answer,
)
from services.nostr import bip340
from services.nostr.bip340 import Signer
from services.nostr.event import Event, Template, sign_event
from services.nostr.event_json import event_of_json

NOW = 1_700_000_000
RELAY = "wss://relay.example.com"
SIGNER = Signer(SecretBytes(b"\x09" * 32))


def _seal(body: bytes, url: bytes) -> bytes:
    return hmac.digest(b"key", len(body).to_bytes(8, "big") + body + url, hashlib.sha256)


def _challenge(relay_url: str = RELAY) -> Challenge:
    return make_challenge(relay_url, expire_time_seconds=NOW + 300, seal=_seal)


CHALLENGE = _challenge()
TAGS = (("relay", RELAY), ("challenge", CHALLENGE.text))


def _event(*, kind: int = 22_242, tags: tuple[tuple[str, ...], ...] = TAGS, created_at: int = NOW) -> Event:
    template = Template(kind=kind, tags=tags, content="", created_at=created_at)
    return sign_event(SIGNER, template, created_at=created_at, auxiliary_key=b"\x01" * 32)


def _refusal(event: Event, now_seconds: int = NOW, seal: Any = _seal) -> Refusal:
    with pytest.raises(ChallengeError) as refused:
        verify_answer(event, RELAY, now_seconds=now_seconds, seal=seal)
    return refused.value.refusal


def test_a_right_answer_proves_its_signer() -> None:
    answer = verify_answer(_event(), RELAY, now_seconds=NOW, seal=_seal)
    assert (answer.pubkey, answer.event_id) == (SIGNER.public_key.hex(), _event().id)
    assert answer.challenge == CHALLENGE


def test_challenges_are_short_different_and_fit_into_a_url() -> None:
    made = {_challenge().text for _ in range(100)}
    assert len(made) == 100
    assert all(len(text) <= CHALLENGE_CHARACTERS_MAX and text.isascii() and "=" not in text for text in made)


async def test_nostr_sdk_answers_a_challenge() -> None:
    keys = nostr_sdk.Keys.generate()
    challenge = make_challenge(RELAY, expire_time_seconds=2**33, seal=_seal)
    authenticator = nostr_sdk.SignerAuthenticator(keys)
    made = await authenticator.make_auth_event(nostr_sdk.RelayUrl.parse(RELAY + "/"), challenge.text)
    assert made is not None
    event = event_of_json(made.as_json())
    answer = verify_answer(event, RELAY, now_seconds=event.created_at, seal=_seal)
    assert answer.pubkey == keys.public_key().to_hex()


@pytest.mark.parametrize("relay", [RELAY + "/", "WSS://RELAY.example.com:443", "wss://relay.example.com./"])
def test_the_relay_in_any_spelling(relay: str) -> None:
    tags = (("relay", relay), ("challenge", CHALLENGE.text))
    assert verify_answer(_event(tags=tags), RELAY, now_seconds=NOW, seal=_seal).pubkey


@pytest.mark.parametrize("age", [-600, -1, 0, 299])
def test_inside_the_window(age: int) -> None:
    verify_answer(_event(created_at=NOW - age), RELAY, now_seconds=NOW, seal=_seal)


@pytest.mark.parametrize("age", [-(2**40), -601, 601, NOW])
def test_outside_the_window(age: int) -> None:
    assert _refusal(_event(created_at=NOW - age)) is Refusal.OUTSIDE_WINDOW


@pytest.mark.parametrize(("later", "refusal"), [(300, Refusal.CHALLENGE_EXPIRED), (601, Refusal.OUTSIDE_WINDOW)])
def test_a_challenge_ends(later: int, refusal: Refusal) -> None:
    assert _refusal(_event(), now_seconds=NOW + later) is refusal


@pytest.mark.parametrize(
    ("event", "refusal"),
    [
        (_event(kind=27_235), Refusal.WRONG_KIND),
        (_event(kind=1), Refusal.WRONG_KIND),
        (_event(tags=()), Refusal.WRONG_RELAY),
        (_event(tags=(("relay",), TAGS[1])), Refusal.WRONG_RELAY),
        (_event(tags=(("relay", "wss://other.example.com"), TAGS[1])), Refusal.WRONG_RELAY),
        (_event(tags=(("relay", "ws://relay.example.com"), TAGS[1])), Refusal.WRONG_RELAY),
        (_event(tags=(("relay", RELAY + "/path"), TAGS[1])), Refusal.WRONG_RELAY),
        (_event(tags=(TAGS[0], TAGS[0], TAGS[1])), Refusal.WRONG_RELAY),
        (_event(tags=(TAGS[0],)), Refusal.WRONG_CHALLENGE),
        (_event(tags=(TAGS[0], ("challenge",))), Refusal.WRONG_CHALLENGE),
        (_event(tags=(*TAGS, TAGS[1])), Refusal.WRONG_CHALLENGE),
        (_event(tags=(TAGS[0], ("challenge", _challenge("wss://other.example.com").text))), Refusal.WRONG_CHALLENGE),
        (replace(_event(), content="changed"), Refusal.WRONG_ID),
        (replace(_event(), pubkey="02" * 32), Refusal.WRONG_ID),
        (replace(_event(), sig="00" * 64), Refusal.WRONG_SIGNATURE),
        (replace(_event(), sig=""), Refusal.NOT_AN_EVENT),
        (replace(_event(), id="AB" * 32), Refusal.NOT_AN_EVENT),
    ],
)
def test_each_check(event: Event, refusal: Refusal) -> None:
    assert _refusal(event) is refusal


def test_another_mesh_takes_no_challenge_of_ours() -> None:
    assert _refusal(_event(), seal=lambda body, url: hashlib.sha256(body + url).digest()) is Refusal.WRONG_CHALLENGE


@given(
    position=st.integers(0, 50),
    letter=st.sampled_from("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"),
)
def test_a_changed_challenge_is_no_other_challenge(position: int, letter: str) -> None:
    changed = CHALLENGE.text[:position] + letter + CHALLENGE.text[position + 1 :]
    read: Challenge | None = None
    with contextlib.suppress(ChallengeError):
        read = read_challenge(changed, RELAY, seal=_seal)
    if read is not None:
        assert read == replace(CHALLENGE, text=changed), "at most another spelling of the same one, used up with it"
    else:
        assert changed != CHALLENGE.text


@given(text=st.text(max_size=140) | st.binary(max_size=60).map(lambda noise: noise.hex()))
def test_noise_is_no_challenge(text: str) -> None:
    with pytest.raises(ChallengeError):
        read_challenge(text, RELAY, seal=_seal)


def test_exactly_one_signature_verification(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[bytes] = []
    genuine = bip340.verify

    def counted(public_key: bytes, message: bytes, signature: bytes) -> bool:
        calls.append(message)
        return genuine(public_key, message, signature)

    monkeypatch.setattr(bip340, "verify", counted)
    verify_answer(_event(), RELAY, now_seconds=NOW, seal=_seal)
    assert len(calls) == 1
    _refusal(_event(kind=1))
    _refusal(_event(tags=(TAGS[0], ("challenge", "x" * 51))))
    assert len(calls) == 1, "what is refused for less costs no signature verification"

"""NIP-47's outside: whose a request is, until when it counts, how it is encrypted, what is answered."""

from __future__ import annotations

import pytest

from services.nip.domain.nip47.envelope import (
    AGE_S_MAX,
    AHEAD_S_MAX,
    envelope_of,
    info_template,
    is_timely,
    notification_template,
    response_template,
)
from services.nip.domain.nip47.words import Cipher, Method, Topic
from services.nostr.event import Event

WALLET, APP, NOW = "b8" * 32, "c1" * 32, 1_800_000_000


def event(*tags: tuple[str, ...], kind: int = 23194, created_at: int = NOW) -> Event:
    return Event(id="e1" * 32, pubkey=APP, created_at=created_at, kind=kind, tags=tags, content="x", sig="f0" * 64)


@pytest.mark.parametrize(
    ("tags", "cipher"),
    [
        ((), Cipher.NIP04),
        ((("encryption", "nip04"),), Cipher.NIP04),
        ((("encryption", "nip44_v2"),), Cipher.NIP44),
        ((("encryption", "nip44_v2 nip04"),), None),
        ((("encryption", ""),), None),
        ((("encryption",),), Cipher.NIP04),
    ],
)
def test_the_encryption_tag_says_the_cipher_and_its_absence_says_nip04(
    tags: tuple[tuple[str, ...], ...], cipher: Cipher | None
) -> None:
    envelope = envelope_of(event(("p", WALLET), *tags))
    assert envelope is not None
    assert envelope.cipher is cipher


@pytest.mark.parametrize(
    "tags",
    [
        (),
        (("p",),),
        (("p", "not a key"),),
        (("p", WALLET.upper()),),
        (("p", WALLET), ("p", APP)),
        (("p", WALLET), ("expiration", "soon")),
        (("p", WALLET), ("expiration", "-1")),
        (("p", WALLET), ("expiration", "9" * 13)),
    ],
)
def test_what_is_no_request_is_ignored(tags: tuple[tuple[str, ...], ...]) -> None:
    assert envelope_of(event(*tags)) is None
    assert envelope_of(event(("p", WALLET), kind=23195)) is None


@pytest.mark.parametrize(
    ("created_at", "expiration", "timely"),
    [
        (NOW, None, True),
        (NOW, NOW, True),
        (NOW, NOW - 1, False),
        (NOW - AGE_S_MAX, None, True),
        (NOW - AGE_S_MAX - 1, NOW + 1_000, False),
        (NOW + AHEAD_S_MAX, None, True),
        (NOW + AHEAD_S_MAX + 1, None, False),
    ],
)
def test_a_request_counts_for_a_while(created_at: int, expiration: int | None, timely: bool) -> None:
    more = () if expiration is None else (("expiration", str(expiration)),)
    envelope = envelope_of(event(("p", WALLET), *more, created_at=created_at))
    assert envelope is not None
    assert is_timely(envelope, NOW) is timely


def test_what_is_published_names_whom_it_is_for() -> None:
    envelope = envelope_of(event(("p", WALLET)))
    assert envelope is not None
    response = response_template(envelope, "sealed", NOW)
    assert (response.kind, response.tags) == (23195, (("p", APP), ("e", "e1" * 32)))
    kinds = {cipher: notification_template(APP, cipher, "sealed", NOW).kind for cipher in Cipher}
    assert kinds == {Cipher.NIP44: 23197, Cipher.NIP04: 23196}


def test_the_info_event_is_that_of_the_specification() -> None:
    info = info_template((Method.PAY_INVOICE, Method.GET_BALANCE), (Topic.PAYMENT_SENT,), NOW)
    assert (info.kind, info.content) == (13194, "pay_invoice get_balance notifications")
    assert info.tags == (("encryption", "nip44_v2 nip04"), ("notifications", "payment_sent"))
    ended = info_template((), (), NOW)
    assert (ended.content, ended.tags) == ("", (("encryption", "nip44_v2 nip04"),))

"""NIP-01: the serialization byte by byte, the rules of form, and nostr-sdk as a second opinion."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import nostr_sdk
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.chassis.secret import SecretBytes
from services.nostr import event as nip01
from services.nostr.bip340 import Signer
from services.nostr.event import Event, MalformedEventError, Template, Verdict, serialize, sign_event, verify_event

SIGNER = Signer(SecretBytes(b"\x07" * 32))
AUXILIARY_KEY = b"\x01" * 32
NIPS = Path(__file__).resolve().parents[4] / "shared" / "vectors" / "nips"

text = st.text(max_size=60)
tags = st.lists(st.lists(text, min_size=1, max_size=4).map(tuple), max_size=6).map(tuple)
templates = st.builds(
    Template,
    kind=st.integers(0, nip01.KIND_MAX),
    tags=tags,
    content=text,
    created_at=st.integers(0, nip01.CREATED_AT_SECONDS_MAX),
)


def _signed(template: Template) -> Event:
    assert template.created_at is not None
    return sign_event(SIGNER, template, created_at=template.created_at, auxiliary_key=AUXILIARY_KEY)


def _template(**changes: Any) -> Template:
    return replace(Template(kind=1, tags=(), content="hello", created_at=1_700_000_000), **changes)


def _as_json(event: Event) -> str:
    names = ("id", "pubkey", "created_at", "kind", "tags", "content", "sig")
    return json.dumps({name: getattr(event, name) for name in names}, ensure_ascii=False)


def _of_json(document: str) -> Event:
    members = json.loads(document)
    return Event(**{**members, "tags": tuple(map(tuple, members["tags"]))})


@pytest.mark.parametrize(
    ("content", "written"),
    [
        ("\n", r"\n"),
        ('"', r"\""),
        ("\\", r"\\"),
        ("\r", r"\r"),
        ("\t", r"\t"),
        ("\b", r"\b"),
        ("\f", r"\f"),
        ("/", "/"),
        ("<>&'", "<>&'"),
        ("\x7f", "\x7f"),
        ("\u2028\u2029", "\u2028\u2029"),
        ("é", "é"),
        ("e\u0301", "e\u0301"),
        ("😀", "😀"),
        ("\x00", r"\u0000"),
        ("\x1f", r"\u001f"),
    ],
)
def test_characters_are_written_as_nip01_says(content: str, written: str) -> None:
    serialized = serialize(pubkey="ab", created_at=1, kind=2, tags=[["t", content]], content=content)
    assert serialized == f'[0,"ab",1,2,[["t","{written}"]],"{written}"]'.encode()


def test_an_id_written_by_hand() -> None:
    serialized = serialize(pubkey="ab", created_at=1, kind=2, tags=[], content="x")
    assert nip01.event_digest(serialized) == hashlib.sha256(b'[0,"ab",1,2,[],"x"]').digest()


@given(template=templates)
def test_nostr_sdk_accepts_what_is_signed_here(template: Template) -> None:
    event = _signed(template)
    other = nostr_sdk.Event.from_json(_as_json(event))
    assert other.verify()
    assert other.id().to_hex() == event.id


@given(template=templates)
def test_what_nostr_sdk_signs_is_valid_here(template: Template) -> None:
    assert template.created_at is not None
    builder = nostr_sdk.EventBuilder(nostr_sdk.Kind(template.kind), template.content)
    builder = builder.tags([nostr_sdk.Tag.parse(list(tag)) for tag in template.tags])
    builder = builder.custom_created_at(nostr_sdk.Timestamp.from_secs(template.created_at))
    assert verify_event(_of_json(builder.finalize(nostr_sdk.Keys.generate()).as_json())) is Verdict.VALID


@given(template=templates)
def test_signing_again_gives_the_same_bytes(template: Template) -> None:
    assert _signed(template) == _signed(template)


def test_the_signature_depends_on_the_auxiliary_key() -> None:
    first, second = (
        sign_event(SIGNER, _template(), created_at=1, auxiliary_key=key * 32) for key in (b"\x01", b"\x02")
    )
    assert first.id == second.id
    assert first.sig != second.sig


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, Verdict.VALID),
        ({"content": "other"}, Verdict.BAD_ID),
        ({"kind": 2}, Verdict.BAD_ID),
        ({"created_at": 1}, Verdict.BAD_ID),
        ({"tags": (("t",),)}, Verdict.BAD_ID),
        ({"pubkey": "02" * 32}, Verdict.BAD_ID),
        ({"id": "00" * 32}, Verdict.BAD_ID),
        ({"sig": "00" * 64}, Verdict.BAD_SIGNATURE),
        ({"sig": "ff" * 64}, Verdict.BAD_SIGNATURE),
        ({"id": "AB" * 32}, Verdict.MALFORMED),
        ({"id": "ab" * 31}, Verdict.MALFORMED),
        ({"id": "ab" * 32 + "\n"}, Verdict.MALFORMED),
        ({"pubkey": ""}, Verdict.MALFORMED),
        ({"pubkey": "zz" * 32}, Verdict.MALFORMED),
        ({"sig": "ab" * 63}, Verdict.MALFORMED),
        ({"kind": 65_536}, Verdict.MALFORMED),
        ({"kind": -1}, Verdict.MALFORMED),
        ({"created_at": -1}, Verdict.MALFORMED),
        ({"created_at": 2**53}, Verdict.MALFORMED),
        ({"tags": ((),)}, Verdict.MALFORMED),
        ({"tags": (("t",),) * 2_001}, Verdict.MALFORMED),
        ({"tags": (("t",) * 257,)}, Verdict.MALFORMED),
        ({"content": "x" * 65_536}, Verdict.MALFORMED),
        ({"content": "\ud800"}, Verdict.MALFORMED),
    ],
)
def test_verdicts(changes: dict[str, Any], verdict: Verdict) -> None:
    assert verify_event(replace(_signed(_template()), **changes)) is verdict


def test_a_public_key_off_the_curve_is_a_bad_signature() -> None:
    unsigned = {"pubkey": "ff" * 32, "created_at": 1, "kind": 1, "tags": (), "content": ""}
    event_id = nip01.event_digest(serialize(**unsigned)).hex()  # type: ignore[arg-type]
    event = Event(**unsigned, id=event_id, sig="01" * 64)  # type: ignore[arg-type]
    assert verify_event(event) is Verdict.BAD_SIGNATURE


@pytest.mark.parametrize(
    "changes",
    [{"kind": 65_536}, {"tags": ((),)}, {"content": "x" * 65_536}, {"content": "\ud800"}, {"created_at": 2**53}],
)
def test_what_is_malformed_is_not_signed(changes: dict[str, Any]) -> None:
    with pytest.raises(MalformedEventError):
        _signed(_template(**changes))


@pytest.mark.parametrize(("name", "kind"), [("57.md", 9734), ("98.md", 27235)])
def test_the_events_printed_in_the_nips_are_bad(name: str, kind: int) -> None:
    if not (NIPS / name).exists():
        pytest.skip("the NIPs are not beside the checkout (../shared/vectors)")
    blocks = re.findall(r"```json\n(\{.*?\})\n```", (NIPS / name).read_text(), re.DOTALL)
    events = [_of_json(block) for block in blocks if f'"kind": {kind}' in block]
    assert [verify_event(event) for event in events] == [Verdict.BAD_ID]

"""NIP-98: every check by itself, the forms clients use, and hostile input."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.chassis.secret import SecretBytes
from services.nip.domain import nip98
from services.nip.domain.nip98 import AuthorizationError, Refusal, Request, encode_authorization, verify_authorization
from services.nostr import bip340
from services.nostr.bip340 import Signer
from services.nostr.event import Event, Template, sign_event
from services.nostr.event_json import event_of_json

NOW = 1_700_000_000
URL = "http://127.0.0.1:8080/nipmesh.nip.v1.AuthService/Login"
REQUEST = Request(url=URL, method="POST")
SIGNER = Signer(SecretBytes(b"\x09" * 32))
NIP_98 = Path(__file__).resolve().parents[4] / "shared" / "vectors" / "nips" / "98.md"
TAGS = (("u", URL), ("method", "POST"))


def _event(
    *, kind: int = 27_235, tags: tuple[tuple[str, ...], ...] = TAGS, content: str = "", created_at: int = NOW
) -> Event:
    template = Template(kind=kind, tags=tags, content=content, created_at=created_at)
    return sign_event(SIGNER, template, created_at=created_at, auxiliary_key=b"\x01" * 32)


def _refusal(authorization: str, request: Request = REQUEST) -> Refusal:
    with pytest.raises(AuthorizationError) as refused:
        verify_authorization(authorization, request, now_seconds=NOW)
    return refused.value.refusal


def _encoded(document: Any) -> str:
    raw = document if isinstance(document, bytes) else json.dumps(document).encode()
    return "Nostr " + base64.b64encode(raw).decode()


def _members(**changes: Any) -> dict[str, Any]:
    event = _event()
    members = {name: getattr(event, name) for name in Event.__dataclass_fields__}
    return {**members, **changes}


def test_a_right_authorization_proves_its_signer() -> None:
    proof = verify_authorization(encode_authorization(_event()), REQUEST, now_seconds=NOW)
    assert (proof.pubkey, proof.event_id) == (SIGNER.public_key.hex(), _event().id)
    assert proof.acceptable_until_seconds == NOW + 60


@pytest.mark.parametrize("scheme", ["Nostr ", "nostr ", "NOSTR ", "Nostr  ", "Nostr \n"])
@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
@pytest.mark.parametrize("padding", [True, False])
@pytest.mark.parametrize("content", ["", "?", "??", "???>>>~~~"])
def test_the_forms_clients_send(scheme: str, encode: Any, padding: bool, content: str) -> None:
    event = _event(content=content)
    encoded = encode(base64.b64decode(encode_authorization(event).removeprefix("Nostr "))).decode()
    authorization = scheme + (encoded if padding else encoded.rstrip("="))
    assert verify_authorization(authorization, REQUEST, now_seconds=NOW).event_id == event.id


@pytest.mark.parametrize("method", ["POST", "post", "Post"])
def test_the_method_in_any_case(method: str) -> None:
    event = _event(tags=(("u", URL), ("method", method)))
    assert verify_authorization(encode_authorization(event), REQUEST, now_seconds=NOW).event_id == event.id


@pytest.mark.parametrize("age", [-60, -1, 0, 1, 60])
def test_inside_the_window(age: int) -> None:
    verify_authorization(encode_authorization(_event(created_at=NOW - age)), REQUEST, now_seconds=NOW)


@pytest.mark.parametrize("age", [-(2**40), -61, 61, NOW])
def test_outside_the_window(age: int) -> None:
    assert _refusal(encode_authorization(_event(created_at=NOW - age))) is Refusal.OUTSIDE_WINDOW


@pytest.mark.parametrize(
    ("event", "refusal"),
    [
        (_event(kind=27_234), Refusal.WRONG_KIND),
        (_event(kind=22_242), Refusal.WRONG_KIND),
        (_event(tags=()), Refusal.WRONG_URL),
        (_event(tags=(("u",), ("method", "POST"))), Refusal.WRONG_URL),
        (_event(tags=(("u", URL + "/"), ("method", "POST"))), Refusal.WRONG_URL),
        (_event(tags=(("u", URL + "?x=1"), ("method", "POST"))), Refusal.WRONG_URL),
        (_event(tags=(("u", URL.replace("http:", "https:")), ("method", "POST"))), Refusal.WRONG_URL),
        (_event(tags=(("u", URL.replace("127.0.0.1", "localhost")), ("method", "POST"))), Refusal.WRONG_URL),
        (_event(tags=(("u", URL.replace("Login", "login")), ("method", "POST"))), Refusal.WRONG_URL),
        (_event(tags=(("u", URL), ("u", "https://elsewhere.example"), ("method", "POST"))), Refusal.WRONG_URL),
        (_event(tags=(("U", URL), ("method", "POST"))), Refusal.WRONG_URL),
        (_event(tags=(("u", URL),)), Refusal.WRONG_METHOD),
        (_event(tags=(("u", URL), ("method", "GET"))), Refusal.WRONG_METHOD),
        (_event(tags=(("u", URL), ("method",))), Refusal.WRONG_METHOD),
        (_event(tags=(("u", URL), ("method", "POST"), ("method", "GET"))), Refusal.WRONG_METHOD),
        (replace(_event(), content="changed"), Refusal.WRONG_ID),
        (replace(_event(), pubkey="02" * 32), Refusal.WRONG_ID),
        (replace(_event(), id="00" * 32), Refusal.WRONG_ID),
        (replace(_event(), sig="00" * 64), Refusal.WRONG_SIGNATURE),
        (replace(_event(), sig=_event(content="x").sig), Refusal.WRONG_SIGNATURE),
        (replace(_event(), sig=""), Refusal.NOT_AN_EVENT),
        (replace(_event(), id="AB" * 32), Refusal.NOT_AN_EVENT),
    ],
)
def test_each_check(event: Event, refusal: Refusal) -> None:
    assert _refusal(encode_authorization(event)) is refusal


@pytest.mark.parametrize(
    ("authorization", "refusal"),
    [
        ("", Refusal.NOT_AN_AUTHORIZATION),
        ("Nostr", Refusal.NOT_AN_AUTHORIZATION),
        ("Nostr ", Refusal.NOT_AN_AUTHORIZATION),
        ("Bearer e30=", Refusal.NOT_AN_AUTHORIZATION),
        ("Nostr e30= e30=", Refusal.NOT_AN_AUTHORIZATION),
        ("Nostr e30===", Refusal.NOT_AN_AUTHORIZATION),
        ("Nostr e", Refusal.NOT_AN_AUTHORIZATION),
        ("Nostr é", Refusal.NOT_AN_AUTHORIZATION),
        ("Nostr " + "A" * 9_000, Refusal.NOT_AN_AUTHORIZATION),
        (_encoded(b""), Refusal.NOT_AN_AUTHORIZATION),
        (_encoded(b"\xff\xfe\xfd"), Refusal.NOT_AN_EVENT),
        (_encoded(b"[" * 6_000), Refusal.NOT_AN_EVENT),
        (_encoded(b"1" * 5_000), Refusal.NOT_AN_EVENT),
        (_encoded({}), Refusal.NOT_AN_EVENT),
        (_encoded([]), Refusal.NOT_AN_EVENT),
        (_encoded(None), Refusal.NOT_AN_EVENT),
        (_encoded(_members(kind=True)), Refusal.NOT_AN_EVENT),
        (_encoded(_members(kind="27235")), Refusal.NOT_AN_EVENT),
        (_encoded(_members(created_at=float(NOW))), Refusal.NOT_AN_EVENT),
        (_encoded(_members(created_at=float("nan"))), Refusal.NOT_AN_EVENT),
        (_encoded(_members(content=None)), Refusal.NOT_AN_EVENT),
        (_encoded(_members(tags=[["u", 1]])), Refusal.NOT_AN_EVENT),
        (_encoded(_members(tags=["u"])), Refusal.NOT_AN_EVENT),
        (_encoded(_members(tags={})), Refusal.NOT_AN_EVENT),
        (_encoded(_members(content="\ud800")), Refusal.NOT_AN_EVENT),
        (_encoded({name: value for name, value in _members().items() if name != "sig"}), Refusal.NOT_AN_EVENT),
        (_encoded(json.dumps(_members())[:-1].encode() + b',"kind":1}'), Refusal.NOT_AN_EVENT),
    ],
)
def test_hostile_forms(authorization: str, refusal: Refusal) -> None:
    assert _refusal(authorization) is refusal


@given(noise=st.text(max_size=200))
def test_noise_is_refused_and_nothing_else(noise: str) -> None:
    for authorization in (noise, "Nostr " + noise, _encoded(noise.encode("utf-8", "replace"))):
        assert isinstance(_refusal(authorization), Refusal)


def test_members_without_meaning_are_ignored() -> None:
    assert verify_authorization(_encoded(_members(relay="wss://x")), REQUEST, now_seconds=NOW)


BODY = hashlib.sha256(b"body").hexdigest()
OTHER = hashlib.sha256(b"other").hexdigest()


@pytest.mark.parametrize(
    ("payload", "accepted"),
    [
        ((("payload", BODY),), True),
        ((("payload", BODY.upper()),), True),
        ((("payload", OTHER),), False),
        ((("payload", "\U0001f600"),), False),
        ((("payload",),), False),
        ((("payload", BODY), ("payload", OTHER)), False),
        ((), False),
    ],
)
def test_whoever_wants_the_body_bound_gets_it_bound(payload: tuple[tuple[str, ...], ...], accepted: bool) -> None:
    authorization = encode_authorization(_event(tags=(*TAGS, *payload)))
    bound = replace(REQUEST, payload_sha256=BODY)
    if accepted:
        assert verify_authorization(authorization, bound, now_seconds=NOW).payload_sha256 == BODY
    else:
        assert _refusal(authorization, bound) is Refusal.WRONG_PAYLOAD
    assert verify_authorization(authorization, REQUEST, now_seconds=NOW).event_id, "nobody else looks at the tag"


def test_what_is_made_here_is_accepted_here_and_never_twice_the_same() -> None:
    request = Request(url="https://example.com/upload?x=%20", method="put", payload_sha256=BODY)
    made = [nip98.authorization_template(request, created_at=NOW) for _ in range(2)]
    events = [sign_event(SIGNER, template, created_at=NOW, auxiliary_key=b"\x01" * 32) for template in made]
    assert events[0].id != events[1].id
    for event in events:
        assert event.content == ""
        assert ("method", "PUT") in event.tags
        assert verify_authorization(encode_authorization(event), request, now_seconds=NOW).payload_sha256 == BODY


def test_exactly_one_signature_verification(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[bytes] = []
    genuine = bip340.verify

    def counted(public_key: bytes, message: bytes, signature: bytes) -> bool:
        calls.append(message)
        return genuine(public_key, message, signature)

    monkeypatch.setattr(bip340, "verify", counted)
    verify_authorization(encode_authorization(_event()), REQUEST, now_seconds=NOW)
    assert len(calls) == 1
    _refusal(encode_authorization(_event(kind=1)))
    _refusal(encode_authorization(_event(created_at=0)))
    assert len(calls) == 1, "what is refused for less costs no signature verification"


def test_the_authorization_printed_in_nip_98_is_refused() -> None:
    if not NIP_98.exists():
        pytest.skip("the NIPs are not beside the checkout (../shared/vectors)")
    printed = re.search(r"Authorization: (Nostr \n\S+)", NIP_98.read_text())
    assert printed is not None
    event = nip98.decode_authorization(printed[1])
    request = Request(url=event.tags[0][1], method="GET")
    with pytest.raises(AuthorizationError) as refused:
        verify_authorization(printed[1], request, now_seconds=event.created_at)
    assert refused.value.refusal is Refusal.WRONG_ID


def test_the_event_printed_in_nip_98_has_a_wrong_id() -> None:
    if not NIP_98.exists():
        pytest.skip("the NIPs are not beside the checkout (../shared/vectors)")
    printed = re.search(r"```json\n(.*?)```", NIP_98.read_text(), re.DOTALL)
    assert printed is not None
    event = event_of_json(printed[1])
    request = Request(url=event.tags[0][1], method="get")
    with pytest.raises(AuthorizationError) as refused:
        verify_authorization(encode_authorization(event), request, now_seconds=event.created_at)
    assert refused.value.refusal is Refusal.WRONG_ID

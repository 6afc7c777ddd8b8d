"""The NIP service on a Unix socket, called with the metadata that its sidecar adds."""

from __future__ import annotations

import asyncio
import base64
import json
import time
import uuid
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import grpc
import jwt
import pytest
from google.rpc import error_details_pb2

from generator.pki.token import TokenKey
from nipmesh.nip.v1 import nip_pb2
from nipmesh.nip.v1 import nip_service_pb2 as pb
from services.chassis.caller import PEER_HEADER
from services.chassis.errors import reason_of, rich_status
from services.chassis.secret import SecretBytes
from services.chassis.testing import as_gateway, as_service, as_user
from services.nip.domain.nip19 import nsec
from support.nostr import User, encode_authorization

GATEWAY = "http://127.0.0.1:8080"
URL = GATEWAY + "/nipmesh.nip.v1.AuthService/Login"
ISSUER = "spiffe://nip.mesh/service/nip"
PAYMENT = "spiffe://nip.mesh/service/payment"
ALICE, BOB = "aa" * 32, "bb" * 32
NOBODY = "01890000-0000-7000-8000-000000000000"

Metadata = tuple[tuple[str, str], ...]
Serve = Callable[[str], AbstractAsyncContextManager[Any]]
AS_ALICE, AS_GATEWAY = as_user(ALICE), as_gateway()


def _id() -> str:
    return str(uuid.uuid4())


async def _create(service: Any, metadata: Metadata = AS_ALICE, **fields: Any) -> pb.CreateKeyResponse:
    source = {} if "nsec" in fields else {"fresh": True}
    request = pb.CreateKeyRequest(**{"request_id": _id(), **source, **fields})
    response: pb.CreateKeyResponse = await service.nip.CreateKey(request, metadata=metadata)
    return response


async def _refused(call: Any) -> tuple[grpc.StatusCode, str | None]:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    return refused.value.code(), reason_of(refused.value)


def _login(service: Any, authorization: str, metadata: Metadata = AS_GATEWAY) -> Any:
    return service.auth.Login(pb.LoginRequest(authorization=authorization), metadata=metadata)


def _template(**fields: Any) -> nip_pb2.EventTemplate:
    return nip_pb2.EventTemplate(**{"kind": 1, "content": "hello", "tags": [nip_pb2.Tag(values=["t", "x"])], **fields})


# Login


async def test_a_login_gives_a_token_that_the_gateway_takes(service: Any) -> None:
    user, before = User(), int(time.time())
    response = await _login(service, user.authorization(GATEWAY))
    assert (response.pubkey, response.token_type) == (user.pubkey, "Bearer")
    assert before + 900 <= response.expire_time.seconds <= time.time() + 900
    key = TokenKey.open(service.folder / "token.pem")
    key_set = jwt.PyJWKSet.from_json(key.key_set())
    published = key_set[jwt.get_unverified_header(response.access_token)["kid"]]
    claims = jwt.decode(response.access_token, published, algorithms=["ES256"], audience="nip", issuer=ISSUER)
    assert claims["sub"] == user.pubkey
    assert claims["exp"] == response.expire_time.seconds
    assert "role" not in claims


def _tagged(user: User, tags: list[list[str]], *, kind: int = 27_235, age: int = 0) -> str:
    return encode_authorization(user.event(kind, tags, created_at=int(time.time()) - age))


RIGHT = [["u", URL], ["method", "POST"]]
WRONG: dict[str, Callable[[User], str]] = {
    "another url": lambda user: _tagged(user, [["u", GATEWAY], ["method", "POST"]]),
    "another host": lambda user: user.authorization("http://localhost:8080"),
    "no url": lambda user: _tagged(user, [["method", "POST"]]),
    "another method": lambda user: _tagged(user, [["u", URL], ["method", "GET"]]),
    "no method": lambda user: _tagged(user, [["u", URL]]),
    "another kind": lambda user: _tagged(user, RIGHT, kind=22_242),
    "too old": lambda user: _tagged(user, RIGHT, age=62),
    "too new": lambda user: _tagged(user, RIGHT, age=-62),
    "another's signature": lambda user: user.authorization(GATEWAY, sig=User().event(27_235, RIGHT)["sig"]),
    "no signature": lambda user: user.authorization(GATEWAY, sig=""),
    "another's key": lambda user: user.authorization(GATEWAY, pubkey=User().pubkey),
    "a changed id": lambda user: user.authorization(GATEWAY, id="00" * 32),
    "a changed content": lambda user: user.authorization(GATEWAY, content="x"),
    "a bearer token": lambda _: "Bearer eyJhbGciOiJub25lIn0.e30.",
    "no base64": lambda _: "Nostr !!!",
    "no json": lambda _: "Nostr " + base64.b64encode(b"hello").decode(),
    "no event": lambda _: "Nostr " + base64.b64encode(json.dumps([1]).encode()).decode(),
}


@pytest.mark.parametrize("wrong", WRONG)
async def test_a_wrong_login_is_unauthenticated(service: Any, wrong: str) -> None:
    refused = await _refused(_login(service, WRONG[wrong](User())))
    assert refused == (grpc.StatusCode.UNAUTHENTICATED, "AUTHORIZATION_INVALID")


@pytest.mark.parametrize("age", [-58, 58])
async def test_the_window_is_a_minute_both_ways(service: Any, age: int) -> None:
    assert (await _login(service, _tagged(User(), RIGHT, age=age))).access_token


async def test_the_refusal_says_what_is_wrong_and_repeats_nothing(service: Any) -> None:
    authorization = WRONG["another method"](User())
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await _login(service, authorization)
    assert "method" in (refused.value.details() or "")
    status = rich_status(refused.value)
    assert status is not None
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.metadata["check"] == "WRONG_METHOD"
    assert authorization not in str(refused.value)


@pytest.mark.parametrize("authorization", ["", "x" * 8_193])
async def test_fields_out_of_bounds_are_invalid(service: Any, authorization: str) -> None:
    refused = await _refused(_login(service, authorization))
    assert refused == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_INVALID")


async def test_a_login_is_good_once_on_both_replicas_and_after_a_restart(serve: Serve) -> None:
    authorization = User().authorization(GATEWAY)
    replayed = (grpc.StatusCode.UNAUTHENTICATED, "LOGIN_REPLAYED")
    async with serve("r0") as first, serve("r1") as second:
        attempts = (_login(replica, authorization) for replica in (first, second) * 8)
        outcomes = await asyncio.gather(*attempts, return_exceptions=True)
        assert sum(isinstance(outcome, pb.LoginResponse) for outcome in outcomes) == 1
        assert await _refused(_login(first, authorization)) == replayed
        assert await _refused(_login(second, authorization)) == replayed
    async with serve("r0") as restarted:
        assert await _refused(_login(restarted, authorization)) == replayed


# Keys and signatures


async def test_a_key_signs_for_its_owner(service: Any) -> None:
    created = (await _create(service, display_name="work")).key
    assert (created.owner, created.state, created.display_name) == (ALICE, nip_pb2.Key.STATE_ACTIVE, "work")
    assert created.npub.startswith("npub1")
    got = await service.nip.GetKey(pb.GetKeyRequest(key_id=created.key_id), metadata=as_user(ALICE))
    assert got.key == created
    request = pb.SignEventRequest(request_id=_id(), key_id=created.key_id, template=_template())
    signed = await service.nip.SignEvent(request, metadata=as_user(ALICE))
    again = await service.nip.SignEvent(request, metadata=as_user(ALICE))
    assert (signed.replayed, again.replayed, again.event) == (False, True, signed.event)
    assert signed.event.pubkey == created.pubkey
    verified = await service.nip.VerifyEvents(pb.VerifyEventsRequest(events=[signed.event]), metadata=as_user(BOB))
    assert list(verified.results) == [pb.VerifyEventsResponse.RESULT_VALID]


async def test_creation_is_idempotent(service: Any) -> None:
    request_id = _id()
    first, again = [await _create(service, request_id=request_id) for _ in range(2)]
    assert (first.replayed, again.replayed, again.key) == (False, True, first.key)
    assert await _refused(_create(service, request_id=request_id, display_name="other")) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "REQUEST_ID_REUSED",
    )


async def test_an_nsec_is_taken_over_once_per_owner(service: Any) -> None:
    user = User()
    text = nsec_of(user)
    assert (await _create(service, nsec=text)).key.pubkey == user.pubkey
    assert await _refused(_create(service, nsec=text)) == (grpc.StatusCode.ALREADY_EXISTS, "KEY_ALREADY_EXISTS")
    assert (await _create(service, as_user(BOB), nsec=text)).key.pubkey == user.pubkey


def nsec_of(user: User) -> str:
    """The user's private key as text."""
    return nsec(SecretBytes(bytes(user.private_key.secret)))


async def test_a_mistyped_nsec_is_refused_without_being_repeated(service: Any) -> None:
    text = nsec_of(User())
    mistyped = text[:30] + ("q" if text[30] != "q" else "p") + text[31:]
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await _create(service, nsec=mistyped)
    assert (refused.value.code(), reason_of(refused.value)) == (grpc.StatusCode.INVALID_ARGUMENT, "KEY_INVALID")
    assert mistyped[5:] not in str(refused.value)


@pytest.mark.parametrize("key", ["theirs", "nobody's"])
@pytest.mark.parametrize("caller", [as_user(BOB), as_user(BOB, role="operator"), as_service("payment")])
async def test_anothers_key_is_a_missing_key(service: Any, key: str, caller: Metadata) -> None:
    key_id = (await _create(service)).key.key_id if key == "theirs" else NOBODY
    timed = _template(created_at=1)
    calls = [
        service.nip.GetKey(pb.GetKeyRequest(key_id=key_id), metadata=caller),
        service.nip.SignEvent(pb.SignEventRequest(key_id=key_id, template=timed), metadata=caller),
        service.nip.SignEvent(
            pb.SignEventRequest(key_id=key_id, template=_template(), request_id=_id()), metadata=caller
        ),
    ]
    texts = set()
    for call in calls:
        with pytest.raises(grpc.aio.AioRpcError) as missing:
            await call
        texts.add((missing.value.code(), reason_of(missing.value), missing.value.details()))
    assert texts == {(grpc.StatusCode.NOT_FOUND, "KEY_NOT_FOUND", "no such key")}


async def test_payment_owns_its_receipt_key(service: Any) -> None:
    key = (await _create(service, as_service("payment"))).key
    assert key.owner == PAYMENT
    request = pb.SignEventRequest(key_id=key.key_id, template=_template(created_at=1_700_000_000))
    first, again = [await service.nip.SignEvent(request, metadata=as_service("payment")) for _ in range(2)]
    assert first.event == again.event
    assert await _refused(service.nip.SignEvent(request, metadata=as_user(ALICE))) == (
        grpc.StatusCode.NOT_FOUND,
        "KEY_NOT_FOUND",
    )


CLAIM = ("x-nipmesh-subject", ALICE)
UNAUTHENTICATED = (grpc.StatusCode.UNAUTHENTICATED, "NOT_AUTHENTICATED")
NOT_ALLOWED = (grpc.StatusCode.PERMISSION_DENIED, "CALLER_NOT_ALLOWED")


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ((), UNAUTHENTICATED),
        ((CLAIM,), UNAUTHENTICATED),
        (as_gateway(), UNAUTHENTICATED),
        ((*as_gateway(), ("x-nipmesh-subject", "alice")), UNAUTHENTICATED),
        (as_service("invoice"), NOT_ALLOWED),
        ((*as_service("invoice"), CLAIM), NOT_ALLOWED),
        (((PEER_HEADER, "URI=spiffe://evil.mesh/gateway"), CLAIM), NOT_ALLOWED),
        (((PEER_HEADER, "URI=spiffe://evil.mesh/service/payment"),), NOT_ALLOWED),
    ],
)
async def test_who_may_not_call(service: Any, metadata: Metadata, expected: tuple[grpc.StatusCode, str]) -> None:
    assert await _refused(_create(service, metadata)) == expected
    assert await _refused(service.nip.ListKeys(pb.ListKeysRequest(), metadata=metadata)) == expected


async def test_a_services_claims_are_not_believed(service: Any) -> None:
    key = (await _create(service, (*as_service("payment"), CLAIM))).key
    assert key.owner == PAYMENT


async def test_pages_are_the_callers_own(service: Any) -> None:
    made = [(await _create(service)).key.key_id for _ in range(5)]
    await _create(service, as_user(BOB))
    request, seen = pb.ListKeysRequest(page_size=2), []
    while True:
        page = await service.nip.ListKeys(request, metadata=as_user(ALICE))
        seen += [key.key_id for key in page.keys]
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert sorted(seen) == sorted(made)
    assert seen == sorted(made, reverse=True)
    stolen = pb.ListKeysRequest(page_size=2, page_token=request.page_token)
    assert await _refused(service.nip.ListKeys(stolen, metadata=as_user(BOB))) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "PAGE_TOKEN_INVALID",
    )


@pytest.mark.parametrize(
    "request_of",
    [
        lambda key_id: pb.SignEventRequest(key_id=key_id, template=_template()),
        lambda key_id: pb.SignEventRequest(key_id=key_id, request_id="1", template=_template()),
        lambda key_id: pb.SignEventRequest(key_id=key_id, request_id=_id()),
        lambda _: pb.SignEventRequest(key_id="x", request_id=_id(), template=_template()),
        lambda key_id: pb.SignEventRequest(key_id=key_id, request_id=_id(), template=_template(kind=65_536)),
        lambda key_id: pb.SignEventRequest(key_id=key_id, request_id=_id(), template=_template(tags=[nip_pb2.Tag()])),
        lambda key_id: pb.SignEventRequest(key_id=key_id, template=_template(created_at=-1)),
        lambda key_id: pb.SignEventRequest(key_id=key_id, template=_template(created_at=2**53)),
    ],
)
async def test_the_rules_of_signing(service: Any, request_of: Callable[[str], pb.SignEventRequest]) -> None:
    key_id = (await _create(service)).key.key_id
    refused = await _refused(service.nip.SignEvent(request_of(key_id), metadata=as_user(ALICE)))
    assert refused == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_INVALID")


async def test_an_event_too_large_as_a_whole_is_invalid(service: Any) -> None:
    key_id = (await _create(service)).key.key_id
    template = _template(content="x" * 40_000, tags=[nip_pb2.Tag(values=["t", "y" * 40_000])])
    request = pb.SignEventRequest(key_id=key_id, request_id=_id(), template=template)
    assert await _refused(service.nip.SignEvent(request, metadata=as_user(ALICE))) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "EVENT_INVALID",
    )


@pytest.mark.parametrize("count", [1, 8, 9, 100])
async def test_each_event_of_a_batch_gets_its_own_result(service: Any, count: int) -> None:
    result = pb.VerifyEventsResponse
    events, expected = [], []
    for number in range(count):
        event = nip_pb2.Event(**{**User().event(1, [], content=str(number)), "tags": []})
        if number % 4 == 1:
            event.content += "changed"
        elif number % 4 == 2:
            event.sig = "00" * 64
        elif number % 4 == 3:
            event.pubkey = "nobody"
        events.append(event)
        outcomes = (result.RESULT_VALID, result.RESULT_BAD_ID, result.RESULT_BAD_SIGNATURE, result.RESULT_MALFORMED)
        expected.append(outcomes[number % 4])
    verified = await service.nip.VerifyEvents(pb.VerifyEventsRequest(events=events), metadata=as_user(ALICE))
    assert list(verified.results) == expected


@pytest.mark.parametrize("count", [0, 101])
async def test_a_batch_has_one_to_a_hundred_events(service: Any, count: int) -> None:
    request = pb.VerifyEventsRequest(events=[nip_pb2.Event()] * count)
    refused = await _refused(service.nip.VerifyEvents(request, metadata=as_user(ALICE)))
    assert refused == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_INVALID")

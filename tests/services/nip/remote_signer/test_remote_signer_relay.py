"""The remote signer over a real relay: connecting once, what is permitted, answers once, asking, revoking."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import grpc
import nostr_sdk
import pytest
from google.protobuf.duration_pb2 import Duration

from nipmesh.nip.v1 import remote_signer_pb2 as words
from nipmesh.nip.v1 import remote_signer_service_pb2 as pb
from services.chassis.errors import reason_of
from services.chassis.testing import as_user
from support.bunker import App, BunkerUri, connected_app, request_id, running_app
from support.nostr import User
from support.nostr_relay import NostrRelay
from support.relay import relay_before
from support.signer_owner import Owner, allow, ask, owner_at

NIP44_ENCRYPT = words.REMOTE_SIGNER_METHOD_NIP44_ENCRYPT
NIP44_DECRYPT = words.REMOTE_SIGNER_METHOD_NIP44_DECRYPT
NIP04_ENCRYPT = words.REMOTE_SIGNER_METHOD_NIP04_ENCRYPT
NIP04_DECRYPT = words.REMOTE_SIGNER_METHOD_NIP04_DECRYPT
LATE_S = 0.7
"""Longer than an app takes to ask; shorter than a new URI waits."""
Outcome = words.RemoteSignerRequest.Outcome
BOTH_ENGINES = pytest.mark.parametrize("database_settings", ["sqlite", "postgresql"], indirect=True)


async def requests_of(owner: Owner, connection_id: str = "") -> list[Any]:
    request = pb.ListSignerRequestsRequest(connection_id=connection_id)
    return list((await owner.signer.ListSignerRequests(request, metadata=owner.metadata)).requests)


async def pending_of(owner: Owner) -> list[Any]:
    response = await owner.signer.ListPendingRequests(pb.ListPendingRequestsRequest(), metadata=owner.metadata)
    return list(response.requests)


async def resolve(owner: Owner, approval_id: str, **decision: Any) -> Any:
    request = pb.ResolveRequestRequest(request_id=request_id(), approval_id=approval_id, **decision)
    return await owner.signer.ResolveRequest(request, metadata=owner.metadata)


@BOTH_ENGINES
async def test_an_app_connects_and_signs(owner: Owner, app: App) -> None:
    assert (await app.call("get_public_key"))["result"] == owner.key_pubkey
    assert (await app.call("ping"))["result"] == "pong"
    assert (await app.call("switch_relays"))["result"] == "null"
    signed = json.loads((await app.sign(content="from afar"))["result"])
    assert (signed["pubkey"], signed["content"]) == (owner.key_pubkey, "from afar")
    assert nostr_sdk.Event.from_json(json.dumps(signed)).verify()
    assert "error" in await app.sign(kind=4)
    assert "error" in await app.call("no_such_method")
    assert app.signer_pubkey != owner.key_pubkey
    audit = [(one.method, one.kind, one.outcome) for one in reversed(await requests_of(owner))]
    assert audit[-3:] == [
        ("sign_event", 1, Outcome.OUTCOME_DONE),
        ("sign_event", 4, Outcome.OUTCOME_DENIED),
        ("no_such_method", 0, Outcome.OUTCOME_FAILED),
    ]


async def test_nothing_is_answered_before_connecting(owner: Owner, stack: AsyncExitStack) -> None:
    bunker = BunkerUri.read((await owner.connection(allow(kind=1))).bunker_uri)
    app = await stack.enter_async_context(running_app(owner.relay, bunker.signer_pubkey))
    early = [
        await app.ask("get_public_key"),
        await app.ask("sign_event", json.dumps({"kind": 1, "content": "", "tags": [], "created_at": 1})),
        await app.ask("connect", bunker.signer_pubkey, "wrong" + bunker.secret),
        await app.ask("connect", bunker.signer_pubkey),
        await app.ask("connect", "ab" * 32, bunker.secret),
    ]
    assert await app.silent(early[-1])
    assert not app.answers
    assert (await app.call("connect", bunker.signer_pubkey, bunker.secret))["result"] == "ack"


async def test_a_secret_is_good_for_one_app(owner: Owner, app: App, stack: AsyncExitStack) -> None:
    connection = await owner.connection()
    bunker = BunkerUri.read(connection.bunker_uri)
    first = await connected_app(stack, connection.bunker_uri)
    assert (await first.call("connect", bunker.signer_pubkey, bunker.secret))["result"] == "ack"
    assert (await first.call("connect", bunker.signer_pubkey, "forgotten"))["result"] == "ack"
    second = await stack.enter_async_context(running_app(owner.relay, bunker.signer_pubkey))
    asked = await second.ask("connect", bunker.signer_pubkey, bunker.secret)
    assert await second.silent(asked)
    assert await second.silent(await second.ask("get_public_key"))


async def test_an_app_says_who_it_is_and_nobody_believes_more(owner: Owner, stack: AsyncExitStack) -> None:
    made = await owner.connection()
    bunker = BunkerUri.read(made.bunker_uri)
    app = await stack.enter_async_context(running_app(owner.relay, bunker.signer_pubkey))
    metadata = json.dumps({"name": "My\u0000 App" + "x" * 1_000, "url": "https://app.example", "image": 5})
    await app.call("connect", bunker.signer_pubkey, bunker.secret, "sign_event:1,nip44_encrypt", metadata)
    request = pb.GetSignerConnectionRequest(connection_id=made.connection.connection_id)
    connection = (await owner.signer.GetSignerConnection(request, metadata=owner.metadata)).connection
    assert connection.state == words.RemoteSignerConnection.STATE_CONNECTED
    assert connection.client.pubkey == app.user.pubkey
    assert connection.client.display_name.startswith("My Appx")
    assert len(connection.client.display_name) < 600
    assert connection.client.requested_permissions == "sign_event:1,nip44_encrypt"
    assert "error" in await app.sign(kind=1), "asking for a permission is not having it"


async def test_a_wildcard_never_signs_credentials(owner: Owner, stack: AsyncExitStack) -> None:
    app = await connected_app(stack, (await owner.connection(allow(), ask(kind=22242))).bunker_uri)
    assert "result" in await app.sign(kind=30_023)
    assert "error" in await app.sign(kind=27_235)
    assert (await app.sign(kind=22_242))["result"] == "auth_url"


async def test_uses_are_counted_and_a_repeated_request_uses_none(owner: Owner, stack: AsyncExitStack) -> None:
    app = await connected_app(stack, (await owner.connection(allow(kind=1, uses_left=2))).bunker_uri)
    first = await app.sign(identifier="one")
    again = await app.sign(identifier="one", content="another content")
    assert again == first, "the recorded answer"
    assert "error" in await app.sign(kind=2)
    assert "result" in await app.sign()
    assert "error" in await app.sign()


async def test_concurrent_requests_use_each_count_once(owner: Owner, stack: AsyncExitStack) -> None:
    app = await connected_app(stack, (await owner.connection(allow(kind=1, uses_left=5))).bunker_uri)
    answers = await asyncio.gather(*(app.sign(content=str(number)) for number in range(12)))
    assert sorted("result" in one for one in answers) == [False] * 7 + [True] * 5


async def test_an_app_that_has_just_connected_is_no_stranger(owner: Owner, stack: AsyncExitStack) -> None:
    """It may ask more often than all strangers together, from its first request on."""
    app = await connected_app(stack, (await owner.connection()).bunker_uri)
    asked = [await app.ask("ping") for _ in range(40)]
    assert {(await app.answer(one))["result"] for one in asked} == {"pong"}


async def test_the_same_event_twice_is_answered_once(owner: Owner, app: App) -> None:
    event = app.event_of(json.dumps({"id": "twice", "method": "ping", "params": []}))
    await app.publish(event)
    await app.answer("twice")
    await app.publish(event)
    assert await app.silent("nothing")
    assert len(app.answers_to("twice")) == 1


async def test_texts_are_encrypted_and_decrypted(owner: Owner, stack: AsyncExitStack) -> None:
    permissions = [allow(one) for one in (NIP44_ENCRYPT, NIP44_DECRYPT, NIP04_ENCRYPT, NIP04_DECRYPT)]
    app = await connected_app(stack, (await owner.connection(*permissions)).bunker_uri)
    friend = User()
    secret = nostr_sdk.SecretKey.parse(friend.private_key.to_hex())
    us = nostr_sdk.PublicKey.parse(owner.key_pubkey)
    payload = (await app.call("nip44_encrypt", friend.pubkey, "héllo"))["result"]
    assert nostr_sdk.nip44_decrypt(secret, us, payload) == "héllo"
    assert (await app.call("nip44_decrypt", friend.pubkey, payload))["result"] == "héllo"
    payload = (await app.call("nip04_encrypt", friend.pubkey, "héllo"))["result"]
    assert nostr_sdk.nip04_decrypt(secret, us, payload) == "héllo"
    assert (await app.call("nip04_decrypt", friend.pubkey, payload))["result"] == "héllo"
    empty = nostr_sdk.nip04_encrypt(secret, us, "")
    assert (await app.call("nip04_decrypt", friend.pubkey, empty))["error"] == "the text is empty"
    assert "error" in await app.call("nip44_decrypt", friend.pubkey, "junk")
    assert "error" in await app.call("nip44_encrypt", "no key", "x")
    assert "error" in await app.call("nip44_encrypt", friend.pubkey, "x" * 40_000), "too long for an event"


async def test_wrong_parameters_are_errors(app: App) -> None:
    for template in ("", "[]", "5", "{}", '{"kind":"1"}', '{"kind":1,"tags":[[1]]}', '{"kind":1,"content":5}'):
        assert "error" in await app.call("sign_event", template), template
    assert "error" in await app.call("sign_event")


async def test_a_user_who_is_asked_decides(owner: Owner, stack: AsyncExitStack) -> None:
    app = await connected_app(stack, (await owner.connection(ask(kind=1))).bunker_uri)
    asked = await app.sign(identifier="ask1")
    (waiting,) = await pending_of(owner)
    assert asked == {
        "id": "ask1",
        "result": "auth_url",
        "error": f"https://nip.example/ask?request={waiting.approval_id}",
    }
    stranger = as_user(User().pubkey)
    request = pb.ResolveRequestRequest(request_id=request_id(), approval_id=waiting.approval_id, allow_once=True)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await owner.signer.ResolveRequest(request, metadata=stranger)
    assert reason_of(caught.value) == "SIGNER_REQUEST_NOT_FOUND"
    await resolve(owner, waiting.approval_id, allow_once=True)
    answered = await app.answer("ask1", 2)
    assert json.loads(answered["result"])["pubkey"] == owner.key_pubkey
    assert await pending_of(owner) == []
    assert (await app.sign(identifier="ask2"))["result"] == "auth_url", "once is once"
    (waiting,) = await pending_of(owner)
    await resolve(owner, waiting.approval_id, deny=True)
    assert (await app.answer("ask2", 2))["error"] == "this is not permitted"


async def test_a_decision_for_a_time_holds_for_its_like(owner: Owner, stack: AsyncExitStack) -> None:
    app = await connected_app(stack, (await owner.connection(ask())).bunker_uri)
    await app.sign(identifier="for")
    (waiting,) = await pending_of(owner)
    await resolve(owner, waiting.approval_id, allow_for=Duration(seconds=60))
    assert "pubkey" in (await app.answer("for", 2))["result"]
    assert "pubkey" in (await app.sign())["result"]
    assert (await app.sign(kind=7))["result"] == "auth_url"


@BOTH_ENGINES
async def test_permissions_and_revoking_hold_at_once_on_every_replica(
    owner: Owner, app: App, replica: Callable[..., Any]
) -> None:
    async with replica("r1"):
        (connection,) = (
            await owner.signer.ListSignerConnections(pb.ListSignerConnectionsRequest(), metadata=owner.metadata)
        ).connections
        update = pb.UpdatePermissionsRequest(
            request_id=request_id(), connection_id=connection.connection_id, permissions=[allow(kind=7)]
        )
        await owner.signer.UpdatePermissions(update, metadata=owner.metadata)
        assert "error" in await app.sign(kind=1)
        assert "result" in await app.sign(kind=7)
        revoke = pb.RevokeSignerConnectionRequest(request_id=request_id(), connection_id=connection.connection_id)
        for replayed in (False, True):
            ended = await owner.signer.RevokeSignerConnection(revoke, metadata=owner.metadata)
            assert ended.connection.state == words.RemoteSignerConnection.STATE_REVOKED
            assert ended.replayed == replayed
        assert await app.silent(await app.ask("ping"))
        update.request_id = request_id()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await owner.signer.UpdatePermissions(update, metadata=owner.metadata)
        assert reason_of(caught.value) == "SIGNER_CONNECTION_ENDED"


async def test_logout_ends_the_connection(owner: Owner, app: App) -> None:
    assert (await app.call("logout"))["result"] == "ack"
    assert await app.silent(await app.ask("get_public_key"))
    outcomes = {one.method: one.outcome for one in await requests_of(owner)}
    assert outcomes["logout"] == Outcome.OUTCOME_DONE
    assert outcomes.get("get_public_key", Outcome.OUTCOME_IGNORED) == Outcome.OUTCOME_IGNORED


async def test_two_replicas_answer_each_request_once(
    owner: Owner, replica: Callable[..., Any], stack: AsyncExitStack
) -> None:
    async with replica("r1"):
        app = await connected_app(stack, (await owner.connection(allow())).bunker_uri)
        answers = await asyncio.gather(*(app.sign(content=str(number)) for number in range(40)))
        await asyncio.sleep(0.3)
    contents = {json.loads(one["result"])["content"] for one in answers}
    assert contents == {str(number) for number in range(40)}
    assert len(app.answers) == 41, "connect, and each once"


async def test_an_app_that_floods_is_not_looked_at(
    replica: Callable[..., Any], relay: NostrRelay, stack: AsyncExitStack
) -> None:
    from support.signer_owner import owner_at

    async with replica("slow", signer_requests_per_second=1) as channel:
        owner = await owner_at(channel, relay)
        app = await connected_app(stack, (await owner.connection()).bunker_uri)
        asked = [await app.ask("ping") for _ in range(20)]
        await app.silent(asked[-1])
        assert 3 <= sum(bool(app.answers_to(one)) for one in asked) <= 6


async def test_a_locked_key_is_told(owner: Owner, app: App) -> None:
    from nipmesh.nip.v1 import nip_service_pb2 as nip_pb

    request = nip_pb.DisableKeyRequest(request_id=request_id(), key_id=owner.key_id)
    await owner.nip.DisableKey(request, metadata=owner.metadata)
    assert (await app.sign())["error"] == "the key is switched off"


@BOTH_ENGINES
async def test_an_app_that_shows_a_nostrconnect_uri_is_answered(owner: Owner, stack: AsyncExitStack) -> None:
    user = User()
    uri = f"nostrconnect://{user.pubkey}?relay={owner.relay}&secret=s3cret&name=My+Client&perms=sign_event%3A1"
    request = pb.AcceptNostrConnectRequest(
        request_id=request_id(), key_id=owner.key_id, nostrconnect_uri=uri, permissions=[allow(kind=1)]
    )
    connecting = asyncio.ensure_future(_greeted(owner.relay, user))
    await asyncio.sleep(0.2)
    made = await owner.signer.AcceptNostrConnect(request, metadata=owner.metadata)
    assert made.connection.client.display_name == "My Client"
    assert (await owner.signer.AcceptNostrConnect(request, metadata=owner.metadata)).replayed
    event, result = await connecting
    assert (event["pubkey"], result) == (made.connection.signer_pubkey, "s3cret")
    app = await stack.enter_async_context(running_app(owner.relay, made.connection.signer_pubkey, user))
    assert json.loads((await app.sign())["result"])["pubkey"] == owner.key_pubkey


async def test_an_app_is_heard_from_its_first_request_on(
    replica: Callable[..., Any], relay: NostrRelay, stack: AsyncExitStack
) -> None:
    """Relays do not store requests: whoever has a URI or a greeting is listened for, also when a relay is slow to hear of it."""
    async with relay_before(relay.url, late_s=LATE_S) as late, replica("r0", signer_relays=late) as channel:
        owner = await owner_at(channel, relay)
        for _ in range(2):
            bunker = BunkerUri.read((await owner.connection(allow(kind=1))).bunker_uri)
            app = await stack.enter_async_context(running_app(relay.url, bunker.signer_pubkey))
            assert (await app.call("connect", bunker.signer_pubkey, bunker.secret))["result"] == "ack"
        for _ in range(2):
            user = User()
            request = pb.AcceptNostrConnectRequest(
                request_id=request_id(),
                key_id=owner.key_id,
                nostrconnect_uri=f"nostrconnect://{user.pubkey}?relay={late}&secret=s3cret",
                permissions=[allow(kind=1)],
            )
            greeted = asyncio.create_task(_greeted(relay.url, user))
            made = await owner.signer.AcceptNostrConnect(request, metadata=owner.metadata)
            app = await stack.enter_async_context(running_app(relay.url, made.connection.signer_pubkey, user))
            await greeted
            assert "result" in await app.sign()


async def test_a_replica_that_serves_hears_what_is_asked_for(
    replica: Callable[..., Any], relay: NostrRelay, stack: AsyncExitStack
) -> None:
    """Whoever restarts one replica after the other may end the last old one as soon as a new one serves."""
    async with relay_before(relay.url, late_s=LATE_S) as late:
        async with replica("r0", signer_relays=late) as channel:
            owner = await owner_at(channel, relay)
            bunker = BunkerUri.read((await owner.connection(allow(kind=1))).bunker_uri)
            app = await stack.enter_async_context(running_app(relay.url, bunker.signer_pubkey))
            await app.call("connect", bunker.signer_pubkey, bunker.secret)
        async with replica("r1", signer_relays=late):
            assert "result" in await app.sign()


async def _greeted(relay: str, user: User) -> tuple[dict[str, Any], str]:
    """What an app waits for that does not know the signer yet."""
    from websockets.asyncio.client import connect

    secret = nostr_sdk.SecretKey.parse(user.private_key.to_hex())
    async with asyncio.timeout(10), connect(relay) as websocket:
        await websocket.send(json.dumps(["REQ", "x", {"kinds": [24133], "#p": [user.pubkey]}]))
        async for text in websocket:
            if (message := json.loads(text))[0] == "EVENT":
                event = message[2]
                peer = nostr_sdk.PublicKey.parse(event["pubkey"])
                answer = json.loads(nostr_sdk.nip44_decrypt(secret, peer, event["content"]))
                return event, answer["result"]
    raise AssertionError("the relay went away")


@BOTH_ENGINES
async def test_creating_twice_makes_one_and_gives_the_same_uri(owner: Owner) -> None:
    same = {"request_id": request_id(), "display_name": "phone"}
    first = await owner.connection(allow(), **same)
    second = await owner.connection(allow(), **same)
    assert (first.replayed, second.replayed) == (False, True)
    assert first.bunker_uri == second.bunker_uri
    assert first.connection == second.connection


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"relay_urls": ["http://relay.example"]}, "REMOTE_SIGNER_RELAY_INVALID"),
        ({"permissions": [allow(), allow()]}, "REMOTE_SIGNER_PERMISSIONS_INVALID"),
        ({"key_id": "00000000-0000-4000-8000-000000000000"}, "KEY_NOT_FOUND"),
        ({"permissions": [allow(NIP44_ENCRYPT, kind=1)]}, "REQUEST_INVALID"),
        ({"permissions": [ask(uses_left=1)]}, "REQUEST_INVALID"),
    ],
)
async def test_a_wrong_wish_is_refused(owner: Owner, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await owner.connection(**changes)
    assert reason_of(caught.value) == reason


async def test_a_connection_ends_with_its_time(owner: Owner, stack: AsyncExitStack) -> None:
    app = await connected_app(stack, (await owner.connection(ttl=Duration(seconds=1))).bunker_uri)
    await asyncio.sleep(1.0)
    assert await app.silent(await app.ask("ping"))


async def test_old_events_are_not_taken(app: App) -> None:
    text = json.dumps({"id": "old", "method": "ping", "params": []})
    await app.publish(app.event_of(text, created_at=int(time.time()) - 700))
    assert await app.silent("old")


# The same handler as a call


async def handle(owner: Owner, user: User, connection_id: str, method: str, *params: str, identifier: str = "") -> Any:
    request = pb.HandleRequestRequest(
        connection_id=connection_id,
        client_pubkey=user.pubkey,
        id=identifier or request_id(),
        method=method,
        params=params,
    )
    return await owner.signer.HandleRequest(request, metadata=as_user(user.pubkey))


@BOTH_ENGINES
async def test_an_app_may_call_instead(owner: Owner) -> None:
    made = await owner.connection(allow(kind=1, uses_left=1), ask(kind=7))
    bunker, user, where = BunkerUri.read(made.bunker_uri), User(), made.connection.connection_id
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await handle(owner, user, where, "get_public_key")
    assert reason_of(caught.value) == "SIGNER_CONNECTION_NOT_FOUND"
    assert (await handle(owner, user, where, "connect", bunker.signer_pubkey, bunker.secret)).result == "ack"
    template = json.dumps({"kind": 1, "content": "called", "tags": [], "created_at": 5})
    first = await handle(owner, user, where, "sign_event", template, identifier="a")
    assert json.loads(first.result)["content"] == "called"
    assert await handle(owner, user, where, "sign_event", template, identifier="a") == first
    assert (await handle(owner, user, where, "sign_event", template)).error == "this is not permitted"
    asked = await handle(owner, user, where, "sign_event", template.replace("1", "7", 1), identifier="b")
    assert asked.result == "auth_url"
    (waiting,) = await pending_of(owner)
    await resolve(owner, waiting.approval_id, allow_once=True)
    async with asyncio.timeout(5):
        while (answer := await handle(owner, user, where, "sign_event", template, identifier="b")).result == "auth_url":
            await asyncio.sleep(0.02)
    assert json.loads(answer.result)["kind"] == 7


async def test_nobody_calls_as_another(owner: Owner) -> None:
    made = await owner.connection()
    request = pb.HandleRequestRequest(
        connection_id=made.connection.connection_id, client_pubkey=User().pubkey, id="1", method="ping"
    )
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await owner.signer.HandleRequest(request, metadata=as_user(User().pubkey))
    assert reason_of(caught.value) == "REQUEST_INVALID"


async def test_requests_are_watched(owner: Owner, app: App) -> None:
    await app.sign(kind=4)
    call = owner.signer.WatchRequests(pb.WatchRequestsRequest(resume_after_sequence=0), metadata=owner.metadata)
    seen: list[tuple[str, int]] = []
    async with asyncio.timeout(5):
        async for change in call:
            if change.HasField("request"):
                seen.append((change.request.method, change.request.outcome))
            if len(seen) == 4:
                break
    call.cancel()
    assert seen == [
        ("connect", Outcome.OUTCOME_RUNNING),
        ("connect", Outcome.OUTCOME_DONE),
        ("sign_event", Outcome.OUTCOME_RUNNING),
        ("sign_event", Outcome.OUTCOME_DENIED),
    ]

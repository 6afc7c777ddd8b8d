"""Challenges and HTTP authorizations over a real database: each good once, on any replica and after a restart."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from nipmesh.events.v1.nip_events_pb2 import Authenticated
from services.chassis.secret import SecretBytes
from services.nip.authentication.challenges import ChallengeUsedError, RelayNotTrustedError
from services.nip.authentication.http_auth import AuthorizationReplayedError
from services.nip.domain.nip42 import ChallengeError
from services.nip.domain.nip98 import AuthorizationError, Request, encode_authorization
from services.nip.keys import KeyNotFoundError, NewKey
from services.nip.login import LoginReplayedError
from services.nostr.bip340 import Signer
from services.nostr.event import Event, Template, sign_event
from services.storage.events import events_after
from services.storage.ids import new_id

GATEWAY = "http://127.0.0.1:8080"
OWN_RELAY = "ws://127.0.0.1:8080"
NOW_US = 1_700_000_000_000_000
NOW = NOW_US // 1_000_000
SIGNER = Signer(SecretBytes(b"\x09" * 32))
OWNER = SIGNER.public_key.hex()
REQUEST = Request(url="https://example.com/upload", method="POST")

Start = Callable[[], Awaitable[Any]]
"""Opens the parts of another replica on the same file."""


def signed(kind: int, *tags: tuple[str, ...], created_at: int = NOW) -> Event:
    template = Template(kind=kind, tags=tags, content="", created_at=created_at)
    return sign_event(SIGNER, template, created_at=created_at, auxiliary_key=b"\x01" * 32)


def answer(challenge: str, relay: str = OWN_RELAY, created_at: int = NOW) -> Event:
    return signed(22_242, ("relay", relay), ("challenge", challenge), created_at=created_at)


async def test_an_answer_gives_a_token_once_and_is_told(parts: Any) -> None:
    challenge = await parts.challenges.create(OWN_RELAY + "/", 60)
    assert challenge.relay_url == OWN_RELAY
    session = await parts.challenges.verify(answer(challenge.text), OWN_RELAY)
    assert session.pubkey == OWNER
    assert session.access_token.expire_time_seconds == NOW + 900
    with pytest.raises(ChallengeUsedError):
        await parts.challenges.verify(answer(challenge.text), OWN_RELAY)
    with pytest.raises(ChallengeUsedError):
        await parts.challenges.verify(answer(challenge.text, created_at=NOW + 1), OWN_RELAY + "/")
    events = await parts.database.read(lambda connection: events_after(connection, 0))
    assert [event.kind for event in events] == ["nipmesh.nip.v1.authenticated"]
    told = Authenticated.FromString(events[0].payload)
    assert (told.pubkey, told.method, told.relay_url) == (OWNER, Authenticated.METHOD_NIP42, OWN_RELAY)


async def test_a_challenge_is_good_once_on_any_replica(start: Start) -> None:
    first, second = await start(), await start()
    challenge = await first.challenges.create(OWN_RELAY, 60)
    attempts = (parts.challenges.verify(answer(challenge.text), OWN_RELAY) for parts in (first, second) * 16)
    outcomes = await asyncio.gather(*attempts, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes].count(ChallengeUsedError) == 31


async def test_a_challenge_is_good_after_a_restart_and_then_once(start: Start) -> None:
    first = await start()
    challenge = await first.challenges.create(OWN_RELAY, 60)
    await first.database.close()
    second = await start()
    await second.challenges.verify(answer(challenge.text), OWN_RELAY)
    await second.database.close()
    with pytest.raises(ChallengeUsedError):
        await (await start()).challenges.verify(answer(challenge.text), OWN_RELAY)


async def test_a_refused_answer_uses_nothing_up(parts: Any) -> None:
    challenge = await parts.challenges.create(OWN_RELAY, 60)
    with pytest.raises(ChallengeError):
        await parts.challenges.verify(answer(challenge.text, created_at=NOW + 601), OWN_RELAY)
    await parts.challenges.verify(answer(challenge.text), OWN_RELAY)


async def test_only_trusted_relays_and_each_for_itself(parts: Any) -> None:
    with pytest.raises(RelayNotTrustedError):
        await parts.challenges.create("wss://stranger.example.com", 60)
    with pytest.raises(RelayNotTrustedError):
        await parts.challenges.create("no relay", 60)
    challenge = await parts.challenges.create("WSS://relay.example.com/", 60)
    with pytest.raises(ChallengeError):
        await parts.challenges.verify(answer(challenge.text), OWN_RELAY)
    with pytest.raises(RelayNotTrustedError):
        await parts.challenges.verify(answer(challenge.text), "wss://stranger.example.com")
    relay = "wss://relay.example.com"
    assert (await parts.challenges.verify(answer(challenge.text, relay), relay)).pubkey == OWNER


async def test_an_open_challenge_is_no_row(parts: Any) -> None:
    for _ in range(100):
        await parts.challenges.create(OWN_RELAY, 600)
    assert await rows(parts) == 0


async def test_used_proofs_are_forgotten_only_when_they_are_long_over(parts: Any, clock: Any) -> None:
    challenge = await parts.challenges.create(OWN_RELAY, 60)
    await parts.challenges.verify(answer(challenge.text), OWN_RELAY)
    await parts.http_auths.verify(authorization(), REQUEST)
    clock.now_us += 59_000_000
    with pytest.raises(ChallengeUsedError):
        await parts.challenges.verify(answer(challenge.text), OWN_RELAY)
    clock.now_us += 1_000_000_000
    await parts.http_auths.verify(authorization(clock.now_us // 1_000_000), REQUEST)
    assert await rows(parts) == 1
    with pytest.raises(ChallengeError):
        await parts.challenges.verify(answer(challenge.text), OWN_RELAY)


async def rows(parts: Any) -> int:
    counted = await parts.database.read(
        lambda connection: connection.execute("SELECT count(*) FROM used_login").fetchone()
    )
    return int(counted[0])


# ---- HTTP requests


def authorization(created_at: int = NOW, method: str = "POST") -> str:
    return encode_authorization(signed(27_235, ("u", REQUEST.url), ("method", method), created_at=created_at))


async def test_an_authorization_is_good_once_on_any_replica(start: Start) -> None:
    first, second = await start(), await start()
    attempts = (parts.http_auths.verify(authorization(), REQUEST) for parts in (first, second) * 16)
    outcomes = await asyncio.gather(*attempts, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes].count(AuthorizationReplayedError) == 31


async def test_an_authorization_is_good_once_after_a_restart(start: Start) -> None:
    first = await start()
    proof = await first.http_auths.verify(authorization(method="post"), REQUEST)
    assert proof.pubkey == OWNER
    await first.database.close()
    with pytest.raises(AuthorizationReplayedError):
        await (await start()).http_auths.verify(authorization(method="post"), REQUEST)


async def test_a_login_and_a_request_share_what_is_used(parts: Any) -> None:
    url = GATEWAY + "/nipmesh.nip.v1.AuthService/Login"
    login = encode_authorization(signed(27_235, ("u", url), ("method", "POST")))
    await parts.logins.login(login)
    with pytest.raises(AuthorizationReplayedError):
        await parts.http_auths.verify(login, Request(url=url, method="POST"))
    other = encode_authorization(signed(27_235, ("u", url), ("method", "POST"), ("x", "")))
    await parts.http_auths.verify(other, Request(url=url, method="POST"))
    with pytest.raises(LoginReplayedError):
        await parts.logins.login(other)


async def test_a_refused_authorization_uses_nothing_up(parts: Any) -> None:
    with pytest.raises(AuthorizationError):
        await parts.http_auths.verify(authorization(), Request(url=REQUEST.url, method="GET"))
    await parts.http_auths.verify(authorization(), REQUEST)


async def test_what_a_held_key_authorizes_is_accepted_each_time_once(parts: Any) -> None:
    new = NewKey(owner=OWNER, request_id=new_id(), display_name="", secret_key=None)
    key, _ = await parts.keys.create(new)
    request = Request(url="https://example.com/a?b=%C3%A9", method="put", payload_sha256="ab" * 32)
    made = [await parts.http_auths.create(OWNER, key.key_id, request) for _ in range(2)]
    assert {one.expire_time_seconds for one in made} == {NOW + 60}
    for one in made:
        assert (await parts.http_auths.verify(one.value, request)).pubkey == key.pubkey
        with pytest.raises(AuthorizationReplayedError):
            await parts.http_auths.verify(one.value, request)
    with pytest.raises(KeyNotFoundError):
        await parts.http_auths.create("another", key.key_id, request)

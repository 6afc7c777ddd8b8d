"""Logins over a real database: good once, on any replica and after a restart."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from services.chassis.secret import SecretBytes
from services.nip.domain.nip98 import AuthorizationError, encode_authorization
from services.nip.login import LoginReplayedError
from services.nostr.bip340 import Signer
from services.nostr.event import Template, sign_event
from services.storage.sql import value_of

GATEWAY = "http://127.0.0.1:8080"
NOW_US = 1_700_000_000_000_000

Start = Callable[[], Awaitable[Any]]
"""Opens the parts of another replica on the same file."""


def _authorization(created_at: int = NOW_US // 1_000_000, secret: bytes = b"\x09" * 32) -> str:
    tags = (("u", GATEWAY + "/nipmesh.nip.v1.AuthService/Login"), ("method", "POST"))
    template = Template(kind=27_235, tags=tags, content="", created_at=created_at)
    event = sign_event(Signer(SecretBytes(secret)), template, created_at=created_at, auxiliary_key=b"\x01" * 32)
    return encode_authorization(event)


async def test_a_login_is_good_once(parts: Any) -> None:
    session = await parts.logins.login(_authorization())
    assert session.pubkey == Signer(SecretBytes(b"\x09" * 32)).public_key.hex()
    assert session.access_token.expire_time_seconds == NOW_US // 1_000_000 + 900
    with pytest.raises(LoginReplayedError):
        await parts.logins.login(_authorization())


async def test_a_login_is_good_once_on_any_replica(start: Start) -> None:
    first, second = await start(), await start()
    attempts = (parts.logins.login(_authorization()) for parts in (first, second) * 16)
    outcomes = await asyncio.gather(*attempts, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes].count(LoginReplayedError) == 31


async def test_a_login_is_good_once_after_a_restart(start: Start) -> None:
    first = await start()
    await first.logins.login(_authorization())
    await first.database.close()
    with pytest.raises(LoginReplayedError):
        await (await start()).logins.login(_authorization())


async def test_a_refused_authorization_uses_nothing_up(parts: Any, clock: Any) -> None:
    early = _authorization(created_at=NOW_US // 1_000_000 + 61)
    with pytest.raises(AuthorizationError):
        await parts.logins.login(early)
    clock.now_us += 1_000_000
    await parts.logins.login(early)


@pytest.mark.parametrize("created", [-60, 0, 60])
async def test_used_events_are_forgotten_only_when_the_window_is_long_over(
    parts: Any, clock: Any, created: int
) -> None:
    used = _authorization(created_at=NOW_US // 1_000_000 + created)
    await parts.logins.login(used)
    for _ in range(3):
        clock.now_us += 30_000_000
        with pytest.raises((LoginReplayedError, AuthorizationError)):
            await parts.logins.login(used)
    clock.now_us += 1_000_000_000
    await parts.logins.login(_authorization(created_at=clock.now_us // 1_000_000))
    rows = await parts.database.read(lambda connection: value_of(connection.execute("SELECT count(*) FROM used_login")))
    assert rows == 1
    with pytest.raises(AuthorizationError):
        await parts.logins.login(used)


async def test_two_people_log_in_at_the_same_second(parts: Any) -> None:
    first = await parts.logins.login(_authorization(secret=b"\x09" * 32))
    second = await parts.logins.login(_authorization(secret=b"\x0a" * 32))
    assert first.pubkey != second.pubkey

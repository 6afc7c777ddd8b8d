"""The remote signer as it runs: replicas of the NIP service on one database, a real relay, and an owner with a key."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from services.chassis.testing import running
from services.nip.service import NIP_SERVICE
from support.bunker import App, connected_app
from support.nostr_relay import NostrRelay, running_relay
from support.signer_owner import AUTH_URL, Owner, allow, owner_at


@pytest.fixture
def database_settings(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """SQLite, unless a test is parametrized with the other engine."""
    values: dict[str, Any] = {"data_directory": tmp_path / "data"}
    if getattr(request, "param", "sqlite") == "postgresql":
        values["database_url"] = request.getfixturevalue("postgresql_url")
    return values


@pytest.fixture(scope="module")
def relay() -> Iterator[NostrRelay]:
    with running_relay() as started:
        yield started


@pytest.fixture
def replica(tmp_path: Path, make_secrets: dict[str, Any], relay: NostrRelay) -> Callable[..., Any]:
    """Serve as the replica of this name."""

    @contextlib.asynccontextmanager
    async def served(name: str, **more: Any) -> AsyncIterator[Any]:
        (tmp_path / name).mkdir(mode=0o700, exist_ok=True)
        settings = {**make_secrets, "signer_relays": relay.url, "signer_auth_url": AUTH_URL, **more}
        async with running(NIP_SERVICE, tmp_path / name, **settings) as (_, channel):
            yield channel

    return served


@pytest.fixture
async def owner(replica: Callable[..., Any], relay: NostrRelay) -> AsyncIterator[Owner]:
    async with replica("r0") as channel:
        yield await owner_at(channel, relay)


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as opened:
        yield opened


@pytest.fixture
async def app(owner: Owner, stack: AsyncExitStack) -> App:
    """An app that may sign notes."""
    return await connected_app(stack, (await owner.connection(allow(kind=1))).bunker_uri)

"""The three services and a relay, started once for the tests of a module."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from support.folders import short_folder
from support.nostr_relay import NostrRelay, running_relay
from support.wallet_connect import WalletMesh, wallet_mesh


@pytest.fixture(scope="module")
def relay() -> Iterator[NostrRelay]:
    with running_relay() as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh(relay: NostrRelay) -> AsyncIterator[WalletMesh]:
    with short_folder() as folder:
        async with wallet_mesh(folder, relay.url) as running:
            yield running

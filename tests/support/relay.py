"""Relays for tests: nostr-sdk's LocalRelay, and one that says what it is told to."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import nostr_sdk
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

NOTES_PER_MINUTE = 1_000_000
"""More than any test publishes: a relay that limits rates by default would decide what a test finds."""


@asynccontextmanager
async def local_relay(*, nip42: bool = False, port: int = 0) -> AsyncIterator[str]:
    """A real relay on a free port (or this one); its URL."""
    limit = nostr_sdk.RateLimit(max_reqs=1_000, notes_per_minute=NOTES_PER_MINUTE)
    builder = nostr_sdk.LocalRelayBuilder().addr("127.0.0.1").rate_limit(limit)
    if port:
        builder = builder.port(port)
    if nip42:
        builder = builder.nip42(nostr_sdk.LocalRelayBuilderNip42(mode=nostr_sdk.LocalRelayBuilderNip42Mode.WRITE))
    relay = builder.build()
    await relay.run()
    try:
        yield str(await relay.url())
    finally:
        relay.shutdown()


Say = Callable[[ServerConnection, list[Any]], Awaitable[None]]


@asynccontextmanager
async def scripted_relay(say: Say) -> AsyncIterator[str]:
    """A relay that answers each message with what `say` does; its URL."""

    async def talk(connection: ServerConnection) -> None:
        async for message in connection:
            await say(connection, json.loads(message))

    async with serve(talk, "127.0.0.1", 0, max_size=1 << 20) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        yield f"ws://127.0.0.1:{port}"


@asynccontextmanager
async def relay_before(
    url: str, *, late_s: float = 0.0, tls: tuple[Path, Path] | None = None, host: str = "127.0.0.1"
) -> AsyncIterator[str]:
    """Another way to a relay: what it is asked for (REQ) it hears of so much later; with `tls` (certificate, key) at wss://. Its URL."""

    async def pass_on(incoming: ServerConnection) -> None:
        async with connect(url, proxy=None, compression=None) as outgoing, asyncio.TaskGroup() as group:
            back = group.create_task(_copy(outgoing, incoming))
            with contextlib.suppress(ConnectionClosed):
                async for message in incoming:
                    if json.loads(message)[0] == "REQ":
                        await asyncio.sleep(late_s)
                    await outgoing.send(message)
            back.cancel()

    context = None
    if tls is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*tls)
    async with serve(pass_on, "127.0.0.1", 0, ssl=context, max_size=1 << 20, compression=None) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        yield f"{'ws' if tls is None else 'wss'}://{host}:{port}"


async def _copy(source: ClientConnection, target: ServerConnection) -> None:
    with contextlib.suppress(ConnectionClosed):
        async for message in source:
            await target.send(message)


async def stored(url: str, **filters: Any) -> list[dict[str, Any]]:
    """The events that a relay has, by a plain connection of this test."""
    found: list[dict[str, Any]] = []
    async with asyncio.timeout(10), connect(url, proxy=None) as connection:
        await connection.send(json.dumps(["REQ", "all", filters]))
        while True:
            said = json.loads(await connection.recv())
            if said[0] == "EOSE":
                return found
            if said[0] == "EVENT":
                found.append(said[2])

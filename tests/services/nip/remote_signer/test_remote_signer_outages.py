"""kill -9 of the relay and of a replica, in turn, while an app signs: each request is answered, by one event alone, or seen to be lost."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import time
from collections import defaultdict
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from websockets.exceptions import WebSocketException

from support.bunker import App, connected_app, running_app
from support.nip_process import environment, nip_process, write_secrets
from support.nostr_relay import NostrRelay, running_relay
from support.signer_owner import allow, owner_at

REQUESTS = int(os.environ.get("NIPMESH_KILLS_REQUESTS", "60"))
"""10,000 with `make kills`."""
KILLS = 2 if REQUESTS < 1_000 else 20
WINDOW = 20
"""Requests under way at once."""
AGAIN_S = 2.0
"""What is not answered by then is sent again, under its id, as apps do."""
SECONDS_MAX = 60 + REQUESTS


@dataclass(kw_only=True)
class Signing:
    """What is to be signed, what was answered, and over how many connections it was asked."""

    wanted: dict[str, str]
    events_of: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    answered: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    broken: int = 0
    sent_again: int = 0

    @property
    def left(self) -> list[str]:
        return [identifier for identifier in self.wanted if identifier not in self.answered]

    def keep(self, app: App) -> None:
        """Note what came, errors too."""
        for answer in app.answers:
            if answer["id"] in self.wanted:
                self.answered[answer["id"]].add(answer.get("error") or json.loads(answer["result"])["content"])
                self.events_of[answer["id"]] |= app.events_of[answer["id"]]

    async def until_signed(self, relay: str, app: App) -> None:
        """Over one connection after the other, until each request is answered."""
        while self.left:
            with contextlib.suppress(WebSocketException, EOFError, OSError, TimeoutError):  # also in the handshake
                async with running_app(relay, app.signer_pubkey, app.user) as connected:
                    try:
                        await self._sign(connected)
                    finally:
                        self.keep(connected)
            self.broken += bool(self.left)
            await asyncio.sleep(0.05)

    async def _sign(self, app: App) -> None:
        while left := self.left[:WINDOW]:
            for identifier in left:
                template = {"kind": 1, "content": self.wanted[identifier], "tags": [], "created_at": int(time.time())}
                await app.ask("sign_event", json.dumps(template), identifier=identifier)
            try:
                await asyncio.gather(*(app.answer(identifier, timeout_s=AGAIN_S) for identifier in left))
            except TimeoutError:
                self.sent_again += 1
            self.keep(app)
            if app.websocket.close_code is not None:
                return


class Replica:
    """A replica that can be killed and started again."""

    def __init__(self, folder: Path, number: int, **more: str) -> None:
        self._values = environment(folder, f"r{number}", NIPMESH_REPLICA=str(number), **more)
        self.target = f"unix:{folder}/r{number}/app.sock"
        self._stack = AsyncExitStack()

    async def start(self) -> None:
        await self._stack.enter_async_context(nip_process(self._values))
        async with asyncio.timeout(60), grpc.aio.insecure_channel(self.target) as channel:
            await channel.channel_ready()

    async def kill(self) -> None:
        await self._stack.aclose()


async def kill_in_turn(signing: Signing, relay: NostrRelay, replica: Replica) -> int:
    """The relay, the replica, the relay, …, each after another part of the requests; how often."""
    for number in range(KILLS):
        at = (number + 1) * REQUESTS // (KILLS + 2)
        while len(signing.answered) < at:
            await asyncio.sleep(0.01)
        await asyncio.sleep(random.uniform(0, 0.03))  # somewhere between sending and answering
        if number % 2 == 0:
            relay.kill()
            await asyncio.to_thread(relay.start)
        else:
            await replica.kill()
            await replica.start()
    return KILLS


@pytest.mark.timeout(120 + 2 * REQUESTS)
@pytest.mark.parametrize("engine", ["sqlite", "postgresql"])
async def test_every_request_is_answered_by_one_event(
    request: pytest.FixtureRequest, tmp_path: Path, engine: str
) -> None:
    write_secrets(tmp_path)
    with running_relay() as relay:
        more = {
            "NIPMESH_SIGNER_RELAYS": relay.url,
            "NIPMESH_SIGNER_REQUESTS_PER_SECOND": "1000",
            "NIPMESH_LOG_LEVEL": "error",
        }
        if engine == "postgresql":
            more["NIPMESH_DATABASE_URL"] = request.getfixturevalue("postgresql_url")
        replicas = [Replica(tmp_path, number, **more) for number in range(2)]
        async with AsyncExitStack() as stack:
            for replica in replicas:
                stack.push_async_callback(replica.kill)
            await asyncio.gather(*(replica.start() for replica in replicas))
            await _signed_through_kills(stack, relay, replicas)


async def _signed_through_kills(stack: AsyncExitStack, relay: NostrRelay, replicas: list[Replica]) -> None:
    channel: Any = await stack.enter_async_context(grpc.aio.insecure_channel(replicas[0].target))
    owner = await owner_at(channel, relay)
    made = await owner.connection(allow())
    async with AsyncExitStack() as first:
        app = await connected_app(first, made.bunker_uri)
    signing = Signing(wanted={f"sign-{number}": f"note {number}" for number in range(REQUESTS)})
    async with asyncio.timeout(SECONDS_MAX), asyncio.TaskGroup() as group:
        killing = group.create_task(kill_in_turn(signing, relay, replicas[1]))
        group.create_task(signing.until_signed(relay.url, app))
    doubled = [identifier for identifier, events in signing.events_of.items() if len(events) != 1]
    print(
        f"{REQUESTS} requests, {killing.result()} kills, {len(signing.answered)} answered, {len(doubled)} doubled,"
        f" {signing.broken} connections broken, {signing.sent_again} times sent again"
    )
    assert signing.answered == {identifier: {content} for identifier, content in signing.wanted.items()}
    assert doubled == []

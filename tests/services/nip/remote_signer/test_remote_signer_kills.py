"""kill -9 of a replica at each step of a request, and of the relay: each request is answered once, or its app sees that it is not."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest

from support.bunker import connected_app
from support.nip_process import environment, nip_process, write_secrets
from support.nostr_relay import NostrRelay, running_relay
from support.signer_owner import Owner, allow, owner_at

REQUESTS = max(20, int(os.environ.get("NIPMESH_KILLS_REQUESTS", "0")) // 3)
"""For each step; 10,000 in all with `make kills`."""
WINDOW = 20
"""Requests under way at once."""
POINTS = ("nip46.taken", "nip46.recorded", "nip46.published")


@contextlib.asynccontextmanager
async def replicas(folder: Path, relay: NostrRelay, count: int = 2) -> AsyncIterator[tuple[Any, list[Any]]]:
    """A channel to the first replica, and the processes; all obey the orders in `folder`/order."""
    write_secrets(folder)
    more = {"NIPMESH_SIGNER_RELAYS": relay.url, "NIPMESH_FAILPOINT": f"@{folder}/order", "NIPMESH_LOG_LEVEL": "warning"}
    more["NIPMESH_SIGNER_REQUESTS_PER_SECOND"] = "1000"
    async with AsyncExitStack() as stack:
        processes = []
        for number in range(count):
            values = environment(folder, f"r{number}", NIPMESH_REPLICA=str(number), **more)
            processes.append(await stack.enter_async_context(nip_process(values)))
        for number in reversed(range(count)):
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"unix:{folder}/r{number}/app.sock"))
            await asyncio.wait_for(channel.channel_ready(), 60)
        yield channel, processes


@pytest.mark.timeout(120 + REQUESTS)
async def test_requests_of_killed_replicas_are_answered_once(
    tmp_path: Path, relay: NostrRelay, stack: AsyncExitStack
) -> None:
    """One after the other dies, at another step each time."""
    async with replicas(tmp_path, relay, len(POINTS) + 1) as (channel, processes):
        owner = await owner_at(channel, relay)
        app = await connected_app(stack, (await owner.connection(allow())).bunker_uri)
        await asyncio.sleep(0.3)  # the other replicas listen, too
        for dead, point in enumerate(POINTS, start=1):
            (tmp_path / "order").write_text(f"{point}:3")
            for start in range(0, REQUESTS, WINDOW):
                contents = {f"{point} {number}" for number in range(start, min(start + WINDOW, REQUESTS))}
                answers = await asyncio.gather(*(app.sign(content=content, timeout_s=20) for content in contents))
                assert {json.loads(one["result"])["content"] for one in answers} == contents
            async with asyncio.timeout(5):
                while sum(process.returncode is not None for process in processes) < dead:
                    await asyncio.sleep(0.05)
        await asyncio.sleep(0.5)
    assert len(app.answers) == len(POINTS) * REQUESTS + 1, "connect, and each once"


async def test_a_killed_relay_loses_answers_visibly_and_comes_back(tmp_path: Path) -> None:
    with running_relay() as relay:
        async with replicas(tmp_path, relay, 1) as (channel, _):
            owner = await owner_at(channel, relay)
            made = await owner.connection(allow())
            async with AsyncExitStack() as stack:
                app = await connected_app(stack, made.bunker_uri)
                asked = [await app.ask("ping") for _ in range(10)]
                relay.kill()
            lost = [one for one in asked if not app.answers_to(one)]
            await asyncio.to_thread(relay.start)
            async with AsyncExitStack() as stack:
                again = await connected_again(stack, owner, app.user, app.signer_pubkey)
                for one in lost:  # the app tries again, under the same ids
                    assert (await again.call("ping", identifier=one, timeout_s=20))["result"] == "pong"
                signed = await again.sign(content="after")
                assert json.loads(signed["result"])["content"] == "after"


async def connected_again(stack: AsyncExitStack, owner: Owner, user: Any, signer_pubkey: str) -> Any:
    """The same app over a new connection, once the signer is back at the relay."""
    from support.bunker import running_app

    app = await stack.enter_async_context(running_app(owner.relay, signer_pubkey, user))
    for _ in range(40):
        with contextlib.suppress(TimeoutError):
            await app.call("ping", timeout_s=0.5)
            return app
    raise AssertionError("the signer does not come back")

"""kill -9 of the relay and of NATS, in turn, while apps pay: each request pays once and has one answer; no event is lost."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import apsw
import pytest

from services.nip.wallet.tasks import TaskKind, TaskState
from services.nostr.event import Event
from support.folders import short_folder
from support.nats_server import NatsServer, running_nats
from support.nostr_relay import NostrRelay, running_relay
from support.wallet_connect import ALICE, BOB, App, WalletMesh, app_of, terms, wallet_mesh

REQUESTS = int(os.environ.get("NIPMESH_KILLS_REQUESTS", "24"))
"""10,000 with `make kills`; the rate of an app, 60 a minute, says how many apps there are."""
APPS = 2 if REQUESTS < 1_000 else 100
PAUSE_S = 0 if REQUESTS // APPS < 50 else 1.0
"""Apps that ask that often stay below their rate on a fast machine, too."""
KILLS = 4 if REQUESTS < 1_000 else 40
AMOUNT_MSAT = 1_000
AGAIN_S = 3.0
"""What is not answered by then is sent again: the same event. Longer than an answered request is not answered again."""
SECONDS_MAX = 90 + REQUESTS
SENT = 23197
"""A notification, encrypted with NIP-44."""


@dataclass(kw_only=True)
class Paying:
    """What was asked, and what became of it."""

    asked: list[tuple[App, Event]] = field(default_factory=list)
    answered: int = 0
    sent_again: int = 0
    unreachable: int = 0

    async def pay(self, app: App, invoice: str) -> None:
        """One request, sent until it is answered: the very same event."""
        event = app.request("pay_invoice", {"invoice": invoice})
        self.asked.append((app, event))
        while event.id not in app.responses:
            outcomes = await app.pool.publish(event, [app.relay], timeout_s=AGAIN_S)
            if not outcomes[app.relay].arrived:
                self.unreachable += 1
                continue
            try:
                await app.response(event.id, AGAIN_S)
            except TimeoutError:
                self.sent_again += 1
        self.answered += 1

    async def pay_all(self, mesh: WalletMesh, app: App, bobs: str, count: int) -> None:
        """Payments of one app, one after the other."""
        for _ in range(count):
            await self.pay(app, (await mesh.invoice(BOB, bobs, AMOUNT_MSAT)).payment_request)
            await asyncio.sleep(PAUSE_S)


async def kill_in_turn(paying: Paying, relay: NostrRelay, nats: NatsServer) -> None:
    """NATS, the relay, NATS, …, each after another part of the requests, somewhere in the middle of one."""
    for number in range(KILLS):
        while paying.answered < (number + 1) * REQUESTS // (KILLS + 2):
            await asyncio.sleep(0.01)
        await asyncio.sleep(random.uniform(0, 0.1))
        victim: NatsServer | NostrRelay = (nats, relay)[number % 2]
        await asyncio.to_thread(victim.kill)
        await asyncio.to_thread(victim.start)


def notifications(folder: Path) -> dict[str, int]:
    """What the events of the mesh had as effects in the wallet: each notification's id and state."""
    with contextlib.closing(apsw.Connection(str(next(folder.rglob("nip.db"))))) as database:
        rows = database.execute("SELECT task_id, state FROM wallet_task WHERE kind = ?", (int(TaskKind.NOTIFICATION),))
        return {str(task_id): int(state) for task_id, state in rows}


def told_of(apps: list[App]) -> list[str]:
    """The payments that apps were told of: one entry for each event of the relay, whatever it says."""
    found = [(app, event) for app in apps for event in {event.id: event for event in app.others}.values()]
    return [app.opened(event)["notification"]["payment_hash"] for app, event in found if event.kind == SENT]


@pytest.mark.timeout(120 + 2 * REQUESTS)
async def test_paying_while_the_relay_and_nats_are_killed() -> None:
    with short_folder() as folder, running_relay() as relay, running_nats() as nats:
        async with wallet_mesh(folder, relay.url, events_url=nats.url) as mesh, AsyncExitStack() as stack:
            await _paid_through_kills(mesh, folder, relay, nats, stack)


async def _paid_through_kills(
    mesh: WalletMesh, folder: Path, relay: NostrRelay, nats: NatsServer, stack: AsyncExitStack
) -> None:
    funds_msat, each = 2 * REQUESTS * AMOUNT_MSAT, REQUESTS // APPS
    alices, bobs = [await mesh.open(ALICE, funds_msat) for _ in range(APPS)], await mesh.open(BOB)
    made = [await mesh.connect(ALICE, account, terms(topics=("payment_sent",))) for account in alices]
    apps = [await stack.enter_async_context(app_of(one.uri)) for one in made]
    paying = Paying()
    async with asyncio.timeout(SECONDS_MAX), asyncio.TaskGroup() as group:
        for app in apps:
            group.create_task(paying.pay_all(mesh, app, bobs, each))
        group.create_task(kill_in_turn(paying, relay, nats))
    async with asyncio.timeout(90):
        while list(notifications(folder).values()) != [TaskState.DONE] * (each * APPS):
            await asyncio.sleep(0.1)
    told = told_of(apps)
    print(
        f"{each * APPS} requests, {KILLS} kills, {paying.answered} answered, {len(notifications(folder))} events had their effect,"
        f" {len(told)} told, {len(told) - len(set(told))} twice,"
        f" {paying.sent_again} sent again, {paying.unreachable} times the relay could not be reached"
    )
    for app, event in paying.asked:
        assert len({response.id for response in app.responses[event.id]}) == 1, "one answer, however often it comes"
        assert app.opened(app.responses[event.id][0])["error"] is None
    assert len(told) == len(set(told)), "seen through the inbox no event is doubled"
    assert [await mesh.balance(account) for account in alices] == [funds_msat - each * AMOUNT_MSAT] * APPS
    assert await mesh.balance(bobs) == each * APPS * AMOUNT_MSAT

"""`kill -9` of the NIP and the payment service while apps pay: each request pays at most once and is answered once, budgets are right."""

from __future__ import annotations

import asyncio
import os

from nipmesh.nip.v1 import wallet_connect_service_pb2 as pb
from services.chassis.failpoints import EXIT_CODE
from support.folders import short_folder
from support.nostr_relay import NostrRelay
from support.payment_mesh import request_id
from support.relay import relay_before
from support.wallet_connect import ALICE, BOB, app_of, terms
from support.wallet_processes import WalletProcesses, wallet_processes

AMOUNT_MSAT = 10_000
PAYMENTS_MAX = 100
"""What the account holds; ten or so are made until everyone has died."""
PAUSE_SECONDS = 1.1
"""Fewer than the 60 requests a minute that an app may make, however long the killing takes."""
DEATH_SECONDS_MAX = 30
"""How long a replica may take until it comes to where it is to die: it starts in two seconds, and payments come all the time."""
LATE_S = 0.7
"""Longer than an app takes to ask; shorter than a replica waits before it serves."""
EVERY_POINT = (
    "wallet_accept.done",
    "wallet_reserve.done",
    "wallet_pay.done",
    "wallet_answer.done",
    "wallet_publish.done",
)
POINTS = EVERY_POINT if os.environ.get("NIPMESH_KILLS_SAMPLE") == "0" else EVERY_POINT[1:3]
"""Where NIP replicas die: a sample, and all of them with `make kills`."""


async def test_paying_while_replicas_are_killed(relay: NostrRelay) -> None:
    with short_folder() as folder:
        async with wallet_processes(folder, relay.url) as mesh:
            await _paid_while_killed(mesh)


async def test_a_replica_that_serves_hears_what_is_asked_for(relay: NostrRelay) -> None:
    """Relays do not store requests: the last other replica may die as soon as this one serves, also when a relay is slow to hear of it."""
    with short_folder() as folder:
        async with relay_before(relay.url, late_s=LATE_S) as late, wallet_processes(folder, late) as mesh:
            request = pb.CreateWalletConnectionRequest(
                request_id=request_id(), account_id=await mesh.open_account(ALICE), terms=terms()
            )
            made = await mesh.wallets("CreateWalletConnection", request, ALICE)
            async with app_of(made.uri, relay.url) as app:
                for nip, other in (mesh.nips, reversed(mesh.nips)):
                    await nip.end()
                    await nip.start()
                    await other.end()
                    assert (await app.ask("get_info"))["error"] is None


async def _paid_while_killed(mesh: WalletProcesses) -> None:
    funds_msat = PAYMENTS_MAX * AMOUNT_MSAT
    alices, bobs = await mesh.open_account(ALICE, funds_msat), await mesh.open_account(BOB)
    request = pb.CreateWalletConnectionRequest(
        request_id=request_id(), account_id=alices, terms=terms(budget_msat=funds_msat)
    )
    made = await mesh.wallets("CreateWalletConnection", request, ALICE)
    async with app_of(made.uri) as app:
        assert (await app.ask("get_info"))["error"] is None
        killing = asyncio.create_task(_kill(mesh))
        events = []
        while not killing.done() and len(events) < PAYMENTS_MAX:
            text = await mesh.create_invoice(BOB, bobs, AMOUNT_MSAT)
            events.append(app.request("pay_invoice", {"invoice": text}))
            await app.send(events[-1])
            await asyncio.sleep(PAUSE_SECONDS)
        await killing
        answers = [await app.answer(event, 30) for event in events]
        assert [answer["error"] for answer in answers if answer["error"]] == [], "nothing failed but processes"
        ids = {event.id: {response.id for response in app.responses[event.id]} for event in events}
        assert all(len(found) == 1 for found in ids.values()), "one answer, however often it is published"
    paid_msat = AMOUNT_MSAT * len(events)
    found = await mesh.connection(ALICE, made.connection.connection_id)
    assert (found.spent_msat, found.pending_msat) == (paid_msat, 0)
    one, other = await mesh.account(alices), await mesh.account(bobs)
    assert (one.balance_msat, one.debits_pending_msat) == (funds_msat - paid_msat, 0)
    assert other.balance_msat == paid_msat


async def _kill(mesh: WalletProcesses) -> None:
    """Each at least once, one of two always listening: a NIP replica at the points of a payment, a payment replica in between."""
    for number, point in enumerate(POINTS):
        victim, other = mesh.nips[number % 2], mesh.replicas[number % 2]
        await victim.end()
        await victim.start(NIPMESH_FAILPOINT=point)
        await other.end()
        await other.start()
        assert victim.process is not None
        async with asyncio.timeout(DEATH_SECONDS_MAX):
            assert await victim.process.wait() == EXIT_CODE, point
        await victim.start()

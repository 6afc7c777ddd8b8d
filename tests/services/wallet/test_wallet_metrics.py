"""What the NIP service counts of the relays where apps and wallets meet: each request, each answer, and a relay that is killed."""

from __future__ import annotations

from support.counting import counting
from support.events import until
from support.folders import short_folder
from support.nostr_relay import running_relay
from support.wallet_connect import ALICE, app_of, wallet_mesh

REQUESTS = 3


async def test_the_wallets_relay_is_counted() -> None:
    with running_relay() as relay, short_folder() as folder:
        async with wallet_mesh(folder, relay.url) as mesh:
            counts = counting(mesh.registry, "nipmesh_nip47_relay_")
            one = await mesh.connect(ALICE, await mesh.open(ALICE, 1_000))
            async with app_of(one.uri) as app:
                await until(lambda: counts("publishes_total", outcome="accepted") == 1)  # the connection's info event
                for _ in range(REQUESTS):
                    assert (await app.ask("get_balance"))["error"] is None
            assert counts("events_total", result="delivered") == REQUESTS
            assert counts("events_total", result="invalid") == counts("events_total", result="unasked") == 0
            await until(lambda: counts("publishes_total", outcome="accepted") == 1 + REQUESTS)
            assert counts("publish_seconds_count") == 1 + REQUESTS
            assert counts("connections") == 2, "one to listen, one to publish"
            assert counts("connects_total", result="lost") == 0
            relay.kill()
            await until(lambda: counts("connects_total", result="lost") == 2)
            assert counts("connections") == 0
            assert counts("connects_total", result="opened") == 2

"""Apps are told of payments and holds from the events of invoice and payment alone: over a real NATS, once for each cipher."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator
from hashlib import sha256
from typing import Any

import pytest
import pytest_asyncio

from support.folders import short_folder
from support.nats_server import NatsServer
from support.nostr_relay import NostrRelay
from support.wallet_clients import alby
from support.wallet_connect import ALICE, ALL_METHODS, ALL_TOPICS, BOB, App, WalletMesh, app_of, terms, wallet_mesh

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def nats() -> Iterator[NatsServer]:
    with short_folder() as folder:
        server = NatsServer(folder)
        server.start()
        try:
            yield server
        finally:
            server.kill()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def told_mesh(relay: NostrRelay, nats: NatsServer) -> AsyncIterator[WalletMesh]:
    with short_folder() as folder:
        async with wallet_mesh(folder, relay.url, events_url=nats.url) as running:
            yield running


async def notified(app: App, count: int) -> list[dict[str, Any]]:
    """Wait for so many notifications, each once for each cipher; what they say, in the order of NIP-44's."""
    events = [event for event in await app.told(1 + 2 * count) if event.kind != 13194]
    by_kind = {kind: [app.opened(event) for event in events if event.kind == kind] for kind in (23196, 23197)}
    assert sorted(map(str, by_kind[23196])) == sorted(map(str, by_kind[23197]))
    assert all(("p", app.pubkey) in event.tags for event in events)
    return by_kind[23197]


async def test_both_sides_of_a_payment_are_told_once(told_mesh: WalletMesh) -> None:
    mesh = told_mesh
    alices, bobs = await mesh.open(ALICE, 100_000), await mesh.open(BOB)
    one = await mesh.connect(ALICE, alices, terms(ALL_METHODS, ALL_TOPICS))
    other = await mesh.connect(BOB, bobs, terms(("get_info",), ("payment_received",)))
    silent = await mesh.connect(BOB, bobs, terms(("get_info",), ("payment_sent",)))
    async with (
        app_of(one.uri) as payer,
        app_of(other.uri) as payee,
        app_of(silent.uri) as nobody,
        alby(other.uri) as js,
    ):
        await js.ask("subscribe")
        invoice = await mesh.invoice(BOB, bobs, 9_000, description="tea")
        paid = await payer.ask("pay_invoice", {"invoice": invoice.payment_request, "metadata": {"comment": "hi"}})
        sent, received = (await notified(payer, 1))[0], (await notified(payee, 1))[0]
        assert (sent["notification_type"], received["notification_type"]) == ("payment_sent", "payment_received")
        for told, kind in ((sent["notification"], "outgoing"), (received["notification"], "incoming")):
            assert (told["type"], told["state"], told["amount"]) == (kind, "settled", 9_000)
            assert (told["preimage"], told["payment_hash"]) == (paid["result"]["preimage"], invoice.payment_hash)
        assert sent["notification"]["metadata"] == {"comment": "hi"}
        heard = (await js.ask("notified", count=1))["notifications"]
        assert [each["notification_type"] for each in heard] == ["payment_received"]
        await nobody.ask("get_info")
        assert {event.kind for event in nobody.others} == {13194}
        assert len(payer.others) == len(payee.others) == 3, "the info event, and one for each cipher"


async def test_a_hold_is_told_and_its_end(told_mesh: WalletMesh) -> None:
    mesh = told_mesh
    alices, bobs = await mesh.open(ALICE, 100_000), await mesh.open(BOB)
    one, other = await mesh.connect(ALICE, alices), await mesh.connect(BOB, bobs, terms(ALL_METHODS, ALL_TOPICS))
    async with app_of(one.uri) as payer, app_of(other.uri) as payee:
        preimage = secrets.token_bytes(32)
        params = {"amount": 8_000, "payment_hash": sha256(preimage).hexdigest()}
        invoice = (await payee.ask("make_hold_invoice", params))["result"]
        await payer.send(event := payer.request("pay_invoice", {"invoice": invoice["invoice"]}))
        held = (await notified(payee, 1))[0]
        assert (held["notification_type"], held["notification"]["state"]) == ("hold_invoice_accepted", "accepted")
        assert "preimage" not in held["notification"]
        began_s = asyncio.get_running_loop().time()
        assert (await payee.ask("settle_hold_invoice", {"preimage": preimage.hex()}))["error"] is None
        assert (await payer.answer(event))["result"]["preimage"] == preimage.hex()
        assert asyncio.get_running_loop().time() - began_s < 5, "the event wakes the request that waits"
        assert [told["notification_type"] for told in await notified(payee, 2)][1] == "payment_received"


async def test_what_happened_before_a_connection_is_not_told(told_mesh: WalletMesh) -> None:
    mesh = told_mesh
    alices, bobs = await mesh.open(ALICE, 100_000), await mesh.open(BOB)
    await mesh.pay(ALICE, alices, (await mesh.invoice(BOB, bobs, 1_000)).payment_request)
    made = await mesh.connect(BOB, bobs, terms(("get_info",), ALL_TOPICS))
    async with app_of(made.uri) as app:
        await mesh.pay(ALICE, alices, (await mesh.invoice(BOB, bobs, 2_000)).payment_request)
        assert [told["notification"]["amount"] for told in await notified(app, 1)] == [2_000]

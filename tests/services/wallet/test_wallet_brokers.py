"""A zap over each broker that the bus works with: five processes, and nothing but events between the payment and what follows from it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio
from aio_pika import connect
from aio_pika.exceptions import ChannelNotFoundEntity
from yarl import URL

from nipmesh.invoice.v1 import invoice_pb2
from nipmesh.invoice.v1 import invoice_service_pb2 as invoices
from nipmesh.nip.v1 import wallet_connect_service_pb2 as pb
from services.events.connecting import load_login, tls_context
from services.events.outbox import read_state, request_replay
from services.nip.following import CONSUMER
from support.brokers import BROKERS, Broker, running_broker
from support.events import new_stream, until
from support.folders import short_folder
from support.nostr_relay import NostrRelay
from support.payment_mesh import request_id
from support.relay import stored
from support.wallet_connect import ALICE, BOB, App, app_of, terms
from support.wallet_processes import WalletProcesses, wallet_processes
from support.zaps import zap_text

ZAPPED_MSAT = 21_000
PATIENCE_S = 60
BUSY_MS_MAX = 5_000
"""The service writes to its database meanwhile."""
OTHERS = [name for name in BROKERS if name != "nats"]
"""Zaps and notifications over NATS have tests of their own, with kills."""

pytestmark = pytest.mark.timeout(300)


@dataclass(frozen=True, slots=True, kw_only=True)
class Connected:
    """The services on a broker, and an app of each side of a payment."""

    mesh: WalletProcesses
    relay: str
    payer: App
    payee: App
    accounts: dict[str, str]

    async def zapped(self, number: int) -> invoice_pb2.Invoice:
        """Alice pays an invoice of Bob's that a zap request is bound to; no app has a part in that."""
        request = invoices.CreateInvoiceRequest(
            request_id=request_id(),
            account_id=self.accounts[BOB],
            amount_msat=ZAPPED_MSAT + number,
            zap_request=zap_text(("nonce", str(number)), relays=(self.relay,)),
        )
        invoice: invoice_pb2.Invoice = (await self.mesh.call_invoices("CreateInvoice", request, BOB)).invoice
        await self.mesh.pay(ALICE, self.accounts[ALICE], invoice.payment_request, timeout=30)
        return invoice

    async def receipts(self, invoice: invoice_pb2.Invoice) -> list[dict[str, Any]]:
        """What the relay has for an invoice."""
        found = await stored(self.relay, kinds=[9735])
        return [event for event in found if ["bolt11", invoice.payment_request] in event["tags"]]


@pytest.fixture(params=OTHERS)
def broker(request: pytest.FixtureRequest) -> Iterator[Broker]:
    with running_broker(request.param) as running:
        yield running


@pytest_asyncio.fixture
async def connected(broker: Broker, relay: NostrRelay) -> AsyncIterator[Connected]:
    stream = new_stream()
    bus = {
        "NIPMESH_EVENTS_URL": broker.url,
        "NIPMESH_EVENTS_STREAM": stream,
        "NIPMESH_EVENTS_CA_FILE": str(broker.authority),
        "NIPMESH_EVENTS_CREDENTIALS_FILE": str(broker.credentials),
        "NIPMESH_ZAP_PRIVATE_RELAYS": "true",
    }
    with short_folder() as folder:
        async with wallet_processes(folder, relay.url, **bus) as mesh:
            if broker.name == "rabbitmq":
                await until(lambda: queue_is_there(broker, stream), "the queue", PATIENCE_S)
            accounts = {ALICE: await mesh.open_account(ALICE, 1_000_000), BOB: await mesh.open_account(BOB)}
            one = await uri(mesh, ALICE, accounts[ALICE], "payment_sent")
            other = await uri(mesh, BOB, accounts[BOB], "payment_received")
            async with app_of(one) as payer, app_of(other) as payee:
                yield Connected(mesh=mesh, relay=relay.url, payer=payer, payee=payee, accounts=accounts)


async def uri(mesh: WalletProcesses, user: str, account_id: str, topic: str) -> str:
    """A connection whose app is told of one thing."""
    request = pb.CreateWalletConnectionRequest(
        request_id=request_id(), account_id=account_id, terms=terms(("get_info",), (topic,))
    )
    return str((await mesh.wallets("CreateWalletConnection", request, user)).uri)


async def queue_is_there(broker: Broker, stream: str) -> bool:
    """A queue has no past: what is published before it is there is not for it."""
    login = load_login(broker.credentials)
    assert login is not None
    url = URL(broker.url).with_user(login.user).with_password(login.password.reveal().decode())
    async with await connect(url, ssl_context=tls_context(broker.authority)) as connection:
        with contextlib.suppress(ChannelNotFoundEntity):
            async with connection.channel() as channel:
                await channel.declare_queue(f"{stream}.nip.{CONSUMER}", passive=True)
                return True
    return False


async def publish_again(mesh: WalletProcesses, service: str) -> None:
    """Everything that a service has ever said; returns when the broker has it a second time."""
    with mesh.database(service) as connection:
        connection.setbusytimeout(BUSY_MS_MAX)
        after, to = request_replay(connection, 0, None)
        assert (after, to) == (0, read_state(connection).published_sequence)
        assert to > 0
        await until(lambda: read_state(connection).replay_sequence is None, "all events again", PATIENCE_S)


def told(app: App) -> list[dict[str, Any]]:
    """The notifications of an app, each of which comes once for each cipher."""
    return [app.opened(event) for event in app.others if event.kind in (23196, 23197)]


async def test_a_zap_has_its_receipt_and_both_sides_are_told_once(connected: Connected) -> None:
    first = await connected.zapped(0)

    async def arrived(number: int, invoice: invoice_pb2.Invoice) -> bool:
        apps = (connected.payer, connected.payee)
        return bool(await connected.receipts(invoice)) and all(len(told(app)) >= 2 * number for app in apps)

    await until(lambda: arrived(1, first), "a receipt and notifications", PATIENCE_S)
    for service in ("invoice", "payment"):
        await publish_again(connected.mesh, service)
    second = await connected.zapped(1)
    await until(lambda: arrived(2, second), "a receipt and notifications", PATIENCE_S)
    for app, kind in ((connected.payer, "payment_sent"), (connected.payee, "payment_received")):
        said = [(each["notification_type"], each["notification"]["amount"]) for each in told(app)]
        assert sorted(said) == sorted(2 * [(kind, ZAPPED_MSAT), (kind, ZAPPED_MSAT + 1)])
    for invoice in (first, second):
        (receipt,) = await connected.receipts(invoice)
        assert ["description", invoice.zap_request] in receipt["tags"]

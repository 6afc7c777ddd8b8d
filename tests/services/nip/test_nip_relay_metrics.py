"""What the NIP service counts of relays: of the remote signer's, and of those that zap receipts go to."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from nipmesh.events.v1.events_pb2 import InvoiceChanged
from nipmesh.invoice.v1.invoice_pb2 import Invoice
from services.chassis.testing import running
from services.events.bus import open_bus
from services.nip.following import CONSUMER
from services.nip.service import NIP_SERVICE
from support.bunker import connected_app
from support.counting import counting
from support.events import bus_settings, event, new_stream, until
from support.nats_server import running_nats
from support.nostr_relay import running_relay
from support.signer_owner import allow, owner_at
from support.zaps import zap_text

SIGNATURES = 3


async def test_the_remote_signers_relay_is_counted(tmp_path: Path, make_secrets: dict[str, Any]) -> None:
    with running_relay() as relay:
        async with (
            running(NIP_SERVICE, tmp_path, **make_secrets, signer_relays=relay.url) as (service, channel),
            AsyncExitStack() as stack,
        ):
            counts = counting(service.registry, "nipmesh_nip46_relay_")
            owner = await owner_at(channel, relay)
            app = await connected_app(stack, (await owner.connection(allow(kind=1))).bunker_uri)
            for _ in range(SIGNATURES):
                assert "result" in await app.sign()
            assert counts("events_total", result="delivered") == 1 + SIGNATURES, "connect, and what was signed"
            await until(lambda: counts("publishes_total", outcome="accepted") == 1 + SIGNATURES)
            assert counts("publish_seconds_count") == 1 + SIGNATURES
            assert counts("connections") == counts("connects_total", result="opened") == 2
            relay.kill()
            await until(lambda: counts("connects_total", result="lost") == 2)
            assert counts("connections") == 0


async def test_the_relays_of_zap_receipts_are_counted(tmp_path: Path, make_secrets: dict[str, Any]) -> None:
    stream = new_stream()
    with running_nats() as nats, running_relay() as relay:
        values = {**make_secrets, "events_url": nats.url, "events_stream": stream, "zap_private_relays": True}
        async with (
            running(NIP_SERVICE, tmp_path, **values) as (service, _),
            open_bus(bus_settings(nats.url, stream)) as bus,
        ):
            assert bus is not None
            counts = counting(service.registry, "nipmesh_nip57_relay_")
            assert counts("publishes_total", outcome="accepted") == 0
            changes = [settled(number, relay.url) for number in range(3)]
            await bus.publish_batch([event(number, data=data) for number, data in enumerate(changes)])
            await until(lambda: counts("publishes_total", outcome="accepted") == 3)
            assert counts("publish_seconds_count") == 3
            assert counts("connections") == counts("connects_total", result="opened") == 1
            handled = ("nipmesh_events_handled_total", {"consumer": CONSUMER})
            assert service.registry.get_sample_value(*handled) == 3


def settled(number: int, relay: str) -> bytes:
    """A zap that was paid, as the invoice service tells of it."""
    invoice = Invoice(
        invoice_id=f"invoice-{number}",
        state=Invoice.STATE_SETTLED,
        payment_request=f"lnbcrt1{number}",
        settle_time=Timestamp(seconds=1_700_000_500 + number),
        zap_request=zap_text(relays=(relay,)),
    )
    return InvoiceChanged(invoice=invoice, owner_pubkey="aa" * 32).SerializeToString()

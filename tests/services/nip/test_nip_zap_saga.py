"""Zaps through the running services: two users, a real bus, real relays; and what becomes of them when the key service is killed."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from nipmesh.invoice.v1 import invoice_pb2
from nipmesh.invoice.v1 import invoice_service_pb2 as invoices
from nipmesh.nip.v1 import nip_service_pb2 as nips
from nipmesh.nip.v1 import zap_service_pb2 as zaps
from nipmesh.nip.v1.nip_service_pb2_grpc import NipServiceStub
from nipmesh.nip.v1.zap_service_pb2_grpc import ZapServiceStub
from services.chassis.errors import reason_of
from services.chassis.failpoints import EXIT_CODE
from services.chassis.testing import as_user
from services.nip.wire import event_message
from services.nostr.event_json import event_of_json
from support.events import new_stream
from support.nats_server import running_nats
from support.payment_mesh import PaymentMesh, Process, request_id
from support.relay import local_relay, stored

ALICE, BOB, EVE = "a1" * 32, "b0" * 32, "e0" * 32
PATIENCE_S = 90
"""An event that a killed consumer had is delivered again after 30 s."""

pytestmark = pytest.mark.timeout(240)


@dataclass(slots=True, kw_only=True)
class Zapping:
    """The services, with Alice who is zapped and Bob who zaps."""

    mesh: PaymentMesh
    second: Process
    relays: list[str]
    accounts: dict[str, str]
    key_id: str = ""

    async def nip(self, stub: Any, method: str, request: Any, user: str) -> Any:
        """One call of a living replica of the key service."""
        process = self.mesh.nip if self.mesh.nip.alive else self.second
        async with grpc.aio.insecure_channel(f"unix:{process.socket}") as channel:
            return await getattr(stub(channel), method)(request, metadata=as_user(user), timeout=20)

    async def zap_request(self, amount_msat: int) -> str:
        """Bob asks for an invoice, as his client does."""
        request = zaps.CreateZapRequestRequest(
            request_id=request_id(),
            key_id=self.key_id,
            recipient_pubkey=ALICE,
            relays=self.relays,
            amount_msat=amount_msat,
        )
        return str((await self.nip(ZapServiceStub, "CreateZapRequest", request, BOB)).zap_request)

    async def invoice(self, text: str, amount_msat: int) -> invoice_pb2.Invoice:
        """Alice's wallet makes it."""
        request = invoices.CreateInvoiceRequest(
            request_id=request_id(), account_id=self.accounts[ALICE], amount_msat=amount_msat, zap_request=text
        )
        made: invoice_pb2.Invoice = (await self.mesh.call_invoices("CreateInvoice", request, ALICE)).invoice
        return made

    async def pay(self, invoice: invoice_pb2.Invoice) -> None:
        await self.mesh.pay(BOB, self.accounts[BOB], invoice.payment_request, timeout=30)

    async def receipts(self, invoice: invoice_pb2.Invoice, relay: str) -> list[dict[str, Any]]:
        """What a relay has for an invoice."""
        found = await stored(relay, kinds=[9735])
        return [event for event in found if ["bolt11", invoice.payment_request] in event["tags"]]

    async def one_receipt(self, invoice: invoice_pb2.Invoice, relay: str) -> dict[str, Any]:
        """The receipt that a relay has, once it has one; never more."""
        async with asyncio.timeout(PATIENCE_S):
            while not (found := await self.receipts(invoice, relay)):
                await asyncio.sleep(0.1)
        assert len(found) == 1
        return found[0]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def zapping() -> AsyncIterator[Zapping]:
    folder = Path(tempfile.mkdtemp(prefix="nm-"))
    async with AsyncExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        nats = stack.enter_context(running_nats())
        bus = {
            "NIPMESH_EVENTS_URL": nats.url,
            "NIPMESH_EVENTS_STREAM": new_stream(),
            "NIPMESH_ZAP_PRIVATE_RELAYS": "true",
        }
        relays = [await stack.enter_async_context(local_relay()) for _ in range(2)]
        mesh = PaymentMesh(folder, real_invoices=True, **bus)
        mesh.nip = Process("services.nip", "nip-0", folder, {**mesh._nip_environment(), **bus})
        stack.push_async_callback(mesh.stop)
        await mesh.start()
        second = Process(
            "services.nip",
            "nip-1",
            folder,
            mesh.nip._environment | {"NIPMESH_LISTEN": f"unix:{folder}/nip-1.d/app.sock"},
        )
        stack.push_async_callback(end, second)
        accounts = {ALICE: await mesh.open_account(ALICE), BOB: await mesh.open_account(BOB, 1_000_000)}
        found = Zapping(mesh=mesh, second=second, relays=relays, accounts=accounts)
        key = await found.nip(
            NipServiceStub, "CreateKey", nips.CreateKeyRequest(request_id=request_id(), fresh=True), BOB
        )
        found.key_id = key.key.key_id
        yield found


async def end(process: Process) -> None:
    if process.alive:
        await process.end()


@pytest.mark.asyncio(loop_scope="module")
async def test_a_zap_that_is_paid_is_seen_at_its_relays(zapping: Zapping) -> None:
    await zapping.second.start()
    pubkey = (await zapping.nip(ZapServiceStub, "GetZapPubkey", zaps.GetZapPubkeyRequest(), BOB)).nostr_pubkey
    text = await zapping.zap_request(5_000)
    check = zaps.ValidateZapRequestRequest(zap_request=text, amount_msat=5_000)
    assert (await zapping.nip(ZapServiceStub, "ValidateZapRequest", check, ALICE)).verdict == zaps.ZAP_VERDICT_VALID
    invoice = await zapping.invoice(text, 5_000)
    await zapping.pay(invoice)
    events = [await zapping.one_receipt(invoice, relay) for relay in zapping.relays]
    assert events[0] == events[1]
    assert events[0]["pubkey"] == pubkey
    assert ["description", text] in events[0]["tags"]
    receipt = event_message(event_of_json(json.dumps(events[0])))
    valid = await zapping.nip(ZapServiceStub, "ValidateZapReceipt", zaps.ValidateZapReceiptRequest(event=receipt), BOB)
    assert (valid.verdict, valid.amount_msat) == (zaps.ZAP_VERDICT_VALID, 5_000)
    assert valid.zap_request.recipient_pubkey == ALICE
    question = zaps.GetZapReceiptRequest(invoice_id=invoice.invoice_id)
    shown = await zapping.nip(ZapServiceStub, "GetZapReceipt", question, ALICE)
    assert shown.event == receipt
    assert sorted(each.relay_url for each in shown.publications) == sorted(zapping.relays)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await zapping.nip(ZapServiceStub, "GetZapReceipt", question, EVE)
    assert reason_of(refused.value) == "ZAP_RECEIPT_NOT_FOUND"


@pytest.mark.asyncio(loop_scope="module")
async def test_the_author_of_the_receipt_is_who_the_request_says(zapping: Zapping) -> None:
    pubkey = (await zapping.nip(ZapServiceStub, "GetZapPubkey", zaps.GetZapPubkeyRequest(), BOB)).nostr_pubkey
    for wanted, accepted in ((pubkey, True), ("ef" * 32, False)):
        template = {
            "kind": 9734,
            "tags": [{"values": ["relays", *zapping.relays]}, {"values": ["p", ALICE]}, {"values": ["P", wanted]}],
        }
        request = nips.SignEventRequest(request_id=request_id(), key_id=zapping.key_id, template=template)
        signed = (await zapping.nip(NipServiceStub, "SignEvent", request, BOB)).event
        members = {name: getattr(signed, name) for name in ("id", "pubkey", "created_at", "kind", "content", "sig")}
        text = json.dumps({**members, "tags": [list(tag.values) for tag in signed.tags]})
        if accepted:
            assert (await zapping.invoice(text, 1_000)).zap_request == text
            continue
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await zapping.invoice(text, 1_000)
        assert reason_of(refused.value) == "ZAP_REQUEST_INVALID"


@pytest.mark.asyncio(loop_scope="module")
async def test_killed_between_settlement_and_receipt_and_while_publishing(zapping: Zapping) -> None:
    """Each kill leaves another part undone; in the end each zap has one receipt, the same at both relays."""
    await end(zapping.second)
    made = [await zapping.invoice(await zapping.zap_request(1_000 + number), 1_000 + number) for number in range(4)]
    nip = zapping.mesh.nip
    for invoice, failpoint in zip(
        made, ("make_receipt.done", "publish_receipt", "publish_receipt.done", ""), strict=True
    ):
        await end(nip)
        if failpoint:
            await nip.start(NIPMESH_FAILPOINT=failpoint)
        await zapping.pay(invoice)
        if failpoint:
            async with asyncio.timeout(30):
                assert nip.process is not None
                assert await nip.process.wait() == EXIT_CODE, nip.log()
    await asyncio.gather(nip.start(), zapping.second.start())
    for invoice in made:
        events = [await zapping.one_receipt(invoice, relay) for relay in zapping.relays]
        assert events[0] == events[1]
        question = zaps.GetZapReceiptRequest(invoice_id=invoice.invoice_id)
        shown = await zapping.nip(ZapServiceStub, "GetZapReceipt", question, ALICE)
        assert shown.event.id == events[0]["id"]
        assert shown.event.created_at == events[0]["created_at"]
    assert await nip.end(signal.SIGTERM) == 0

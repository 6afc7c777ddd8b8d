"""A zap in the running mesh: the receipt follows from the invoice's event alone, over the server of events that the runner keeps."""

from __future__ import annotations

import asyncio
import json

import grpc.aio
import pytest

from nipmesh.invoice.v1 import invoice_service_pb2
from nipmesh.invoice.v1.invoice_service_pb2_grpc import InvoiceServiceStub
from nipmesh.nip.v1 import zap_service_pb2 as pb
from nipmesh.nip.v1.zap_service_pb2_grpc import ZapServiceStub
from support.nostr import User
from support.nostr_relay import NostrRelay
from support.relay import stored
from support.wallet import Wallet, funded, request_id

pytestmark = pytest.mark.mesh

RECEIPT_S_MAX = 30
ZAPPED_MSAT = 21_000


async def zap(wallet: Wallet, channel: grpc.aio.Channel, relay: NostrRelay) -> str:
    """A zap request by a held key of its user."""
    key_id = await wallet.create_key()
    request = pb.CreateZapRequestRequest(
        request_id=request_id(),
        key_id=key_id,
        recipient_pubkey=User().pubkey,
        relays=[relay.url],
        amount_msat=ZAPPED_MSAT,
    )
    return str((await wallet.call(ZapServiceStub(channel).CreateZapRequest, request)).zap_request)


async def receipt_at(wallet: Wallet, channel: grpc.aio.Channel, invoice_id: str) -> pb.GetZapReceiptResponse:
    """The receipt, once a relay has it."""
    stub, request = ZapServiceStub(channel), pb.GetZapReceiptRequest(invoice_id=invoice_id)
    async with asyncio.timeout(RECEIPT_S_MAX):
        while True:
            try:
                found = await wallet.call(stub.GetZapReceipt, request)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.NOT_FOUND:
                    raise
            else:
                (publication,) = found.publications
                if publication.state == pb.GetZapReceiptResponse.Publication.STATE_ACCEPTED:
                    return found
            await asyncio.sleep(0.1)


async def test_a_zap_that_is_paid_has_its_receipt_at_the_relay(
    channel: grpc.aio.Channel, alice: User, bob: User, operator: User, relay: NostrRelay
) -> None:
    alices, bobs, desk = Wallet(channel, alice), Wallet(channel, bob), Wallet(channel, operator)
    payer, payee = await funded(alices, desk, 100_000), await bobs.open_account()
    text = await zap(alices, channel, relay)
    order = invoice_service_pb2.CreateInvoiceRequest(
        request_id=request_id(), account_id=payee, amount_msat=ZAPPED_MSAT, zap_request=text
    )
    invoice = (await bobs.call(InvoiceServiceStub(channel).CreateInvoice, order)).invoice
    await alices.pay(payer, invoice.payment_request)
    receipt = await receipt_at(bobs, channel, invoice.invoice_id)
    (at_relay,) = await stored(relay.url, ids=[receipt.event.id])
    assert dict(each[:2] for each in at_relay["tags"])["bolt11"] == invoice.payment_request
    assert (at_relay["kind"], json.loads(text)["id"]) == (9735, json.loads(_description(at_relay))["id"])
    check = pb.ValidateZapReceiptRequest(event=receipt.event)
    assert (
        await alices.call(ZapServiceStub(channel).ValidateZapReceipt, check)
    ).verdict == pb.ZapVerdict.ZAP_VERDICT_VALID


def _description(event: dict[str, list[list[str]]]) -> str:
    (found,) = (tag[1] for tag in event["tags"] if tag[0] == "description")
    return found

"""Every method of the three services through the gateway: the whole of one user's day."""

from __future__ import annotations

import asyncio
import hashlib
import json
from typing import Any

import grpc
import grpc.aio
import pytest

from nipmesh.invoice.v1 import invoice_pb2, invoice_service_pb2
from nipmesh.nip.v1 import nip_pb2, nip_service_pb2
from nipmesh.payment.v1 import payment_pb2, payment_service_pb2
from support.mesh import RunningMesh
from support.nostr import User
from support.wallet import Wallet, all_pages, funded, request_id

pytestmark = pytest.mark.mesh


async def test_keys_sign_events_that_verify(channel: grpc.aio.Channel, alice: User) -> None:
    wallet = Wallet(channel, alice)
    key_id = await wallet.create_key("mine")
    key = (await wallet.call(wallet.nip.GetKey, nip_service_pb2.GetKeyRequest(key_id=key_id))).key
    template = nip_pb2.EventTemplate(kind=1, content='hé\n"', tags=[nip_pb2.Tag(values=["t", "mesh"])], created_at=17)
    request = nip_service_pb2.SignEventRequest(key_id=key_id, template=template)
    event = (await wallet.call(wallet.nip.SignEvent, request)).event
    body = json.dumps([0, key.pubkey, 17, 1, [["t", "mesh"]], 'hé\n"'], separators=(",", ":"), ensure_ascii=False)
    assert event.id == hashlib.sha256(body.encode()).hexdigest()
    forged = nip_pb2.Event()
    forged.CopyFrom(event)
    forged.content = "forged"
    verify = nip_service_pb2.VerifyEventsRequest(events=[event, forged])
    results = (await wallet.call(wallet.nip.VerifyEvents, verify)).results
    result = nip_service_pb2.VerifyEventsResponse
    assert list(results) == [result.RESULT_VALID, result.RESULT_BAD_ID]


async def test_keys_are_listed_in_pages(channel: grpc.aio.Channel, alice: User) -> None:
    wallet = Wallet(channel, alice)
    made = {await wallet.create_key(f"key {number}") for number in range(3)}

    async def fetch(token: str) -> nip_service_pb2.ListKeysResponse:
        return await wallet.call(wallet.nip.ListKeys, nip_service_pb2.ListKeysRequest(page_size=2, page_token=token))

    assert {key.key_id for key in await all_pages(fetch, "keys")} == made


async def test_an_invoice_is_paid_and_the_receipt_verifies(
    channel: grpc.aio.Channel, alice: User, bob: User, operator: User
) -> None:
    payer, payee = Wallet(channel, alice), Wallet(channel, bob)
    source = await funded(payer, Wallet(channel, operator), 50_000)
    target = await payee.open_account()
    invoice = await payee.invoice(target, 20_000, "coffee")
    assert invoice.payment_request.startswith("lnbcrt")
    payment = (await payer.pay(source, invoice.payment_request)).payment
    assert payment.state == payment_pb2.Payment.STATE_SUCCEEDED
    assert hashlib.sha256(bytes.fromhex(payment.preimage)).hexdigest() == invoice.payment_hash
    assert (await payer.account(source)).balance_msat == 30_000
    assert (await payee.account(target)).balance_msat == 20_000
    receipt = (await _payment_with_receipt(payer, payment.payment_id)).receipt
    verify = nip_service_pb2.VerifyEventsRequest(events=[receipt])
    assert list((await payer.call(payer.nip.VerifyEvents, verify)).results) == [
        nip_service_pb2.VerifyEventsResponse.RESULT_VALID
    ]
    settled = invoice_service_pb2.GetInvoiceRequest(payment_hash=invoice.payment_hash)
    assert (await payee.call(payee.invoices.GetInvoice, settled)).invoice.state == invoice_pb2.Invoice.STATE_SETTLED


async def _payment_with_receipt(wallet: Wallet, payment_id: str) -> payment_pb2.Payment:
    request = payment_service_pb2.GetPaymentRequest(payment_id=payment_id, view=payment_service_pb2.PAYMENT_VIEW_FULL)
    for _ in range(100):
        payment = (await wallet.call(wallet.payments.GetPayment, request)).payment
        if payment.HasField("receipt"):
            return payment
        await asyncio.sleep(0.1)
    raise AssertionError(f"no receipt after 10 s: {payment}")


async def test_a_refund_returns_the_money_once(
    channel: grpc.aio.Channel, alice: User, bob: User, operator: User
) -> None:
    payer, payee = Wallet(channel, alice), Wallet(channel, bob)
    source = await funded(payer, Wallet(channel, operator), 10_000)
    target = await payee.open_account()
    invoice = await payee.invoice(target, 10_000)
    payment = (await payer.pay(source, invoice.payment_request)).payment
    identifier = request_id()
    first = await payee.refund(payment.payment_id, 4_000, identifier)
    again = await payee.refund(payment.payment_id, 4_000, identifier)
    assert (first.replayed, again.replayed) == (False, True)
    assert first.transfer == again.transfer
    assert (await payer.account(source)).balance_msat == 4_000
    rest = await payee.refund(payment.payment_id, 6_000)
    assert rest.payment_state == payment_pb2.Payment.STATE_REFUNDED
    with pytest.raises(grpc.RpcError) as refused:
        await payee.refund(payment.payment_id, 1)
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION


async def change(stream: Any) -> Any:
    """The next change of a watch; heartbeats carry none."""
    while True:
        response = await stream.read()
        if response.HasField(
            "invoice" if isinstance(response, invoice_service_pb2.WatchInvoicesResponse) else "payment"
        ):
            return response


async def test_watches_show_each_change_and_resume(
    channel: grpc.aio.Channel, alice: User, bob: User, operator: User
) -> None:
    payer, payee = Wallet(channel, alice), Wallet(channel, bob)
    source = await funded(payer, Wallet(channel, operator), 10_000)
    target = await payee.open_account()
    invoice = await payee.invoice(target, 1_000)
    watch = payee.invoices.WatchInvoices(
        invoice_service_pb2.WatchInvoicesRequest(payment_hash=invoice.payment_hash), metadata=bob.metadata, timeout=30
    )
    assert (await change(watch)).invoice.state == invoice_pb2.Invoice.STATE_OPEN
    await payer.pay(source, invoice.payment_request)
    accepted, settled = await change(watch), await change(watch)
    assert accepted.invoice.state == invoice_pb2.Invoice.STATE_ACCEPTED
    assert settled.invoice.state == invoice_pb2.Invoice.STATE_SETTLED
    assert settled.sequence > accepted.sequence
    watch.cancel()
    resumed = payee.invoices.WatchInvoices(
        invoice_service_pb2.WatchInvoicesRequest(
            payment_hash=invoice.payment_hash, resume_after_sequence=accepted.sequence
        ),
        metadata=bob.metadata,
        timeout=30,
    )
    assert (await change(resumed)).sequence == settled.sequence
    resumed.cancel()
    payments = payer.payments.WatchPayments(
        payment_service_pb2.WatchPaymentsRequest(account_id=source, resume_after_sequence=0),
        metadata=alice.metadata,
        timeout=30,
    )
    states = [(await change(payments)).payment.state]
    while states[-1] != payment_pb2.Payment.STATE_SUCCEEDED:
        states.append((await change(payments)).payment.state)
    payments.cancel()
    assert states == sorted(states)


async def test_invoices_are_decoded_listed_and_cancelled(channel: grpc.aio.Channel, alice: User) -> None:
    wallet = Wallet(channel, alice)
    account_id = await wallet.open_account()
    made = [await wallet.invoice(account_id, 1_000 + number) for number in range(3)]
    decode = invoice_service_pb2.DecodePaymentRequestRequest(payment_request=made[0].payment_request)
    decoded = await wallet.call(wallet.invoices.DecodePaymentRequest, decode)
    assert (decoded.payment_hash, decoded.amount_msat, decoded.currency) == (made[0].payment_hash, 1_000, "bcrt")
    cancel = invoice_service_pb2.CancelInvoiceRequest(request_id=request_id(), invoice_id=made[1].invoice_id)
    cancelled = (await wallet.call(wallet.invoices.CancelInvoice, cancel)).invoice
    assert cancelled.state == invoice_pb2.Invoice.STATE_CANCELED

    async def fetch(token: str) -> invoice_service_pb2.ListInvoicesResponse:
        request = invoice_service_pb2.ListInvoicesRequest(account_id=account_id, page_size=2, page_token=token)
        return await wallet.call(wallet.invoices.ListInvoices, request)

    listed = await all_pages(fetch, "invoices")
    assert [invoice.invoice_id for invoice in listed] == [invoice.invoice_id for invoice in reversed(made)]


async def test_an_invoice_expires_by_itself(channel: grpc.aio.Channel, alice: User) -> None:
    wallet = Wallet(channel, alice)
    request = invoice_service_pb2.CreateInvoiceRequest(
        request_id=request_id(), account_id=await wallet.open_account(), any_amount=True
    )
    request.expiry_duration.FromSeconds(1)
    invoice = (await wallet.call(wallet.invoices.CreateInvoice, request)).invoice
    watch = wallet.invoices.WatchInvoices(
        invoice_service_pb2.WatchInvoicesRequest(payment_hash=invoice.payment_hash), metadata=alice.metadata, timeout=15
    )
    states = [(await change(watch)).invoice.state, (await change(watch)).invoice.state]
    watch.cancel()
    assert states == [invoice_pb2.Invoice.STATE_OPEN, invoice_pb2.Invoice.STATE_EXPIRED]


async def test_the_operator_deposits_withdraws_and_freezes(
    channel: grpc.aio.Channel, alice: User, operator: User
) -> None:
    wallet, desk = Wallet(channel, alice), Wallet(channel, operator)
    account_id = await funded(wallet, desk, 9_000)
    withdraw = payment_service_pb2.WithdrawRequest(request_id=request_id(), account_id=account_id, amount_msat=4_000)
    response = await desk.call(desk.ledger.Withdraw, withdraw)
    assert response.account.balance_msat == 5_000
    transfer = payment_service_pb2.GetTransferRequest(transfer_id=response.transfer.transfer_id)
    assert (await desk.call(desk.ledger.GetTransfer, transfer)).transfer == response.transfer
    freeze = payment_service_pb2.FreezeAccountRequest(request_id=request_id(), account_id=account_id)
    frozen = (await desk.call(desk.ledger.FreezeAccount, freeze)).account
    assert frozen.state == payment_pb2.Account.STATE_FROZEN
    with pytest.raises(grpc.RpcError) as refused:
        await wallet.invoice(account_id, 1_000)
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    unfreeze = payment_service_pb2.UnfreezeAccountRequest(request_id=request_id(), account_id=account_id)
    assert (await desk.call(desk.ledger.UnfreezeAccount, unfreeze)).account.state == payment_pb2.Account.STATE_ACTIVE

    async def transfers(token: str) -> payment_service_pb2.ListTransfersResponse:
        request = payment_service_pb2.ListTransfersRequest(account_id=account_id, page_token=token)
        return await wallet.call(wallet.accounts.ListTransfers, request)

    assert [item.amount_msat for item in await all_pages(transfers, "transfers")] == [4_000, 9_000]
    listed = await wallet.call(wallet.accounts.ListAccounts, payment_service_pb2.ListAccountsRequest())
    assert [account.account_id for account in listed.accounts] == [account_id]


async def test_a_foreign_invoice_is_paid_by_the_simulated_node(
    channel: grpc.aio.Channel, alice: User, operator: User
) -> None:
    from support.lightning import foreign_payment_request

    wallet = Wallet(channel, alice)
    source = await funded(wallet, Wallet(channel, operator), 1_000_000)
    request = foreign_payment_request(amount_msat=100_000, description="elsewhere")
    payment = (await wallet.pay(source, request)).payment
    assert payment.state == payment_pb2.Payment.STATE_SUCCEEDED
    assert not payment.internal
    account = await wallet.account(source)
    assert account.balance_msat == 1_000_000 - 100_000 - payment.fee_msat
    assert account.debits_pending_msat == 0


async def test_calls_are_spread_over_both_replicas(mesh: RunningMesh, channel: grpc.aio.Channel, alice: User) -> None:
    wallet = Wallet(channel, alice)
    key_id = await wallet.create_key()
    sockets = [replica["admin_socket"] for replica in mesh.replicas("nip")]
    name = "grpc.nipmesh.nip.v1.NipService.GetKey.total$"
    before = [mesh.stat(socket, name) for socket in sockets]
    for _ in range(100):
        await wallet.call(wallet.nip.GetKey, nip_service_pb2.GetKeyRequest(key_id=key_id))
    after = [mesh.stat(socket, name) for socket in sockets]
    shares = [new - old for new, old in zip(after, before, strict=True)]
    assert min(shares) >= 20, f"each of two replicas should get a fair share of 100 calls, got {shares}"

"""The adapter of lnd does what every adapter must, and what is lnd's own, against real lnd nodes on a chain of btcd."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path

import pytest

from services.chassis.errors import StartError
from services.chassis.secret import SecretBytes, SecretFileError
from services.lightning import bolt11, lnd
from services.lightning.lnd import LndSettings, open_paying_node, open_receiving_node
from services.lightning.lnd.translation import BLOCK_MS, LND_MARGIN_BLOCKS
from services.lightning.node import (
    NodeFailed,
    NodeFailure,
    NodePaid,
    NodeRefusedError,
    NodeUnavailableError,
    NodeUnknown,
    ReceivedState,
)
from services.lightning.node_key import NodeKey
from services.lightning.payment_request import RouteHop
from support.lnd import CHANNEL_SAT, LightningNetwork
from support.lnd_adapters import PAYING, RECEIVING, settings_of
from support.mesh import free_port
from support.node_contract import (
    AMOUNT_MSAT,
    Bill,
    Network,
    PayingContract,
    ReceivingContract,
    changes,
    held,
    outcome,
    pay_through,
    payment_of,
    state_reached,
    stranger_invoice,
    until,
)

pytestmark = pytest.mark.timeout(900)


class TestLndReceiving(ReceivingContract):
    """carol's lnd."""


class TestLndPaying(PayingContract):
    """alice's lnd."""


async def test_money_goes_the_other_way_too(lightning: LightningNetwork) -> None:
    payer = await open_paying_node(settings_of(lightning.carol, *PAYING))
    before = lightning.money_msat()
    paid = await pay_through(payer, payment_of(lightning.alice.plain_invoice(AMOUNT_MSAT)))
    await payer.close()
    assert isinstance(paid, NodePaid)
    lightning.quiet()
    assert lightning.money_msat() == before


async def test_lnd_goes_on_when_nobody_watches(
    network: Network, lightning: LightningNetwork, paying_settings: LndSettings
) -> None:
    bill = Bill()
    request = await network.receiver.add_invoice(bill.order())
    payer = await open_paying_node(paying_settings)
    paying = asyncio.create_task(payer.pay(bill.payment(request)))
    await until(lambda: network.payer.track(bill.payment_hash), lambda found: found != NodeUnknown())
    paying.cancel()
    await payer.close()
    await state_reached(network.receiver, bill.payment_hash, ReceivedState.ACCEPTED)
    await network.receiver.settle(bill.preimage)
    assert isinstance(await outcome(network.payer, bill.payment_hash), NodePaid)


async def test_after_the_deadline_lnd_gives_the_money_back_by_itself(
    network: Network, lightning: LightningNetwork
) -> None:
    bill = Bill()
    await held(network, bill)
    accepted = await state_reached(network.receiver, bill.payment_hash, ReceivedState.ACCEPTED)
    assert accepted.settle_deadline_ms is not None
    [channel] = lightning.carol.get("/v1/channels")["channels"]
    [htlc] = [one for one in channel["pending_htlcs"] if one["incoming"]]
    height = lightning.btcd.ask("getblockcount")
    blocks = int(htlc["expiration_height"]) - height - LND_MARGIN_BLOCKS
    assert time.time() * 1_000 < accepted.settle_deadline_ms < time.time() * 1_000 + blocks * BLOCK_MS
    async with changes(network.receiver) as told:
        await told(bill, ReceivedState.ACCEPTED)
        await asyncio.to_thread(lightning.mine, blocks)
        await told(bill, ReceivedState.CANCELED)
    assert await outcome(network.payer, bill.payment_hash) == NodeFailed(NodeFailure.INCORRECT_PAYMENT_DETAILS)
    with pytest.raises(NodeRefusedError):
        await network.receiver.settle(bill.preimage)


async def test_the_deadline_is_the_same_whenever_it_is_asked_for(network: Network, lightning: LightningNetwork) -> None:
    bill = Bill()
    await held(network, bill)
    first = await state_reached(network.receiver, bill.payment_hash, ReceivedState.ACCEPTED)
    await asyncio.to_thread(lightning.mine, 2)
    assert await network.receiver.lookup(bill.payment_hash) == first
    await network.receiver.cancel(bill.payment_hash)
    await outcome(network.payer, bill.payment_hash)


async def test_a_description_that_no_request_can_hold_is_refused(network: Network) -> None:
    with pytest.raises(NodeRefusedError):
        await network.receiver.add_invoice(Bill().order(description="x" * 2_000))


# ---- what lnd refuses to pay


async def test_an_expired_request_is_not_paid_and_one_that_was_paid_stays_paid(network: Network) -> None:
    soon, late = Bill(), Bill()
    texts = [await network.receiver.add_invoice(replace(bill.order(), expiry_s=3)) for bill in (soon, late)]
    await network.payer.pay(soon.payment(texts[0]))
    await state_reached(network.receiver, soon.payment_hash, ReceivedState.ACCEPTED)
    await network.receiver.settle(soon.preimage)
    paid = await outcome(network.payer, soon.payment_hash)
    await asyncio.sleep(max(0.0, bolt11.decode(texts[1]).expire_time_s + 1 - time.time()))
    assert await network.payer.pay(late.payment(texts[1])) == NodeFailed(NodeFailure.ERROR)
    assert await network.payer.track(late.payment_hash) == NodeUnknown()
    assert await network.payer.pay(soon.payment(texts[0])) == paid


async def test_the_request_of_another_network_is_not_paid(network: Network) -> None:
    order = payment_of(stranger_invoice("bcrt", AMOUNT_MSAT))
    assert await network.payer.pay(order) == NodeFailed(NodeFailure.ERROR)


async def test_nobody_pays_himself(network: Network, lightning: LightningNetwork) -> None:
    order = payment_of(lightning.alice.plain_invoice(AMOUNT_MSAT))
    assert await network.payer.pay(order) == NodeFailed(NodeFailure.ERROR)


async def test_more_than_the_channels_hold_is_not_paid(network: Network) -> None:
    amount_msat = CHANNEL_SAT * 900
    order = payment_of(await network.automatic_invoice(amount_msat), amount_msat, fee_limit_msat=10_000_000)
    assert await pay_through(network.payer, order) == NodeFailed(NodeFailure.INSUFFICIENT_BALANCE)


async def test_what_is_ordered_must_be_what_is_asked_for(network: Network) -> None:
    order = payment_of(await network.automatic_invoice(AMOUNT_MSAT))
    for wrong in (replace(order, amount_msat=AMOUNT_MSAT + 1), replace(order, payment_hash=Bill().payment_hash)):
        with pytest.raises(AssertionError):
            await network.payer.pay(wrong)
    assert await network.payer.track(order.payment_hash) == NodeUnknown()


async def test_an_estimate_reckons_with_the_hints_of_the_request(network: Network, lightning: LightningNetwork) -> None:
    to_carol = await network.payer.estimate(await network.automatic_invoice(AMOUNT_MSAT), AMOUNT_MSAT)
    hop = RouteHop(
        pubkey=lightning.carol.public_key,
        short_channel_id=1 << 40,
        fee_base_msat=7_000,
        fee_proportional_millionths=0,
        cltv_expiry_delta=40,
    )
    hidden = await network.payer.estimate(hinted_invoice(hop), AMOUNT_MSAT)
    assert to_carol.fee_msat + 7_000 <= hidden.fee_msat <= to_carol.fee_msat + 7_001
    assert hidden.delay_blocks == to_carol.delay_blocks + 40
    own = replace(hop, pubkey=lightning.alice.public_key)
    assert (await network.payer.estimate(hinted_invoice(own), AMOUNT_MSAT)).fee_msat == 0


def hinted_invoice(hop: RouteHop) -> str:
    """The request of a payee whom only this hint leads to."""
    key = NodeKey(SecretBytes(b"\x07" * 32))
    request = bolt11.decode(stranger_invoice("sb", AMOUNT_MSAT))
    return bolt11.encode(replace(request, payee_pubkey=key.public_key, route_hints=((hop,),)), key)


# ---- who may, and how to reach it


@pytest.mark.parametrize("missing", RECEIVING)
async def test_a_receiving_macaroon_that_lacks_a_method_stops_the_start(
    lightning: LightningNetwork, missing: str
) -> None:
    settings = settings_of(lightning.carol, *(method for method in RECEIVING if method != missing))
    with pytest.raises(StartError, match=f"uri:{missing}$"):
        await open_receiving_node(settings)


@pytest.mark.parametrize("missing", PAYING)
async def test_a_paying_macaroon_that_lacks_a_method_stops_the_start(lightning: LightningNetwork, missing: str) -> None:
    settings = settings_of(lightning.alice, *(method for method in PAYING if method != missing))
    with pytest.raises(StartError, match=f"uri:{missing}$"):
        await open_paying_node(settings)


def test_the_page_for_operators_names_what_the_tests_use() -> None:
    page = lnd.__doc__
    assert page is not None
    named = {word.removeprefix("uri:") for word in page.split() if word.startswith("uri:")}
    assert named == {*RECEIVING, *PAYING}


async def test_another_nodes_macaroon_stops_the_start_and_is_never_shown(
    lightning: LightningNetwork, receiving_settings: LndSettings
) -> None:
    foreign = settings_of(lightning.alice, *RECEIVING).macaroon
    with pytest.raises(StartError, match="does not accept") as caught:
        await open_receiving_node(replace(receiving_settings, macaroon=foreign))
    assert foreign.read_bytes().hex() not in f"{caught.value!r} {caught.getrepr()}"


async def test_a_macaroon_that_others_can_read_stops_the_start(
    lightning: LightningNetwork, receiving_settings: LndSettings, tmp_path: Path
) -> None:
    readable = tmp_path / "admin.macaroon"
    readable.write_bytes(lightning.carol.admin_macaroon.read_bytes())
    readable.chmod(0o644)
    with pytest.raises(SecretFileError, match="chmod 600"):
        await open_receiving_node(replace(receiving_settings, macaroon=readable))


async def test_a_macaroon_that_is_taken_back_says_nothing_about_payments(
    network: Network, lightning: LightningNetwork
) -> None:
    root_key = 7
    settings = LndSettings(
        address=lightning.alice.address,
        tls_cert=lightning.alice.certificate,
        macaroon=lightning.alice.bake(*PAYING, root_key=root_key),
    )
    payer = await open_paying_node(settings)
    lightning.alice.delete(f"/v1/macaroon/{root_key}")
    order = payment_of(await network.automatic_invoice(AMOUNT_MSAT))
    with pytest.raises(NodeUnavailableError):
        await payer.pay(order)
    with pytest.raises(NodeUnavailableError):
        await payer.track(order.payment_hash)
    with pytest.raises(NodeUnavailableError):
        await payer.estimate(order.payment_request, AMOUNT_MSAT)
    await payer.close()
    assert await network.payer.track(order.payment_hash) == NodeUnknown()


async def test_another_certificate_is_not_trusted(lightning: LightningNetwork, receiving_settings: LndSettings) -> None:
    with pytest.raises(NodeUnavailableError):
        await open_receiving_node(replace(receiving_settings, tls_cert=lightning.alice.certificate), patience_s=2.0)


async def test_without_a_certificate_there_is_no_start(receiving_settings: LndSettings, tmp_path: Path) -> None:
    with pytest.raises(StartError, match="certificate"):
        await open_receiving_node(replace(receiving_settings, tls_cert=tmp_path / "none.cert"))


async def test_where_nobody_answers_there_is_no_node(receiving_settings: LndSettings) -> None:
    with pytest.raises(NodeUnavailableError):
        await open_receiving_node(replace(receiving_settings, address=f"127.0.0.1:{free_port()}"), patience_s=1.0)


# ---- many open invoices


async def test_hundreds_of_open_invoices_are_watched(network: Network) -> None:
    bills = [Bill() for _ in range(600)]
    texts = [await network.receiver.add_invoice(bill.order()) for bill in bills]
    async with changes(network.receiver) as told:
        for at in (0, 300, 599):
            await network.payer.pay(bills[at].payment(texts[at]))
            await told(bills[at], ReceivedState.ACCEPTED)
        await asyncio.gather(*(network.receiver.cancel(bill.payment_hash) for bill in bills))
        for bill in bills:
            await told(bill, ReceivedState.CANCELED)
    for at in (0, 300, 599):
        await outcome(network.payer, bills[at].payment_hash)


async def test_the_nodes_own_invoices_are_not_told_of(network: Network, lightning: LightningNetwork) -> None:
    mine = Bill()
    seen: list[str] = []

    async def read() -> None:
        async for received in network.receiver.subscribe():
            seen.append(received.payment_hash)

    reader = asyncio.create_task(read())
    foreign = payment_of(await network.automatic_invoice(AMOUNT_MSAT))
    assert isinstance(await pay_through(network.payer, foreign), NodePaid)
    await held(network, mine)
    await until(lambda: asyncio.sleep(0, mine.payment_hash in seen), bool)
    reader.cancel()
    assert foreign.payment_hash not in seen
    await network.receiver.cancel(mine.payment_hash)
    await outcome(network.payer, mine.payment_hash)

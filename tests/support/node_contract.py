"""What every adapter of a Lightning node must do, whatever the node: the contract of `services/lightning/node.py` as tests.

A test module inherits from the two classes and gives a fixture `network`, which makes a Network::

    class TestReceiving(ReceivingContract): ...
    class TestPaying(PayingContract): ...

    @pytest.fixture
    async def network() -> AsyncIterator[Network]: ...

The route from the payer to the receiver must cost a fee at each amount above 100,000 msat. Both nodes are fresh objects for each test; the
network behind them may be one for all tests, since each test makes its own hashes.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import pytest

from services.chassis.secret import SecretBytes
from services.lightning import bolt11
from services.lightning.node import (
    InvoiceOrder,
    NodeFailed,
    NodeFailure,
    NodePaid,
    NodePending,
    NodeRefusedError,
    NodeUnknown,
    PayingNode,
    PaymentOrder,
    Received,
    ReceivedState,
    ReceivingNode,
)
from services.lightning.node_key import NodeKey

AMOUNT_MSAT = 1_234_567
FEE_LIMIT_MSAT = 100_000
WAIT_S = 60.0
"""How long a condition may take to come true: far more than it takes on a busy machine."""
POLL_S = 0.05
EXPIRY_S = 3_600

ValueT = TypeVar("ValueT")
Outcome = NodePaid | NodeFailed | NodePending | NodeUnknown


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """Two nodes of one network, with a route that costs a fee from the payer to the receiver."""

    receiver: ReceivingNode
    payer: PayingNode
    automatic_invoice: Callable[[int | None], Awaitable[str]]
    """A payment request over so many msat (None: any amount) whose payee takes the money at once, without anybody's `settle`."""
    unroutable_invoice: Callable[[int], Awaitable[str]]
    """A payment request of a payee to whom there is no route."""


@dataclass(frozen=True, slots=True)
class Bill:
    """One invoice of a test: its secret and what it asks for."""

    amount_msat: int | None = AMOUNT_MSAT
    preimage: bytes = field(default_factory=lambda: secrets.token_bytes(32))

    @property
    def payment_hash(self) -> str:
        return hashlib.sha256(self.preimage).hexdigest()

    def order(self, *, description: str = "two coffees", description_hash: str = "") -> InvoiceOrder:
        return InvoiceOrder(
            payment_hash=self.payment_hash,
            amount_msat=self.amount_msat,
            description=description,
            description_hash=description_hash,
            create_time_ms=time.time_ns() // 1_000_000,
            expiry_s=EXPIRY_S,
        )

    def payment(self, payment_request: str, **changes: int) -> PaymentOrder:
        return payment_of(payment_request, self.amount_msat or AMOUNT_MSAT, **changes)


def payment_of(payment_request: str, amount_msat: int = AMOUNT_MSAT, **changes: int) -> PaymentOrder:
    """An order to pay this request; the fee limit is generous unless `fee_limit_msat` is given."""
    decoded = bolt11.decode(payment_request)
    return PaymentOrder(
        payment_hash=decoded.payment_hash,
        payment_request=payment_request,
        amount_msat=amount_msat,
        fee_limit_msat=changes.get("fee_limit_msat", FEE_LIMIT_MSAT),
        timeout_s=changes.get("timeout_s", 30),
        amount_is_open=decoded.amount_msat is None,
    )


def stranger_invoice(currency: str, amount_msat: int) -> str:
    """A valid payment request of a node that nobody knows."""
    key = NodeKey(SecretBytes(secrets.token_bytes(32)))
    return bolt11.encode(
        bolt11.PaymentRequest(
            currency=currency,
            payee_pubkey=key.public_key,
            payment_hash=secrets.token_hex(32),
            payment_secret=secrets.token_hex(32),
            amount_msat=amount_msat,
            create_time_s=int(time.time()),
            description="from nowhere",
        ),
        key,
    )


async def until(ask: Callable[[], Awaitable[ValueT]], wanted: Callable[[ValueT], bool]) -> ValueT:
    """Ask until the answer is what is wanted."""
    async with asyncio.timeout(WAIT_S):
        while True:
            value = await ask()
            if wanted(value):
                return value
            await asyncio.sleep(POLL_S)


async def outcome(payer: PayingNode, payment_hash: str) -> NodePaid | NodeFailed:
    """Wait for a payment's end."""
    end = await until(lambda: payer.track(payment_hash), lambda found: isinstance(found, NodePaid | NodeFailed))
    assert isinstance(end, NodePaid | NodeFailed)
    return end


async def pay_through(payer: PayingNode, order: PaymentOrder) -> NodePaid | NodeFailed:
    """Pay, and wait for the end."""
    begun = await payer.pay(order)
    return await outcome(payer, order.payment_hash) if isinstance(begun, NodePending) else begun


async def state_reached(receiver: ReceivingNode, payment_hash: str, state: ReceivedState) -> Received:
    """Wait for an invoice to come to this state."""
    found = await until(lambda: receiver.lookup(payment_hash), lambda now: now is not None and now.state is state)
    assert found is not None
    return found


async def held(network: Network, bill: Bill, *, amount_msat: int | None = None) -> str:
    """Add the invoice and let the payer pay until the receiver holds the money; the payment request."""
    payment_request = await network.receiver.add_invoice(bill.order())
    begun = await network.payer.pay(payment_of(payment_request, amount_msat or bill.amount_msat or AMOUNT_MSAT))
    assert begun == NodePending(), begun
    await state_reached(network.receiver, bill.payment_hash, ReceivedState.ACCEPTED)
    return payment_request


@asynccontextmanager
async def changes(receiver: ReceivingNode) -> AsyncIterator[Callable[[Bill, ReceivedState], Awaitable[Received]]]:
    """Subscribe; the function inside waits until the subscription has told that an invoice is in a state."""
    seen: list[Received] = []

    async def read() -> None:
        async for received in receiver.subscribe():
            seen.append(received)

    reader = asyncio.create_task(read())

    async def told(bill: Bill, state: ReceivedState) -> Received:
        async def newest() -> list[Received]:
            if reader.done():
                reader.result()
                raise AssertionError("the subscription ended")
            return [one for one in seen if (one.payment_hash, one.state) == (bill.payment_hash, state)]

        return (await until(newest, bool))[0]

    try:
        await asyncio.sleep(0)
        yield told
    finally:
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)


class ReceivingContract:
    """Being paid."""

    async def test_an_invoice_says_what_was_ordered(self, network: Network) -> None:
        bill = Bill()
        text = await network.receiver.add_invoice(bill.order())
        request = bolt11.decode(text)
        assert text == text.lower()
        assert request.currency == network.receiver.currency
        assert request.payment_hash == bill.payment_hash
        assert (request.amount_msat, request.description, request.expiry_s) == (AMOUNT_MSAT, "two coffees", EXPIRY_S)
        assert abs(request.create_time_s - time.time()) < WAIT_S

    async def test_a_description_may_be_a_hash(self, network: Network) -> None:
        bill, digest = Bill(), hashlib.sha256(b"a long text").hexdigest()
        request = bolt11.decode(await network.receiver.add_invoice(bill.order(description="", description_hash=digest)))
        assert (request.description, request.description_hash) == (None, digest)

    async def test_an_invoice_may_have_no_description_at_all(self, network: Network) -> None:
        request = bolt11.decode(await network.receiver.add_invoice(Bill().order(description="")))
        assert request.description == ""

    async def test_an_amount_may_be_left_to_the_payer(self, network: Network) -> None:
        bill = Bill(amount_msat=None)
        assert bolt11.decode(await network.receiver.add_invoice(bill.order())).amount_msat is None
        await held(network, bill, amount_msat=77_001)
        accepted = await state_reached(network.receiver, bill.payment_hash, ReceivedState.ACCEPTED)
        assert accepted.amount_msat == 77_001
        await network.receiver.settle(bill.preimage)
        assert (await state_reached(network.receiver, bill.payment_hash, ReceivedState.SETTLED)).amount_msat == 77_001
        assert isinstance(await outcome(network.payer, bill.payment_hash), NodePaid)

    async def test_adding_twice_finds_the_first(self, network: Network) -> None:
        bill = Bill()
        first = await network.receiver.add_invoice(bill.order())
        assert await network.receiver.add_invoice(bill.order()) == first
        await network.receiver.cancel(bill.payment_hash)
        assert await network.receiver.add_invoice(bill.order()) == first
        assert (await state_reached(network.receiver, bill.payment_hash, ReceivedState.CANCELED)).amount_msat == 0

    async def test_adding_at_once_from_two_sides_makes_one(self, network: Network) -> None:
        bill = Bill()
        texts = await asyncio.gather(*(network.receiver.add_invoice(bill.order()) for _ in range(4)))
        assert len(set(texts)) == 1

    async def test_an_open_invoice_is_found_and_an_unknown_one_is_not(self, network: Network) -> None:
        bill = Bill()
        assert await network.receiver.lookup(bill.payment_hash) is None
        await network.receiver.add_invoice(bill.order())
        assert await network.receiver.lookup(bill.payment_hash) == Received(
            payment_hash=bill.payment_hash, state=ReceivedState.OPEN
        )

    async def test_what_is_held_can_be_taken(self, network: Network) -> None:
        bill = Bill()
        await held(network, bill)
        accepted = await state_reached(network.receiver, bill.payment_hash, ReceivedState.ACCEPTED)
        assert accepted.amount_msat == AMOUNT_MSAT
        assert accepted.settle_deadline_ms is None or accepted.settle_deadline_ms > time.time() * 1_000
        assert await network.payer.track(bill.payment_hash) == NodePending()
        await network.receiver.settle(bill.preimage)
        paid = await outcome(network.payer, bill.payment_hash)
        assert isinstance(paid, NodePaid)
        assert paid.preimage == bill.preimage.hex()
        assert 0 < paid.fee_msat <= FEE_LIMIT_MSAT
        settled = await state_reached(network.receiver, bill.payment_hash, ReceivedState.SETTLED)
        assert (settled.amount_msat, settled.settle_deadline_ms) == (AMOUNT_MSAT, None)

    async def test_settling_twice_is_one_and_cancelling_after_it_is_refused(self, network: Network) -> None:
        bill = Bill()
        await held(network, bill)
        await network.receiver.settle(bill.preimage)
        await network.receiver.settle(bill.preimage)
        with pytest.raises(NodeRefusedError):
            await network.receiver.cancel(bill.payment_hash)
        assert isinstance(await outcome(network.payer, bill.payment_hash), NodePaid)
        with pytest.raises(NodeRefusedError):
            await network.receiver.cancel(bill.payment_hash)
        await network.receiver.settle(bill.preimage)

    async def test_what_is_held_can_be_given_back(self, network: Network) -> None:
        bill = Bill()
        await held(network, bill)
        await network.receiver.cancel(bill.payment_hash)
        failed = await outcome(network.payer, bill.payment_hash)
        assert failed == NodeFailed(NodeFailure.INCORRECT_PAYMENT_DETAILS)
        canceled = await state_reached(network.receiver, bill.payment_hash, ReceivedState.CANCELED)
        assert (canceled.amount_msat, canceled.settle_deadline_ms) == (0, None)
        await network.receiver.cancel(bill.payment_hash)
        with pytest.raises(NodeRefusedError):
            await network.receiver.settle(bill.preimage)

    async def test_nothing_is_accepted_after_a_cancel(self, network: Network) -> None:
        bill = Bill()
        payment_request = await network.receiver.add_invoice(bill.order())
        await network.receiver.cancel(bill.payment_hash)
        await network.receiver.cancel(bill.payment_hash)
        ended = await pay_through(network.payer, bill.payment(payment_request))
        assert ended == NodeFailed(NodeFailure.INCORRECT_PAYMENT_DETAILS)
        await state_reached(network.receiver, bill.payment_hash, ReceivedState.CANCELED)

    async def test_cancelling_what_nobody_knows_is_done(self, network: Network) -> None:
        await network.receiver.cancel(Bill().payment_hash)

    async def test_only_what_is_held_can_be_settled(self, network: Network) -> None:
        bill = Bill()
        with pytest.raises(NodeRefusedError):
            await network.receiver.settle(bill.preimage)
        await network.receiver.add_invoice(bill.order())
        with pytest.raises(NodeRefusedError):
            await network.receiver.settle(bill.preimage)
        found = await network.receiver.lookup(bill.payment_hash)
        assert found is not None
        assert found.state is ReceivedState.OPEN

    async def test_a_subscription_tells_of_money_that_comes_is_taken_and_is_given_back(self, network: Network) -> None:
        before, taken, given_back = Bill(), Bill(), Bill()
        old_request = await network.receiver.add_invoice(before.order())
        async with changes(network.receiver) as told:
            for bill in (taken, given_back):
                await held(network, bill)
                assert (await told(bill, ReceivedState.ACCEPTED)).amount_msat == AMOUNT_MSAT
            await network.payer.pay(before.payment(old_request))
            assert (await told(before, ReceivedState.ACCEPTED)).amount_msat == AMOUNT_MSAT
            await network.receiver.settle(taken.preimage)
            await network.receiver.cancel(given_back.payment_hash)
            await network.receiver.cancel(before.payment_hash)
            assert (await told(taken, ReceivedState.SETTLED)).amount_msat == AMOUNT_MSAT
            assert (await told(given_back, ReceivedState.CANCELED)).amount_msat == 0
            await told(before, ReceivedState.CANCELED)
        for bill in (taken, given_back, before):
            await outcome(network.payer, bill.payment_hash)

    async def test_two_subscriptions_tell_the_same(self, network: Network) -> None:
        bill = Bill()
        async with changes(network.receiver) as one, changes(network.receiver) as other:
            await held(network, bill)
            for told in (one, other):
                await told(bill, ReceivedState.ACCEPTED)
            await network.receiver.cancel(bill.payment_hash)
            for told in (one, other):
                await told(bill, ReceivedState.CANCELED)
        await outcome(network.payer, bill.payment_hash)

    async def test_a_subscription_that_begins_late_tells_of_the_end_of_what_is_held(self, network: Network) -> None:
        bill = Bill()
        await held(network, bill)
        async with changes(network.receiver) as told:
            await asyncio.sleep(1)
            await network.receiver.settle(bill.preimage)
            await told(bill, ReceivedState.SETTLED)
        await outcome(network.payer, bill.payment_hash)


class PayingContract:
    """Paying."""

    async def test_a_payment_arrives_with_its_preimage_and_its_fee(self, network: Network) -> None:
        order = payment_of(await network.automatic_invoice(AMOUNT_MSAT))
        paid = await pay_through(network.payer, order)
        assert isinstance(paid, NodePaid)
        assert hashlib.sha256(bytes.fromhex(paid.preimage)).hexdigest() == order.payment_hash
        assert 0 < paid.fee_msat <= order.fee_limit_msat
        assert await network.payer.track(order.payment_hash) == paid

    async def test_the_payer_chooses_an_open_amount(self, network: Network) -> None:
        order = payment_of(await network.automatic_invoice(None), 54_321)
        assert order.amount_is_open
        assert isinstance(await pay_through(network.payer, order), NodePaid)

    async def test_the_currency_is_that_of_the_invoices(self, network: Network) -> None:
        text = await network.automatic_invoice(AMOUNT_MSAT)
        assert bolt11.decode(text).currency == network.payer.currency == network.receiver.currency
        assert network.payer.simulated == network.receiver.simulated

    async def test_paying_again_joins_what_was_paid(self, network: Network) -> None:
        bill = Bill()
        payment_request = await held(network, bill)
        await network.receiver.settle(bill.preimage)
        paid = await outcome(network.payer, bill.payment_hash)
        assert isinstance(paid, NodePaid)
        for _ in range(3):
            assert await network.payer.pay(bill.payment(payment_request)) == paid
        settled = await network.receiver.lookup(bill.payment_hash)
        assert settled is not None
        assert settled.amount_msat == AMOUNT_MSAT

    async def test_paying_again_joins_what_is_on_its_way(self, network: Network) -> None:
        bill = Bill()
        payment_request = await held(network, bill)
        for _ in range(2):
            assert await network.payer.pay(bill.payment(payment_request)) == NodePending()
        accepted = await network.receiver.lookup(bill.payment_hash)
        assert accepted is not None
        assert (accepted.state, accepted.amount_msat) == (ReceivedState.ACCEPTED, AMOUNT_MSAT)
        await network.receiver.settle(bill.preimage)
        assert isinstance(await outcome(network.payer, bill.payment_hash), NodePaid)

    async def test_paying_at_once_from_two_sides_pays_once(self, network: Network) -> None:
        bill = Bill()
        payment_request = await network.receiver.add_invoice(bill.order())
        begun = await asyncio.gather(*(network.payer.pay(bill.payment(payment_request)) for _ in range(4)))
        assert set(begun) == {NodePending()}
        accepted = await state_reached(network.receiver, bill.payment_hash, ReceivedState.ACCEPTED)
        assert accepted.amount_msat == AMOUNT_MSAT
        await network.receiver.settle(bill.preimage)
        assert isinstance(await outcome(network.payer, bill.payment_hash), NodePaid)

    async def test_a_payment_that_nobody_began_is_unknown(self, network: Network) -> None:
        assert await network.payer.track(Bill().payment_hash) == NodeUnknown()

    async def test_without_a_route_nothing_is_paid(self, network: Network) -> None:
        order = payment_of(await network.unroutable_invoice(AMOUNT_MSAT))
        assert await pay_through(network.payer, order) == NodeFailed(NodeFailure.NO_ROUTE)
        with pytest.raises(NodeRefusedError):
            await network.payer.estimate(order.payment_request, order.amount_msat)

    async def test_the_fee_limit_holds_and_after_a_failure_a_new_attempt_begins(self, network: Network) -> None:
        text = await network.automatic_invoice(AMOUNT_MSAT)
        refused = payment_of(text, fee_limit_msat=0)
        assert await pay_through(network.payer, refused) == NodeFailed(NodeFailure.NO_ROUTE)
        assert await network.payer.track(refused.payment_hash) == NodeFailed(NodeFailure.NO_ROUTE)
        paid = await pay_through(network.payer, payment_of(text))
        assert isinstance(paid, NodePaid)
        assert await network.payer.track(refused.payment_hash) == paid

    async def test_an_estimate_is_what_is_paid_then(self, network: Network) -> None:
        text = await network.automatic_invoice(AMOUNT_MSAT)
        estimate = await network.payer.estimate(text, AMOUNT_MSAT)
        assert estimate.fee_msat > 0
        assert estimate.delay_blocks > 0
        paid = await pay_through(network.payer, payment_of(text, fee_limit_msat=estimate.fee_msat))
        assert isinstance(paid, NodePaid)
        assert paid.fee_msat <= estimate.fee_msat

    async def test_an_open_amount_can_be_estimated(self, network: Network) -> None:
        text = await network.automatic_invoice(None)
        small, large = [await network.payer.estimate(text, amount_msat) for amount_msat in (100_001, 10_000_000)]
        assert 0 < small.fee_msat <= large.fee_msat

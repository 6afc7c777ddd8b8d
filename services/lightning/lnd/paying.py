"""Paying through lnd."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

import grpc

from services.lightning import bolt11
from services.lightning.lnd.connection import (
    CALL_S,
    LndConnection,
    LndRefusal,
    answer,
    currency_of,
    messages,
    unavailable,
)
from services.lightning.lnd.routes import Stretch, stretches
from services.lightning.lnd.settings import LndSettings
from services.lightning.lnd.translation import outcome
from services.lightning.lnd.wire.lightning_pb2 import Payment
from services.lightning.lnd.wire.router_pb2 import RouteFeeRequest, SendPaymentRequest, TrackPaymentRequest
from services.lightning.node import (
    FeeEstimate,
    NodeFailed,
    NodeFailure,
    NodePaid,
    NodePending,
    NodeRefusedError,
    NodeUnavailableError,
    NodeUnknown,
    PaymentOrder,
)

PATIENCE_S: Final = 30.0
"""How long a node that is still starting is waited for."""
OUTCOME_S: Final = 1.0
"""How long `pay` waits for the end of what lnd has begun; lnd goes on without being watched."""
PARTS_MAX: Final = 16
"""In how many parts lnd may pay; what its own command line takes."""
REFUSAL_WORDS: Final = (
    "invoice expired",
    "self-payments not allowed",
    "not for current active network",
    "amount must be specified",
    "amount must not be specified",
    "either a payment address or blinded paths",
    "amp flag",
    "unknown required feature",
    "missing feature dependency",
)
"""How lnd words refusals that it makes before it writes anything down. Only after one of these an attempt counts as not begun: the code,
UNKNOWN, may also be that of a connection that broke after the request went out."""
NO_ROUTE_WORDS: Final = (
    "unable to find a path",
    "insufficient local balance",
    "destination hop doesn't understand",
    "unknown required feature",
    "missing dependent feature",
    "missing feature dependency",
)
"""How lnd words that it knows no way."""


async def open_paying_node(settings: LndSettings, *, patience_s: float = PATIENCE_S) -> LndPayingNode:
    """Connect, learn the network and try the macaroon. Raises StartError and NodeUnavailableError."""
    connection = LndConnection(settings)
    try:
        info = await connection.info(patience_s)
        await _check_macaroon(connection)
        return LndPayingNode(connection, currency_of(info), info.identity_pubkey)
    except BaseException:
        await connection.close()
        raise


async def _check_macaroon(connection: LndConnection) -> None:
    """Ask for each method once, with a request that lnd cannot fulfil."""
    router = connection.router
    nobody, nowhere = TrackPaymentRequest(), SendPaymentRequest(payment_request="none")
    await connection.check_macaroon(
        routerrpc__Router__SendPaymentV2=anext(messages(router.SendPaymentV2(nowhere, timeout=CALL_S)), None),
        routerrpc__Router__TrackPaymentV2=anext(messages(router.TrackPaymentV2(nobody, timeout=CALL_S)), None),
        routerrpc__Router__EstimateRouteFee=router.EstimateRouteFee(RouteFeeRequest(), timeout=CALL_S),
    )


class LndPayingNode:
    """A PayingNode over lnd. lnd keeps one payment per hash, so that paying twice is one payment."""

    def __init__(self, connection: LndConnection, currency: str, public_key: str) -> None:
        self._connection = connection
        self._currency = currency
        self._public_key = public_key

    @property
    def currency(self) -> str:
        """The BOLT11 currency of the node's network."""
        return self._currency

    @property
    def simulated(self) -> bool:
        """False: it is a node, whatever its network."""
        return False

    async def pay(self, order: PaymentOrder) -> NodePaid | NodeFailed | NodePending:
        """Let lnd begin, and wait a moment for the end. Where lnd knows the hash already, its payment is the answer."""
        stream = self._connection.router.SendPaymentV2(_request(order), timeout=CALL_S + OUTCOME_S)
        try:
            return await _early_outcome(messages(stream))
        except LndRefusal as refusal:
            return await self._joined(order, refusal)
        finally:
            stream.cancel()

    async def _joined(self, order: PaymentOrder, refusal: LndRefusal) -> NodePaid | NodeFailed | NodePending:
        """What a payment has come to that lnd did not begin just now."""
        found = await self.track(order.payment_hash)
        refused = refusal.says(*REFUSAL_WORDS)
        if refusal.code is grpc.StatusCode.ALREADY_EXISTS or refused:
            if not isinstance(found, NodeUnknown):
                return found
            if refused:
                return NodeFailed(NodeFailure.ERROR)
        raise unavailable(refusal)

    async def track(self, payment_hash: str) -> NodePaid | NodeFailed | NodePending | NodeUnknown:
        """The first message of lnd's stream of a payment is what it has come to."""
        request = TrackPaymentRequest(payment_hash=bytes.fromhex(payment_hash))
        stream = self._connection.router.TrackPaymentV2(request, timeout=CALL_S)
        try:
            async for payment in messages(stream):
                return outcome(payment)
        except LndRefusal as refusal:
            if refusal.code is grpc.StatusCode.NOT_FOUND:
                return NodeUnknown()
            raise unavailable(refusal) from None
        finally:
            stream.cancel()
        raise NodeUnavailableError("lnd ended the stream of a payment without a word")

    async def estimate(self, payment_request: str, amount_msat: int) -> FeeEstimate:
        """The cheapest way that lnd's graph has, without sending anything; hints are reckoned with as they stand."""
        request = bolt11.decode(payment_request)
        estimates = [await self._estimate(stretch) for stretch in stretches(request, amount_msat, self._public_key)]
        found = [estimate for estimate in estimates if estimate is not None]
        if not found:
            raise NodeRefusedError("no_route", "lnd knows no route")
        return min(found, key=lambda estimate: (estimate.fee_msat, estimate.delay_blocks))

    async def _estimate(self, stretch: Stretch) -> FeeEstimate | None:
        """What one way costs in all; None: there is none."""
        if stretch.destination == self._public_key:
            return FeeEstimate(stretch.rest_fee_msat, stretch.rest_delay_blocks)
        request = RouteFeeRequest(dest=bytes.fromhex(stretch.destination), amt_sat=stretch.amount_sat)
        try:
            cost = await answer(self._connection.router.EstimateRouteFee(request, timeout=CALL_S))
        except LndRefusal as refusal:
            if refusal.says(*NO_ROUTE_WORDS):
                return None
            raise unavailable(refusal) from None
        return FeeEstimate(
            cost.routing_fee_msat + stretch.rest_fee_msat, cost.time_lock_delay + stretch.rest_delay_blocks
        )

    async def close(self) -> None:
        """Close the connection."""
        await self._connection.close()


def _request(order: PaymentOrder) -> SendPaymentRequest:
    """Lnd's order. The hash and the amount are the payment request's own: what we ledger is what lnd pays."""
    decoded = bolt11.decode(order.payment_request)
    assert decoded.payment_hash == order.payment_hash, "the order is of another hash than its payment request"
    assert decoded.amount_msat == (None if order.amount_is_open else order.amount_msat), "the amounts differ"
    return SendPaymentRequest(
        payment_request=order.payment_request,
        amt_msat=order.amount_msat if order.amount_is_open else 0,
        fee_limit_msat=order.fee_limit_msat,
        timeout_seconds=order.timeout_s,
        max_parts=PARTS_MAX,
    )


async def _early_outcome(updates: AsyncIterator[Payment]) -> NodePaid | NodeFailed | NodePending:
    """The end when it comes soon. The first message is what says that lnd has begun."""
    begun = False
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(CALL_S) as limit:
            async for payment in updates:
                so_far = outcome(payment)
                if not isinstance(so_far, NodePending):
                    return so_far
                if not begun:
                    begun = True
                    limit.reschedule(loop.time() + OUTCOME_S)
    except TimeoutError:
        if begun:
            return NodePending()
        raise NodeUnavailableError(f"lnd did not begin to pay within {CALL_S} s") from None
    raise NodeUnavailableError("lnd ended the stream of a payment before its end")

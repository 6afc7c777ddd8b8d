"""The simulated node that pays: `PayingNode` over the simulated network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Self

from services.lightning.bolt11 import decode
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
from services.lightning.payment_request import REGTEST, Bolt11Error, PaymentRequest
from services.lightning.simulated import attempts
from services.lightning.simulated.chance import happens
from services.lightning.simulated.channels import Balances
from services.lightning.simulated.node_file import NodeFile, now_ms
from services.lightning.simulated.payee import preimage_of
from services.lightning.simulated.planning import Task, could_carry, with_fee
from services.lightning.simulated.profile import Profile
from services.lightning.simulated.routing import Route, cheapest_route
from services.lightning.simulated.words import words_of
from services.storage.places import Place
from services.storage.sql import Connection


class SimulatedPayingNode:
    """Pays over the network of its profile; make it with `open`. All replicas share the one node.

    A payee outside of this network reveals no preimage: nobody can know it, so the payment is paid with preimage "".
    """

    currency: Final = REGTEST
    simulated: Final = True

    def __init__(self, file: NodeFile) -> None:
        """For `open` only."""
        self._file = file

    @classmethod
    async def open(cls, where: Place, profile: Profile | None = None, clock: Callable[[], int] = now_ms) -> Self:
        """Open the network's file in a service's data directory, or its schema."""
        return cls(await NodeFile.open(where, profile or Profile(), clock))

    async def pay(self, order: PaymentOrder) -> NodePaid | NodeFailed | NodePending:
        """Begin, or join; a new attempt only after one that failed."""
        request = _request(order)
        if request is None:
            return NodeFailed(NodeFailure.ERROR)
        begun, outcome = await self._file.write(lambda connection, now: self._pay(connection, order, request, now))
        profile = self._file.world.profile
        if begun and happens(profile.lost, profile.seed, "lost", order.payment_hash):
            raise NodeUnavailableError("the answer got lost")
        return outcome

    def _pay(
        self, connection: Connection, order: PaymentOrder, request: PaymentRequest, now: int
    ) -> tuple[bool, NodePaid | NodeFailed | NodePending]:
        world = self._file.world
        known = attempts.outcome_of(connection, order.payment_hash)
        if isinstance(known, NodeUnknown | NodeFailed) and now >= request.expire_time_s * attempts.MS_PER_SECOND:
            return False, NodeFailed(NodeFailure.ERROR)
        begun = attempts.begin(connection, world, _task(order, request), preimage_of(world, request), now)
        outcome = attempts.outcome_of(connection, order.payment_hash)
        assert not isinstance(outcome, NodeUnknown)
        return begun, outcome

    async def track(self, payment_hash: str) -> NodePaid | NodeFailed | NodePending | NodeUnknown:
        """What became of it."""
        outcome, moment_ms = await self._file.read(
            lambda connection: (attempts.outcome_of(connection, payment_hash), attempts.next_moment_ms(connection))
        )
        if not isinstance(outcome, NodePending) or moment_ms is None or moment_ms > self._file.clock():
            return outcome
        return await self._file.write(lambda connection, now: self._advanced(connection, payment_hash, now))

    def _advanced(self, connection: Connection, payment_hash: str, now: int) -> attempts.Outcome:
        attempts.advance(connection, self._file.world, now)
        return attempts.outcome_of(connection, payment_hash)

    async def estimate(self, payment_request: str, amount_msat: int) -> FeeEstimate:
        """The cheapest route's fee, by what is public of the network."""
        request = _decoded(payment_request)
        if request is None or amount_msat <= 0:
            raise NodeRefusedError("request", "not a payment request that this node can pay")
        route = await self._file.read(lambda connection: self._route(connection, request, amount_msat))
        if route is None:
            raise NodeRefusedError("no_route", "there is no route to the payee")
        return FeeEstimate(fee_msat=route.fee_msat, delay_blocks=route.delay_blocks)

    def _route(self, connection: Connection, request: PaymentRequest, amount_msat: int) -> Route | None:
        network, balances = self._file.world.network, Balances(connection)
        route = cheapest_route(
            network,
            request.payee_pubkey,
            amount_msat,
            request.min_final_cltv_expiry_delta,
            lambda channel, sender, msat: could_carry(network, balances, channel, sender, msat),
        )
        return route if route is None else with_fee(route, words_of(request.description or ""))

    async def close(self) -> None:
        """Close the file."""
        await self._file.close()


def _decoded(payment_request: str) -> PaymentRequest | None:
    """The request, when it is one of the simulated currency: a real invoice must never look paid."""
    try:
        request = decode(payment_request)
    except Bolt11Error:
        return None
    return request if request.currency == REGTEST else None


def _request(order: PaymentOrder) -> PaymentRequest | None:
    """The order's request, when the order fits it."""
    request = _decoded(order.payment_request)
    if request is None or request.payment_hash != order.payment_hash or order.amount_msat <= 0:
        return None
    asked_msat = request.amount_msat
    if order.amount_is_open is not (asked_msat is None) or (asked_msat is not None and order.amount_msat != asked_msat):
        return None
    return request


def _task(order: PaymentOrder, request: PaymentRequest) -> Task:
    return Task(
        payment_hash=order.payment_hash,
        payee=request.payee_pubkey,
        amount_msat=order.amount_msat,
        fee_limit_msat=order.fee_limit_msat,
        timeout_s=order.timeout_s,
        final_delta_blocks=request.min_final_cltv_expiry_delta,
        words=words_of(request.description or ""),
    )

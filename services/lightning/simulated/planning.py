"""What becomes of a payment in the simulated network: a pure function of seed, payment and balances."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Final

from services.lightning.node import NodeFailure
from services.lightning.simulated.chance import draw, happens
from services.lightning.simulated.network import Channel, Network
from services.lightning.simulated.profile import Profile
from services.lightning.simulated.routing import Route, cheapest_route
from services.lightning.simulated.words import Behaviour, Words

TRIES_MAX: Final = 16
"""Routes that are tried for one payment; then the channels that are left would not carry it either."""
MS_PER_SECOND: Final = 1_000

Balance = Callable[[Channel, str], int]
"""What a node can send into a channel of limited capacity now."""


class Fate(IntEnum):
    """How a payment will end. Stored by number."""

    PAID = 1
    FAILED = 2
    HANGS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A payment to plan. `number` counts the attempts at this payment hash: each has its own luck."""

    payment_hash: str
    payee: str
    amount_msat: int
    fee_limit_msat: int
    timeout_s: int
    final_delta_blocks: int
    words: Words
    number: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How it ends, and when. `route` None: it never left. `failure` says why in case that it fails."""

    fate: Fate
    failure: NodeFailure
    fee_msat: int
    delay_ms: int
    route: Route | None
    tries: int


@dataclass(slots=True)
class Attempt:
    """One payment on its search for a way: what it has learnt about channels, and the time that took."""

    network: Network
    profile: Profile
    balance: Balance
    task: Task
    broken: set[tuple[str, str]]
    elapsed_ms: int
    tries: int = 0

    def run(self) -> Plan:
        """Try route after route."""
        while self.tries < TRIES_MAX:
            if self.elapsed_ms > self.task.timeout_s * MS_PER_SECOND:
                return self._failed(NodeFailure.TIMEOUT)
            route = self._route()
            if route is None or route.fee_msat > self.task.fee_limit_msat:
                return self._failed(NodeFailure.NO_ROUTE if self._has_money() else NodeFailure.INSUFFICIENT_BALANCE)
            self.tries += 1
            obstacle = self._obstacle(route)
            if obstacle is None:
                return self._arrives(route)
            self._learn(route, obstacle)
        return self._failed(NodeFailure.NO_ROUTE)

    def _route(self) -> Route | None:
        task = self.task
        route = cheapest_route(self.network, task.payee, task.amount_msat, task.final_delta_blocks, self._usable)
        return route if route is None else with_fee(route, task.words)

    def _usable(self, channel: Channel, sender: str, amount_msat: int) -> bool:
        """What the payer knows: capacities, its own balances, and where it failed before."""
        if (channel.channel_id, sender) in self.broken:
            return False
        return could_carry(self.network, self.balance, channel, sender, amount_msat)

    def _has_money(self) -> bool:
        channels = self.network.of(self.network.own)
        if any(channel.capacity_msat is None for channel in channels):
            return True
        return sum(self.balance(channel, self.network.own) for channel in channels) >= self.task.amount_msat

    def _obstacle(self, route: Route) -> int | None:
        """The index of the hop that does not carry it: by its hidden balance, or by bad luck."""
        for index, hop in enumerate(route.hops):
            if hop.channel.capacity_msat is not None and self.balance(hop.channel, hop.sender) < hop.amount_msat:
                return index
        words = (self.task.payment_hash, self.task.number, self.tries)
        if happens(self.profile.failures, self.profile.seed, "failure", *words):
            return draw(self.profile.seed, "hop", *words) % len(route.hops)
        return None

    def _learn(self, route: Route, obstacle: int) -> None:
        hop = route.hops[obstacle]
        self.broken.add((hop.channel.channel_id, hop.sender))
        self.elapsed_ms += 2 * (obstacle + 1) * self.profile.delay_ms

    def _arrives(self, route: Route) -> Plan:
        behaviour, task = self.task.words.behaviour, self.task
        unlucky = happens(self.profile.hangs, self.profile.seed, "hang", task.payment_hash, task.number)
        if behaviour is Behaviour.FAIL:
            fate = Fate.FAILED
        elif behaviour is Behaviour.HANG or (behaviour is None and unlucky):
            fate = Fate.HANGS
        else:
            fate = Fate.PAID
        delay_ms = self.elapsed_ms + 2 * len(route.hops) * self.profile.delay_ms
        if fate is Fate.HANGS:
            delay_ms = route.delay_blocks * self.profile.block_ms
        failure = NodeFailure.TIMEOUT if fate is Fate.HANGS else NodeFailure.NO_ROUTE
        return Plan(
            fate=fate, failure=failure, fee_msat=route.fee_msat, delay_ms=delay_ms, route=route, tries=self.tries
        )

    def _failed(self, failure: NodeFailure) -> Plan:
        delay_ms = min(self.elapsed_ms, self.task.timeout_s * MS_PER_SECOND)
        return Plan(fate=Fate.FAILED, failure=failure, fee_msat=0, delay_ms=delay_ms, route=None, tries=self.tries)


def plan_payment(network: Network, profile: Profile, balance: Balance, task: Task) -> Plan:
    """How this payment ends when it begins now."""
    attempt = Attempt(network, profile, balance, task, broken=set(), elapsed_ms=task.words.delay_ms)
    return attempt.run()


def could_carry(network: Network, balance: Balance, channel: Channel, sender: str, amount_msat: int) -> bool:
    """Whether a channel may carry so much, as far as we can know: balances of others are hidden."""
    if channel.capacity_msat is None:
        return True
    known_msat = balance(channel, sender) if sender == network.own else channel.capacity_msat
    return known_msat >= amount_msat


def with_fee(route: Route, words: Words) -> Route:
    """The route with the fee that the words ask for: the first node on the way keeps the difference."""
    if words.fee_msat is None:
        return route
    first = replace(route.hops[0], amount_msat=route.amount_msat + words.fee_msat)
    return replace(route, hops=(first, *route.hops[1:]))

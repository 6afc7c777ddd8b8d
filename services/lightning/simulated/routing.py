"""The cheapest way for a payment: Dijkstra's algorithm, from the payee backwards, since fees grow with what is forwarded."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from services.lightning.simulated.network import Channel, Network

HOPS_MAX: Final = 20
"""An onion holds about this many."""

Usable = Callable[[Channel, str, int], bool]
"""Whether `node` may send so many msat into the channel."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hop:
    """One channel of a route: `sender` sends `amount_msat` into it."""

    channel: Channel
    sender: str
    amount_msat: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """From us to the payee. `delay_blocks` is the time lock of the whole, the payee's part included."""

    hops: tuple[Hop, ...]
    amount_msat: int
    delay_blocks: int

    @property
    def fee_msat(self) -> int:
        """What the nodes between keep."""
        return self.hops[0].amount_msat - self.amount_msat


@dataclass(frozen=True, slots=True, order=True)
class _Reached:
    """A node that the search has reached: so much must arrive there. Ordered by cost, ties by names that the seed fixes."""

    arriving_msat: int
    length: int
    node: str
    channel_id: str
    hop: Hop | None = field(compare=False)
    """What the node sends on."""


def cheapest_route(
    network: Network, payee: str, amount_msat: int, final_delta_blocks: int, usable: Usable
) -> Route | None:
    """The route of the lowest fee; None when there is none. To ourselves there is none."""
    assert amount_msat > 0
    onward: dict[str, Hop] = {}
    heap = [_Reached(amount_msat, 0, payee, "", None)] if payee != network.own else []
    done: set[str] = set()
    while heap:
        reached = heapq.heappop(heap)
        if reached.node in done:
            continue
        done.add(reached.node)
        if reached.hop is not None:
            onward[reached.node] = reached.hop
        if reached.node == network.own:
            return _route(network, onward, payee, amount_msat, final_delta_blocks)
        for before in _before(network, reached, usable) if reached.length < HOPS_MAX else ():
            if before.node not in done:
                heapq.heappush(heap, before)
    return None


def _before(network: Network, reached: _Reached, usable: Usable) -> Iterator[_Reached]:
    """The nodes that can send to the one that was reached, with what must arrive there."""
    for channel in network.of(reached.node):
        sender = channel.other(reached.node)
        if usable(channel, sender, reached.arriving_msat):
            hop = Hop(channel=channel, sender=sender, amount_msat=reached.arriving_msat)
            fee_msat = 0 if sender == network.own else channel.policy(sender).fee_msat(reached.arriving_msat)
            arriving_msat = reached.arriving_msat + fee_msat
            yield _Reached(arriving_msat, reached.length + 1, sender, channel.channel_id, hop)


def _route(network: Network, onward: dict[str, Hop], payee: str, amount_msat: int, final_delta_blocks: int) -> Route:
    """Follow the hops from us on."""
    hops: list[Hop] = []
    node = network.own
    while node != payee:
        hops.append(onward[node])
        node = hops[-1].channel.other(node)
    deltas = (hop.channel.policy(hop.sender).delta_blocks for hop in hops[1:])
    return Route(hops=tuple(hops), amount_msat=amount_msat, delay_blocks=final_delta_blocks + sum(deltas))

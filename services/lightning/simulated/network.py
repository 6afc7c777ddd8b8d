"""The simulated network: nodes and channels, all drawn from a seed. Public keys name the nodes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from services.chassis.secret import SecretBytes
from services.lightning.node_key import NodeKey
from services.lightning.simulated.chance import between, draw, secret
from services.lightning.simulated.profile import Profile

PPM: Final = 1_000_000
HUB_BASE_FEE_MSAT: Final = 1_000
HUB_FEE_PPM: Final = 1_000
"""0.1 %: with the base, close to what a payment over three hops costs."""
HUB_DELTA_BLOCKS: Final = 40
CHANNELS_EACH: Final = 3
"""Channels that each node opens to older ones, and a stranger to the network."""
CAPACITY_BITS: Final = (30, 36)
"""Capacities are 2**30 to 2**36 msat: a hundredth of a bitcoin to two thirds of one."""
BASE_FEE_MSAT_MAX: Final = 2_000
FEE_PPM_MAX: Final = 1_500
DELTAS_BLOCKS: Final = (18, 34, 40, 80)
PERCENT: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What one side of a channel asks for forwarding over it."""

    base_fee_msat: int
    fee_ppm: int
    delta_blocks: int

    def fee_msat(self, amount_msat: int) -> int:
        """The fee for forwarding so much."""
        return self.base_fee_msat + amount_msat * self.fee_ppm // PPM


@dataclass(frozen=True, slots=True, kw_only=True)
class Channel:
    """A channel between the nodes `left` and `right`. `capacity_msat` None: never short, and nobody keeps its accounts."""

    channel_id: str
    left: str
    right: str
    capacity_msat: int | None
    left_msat: int
    """What `left` had at first; the rest was `right`'s."""
    left_policy: Policy
    """For what `left` forwards to `right`."""
    right_policy: Policy

    def other(self, node: str) -> str:
        """The node at the other end."""
        return self.right if node == self.left else self.left

    def policy(self, node: str) -> Policy:
        """What this node asks for forwarding over the channel."""
        return self.left_policy if node == self.left else self.right_policy

    def first_msat(self, node: str) -> int:
        """What this node had at first."""
        assert self.capacity_msat is not None
        return self.left_msat if node == self.left else self.capacity_msat - self.left_msat


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """All nodes and channels. `own` pays, `payee` makes invoices and takes the money at once, `hermit` has no channel."""

    seed: int
    own: str
    payee: str
    hermit: str
    members: tuple[str, ...]
    """Nodes to which strangers have their channels."""
    channels: Mapping[str, tuple[Channel, ...]]
    """Those of each node."""
    friendly: bool
    """One hub, and no channel is ever short."""

    def of(self, node: str) -> tuple[Channel, ...]:
        """The channels of a node; one that the network does not know gets some, always the same ones."""
        known = self.channels.get(node)
        return self._attached(node) if known is None else known

    def _attached(self, node: str) -> tuple[Channel, ...]:
        if self.friendly:
            return (_open_channel(self.members[0], node),)
        return _drawn_channels(self.seed, node, self.members, share=(50, 100))


def node_key(seed: int, name: str) -> NodeKey:
    """The key of a simulated node of this network."""
    return NodeKey(SecretBytes(secret(seed, "node", name)))


@lru_cache(maxsize=8)
def make_network(profile: Profile) -> Network:
    """The network of a profile."""
    names = ["hub"] if profile.nodes == 0 else [f"node {number}" for number in range(profile.nodes - 3)]
    own, payee, hermit, *members = (
        node_key(profile.seed, name).public_key for name in ("own", "payee", "hermit", *names)
    )
    if profile.nodes == 0:
        channels = [_open_channel(members[0], own), _open_channel(members[0], payee)]
    else:
        channels = _grown(profile.seed, members, own, payee)
    by_node: dict[str, tuple[Channel, ...]] = dict.fromkeys((own, payee, hermit, *members), ())
    for channel in channels:
        for node in (channel.left, channel.right):
            by_node[node] += (channel,)
    return Network(
        seed=profile.seed,
        own=own,
        payee=payee,
        hermit=hermit,
        members=tuple(members),
        channels=by_node,
        friendly=profile.nodes == 0,
    )


def _grown(seed: int, members: list[str], own: str, payee: str) -> list[Channel]:
    """Each node opens channels to some that were there before, so that all hang together."""
    channels: list[Channel] = []
    for count, node in enumerate(members[1:], start=1):
        channels += _drawn_channels(seed, node, tuple(members[:count]), share=(10, 90))
    channels += _drawn_channels(seed, own, tuple(members), share=(10, 40))
    channels += _drawn_channels(seed, payee, tuple(members), share=(60, 90))
    return channels


def _drawn_channels(seed: int, node: str, peers: tuple[str, ...], *, share: tuple[int, int]) -> tuple[Channel, ...]:
    """Channels of `node` to some of `peers`, who hold this share (percent, from and to) of each."""
    count = min(CHANNELS_EACH, len(peers))
    chosen = sorted(peers, key=lambda peer: draw(seed, "peer", node, peer))[:count]
    return tuple(_drawn_channel(seed, peer, node, share) for peer in chosen)


def _drawn_channel(seed: int, left: str, right: str, share: tuple[int, int]) -> Channel:
    channel_id = _channel_id(left, right)
    bits = between(*CAPACITY_BITS, seed, "bits", channel_id)
    capacity_msat = between(2**bits // 2, 2**bits, seed, "capacity", channel_id)
    return Channel(
        channel_id=channel_id,
        left=left,
        right=right,
        capacity_msat=capacity_msat,
        left_msat=capacity_msat * between(*share, seed, "share", channel_id) // PERCENT,
        left_policy=_drawn_policy(seed, channel_id, "left"),
        right_policy=_drawn_policy(seed, channel_id, "right"),
    )


def _drawn_policy(seed: int, channel_id: str, side: str) -> Policy:
    return Policy(
        base_fee_msat=between(0, BASE_FEE_MSAT_MAX, seed, "base", channel_id, side),
        fee_ppm=between(1, FEE_PPM_MAX, seed, "ppm", channel_id, side),
        delta_blocks=DELTAS_BLOCKS[draw(seed, "delta", channel_id, side) % len(DELTAS_BLOCKS)],
    )


def _open_channel(hub: str, node: str) -> Channel:
    policy = Policy(base_fee_msat=HUB_BASE_FEE_MSAT, fee_ppm=HUB_FEE_PPM, delta_blocks=HUB_DELTA_BLOCKS)
    return Channel(
        channel_id=_channel_id(hub, node),
        left=hub,
        right=node,
        capacity_msat=None,
        left_msat=0,
        left_policy=policy,
        right_policy=policy,
    )


def _channel_id(left: str, right: str) -> str:
    """16 hex digits, the same for the same two nodes."""
    return hashlib.sha256(f"{left}{right}".encode()).hexdigest()[:16]

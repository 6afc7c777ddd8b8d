"""The accounts of the channels: what each side can send, what is in flight, what has moved."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from services.lightning.simulated.network import Channel
from services.lightning.simulated.routing import Route
from services.storage.sql import Connection

HOLD: Final = """
INSERT INTO channel (channel_id, moved_msat, left_held_msat, right_held_msat) VALUES (:channel, 0, :left, :right)
ON CONFLICT (channel_id) DO UPDATE SET
  left_held_msat = channel.left_held_msat + :left, right_held_msat = channel.right_held_msat + :right
"""
FREE: Final = """
UPDATE channel SET moved_msat = moved_msat + :moved,
  left_held_msat = left_held_msat - :left, right_held_msat = right_held_msat - :right
WHERE channel_id = :channel AND left_held_msat >= :left AND right_held_msat >= :right
"""


@dataclass(frozen=True, slots=True)
class Held:
    """What one payment holds in one channel of limited capacity."""

    channel_id: str
    left_sends: bool
    amount_msat: int


@dataclass(slots=True)
class Balances:
    """What can be sent now, read channel by channel; for one transaction."""

    connection: Connection
    _known: dict[str, tuple[int, int, int]] = field(default_factory=dict)

    def __call__(self, channel: Channel, node: str) -> int:
        """What `node` can send into the channel."""
        if channel.channel_id not in self._known:
            self._known[channel.channel_id] = _accounts(self.connection, channel.channel_id)
        moved_msat, left_held_msat, right_held_msat = self._known[channel.channel_id]
        if node == channel.left:
            available_msat = channel.first_msat(node) - moved_msat - left_held_msat
        else:
            available_msat = channel.first_msat(node) + moved_msat - right_held_msat
        assert available_msat >= 0, "a channel sent more than it had"
        return available_msat


def _accounts(connection: Connection, channel_id: str) -> tuple[int, int, int]:
    sql = "SELECT moved_msat, left_held_msat, right_held_msat FROM channel WHERE channel_id = ?"
    row = connection.execute(sql, (channel_id,)).fetchone()
    return (0, 0, 0) if row is None else (row[0], row[1], row[2])


def held_of(route: Route | None) -> tuple[Held, ...]:
    """What a payment over this route holds."""
    hops = () if route is None else route.hops
    return tuple(
        Held(hop.channel.channel_id, hop.sender == hop.channel.left, hop.amount_msat)
        for hop in hops
        if hop.channel.capacity_msat is not None
    )


def hold(connection: Connection, route: Iterable[Held]) -> None:
    """Take what the payment sends out of the balances of those who send it."""
    for held in route:
        connection.execute(HOLD, {"channel": held.channel_id, **_sides(held)})


def free(connection: Connection, route: Iterable[Held], *, arrived: bool) -> None:
    """Give it to those who receive it, or back."""
    for held in route:
        moved_msat = 0 if not arrived else held.amount_msat if held.left_sends else -held.amount_msat
        connection.execute(FREE, {"channel": held.channel_id, "moved": moved_msat, **_sides(held)})
        assert connection.changes() == 1, "what is freed was held"


def _sides(held: Held) -> dict[str, int]:
    left_msat = held.amount_msat if held.left_sends else 0
    return {"left": left_msat, "right": held.amount_msat - left_msat}


def route_text(route: Iterable[Held]) -> str:
    """For the row of an attempt."""
    return json.dumps([[held.channel_id, held.left_sends, held.amount_msat] for held in route], separators=(",", ":"))


def route_of(text: str) -> tuple[Held, ...]:
    """What `route_text` wrote."""
    return tuple(Held(*values) for values in json.loads(text))

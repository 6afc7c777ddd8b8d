"""A client of Nostr relays: many relays, many subscriptions, connections that come back.

    async with RelayPool(RelayOptions(...)) as pool:
        outcomes = await pool.publish(event, ["wss://relay.example.com"])     # {url: Outcome(ACCEPTED)}
        async with pool.subscribe(["wss://relay.example.com"], [Filter(kinds=(24133,), tags={"p": (pubkey,)})]) as found:
            async for relay, event in found: ...

An event is handed out only when its id and signature are right. After a connection is lost the subscription resumes with `since`, an
overlap earlier: the same event may come again, as it may from two relays; the caller knows which it has seen. `protocol` decides, without
any I/O; `connection` moves its messages; `pool` holds the connections.

Specifications: https://github.com/nostr-protocol/nips/blob/master/01.md and 42.md.
"""

from services.relays.filter import Filter
from services.relays.guard import AddressRefusedError
from services.relays.metrics import RelayMetrics
from services.relays.options import Authenticator, RelayOptions
from services.relays.outcome import Outcome, OutcomeKind
from services.relays.pool import RelayPool
from services.relays.subscription import Subscription, TooManyRelaysError, all_following, any_following

__all__ = [
    "AddressRefusedError",
    "Authenticator",
    "Filter",
    "Outcome",
    "OutcomeKind",
    "RelayMetrics",
    "RelayOptions",
    "RelayPool",
    "Subscription",
    "TooManyRelaysError",
    "all_following",
    "any_following",
]

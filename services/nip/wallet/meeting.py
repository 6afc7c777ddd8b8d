"""Where wallets and apps meet: listens at the connections' relays for requests, and publishes there what the engine signed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NoReturn

from services.chassis.errors import ServiceError
from services.chassis.logs import get_logger
from services.nip.domain.nip47.envelope import AGE_S_MAX
from services.nip.domain.nip47.words import REQUEST_KIND
from services.nip.wallet.engine import Delivery, Engine
from services.nip.wallet.store import heard_connections
from services.nostr.event import Event
from services.relays import (
    Filter,
    OutcomeKind,
    RelayPool,
    Subscription,
    TooManyRelaysError,
    all_following,
    any_following,
)
from services.storage.database import Database

KEYS_PER_FILTER: Final = 1_000
"""Wallets' keys in one filter: 67 KiB, well within what relays read."""
FILTERS_MAX: Final = 10
"""Filters of one subscription, as many as relays take: 10,000 connections at one relay."""
PUBLISH_S: Final = 4.0
"""How long a relay may take to say that it has an event; afterwards it is offered again."""
FOLLOW_S: Final = 2.0
"""So long may a relay take before the URI for it is given out, or the replica serves, all the same."""
LOOK_S_MAX: Final = 5.0
"""Longest wait between two looks for connections that were made or ended, on whatever replica."""
LOOK_S_MIN: Final = 0.2
"""Shortest one: every request is a commit, and changes nothing about who listens where."""
DELIVERIES: Final = {
    OutcomeKind.ACCEPTED: Delivery.ACCEPTED,
    OutcomeKind.DUPLICATE: Delivery.ACCEPTED,
    OutcomeKind.REJECTED: Delivery.REFUSED,
    OutcomeKind.TIMED_OUT: Delivery.UNREACHABLE,
    OutcomeKind.UNREACHABLE: Delivery.UNREACHABLE,
}

_log = get_logger("nip")


class PoolPublisher:
    """Publishes through a pool of relays."""

    def __init__(self, pool: RelayPool) -> None:
        """Take the pool to publish with."""
        self._pool = pool

    async def publish(self, event: Event, relays: Sequence[str]) -> Mapping[str, Delivery]:
        """Offer an event to relays, and wait for what each says."""
        outcomes = await self._pool.publish(event, relays, timeout_s=PUBLISH_S)
        return {relay: DELIVERIES[outcome.kind] for relay, outcome in outcomes.items()}


class Meeting:
    """The subscriptions of one replica. Every replica listens for all connections: a request is taken in once, by whoever is first."""

    def __init__(self, database: Database, pool: RelayPool, engine: Engine, clock: Callable[[], int]) -> None:
        """`clock`: milliseconds since 1970."""
        self._database = database
        self._pool = pool
        self._engine = engine
        self._clock = clock
        self._looking = asyncio.Lock()
        self._listened: dict[str, tuple[str, ...]] = {}
        self._subscriptions: dict[str, Subscription] = {}
        self._readers: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> NoReturn:
        """Listen where there are connections, for ever."""
        changes = self._database.changes()
        try:
            while True:
                await self.refresh()
                await asyncio.sleep(LOOK_S_MIN)
                await changes.wait(timeout_s=LOOK_S_MAX)
        finally:
            for reader in self._readers.values():
                reader.cancel()
            await asyncio.gather(*self._readers.values(), return_exceptions=True)

    async def listen_everywhere(self) -> None:
        """Wait until all connections are listened for, at most FOLLOW_S: a replica that served before could be the only one, and deaf."""
        await self.refresh()
        await all_following(self._subscriptions.values(), FOLLOW_S)

    async def listen_at(self, relays: Iterable[str]) -> None:
        """Wait until a new connection is listened for at one of its relays: what an app sends before is lost. At most FOLLOW_S."""
        await self.refresh()
        found = (self._subscriptions.get(relay) for relay in relays)
        await any_following([one for one in found if one is not None], FOLLOW_S)

    async def refresh(self) -> None:
        """Listen for all connections that there are now."""
        async with self._looking:
            try:
                await self._look()
            except ServiceError as error:
                _log.warning("no look at the wallets' connections", reason=error.reason)

    async def _look(self) -> None:
        """Listen at each relay for the keys of its connections, as they are now."""
        now_ms = self._clock()
        wanted: dict[str, list[str]] = {}
        for wallet in await self._database.read(lambda connection: heard_connections(connection, now_ms)):
            for relay in wallet.relays:
                wanted.setdefault(relay, []).append(wallet.service_pubkey)
        for relay in self._listened.keys() - wanted.keys():
            self._end(relay)
        for relay, keys in wanted.items():
            if self._listened.get(relay) != tuple(sorted(keys)):
                self._listen(relay, tuple(sorted(keys)))

    def _listen(self, relay: str, keys: tuple[str, ...]) -> None:
        filters = self._filters(relay, keys)
        try:
            subscription = self._subscriptions.get(relay)
            if subscription is None:
                subscription = self._pool.subscribe([relay], filters)
                self._subscriptions[relay] = subscription
                self._readers[relay] = asyncio.create_task(self._read(subscription), name=f"wallet at {relay}")
            else:
                subscription.update([relay], filters)
            self._listened[relay] = keys
        except TooManyRelaysError as error:
            _log.error("wallets not listened for", relay=relay, error=str(error))

    def _filters(self, relay: str, keys: tuple[str, ...]) -> list[Filter]:
        """Requests for these keys; also those that a relay kept while nobody listened, as far back as they count."""
        heard = keys[: KEYS_PER_FILTER * FILTERS_MAX]
        if len(heard) < len(keys):
            _log.error("too many wallets at one relay", relay=relay, wallets=len(keys), heard=len(heard))
        since = self._clock() // 1_000 - AGE_S_MAX
        return [
            Filter(kinds=(REQUEST_KIND,), tags={"p": heard[start : start + KEYS_PER_FILTER]}, since=since)
            for start in range(0, len(heard), KEYS_PER_FILTER)
        ]

    def _end(self, relay: str) -> None:
        self._subscriptions.pop(relay).close()
        self._readers.pop(relay).cancel()
        del self._listened[relay]

    async def _read(self, subscription: Subscription) -> None:
        """Hand over what comes, each by itself: one that waits for the database holds up nobody but itself."""
        running: set[asyncio.Task[None]] = set()
        async for _, event in subscription:
            task = asyncio.create_task(self._engine.receive(event))
            running.add(task)
            task.add_done_callback(running.discard)

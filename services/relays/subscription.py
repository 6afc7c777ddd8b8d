"""What a subscriber holds: a bounded queue of verified events from several relays, and the means to change what comes."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from typing import Final, Protocol, Self

from services.nostr.event import Event
from services.relays.filter import Filter
from services.relays.metrics import EventResult

KNOWN_TIMES_QUEUE: Final = 4
"""Once events were dropped, so many times the queue is remembered of what was not: else the same ones would fill it again."""


class TooManyRelaysError(Exception):
    """The pool is connected to as many relays, or has as many subscriptions at one, as it may."""


class Pool(Protocol):
    """What a subscription asks of its pool."""

    def change(self, subscription: Subscription, relays: Iterable[str], filters: Sequence[Filter]) -> None:
        """Have the subscription at these relays and no others. Raises TooManyRelaysError, RelayUrlError."""

    def ask_again(self, subscription: Subscription, since: int) -> None:
        """Ask all its relays for stored events from `since` on."""


async def any_following(subscriptions: Iterable[Subscription], timeout_s: float) -> bool:
    """Wait until a relay of one of these sends what is new, see Subscription.following; False when none does in time, or there are none."""
    waiting = [asyncio.create_task(one.following(timeout_s)) for one in subscriptions]
    if not waiting:
        return False
    try:
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        return any(task.result() for task in done)
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def all_following(subscriptions: Iterable[Subscription], timeout_s: float) -> bool:
    """Wait until each of these has a relay that sends what is new, see Subscription.following; False when one has none in time."""
    return all(await asyncio.gather(*(one.following(timeout_s) for one in subscriptions)))


class Subscription:
    """An endless async iterator of (relay, event), ended by `close` or by the pool's end."""

    def __init__(self, pool: Pool, name: str, events_max: int) -> None:
        """For RelayPool.subscribe only."""
        self.name = name
        self.relays: frozenset[str] = frozenset()
        self._pool = pool
        self._events: deque[tuple[str, Event]] = deque()
        self._events_max = events_max
        self._lost_since: int | None = None
        self._known: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._closed = False
        self._ready = asyncio.Event()
        self._following = asyncio.Event()

    def update(self, relays: Iterable[str], filters: Sequence[Filter]) -> None:
        """Want other events, or from other relays, without a gap for what stays. Raises TooManyRelaysError, RelayUrlError."""
        self._pool.change(self, relays, filters)

    def put(self, relay: str, event: Event) -> EventResult:
        """Called by the pool for each event; what became of it."""
        if (relay, event.id) in self._known:
            return EventResult.REPEATED
        if len(self._events) >= self._events_max:
            self._lose(event)
            return EventResult.DROPPED
        self._events.append((relay, event))
        if self._known:
            self._remember(relay, event)
        self._ready.set()
        return EventResult.DELIVERED

    def follow(self) -> None:
        """Called by the pool when a relay has sent what it has stored."""
        self._following.set()

    def unfollow(self) -> None:
        """Called by the pool when other events are wanted."""
        self._following.clear()

    async def following(self, timeout_s: float) -> bool:
        """Wait until one relay sends what is new, since the last `update`; False when none does in time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._following.wait()
        except TimeoutError:
            return False
        return True

    def end(self) -> None:
        """Called by the pool when it closes: the iteration ends once the queue is empty."""
        self._closed = True
        self._ready.set()

    def close(self) -> None:
        """Want nothing more."""
        if not self._closed:
            self._pool.change(self, (), ())
            self.end()

    def __aiter__(self) -> Self:
        """The subscription itself."""
        return self

    async def __anext__(self) -> tuple[str, Event]:
        """The next event; waits for it."""
        while not self._events:
            if self._closed:
                raise StopAsyncIteration
            if self._lost_since is not None:
                since, self._lost_since = self._lost_since, None
                self._pool.ask_again(self, since)
            self._ready.clear()
            await self._ready.wait()
        return self._events.popleft()

    def _lose(self, event: Event) -> None:
        """The reader is too slow: stored events are asked for again later, without those that wait for it now."""
        self._lost_since = min(event.created_at, self._lost_since or event.created_at)
        for relay, waiting in self._events:
            self._remember(relay, waiting)

    def _remember(self, relay: str, event: Event) -> None:
        self._known[relay, event.id] = None
        while len(self._known) > KNOWN_TIMES_QUEUE * self._events_max:
            self._known.popitem(last=False)

    async def __aenter__(self) -> Self:
        """The subscription itself."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close."""
        self.close()

"""Many relays: publishes to several at once, and gathers what several send into one subscription."""

from __future__ import annotations

import asyncio
import itertools
import ssl
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Self

from prometheus_client import CollectorRegistry

from services.chassis.logs import get_logger
from services.nostr.event import Event
from services.nostr.relay_url import normal_relay_url
from services.nostr.verification import Verifier
from services.relays.connection import RelayConnection
from services.relays.filter import Filter
from services.relays.metrics import EventResult, RelayMetrics
from services.relays.options import RelayOptions
from services.relays.outcome import Outcome, OutcomeKind
from services.relays.subscription import Subscription, TooManyRelaysError

FILTERS_MAX: Final = 10
"""Filters of one subscription: relays take about as many."""

_log = get_logger("relays")


class RelayPool:
    """See the package. Use it from one event loop, with `async with`."""

    def __init__(self, options: RelayOptions | None = None, *, metrics: RelayMetrics | None = None) -> None:
        """Connect to nothing yet. Without `metrics` nothing is shown."""
        self._options = options or RelayOptions()
        self._metrics = metrics or RelayMetrics.register(CollectorRegistry())
        self._verifier = Verifier()
        self._tls: ssl.SSLContext | None = None
        self._connections: dict[str, RelayConnection] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._subscriptions: dict[str, Subscription] = {}
        self._names = itertools.count(1)
        self._closed = False

    async def publish(
        self, event: Event, relays: Iterable[str], *, timeout_s: float | None = None
    ) -> Mapping[str, Outcome]:
        """Send a signed event to relays, each of which answers or not; return one outcome for each, under its URL in normal form.

        Raises RelayUrlError for what is no relay's URL.
        """
        limit_s = self._options.publish_timeout_s if timeout_s is None else timeout_s
        urls = list(dict.fromkeys(normal_relay_url(relay) for relay in relays))
        outcomes = await asyncio.gather(*(self._publish(event, url, limit_s) for url in urls))
        return dict(zip(urls, outcomes, strict=True))

    def subscribe(self, relays: Iterable[str], filters: Sequence[Filter]) -> Subscription:
        """Return verified events that match one of the filters, from these relays, until it is closed.

        Raises TooManyRelaysError and RelayUrlError.
        """
        name = f"s{next(self._names)}"
        subscription = Subscription(self, name, self._options.queue_events_max)
        self._subscriptions[name] = subscription
        try:
            self.change(subscription, relays, filters)
        except BaseException:
            self.change(subscription, (), ())
            raise
        return subscription

    def change(self, subscription: Subscription, relays: Iterable[str], filters: Sequence[Filter]) -> None:
        """See Subscription.update."""
        assert len(filters) <= FILTERS_MAX, "more filters than relays take"
        urls = frozenset(normal_relay_url(relay) for relay in relays)
        new = [self._connection(url) for url in sorted(urls - subscription.relays)]
        if any(one.session.subscriptions >= self._options.subscriptions_max for one in new):
            raise TooManyRelaysError("too many subscriptions at one relay")
        for url in subscription.relays - urls:
            self._connections[url].unsubscribe(subscription.name)
        subscription.relays = urls
        subscription.unfollow()
        for url in sorted(urls):
            self._connections[url].subscribe(subscription.name, filters)
        if not urls:
            self._subscriptions.pop(subscription.name, None)
        else:
            self._subscriptions[subscription.name] = subscription

    def ask_again(self, subscription: Subscription, since: int) -> None:
        """See Subscription: events were dropped."""
        for url in subscription.relays:
            self._connections[url].read_again(subscription.name, since)

    async def close(self) -> None:
        """End all connections, and all subscriptions' iterations."""
        self._closed = True
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for subscription in self._subscriptions.values():
            subscription.end()
        await asyncio.to_thread(self._verifier.close)

    async def _publish(self, event: Event, url: str, timeout_s: float) -> Outcome:
        began_s = time.monotonic()
        try:
            outcome = await self._connection(url).publish(event, timeout_s)
        except TooManyRelaysError as error:
            outcome = Outcome(kind=OutcomeKind.UNREACHABLE, reason=str(error))
        self._metrics.publishes.labels(outcome.kind.value).inc()
        self._metrics.publish_seconds.observe(time.monotonic() - began_s)
        return outcome

    def _connection(self, url: str) -> RelayConnection:
        """The connection to a relay, made when it is first asked for; idle ones make room. Raises TooManyRelaysError."""
        assert not self._closed, "the pool is closed"
        found = self._connections.get(url)
        if found is not None:
            return found
        if len(self._connections) >= self._options.relays_max:
            self._make_room()
        connection = RelayConnection(
            url,
            self._options,
            verifier=self._verifier,
            metrics=self._metrics,
            tls=self._tls_context() if url.startswith("wss:") else None,
            deliver=self._deliver,
        )
        self._connections[url] = connection
        task = asyncio.create_task(connection.run(), name=f"relay {url}")
        self._tasks[url] = task
        task.add_done_callback(self._ended)
        return connection

    def _make_room(self) -> None:
        """Let the longest-known connection go that nobody uses. Raises TooManyRelaysError when all are in use."""
        url = next((url for url, one in self._connections.items() if one.session.idle), None)
        if url is None:
            raise TooManyRelaysError(f"connected to {self._options.relays_max} relays already")
        del self._connections[url]
        self._tasks.pop(url).cancel()

    def _deliver(self, name: str, relay: str, event: Event | None) -> None:
        subscription = self._subscriptions.get(name)
        if event is not None:
            result = EventResult.UNASKED if subscription is None else subscription.put(relay, event)
            self._metrics.events.labels(result.value).inc()
        elif subscription is not None:
            subscription.follow()

    def _tls_context(self) -> ssl.SSLContext:
        """The system's CAs, or those of the file."""
        if self._tls is None:
            self._tls = ssl.create_default_context(cafile=self._options.ca_file)
        return self._tls

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A connection's task ends only when it is cancelled; anything else is a fault, and the connection is made anew."""
        if task.cancelled() or (error := task.exception()) is None:
            return
        url = task.get_name().removeprefix("relay ")
        _log.error("a relay's connection failed", relay=url, exc_info=(type(error), error, error.__traceback__))
        self._tasks.pop(url, None)
        failed = self._connections.pop(url, None)
        if failed is not None and not self._closed:
            for subscription in [one for one in self._subscriptions.values() if url in one.relays]:
                self._connection(url).subscribe(subscription.name, failed.session.filters_of(subscription.name))

    async def __aenter__(self) -> Self:
        """The pool itself."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close."""
        await self.close()

"""The relay worker: listens for all connections at their relays, has each request answered once, publishes the answers.

Every replica listens for all of them. Which one answers is decided by the transaction that takes the request; when that replica dies,
another goes on when the lease is over. An answer is recorded before it is published, and published again until a relay has taken it or
nobody waits for it any more. What reaches no replica (relays do not store such events) has no answer: the app's time limit tells it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, Final, Self

from prometheus_client import CollectorRegistry, Counter, Gauge

from services.chassis.draining import Draining
from services.chassis.errors import ServiceError
from services.chassis.failpoints import failpoint
from services.chassis.logs import get_logger
from services.nip.domain.remote_signer.connection import Connection, ConnectionState
from services.nip.domain.remote_signer.log import Outcome, Recorded
from services.nip.keys import MICROSECONDS_PER_SECOND, wall_clock
from services.nip.remote_signer import recording, store
from services.nip.remote_signer.handler import Handler, UnreadableError
from services.nip.remote_signer.limiting import Limits
from services.nip.remote_signer.listening import Directory
from services.nip.remote_signer.signer_keys import KIND_REMOTE_SIGNING, SignerKeys
from services.nostr.event import Event, MalformedEventError
from services.nostr.event_json import event_of_json
from services.relays import RelayPool, Subscription, TooManyRelaysError, all_following, any_following
from services.storage.database import Database

WINDOW_SECONDS: Final = 600
"""Events made so long ago, or so far ahead, are taken: clocks differ, and a relay may deliver late."""
REQUESTS_MAX: Final = 256
"""Requests that a replica answers at once; more wait in the queues of the subscriptions."""
PAUSE_S: Final = 0.05
"""Between two looks at the connections: each answer is a commit, and few commits change connections."""
FOLLOW_S: Final = 2.0
"""So long may a relay take before the URI for it is given out, or the replica serves, all the same."""
LOOK_S: Final = 5.0
"""Connections are looked at so often, too, when nothing is committed: their time may be over."""
CONNECTIONS_READ_MAX: Final = 500
SWEEP_S: Final = 1.0
"""Between two looks for what other replicas left."""
SWEEP_REQUESTS_MAX: Final = 100
FORGET_S: Final = 600.0
"""Between two looks for what is kept long enough."""
FORGET_ROWS_MAX: Final = 500
DRAIN_S: Final = 5.0
"""So long may requests that were taken go on when the replica shuts down."""

_log = get_logger("remote_signer")


@dataclass(frozen=True, slots=True, kw_only=True)
class SignerMetrics:
    """What is counted."""

    connections: Gauge
    requests: Counter
    refused: Counter

    @classmethod
    def register(cls, registry: CollectorRegistry) -> Self:
        """The metrics, registered."""
        return cls(
            connections=Gauge("nipmesh_nip46_connections", "Connections that are listened for.", registry=registry),
            requests=Counter("nipmesh_nip46_requests", "Requests, by outcome.", ("outcome",), registry=registry),
            refused=Counter(
                "nipmesh_nip46_refused_events",
                "Events that were not looked at: unknown (no such connection), window (too old or early), rate, unreadable.",
                ("why",),
                registry=registry,
            ),
        )


class Worker:
    """One replica's part: `use` gives it the pools, `run` is its task."""

    def __init__(
        self,
        database: Database,
        handler: Handler,
        signer_keys: SignerKeys,
        limits: Limits,
        metrics: SignerMetrics,
        *,
        replica: str,
    ) -> None:
        """`replica`: the same name as the handler's."""
        self._database = database
        self._handler = handler
        self._signer_keys = signer_keys
        self._limits = limits
        self._metrics = metrics
        self._replica = replica
        self._directory = Directory()
        self._seen_change = 0
        self._subscriptions: dict[str, tuple[Subscription, asyncio.Task[None]]] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._room = asyncio.Semaphore(REQUESTS_MAX)
        self._pool: RelayPool | None = None
        self._publishing: RelayPool | None = None
        self._looking = asyncio.Lock()

    def use(self, listening: RelayPool, publishing: RelayPool) -> None:
        """Listen and publish with these: they are made after the worker, which they ask for proofs."""
        self._pool, self._publishing = listening, publishing

    async def run(self, draining: Draining) -> None:
        """Serve until the replica drains, then end what was begun."""
        tasks = [asyncio.create_task(part) for part in (self._follow(), self._sweep(), self._forget(), draining.wait())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in (*tasks, *(listening for _, listening in self._subscriptions.values())):
                task.cancel()
            for subscription, _ in self._subscriptions.values():
                subscription.close()
            await asyncio.gather(*tasks, return_exceptions=True)
        if self._running:
            await asyncio.wait(self._running, timeout=DRAIN_S)

    async def listen_everywhere(self) -> None:
        """Wait until all connections are listened for, at most FOLLOW_S: a replica that served before could be the only one, and deaf."""
        await self._look_if_possible()
        await all_following([subscription for subscription, _ in self._subscriptions.values()], FOLLOW_S)

    async def listen_at(self, relays: Iterable[str]) -> None:
        """Wait until a new connection is listened for at one of its relays: what an app sends before is lost. At most FOLLOW_S."""
        await self._look()
        found = (self._subscriptions.get(relay) for relay in relays)
        await any_following([known[0] for known in found if known is not None], FOLLOW_S)

    def go_on_soon(self, recorded: Recorded) -> None:
        """Answer a request whose user has decided."""
        self._spawn(self._go_on(recorded))

    async def prove(self, relay: str, challenge: str) -> Event | None:
        """Tell a relay that asks (NIP-42) that we are one of the signers that we listen for there."""
        connection = self._directory.any_at(relay)
        if connection is None:
            return None
        created_at = wall_clock() // MICROSECONDS_PER_SECOND
        return await self._signer_keys.prove(connection, relay, challenge, created_at=created_at)

    async def _follow(self) -> None:
        """Listen where the connections in the database want it."""
        changes = self._database.changes()
        while True:
            await self._look_if_possible()
            await asyncio.sleep(PAUSE_S)
            await changes.wait(timeout_s=LOOK_S)

    async def _look_if_possible(self) -> None:
        """Look now; the next look comes soon when the database is busy."""
        try:
            await self._look()
        except ServiceError as error:
            _log.warning("connections were not read", problem=str(error))

    async def _look(self) -> None:
        """Read what has changed, and listen accordingly."""
        async with self._looking:
            await self._look_alone()

    async def _look_alone(self) -> None:
        now_us = wall_clock()
        relays = set(self._directory.expire(now_us))
        while True:
            after = self._seen_change
            found = await self._database.read(
                lambda rows: store.changed_connections(rows, after, CONNECTIONS_READ_MAX)  # noqa: B023  # awaited here
            )
            for number, connection in found:
                relays |= self._directory.put(connection, now_us)
                self._seen_change = number
            if len(found) < CONNECTIONS_READ_MAX:
                break
        self._metrics.connections.set(len(self._directory))
        for relay in sorted(relays):
            self._listen(relay)

    def _listen(self, relay: str) -> None:
        """Ask a relay for the events of its connections, no more and no less."""
        assert self._pool is not None, "given by `use`"
        filters, left_out = self._directory.filters(relay, int(time.time()) - WINDOW_SECONDS)
        if left_out:
            _log.error("too many connections at one relay", relay=relay, left_out=left_out)
        known = self._subscriptions.get(relay)
        if not filters:
            if known is not None:
                del self._subscriptions[relay]
                known[0].close()
            return
        if known is not None:
            known[0].update([relay], filters)
            return
        try:
            subscription = self._pool.subscribe([relay], filters)
        except TooManyRelaysError as error:
            _log.error("a relay is not listened to", relay=relay, problem=str(error))
            return
        task = asyncio.create_task(self._take_events(subscription), name=f"listen {relay}")
        self._subscriptions[relay] = (subscription, task)

    async def _take_events(self, subscription: Subscription) -> None:
        """Begin with each event; as many at once as there is room for."""
        async for relay, event in subscription:
            await self._room.acquire()
            task = self._spawn(self._handle(relay, event))
            task.add_done_callback(lambda _: self._room.release())

    async def _handle(self, relay: str, event: Event) -> None:
        """Answer one event, verified by the pool."""
        connection = self._directory.find(tag[1] for tag in event.tags if len(tag) > 1 and tag[0] == "p")
        refusal = None
        if connection is None or event.kind != KIND_REMOTE_SIGNING:
            refusal = "unknown"
        elif abs(int(time.time()) - event.created_at) > WINDOW_SECONDS:
            refusal = "window"
        elif not self._limits.allow(connection, event.pubkey):
            refusal = "rate"
        if refusal is not None or connection is None:
            self._metrics.refused.labels(refusal).inc()
            return
        try:
            recorded = await self._handler.from_event(connection, event, relay)
        except UnreadableError:
            self._metrics.refused.labels("unreadable").inc()
            return
        if recorded is not None:
            self._metrics.requests.labels(recorded.outcome.value).inc()
            if connection.state is ConnectionState.PENDING:
                await self._look()  # else what the app sends next would count as a stranger's
            await self._publish(recorded)

    async def _publish(self, recorded: Recorded) -> None:
        """Send a recorded answer to the relays of its connection; note when one of them has it."""
        assert self._publishing is not None, "given by `use`"
        if recorded.answer is None:
            return
        connection = await self._connection(recorded)
        relays = dict.fromkeys((*connection.relays, *((recorded.relay,) if recorded.relay else ())))
        if recorded.method == "connect":
            await self.listen_at(connection.relays)  # what it asks for next, once it is answered, must be heard
        outcomes = await self._publishing.publish(event_of_json(recorded.answer), relays)
        failpoint("nip46.published")
        if any(outcome.arrived for outcome in outcomes.values()):
            await self._mark(recorded)
        else:
            reasons = sorted({f"{one.kind.value} {one.reason}" for one in outcomes.values()})
            _log.warning("an answer is not out", approval_id=recorded.approval_id, reasons=reasons)

    async def _connection(self, recorded: Recorded) -> Connection:
        found = await self._database.read(lambda rows: store.find_connection(rows, recorded.connection_id))
        assert found is not None, "connections are kept"
        return found

    async def _mark(self, recorded: Recorded) -> None:
        if recorded.unpublished:
            asked_until_us = recorded.update_time_us + recording.ASK_US
            await self._database.write(lambda rows: store.mark_published(rows, (recorded.approval_id,), asked_until_us))

    async def _go_on(self, recorded: Recorded) -> None:
        """Do what is to be done with a request of ours."""
        if recorded.outcome is Outcome.RUNNING:
            done = await self._handler.go_on(recorded)
            if done is None or not done.unpublished:
                return
            recorded = done
        await self._publish(recorded)

    async def _sweep(self) -> None:
        """Take over what other replicas, or this one before it was started again, left."""
        while True:
            try:
                left = await self._left()
            except ServiceError:
                left = []  # busy, and logged there
            for recorded in left:
                _log.info("a request is taken over", approval_id=recorded.approval_id, attempts=recorded.attempts)
                self._spawn(self._go_on(recorded))
            await asyncio.sleep(SWEEP_S)

    async def _left(self) -> list[Recorded]:
        """A read first: a transaction that writes only when there is something."""
        now_us = wall_clock()
        if not await self._database.read(lambda rows: store.overdue_requests(rows, now_us, 1)):
            return []
        return await self._database.write(
            lambda rows: recording.take_over(rows, self._replica, now_us, SWEEP_REQUESTS_MAX)
        )

    async def _forget(self) -> None:
        """Delete what is kept long enough."""
        while True:
            await asyncio.sleep(FORGET_S)
            try:
                while (
                    await self._database.write(lambda rows: store.forget_old(rows, wall_clock(), FORGET_ROWS_MAX))
                    >= FORGET_ROWS_MAX
                ):
                    pass
            except ServiceError:
                continue  # busy, and logged there: housekeeping waits

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(_logged(work))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task


async def _logged(work: Coroutine[Any, Any, None]) -> None:
    """One request that fails stays behind, for whoever takes it over; it does not end the service."""
    try:
        await work
    except ServiceError as error:
        _log.warning("a request is left for later", problem=str(error))
    except (MalformedEventError, UnreadableError) as error:
        _log.error("a recorded request cannot be read", problem=str(error))
    except Exception:  # noqa: BLE001  # a fault of ours, logged whole
        _log.exception("a request failed")

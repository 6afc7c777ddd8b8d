"""Consumers: each event of the chosen types has its effect once, whatever is killed when.

    app.spawn(run_consumer(database, bus, name="zaps", types=["nipmesh.invoice.v1.settled"], handle=on_settled), name="zaps")

    def on_settled(connection: Connection, event: CloudEvent) -> None:
        changed = event.unpack(InvoiceChanged)
        connection.execute("INSERT INTO receipt ...")

The bus delivers at least once. The inbox row is written in the transaction of the effect, and the delivery acknowledged after it: so a
repeated delivery finds the row and has no effect. What fails is parked in the same database (see `parking`) and holds nothing up.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, NoReturn

from opentelemetry import context as contexts
from opentelemetry import propagate

from services.chassis.errors import ServiceError
from services.chassis.logs import get_logger
from services.events.bus import ALL, BusUnavailableError, Delivery, EventBus, Inflow, Start, Subscription
from services.events.cloud_event import CloudEvent
from services.events.filters import checked
from services.events.leases import Lease, Leasing, while_leading
from services.events.metrics import ConsumerMetrics
from services.events.parking import (
    Failure,
    Parked,
    ParkReason,
    due,
    next_due_ms,
    note_attempt,
    park,
    queued,
    unpark,
    waiting_subjects,
)
from services.events.pausing import rest_s
from services.events.verdicts import check_deliveries, check_delivery, check_schema, reason_of, text_of
from services.storage.database import Database
from services.storage.inbox import receive
from services.storage.sql import Connection

Handle = Callable[[Connection, CloudEvent], None]
"""Runs in the transaction that records the event as received. Like every write it may run more than once before it is committed: it
changes nothing but the database. What it raises undoes it; the event is tried again, then it is a dead letter."""

BATCH_EVENTS_MAX: Final = 256
"""Events per transaction, at best."""
RETRY_DELAYS_S: Final = (1.0, 5.0, 30.0, 120.0, 600.0, 1_800.0, 3_600.0)
"""Pauses before the second, third, … attempt, counted from the one before; after the last attempt an event is a dead letter: 1 h 42 min."""
ALONE_DELIVERIES: Final = 3
"""An event that was delivered more often is handled by itself: what else was in its batch is not held up by it."""
PAUSE_S: Final = 0.1
"""Pause when the bus or the database is away; it doubles."""
PAUSE_S_MAX: Final = 5.0
"""Longest pause."""
LOOK_S: Final = 15.0
"""How often each replica looks for parked events that others left behind."""

_log = get_logger("events")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerTerms:
    """How a consumer works; the defaults suit most."""

    start: Start = ALL
    ordered: bool = False
    batch_events_max: int = BATCH_EVENTS_MAX
    retry_delays_s: tuple[float, ...] = RETRY_DELAYS_S
    look_s: float = LOOK_S
    answer_s_max: float = 30.0
    leasing: Leasing | None = None


async def run_consumer(
    database: Database,
    bus: EventBus,
    *,
    name: str,
    types: Sequence[str],
    handle: Handle,
    start: Start = ALL,
    ordered: bool = False,
    terms: ConsumerTerms | None = None,
    metrics: ConsumerMetrics | None = None,
) -> NoReturn:
    """Handle events for ever: `app.spawn(run_consumer(...), name=name)`.

    `name` is the consumer's, unique in the service; its replicas share the work. `types` may have wildcards: `*` is one word, `>` at the
    end any number of words. `ordered`: events of one subject are handled in the order of the stream, by one replica at a time.
    """
    terms = replace(terms or ConsumerTerms(), start=start, ordered=ordered)
    consumer = Consumer(database, bus, name, tuple(types), handle, terms, metrics or ConsumerMetrics(None))
    await consumer.run()
    raise AssertionError("a consumer runs for ever")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Taken:
    """Of a batch: how many were not received before, and how many of these had their effect; the others wait their turn."""

    fresh: int
    handled: int


class Consumer:
    """One consumer in one replica."""

    def __init__(
        self,
        database: Database,
        bus: EventBus,
        name: str,
        types: tuple[str, ...],
        handle: Handle,
        terms: ConsumerTerms,
        metrics: ConsumerMetrics,
    ) -> None:
        """Raises ValueError for types that cannot be asked for."""
        self.name = name
        self.types = checked(types)
        self._database = database
        self._bus = bus
        self._handle = handle
        self._terms = terms
        self._metrics = metrics
        metrics.begin(name)
        self._parked = asyncio.Event()

    async def run(self) -> None:
        """For ever."""
        await self._patiently(self._register)
        if self._terms.ordered:
            await while_leading(self._database, f"consumer {self.name}", self._consume, self._terms.leasing)
        await self._consume(None)

    def look(self) -> None:
        """Look for parked events now: somebody wants dead letters tried again."""
        self._parked.set()

    @property
    def subscription(self) -> Subscription:
        """What it asks the bus for."""
        return Subscription(
            name=self.name,
            types=self.types,
            start=self._terms.start,
            answer_s_max=self._terms.answer_s_max,
        )

    async def _consume(self, lease: Lease | None) -> None:
        async with self._bus.subscribe(self.subscription) as inflow, asyncio.TaskGroup() as group:
            group.create_task(self._receive(inflow), name=f"consumer {self.name}")
            group.create_task(self._retry(), name=f"retries of {self.name}")

    async def _receive(self, inflow: Inflow) -> None:
        """Take what comes, for ever."""
        pause_s, said = PAUSE_S, ""
        while True:
            try:
                deliveries = await inflow.fetch(self._terms.batch_events_max)
                pause_s, said = PAUSE_S, ""
            except BusUnavailableError as error:
                if str(error) != said:
                    _log.warning("no events arrive", consumer=self.name, error=str(error))
                said = str(error)
                await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311  # jitter, not a secret
                pause_s = min(2 * pause_s, PAUSE_S_MAX)
                continue
            if not deliveries:
                continue
            start_s = time.monotonic()
            await self._deal_with(inflow, deliveries)
            if len(deliveries) < self._terms.batch_events_max:
                await asyncio.sleep(rest_s(time.monotonic() - start_s))

    async def _deal_with(self, inflow: Inflow, deliveries: Sequence[Delivery]) -> None:
        """Handle or park all, then acknowledge them. While the database is away they are ours, and stay unacknowledged."""
        usual = [each for each in deliveries if each.deliveries <= ALONE_DELIVERIES]
        async with self._holding(inflow, deliveries):
            if usual:
                await self._patiently(lambda: self._take(usual))
                await inflow.ack(usual)
            for delivery in deliveries:
                if delivery.deliveries > ALONE_DELIVERIES:
                    await self._patiently(lambda: self._take_alone(delivery))  # noqa: B023  # awaited here
                    await inflow.ack([delivery])

    async def _patiently(self, work: Callable[[], object]) -> None:
        """Do something to the database, as often as it takes."""
        pause_s = PAUSE_S
        while True:
            try:
                await work()  # type: ignore[misc]  # every one is a coroutine
                return
            except ServiceError as error:
                _log.warning("the database is away", consumer=self.name, error=error.message)
                await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311  # jitter, not a secret
                pause_s = min(2 * pause_s, PAUSE_S_MAX)

    @contextlib.asynccontextmanager
    async def _holding(self, inflow: Inflow, deliveries: Sequence[Delivery]) -> AsyncIterator[None]:
        """Tell the bus meanwhile that we work on them, so that nobody else gets them, too."""

        async def tell() -> None:
            while True:
                await asyncio.sleep(self._terms.answer_s_max / 3)
                await inflow.working(deliveries)

        telling = asyncio.create_task(tell())
        try:
            yield
        except asyncio.CancelledError:
            await inflow.release(deliveries)  # what is handled already is known to the inbox
            raise
        finally:
            telling.cancel()

    async def _take(self, deliveries: Sequence[Delivery]) -> None:
        """All in one transaction; when one of them fails, one after the other. Raises ServiceError when the database is away."""
        try:
            taken = await self._database.write(lambda connection: self._apply(connection, deliveries))
        except Exception:  # noqa: BLE001  # whoever raised it raises it again, alone, and is parked for it
            await self._take_each(deliveries)
            return
        self._count(taken, len(deliveries))

    async def _take_each(self, deliveries: Sequence[Delivery]) -> None:
        """One by one: in order where that matters, else all at once, which share transactions nevertheless. Raises ServiceError."""
        if self._terms.ordered:
            for delivery in deliveries:
                await self._take_alone(delivery)
            return
        outcomes = await asyncio.gather(*map(self._take_alone, deliveries), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    async def _take_alone(self, delivery: Delivery) -> None:
        """One event: handled, or parked. Raises ServiceError when the database does neither."""
        try:
            check_deliveries(delivery)
            taken = await self._database.write(lambda connection: self._apply(connection, [delivery]))
        except Exception as error:  # noqa: BLE001  # a handler raises what it likes
            failure = self._failure(error, attempts=1)
            if await self._database.write(lambda connection: self._park(connection, delivery, failure)):
                self._tell(delivery.event, failure)
            else:
                self._count(_Taken(fresh=0, handled=0), 1)
        else:
            self._count(taken, 1)

    def _apply(self, connection: Connection, deliveries: Sequence[Delivery]) -> _Taken:
        """In the writer: have those handled that were not received before, or parked behind another of their subject."""
        events = {each.event.event_id: each for each in deliveries}
        fresh = receive(connection, self.name, [(key, each.position) for key, each in events.items()], _now_ms())
        waiting = waiting_subjects(connection, self.name) if self._terms.ordered and fresh else set()
        handled = 0
        for event_id in fresh:
            delivery = events[event_id]
            if delivery.event.subject and delivery.event.subject in waiting:
                park(connection, self.name, delivery.event, delivery.position, queued(_now_ms()), _now_ms())
            else:
                check_delivery(delivery)
                self._run(connection, delivery.event)
                handled += 1
        self._note_handled(connection, handled)
        return _Taken(fresh=len(fresh), handled=handled)

    def _run(self, connection: Connection, event: CloudEvent) -> None:
        """The handler, in the trace of the event."""
        if not event.traceparent:
            self._handle(connection, event)
            return
        token = contexts.attach(propagate.extract({"traceparent": event.traceparent}))
        try:
            self._handle(connection, event)
        finally:
            contexts.detach(token)

    def _park(self, connection: Connection, delivery: Delivery, failure: Failure) -> bool:
        """In the writer: received, and put aside; False when it is received already: then it is somebody's."""
        now_ms = _now_ms()
        if not receive(connection, self.name, [(delivery.event.event_id, delivery.position)], now_ms):
            return False
        park(connection, self.name, delivery.event, delivery.position, failure, now_ms)
        return True

    def _failure(self, error: Exception, attempts: int) -> Failure:
        """What follows from what was raised."""
        reason = reason_of(error)
        delays_s = self._terms.retry_delays_s
        again = reason is ParkReason.HANDLER_FAILED and attempts <= len(delays_s)
        next_ms = _now_ms() + int(delays_s[attempts - 1] * 1_000) if again else None
        return Failure(reason=reason, error=text_of(error), attempts=attempts, next_time_ms=next_ms)

    def _tell(self, event: CloudEvent, failure: Failure) -> None:
        self._metrics.failed.labels(self.name).inc()
        about = {"consumer": self.name, "event_id": event.event_id, "type": event.type, "attempts": failure.attempts}
        if failure.next_time_ms is None:
            self._metrics.dead.labels(self.name).inc()
            _log.error("an event is a dead letter", **about, reason=failure.reason, error=failure.error)
        else:
            self._parked.set()
            _log.warning("an event was not handled", **about, reason=failure.reason, error=failure.error)

    def _count(self, taken: _Taken, all_of_them: int) -> None:
        self._metrics.handled.labels(self.name).inc(taken.handled)
        self._metrics.repeated.labels(self.name).inc(all_of_them - taken.fresh)

    async def _retry(self) -> None:
        """Try parked events again when they are due, for ever."""
        ordered = self._terms.ordered
        while True:
            wait_s = self._terms.look_s
            with contextlib.suppress(ServiceError):  # the database is away: look again
                self._parked.clear()
                while parked := await self._database.read(
                    lambda connection: due(connection, self.name, _now_ms(), ordered=ordered)
                ):
                    await self._try_again(parked)
                next_ms = await self._database.read(
                    lambda connection: next_due_ms(connection, self.name, ordered=ordered)
                )
                if next_ms is not None:
                    wait_s = min(wait_s, max(0.01, (next_ms - _now_ms()) / 1_000))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._parked.wait()

    async def _try_again(self, parked: Parked) -> None:
        """One attempt. Raises ServiceError when its outcome could not be noted."""
        try:
            done = await self._database.write(lambda connection: self._apply_parked(connection, parked))
        except Exception as error:  # noqa: BLE001  # a handler raises what it likes
            failure = self._failure(error, attempts=parked.attempts + 1)
            if await self._database.write(lambda connection: note_attempt(connection, parked, failure, _now_ms())):
                self._tell(parked.event, failure)
        else:
            self._metrics.handled.labels(self.name).inc(done)

    def _apply_parked(self, connection: Connection, parked: Parked) -> int:
        """In the writer: handled, and the row gone; 0 when another replica was faster."""
        if not unpark(connection, parked):
            return 0
        check_schema(parked.event)
        self._run(connection, parked.event)
        self._note_handled(connection, 1)
        return 1

    def _note_handled(self, connection: Connection, count: int) -> None:
        if count:
            connection.execute(
                "UPDATE storage_consumer SET handled = handled + ?, handled_time_ms = ? WHERE name = ?",
                (count, _now_ms(), self.name),
            )

    async def _register(self) -> None:
        """Let operators know the consumer."""
        types = " ".join(self.types)
        await self._database.write(
            lambda connection: connection.execute(
                "INSERT INTO storage_consumer (name, types, handled, handled_time_ms) VALUES (?, ?, 0, 0)"
                " ON CONFLICT (name) DO UPDATE SET types = excluded.types",
                (self.name, types),
            )
        )


def _now_ms() -> int:
    return time.time_ns() // 1_000_000

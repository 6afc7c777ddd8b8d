"""A service's events while it runs: the bus, the outbox relay, the consumers; put together for its lifespan.

    async with await Database.open(...) as database, open_events(app, database) as events:
        events.consume(name="zaps", types=["nipmesh.invoice.v1.settled"], handle=on_settled)

Without NIPMESH_EVENTS_URL nothing is published or consumed: events stay in the outbox, and consumers begin when there is a bus.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from services.chassis.logs import get_logger
from services.chassis.service import Application
from services.events.bus import ALL, EventBus, Start, open_bus
from services.events.cloud_event import CloudEvent
from services.events.consumer import Consumer, ConsumerTerms, Handle
from services.events.metrics import ConsumerMetrics
from services.events.operations import replay_dead_letters
from services.events.relay import run_outbox_relay
from services.events.requests import Answer, answering
from services.storage.database import Database
from services.storage.sql import Connection

HEALTH_NAME: Final = "nipmesh.events"
"""What the health service (grpc.health.v1) calls the bus: NOT_SERVING while it is away. The service itself goes on."""

_log = get_logger("events")


class Events:
    """What a service has to do with events."""

    def __init__(self, app: Application[Any], database: Database, bus: EventBus | None) -> None:
        """For `open_events`."""
        self.bus = bus
        self.database = database
        self._app = app
        self._metrics = ConsumerMetrics(app.registry)
        self._consumers: dict[str, Consumer] = {}

    def consume(
        self, *, name: str, types: Sequence[str], handle: Handle, start: Start = ALL, ordered: bool = False
    ) -> None:
        """Run a consumer for as long as the service runs; see `run_consumer`. Once for each name."""
        assert name not in self._consumers, f"two consumers are called {name}"
        if self.bus is None:
            _log.info("no event bus: nothing is consumed", consumer=name)
            return
        terms = ConsumerTerms(start=start, ordered=ordered)
        consumer = Consumer(self.database, self.bus, name, tuple(types), handle, terms, self._metrics)
        self._consumers[name] = consumer
        self._app.spawn(consumer.run(), name=f"consumer {name}")

    def answer(self, *, name: str, types: Sequence[str], handle: Callable[[Connection, CloudEvent], Answer]) -> None:
        """Answer requests for as long as the service runs; see `run_answerer`."""
        self.consume(name=name, types=types, handle=answering(handle))

    async def replay_dead_letters(self, *, consumer: str, numbers: Sequence[int] | None = None) -> int:
        """Have dead letters tried again, at once when the consumer runs here; how many."""
        count = await replay_dead_letters(self.database, consumer=consumer, numbers=numbers)
        if count and consumer in self._consumers:
            self._consumers[consumer].look()
        return count


@asynccontextmanager
async def open_events(app: Application[Any], database: Database) -> AsyncIterator[Events]:
    """Connect, and publish the outbox. Raises BusSettingsError and SecretFileError, nothing when the bus is away."""
    async with open_bus(app.settings) as bus:
        if bus is not None:
            opened = bus
            app.conditions[HEALTH_NAME] = lambda: opened.health().connected
            settings = app.settings
            relay = run_outbox_relay(
                database, bus, service=settings.service, source=settings.spiffe_id, registry=app.registry
            )
            app.spawn(relay, name="outbox relay")
        yield Events(app, database, bus)

"""Kafka as the event bus: one topic for the mesh, a partition by each event's subject, a consumer group for each consumer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from services.chassis.settings import ChassisSettings
from services.events.bus import BusHealth, Inflow, Receipt, Subscription, Tail
from services.events.cloud_event import CloudEvent
from services.events.connecting import Keeper
from services.events.kafka.connection import Link, Server, connected
from services.events.kafka.publishing import publish
from services.events.kafka.subscribing import open_inflow


class KafkaBus:
    """The bus of one process."""

    can_rewind = True

    def __init__(self, server: Server) -> None:
        self._server = server
        self._keeper: Keeper[Link] = Keeper(server.text, lambda: connected(server))

    async def publish_batch(self, events: Sequence[CloudEvent]) -> Receipt:
        """Publish, each subject in this order; all are on disk when it returns. Raises BusUnavailableError."""
        return await publish(await self._keeper.link(), events)

    def subscribe(self, subscription: Subscription) -> AbstractAsyncContextManager[Inflow]:
        """Open a subscription."""
        return open_inflow(self._keeper, self._server.topic, self._server.service, subscription)

    def health(self) -> BusHealth:
        """How the bus is."""
        return self._keeper.health

    async def tail(self, position: int) -> Tail | None:
        """None: partitions have no common end."""
        return None

    async def run(self) -> None:
        """Keep the connection up."""
        await self._keeper.run()


@asynccontextmanager
async def open_kafka_bus(settings: ChassisSettings) -> AsyncIterator[KafkaBus]:
    """Connect in the background. Raises BusSettingsError and SecretFileError."""
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # what is wrong is said once, in our words
    bus = KafkaBus(Server.of(settings))
    running = asyncio.create_task(bus.run(), name="event bus")
    try:
        yield bus
    finally:
        running.cancel()
        await asyncio.wait((running,))

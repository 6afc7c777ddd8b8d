"""RabbitMQ as the event bus: a durable topic exchange for the mesh, routing keys `<service>.<CloudEvents type>`, a queue per consumer.

A queue begins when its consumer first runs, and has no past: what was published before, or acknowledged, is published again from the
outbox (`replay_outbox`). RabbitMQ's streams would keep a past, but neither filter on its side, nor know what each of several replicas has
not answered: both would be ours to build, beside an outbox that holds the same events already.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from services.chassis.settings import ChassisSettings
from services.events.bus import BusHealth, Inflow, Receipt, Subscription, Tail
from services.events.cloud_event import CloudEvent
from services.events.connecting import Keeper
from services.events.rabbitmq.connection import Link, Server, connected
from services.events.rabbitmq.publishing import publish
from services.events.rabbitmq.subscribing import open_inflow


class RabbitBus:
    """The bus of one process."""

    can_rewind = False

    def __init__(self, server: Server) -> None:
        self._server = server
        self._keeper: Keeper[Link] = Keeper(server.text, lambda: connected(server))

    async def publish_batch(self, events: Sequence[CloudEvent]) -> Receipt:
        """Publish in this order; all are on disk when it returns. Raises BusUnavailableError."""
        return await publish(await self._keeper.link(), self._server.service, events)

    def subscribe(self, subscription: Subscription) -> AbstractAsyncContextManager[Inflow]:
        """Open a subscription."""
        return open_inflow(self._keeper, self._server.exchange, self._server.service, subscription)

    def health(self) -> BusHealth:
        """How the bus is."""
        return self._keeper.health

    async def tail(self, position: int) -> Tail | None:
        """None: RabbitMQ does not tell."""
        return None

    async def run(self) -> None:
        """Keep the connection up."""
        await self._keeper.run()


@asynccontextmanager
async def open_rabbitmq_bus(settings: ChassisSettings) -> AsyncIterator[RabbitBus]:
    """Connect in the background. Raises BusSettingsError and SecretFileError."""
    for name in ("aio_pika", "aiormq"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what is wrong is said once, in our words
    bus = RabbitBus(Server.of(settings))
    running = asyncio.create_task(bus.run(), name="event bus")
    try:
        yield bus
    finally:
        running.cancel()
        await asyncio.wait((running,))

"""NATS JetStream as the event bus: one stream for the mesh, subjects `<mesh>.<service>.<CloudEvents type>`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final

from nats.js.api import RawStreamMsg
from nats.js.errors import APIError, NotFoundError

from services.chassis.settings import ChassisSettings
from services.events.bus import BusHealth, BusUnavailableError, Inflow, Receipt, Subscription, Tail
from services.events.cloud_event import CloudEvent
from services.events.nats.connection import ANSWER_S_MAX, Connection, Link, Server, explained
from services.events.nats.publishing import publish
from services.events.nats.subscribing import open_inflow

LOOKS_MAX: Final = 3
"""So often the end of a stream is looked for where somebody else made it."""
LOOK_AGAIN_S: Final = 0.5
"""Pause between two looks; copies of a stream are apart by milliseconds."""


class NatsBus:
    """The bus of one process."""

    can_rewind = True

    def __init__(self, server: Server) -> None:
        self._service = server.service
        self._connection = Connection(server)

    async def publish_batch(self, events: Sequence[CloudEvent]) -> Receipt:
        """Publish in this order; all are on disk when it returns. Raises BusUnavailableError."""
        link = await self._connection.link()
        return await publish(link, self._service, events)

    def subscribe(self, subscription: Subscription) -> AbstractAsyncContextManager[Inflow]:
        """Open a subscription."""
        return open_inflow(self._connection, self._service, subscription)

    def health(self) -> BusHealth:
        """How the bus is."""
        return self._connection.health

    async def tail(self, position: int) -> Tail | None:
        """What the stream ends with. Raises BusUnavailableError."""
        link = await self._connection.link()
        name = link.stream.name
        if link.stream.inbox:
            return await _own_tail(link, f"{name}.{self._service}.>", position)
        at_position = await _id_of(link, lambda: link.js.get_msg(name, seq=position)) if position > 0 else ""
        newest = await _id_of(link, lambda: link.js.get_last_msg(name, f"{name}.{self._service}.>"))
        return Tail(at_position=at_position, newest=newest)

    async def run(self) -> None:
        """Keep the connection up."""
        await self._connection.run()


async def _id_of(link: Link, question: Callable[[], Awaitable[RawStreamMsg]]) -> str:
    """The id of a stored message, empty when there is none. Raises BusUnavailableError."""
    try:
        message = await link.asked(question)
    except NotFoundError:
        return ""
    except APIError as error:
        raise BusUnavailableError(explained(error)) from error
    return str((message.headers or {}).get("ce-id", ""))


async def _own_tail(link: Link, subject: str, position: int) -> Tail:
    """By the newest event of this service alone, all of the stream that it may see: what comes before is there when that is.

    Any server of a cluster may answer, also one that has not yet what the others have: what is missing is looked for again.
    Raises BusUnavailableError.
    """
    newest, sequence = await _newest(link, subject)
    for _ in range(LOOKS_MAX - 1):
        if sequence >= position:
            break
        await asyncio.sleep(LOOK_AGAIN_S)
        newest, sequence = await _newest(link, subject)
    return Tail(at_position=newest if sequence == position else "", newest=newest)


async def _newest(link: Link, subject: str) -> tuple[str, int]:
    """The id and the place of the newest event; empty and 0 when there is none. Raises BusUnavailableError."""
    asked = f"$JS.API.DIRECT.GET.{link.stream.name}.{subject}"
    message = await link.asked(lambda: link.client.request(asked, b"", timeout=ANSWER_S_MAX))
    headers = message.headers or {}
    return str(headers.get("ce-id", "")), int(headers.get("Nats-Sequence", 0))


@asynccontextmanager
async def open_nats_bus(settings: ChassisSettings) -> AsyncIterator[NatsBus]:
    """Connect in the background. Raises BusSettingsError and SecretFileError."""
    bus = NatsBus(Server.of(settings))
    running = asyncio.create_task(bus.run(), name="event bus")
    try:
        yield bus
    finally:
        running.cancel()
        await asyncio.wait((running,))

"""Items with versions, read through a cache, for tests of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

from google.protobuf.wrappers_pb2 import Int64Value
from prometheus_client import CollectorRegistry

from services.chassis.secret import SecretBytes
from services.storage.cache.reading import Cached, Entry, EntryKind, Shelf
from services.storage.cache.sealing import Sealer
from services.storage.cache.server import CacheServer
from services.storage.database import Database
from services.storage.events import append_event
from services.storage.sql import Connection, value_of
from support.valkey import Valkey

ITEM: Final = EntryKind(name="item", message_type=Int64Value)
OWNER: Final = "whoever"


def set_version(subject: int, version: int) -> Callable[[Connection], None]:
    """A write that gives an item this version, with its event."""

    def work(connection: Connection) -> None:
        connection.execute(
            "INSERT INTO item (id, name) VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET name = excluded.name",
            (subject, f"{subject} {version}"),
        )
        append_event(connection, kind="item.changed", subject=str(subject), payload=b"")

    return work


def load_item(subject: int) -> Callable[[Connection], Entry[Int64Value]]:
    """What reads it; version 0 is an item that is not there."""

    def work(connection: Connection) -> Entry[Int64Value]:
        name = value_of(connection.execute("SELECT name FROM item WHERE id = ?", (subject,)))
        return Entry(owner=OWNER, message=Int64Value(value=0 if name is None else int(name.split()[1])))

    return work


class Reader:
    """A replica's reads of items."""

    def __init__(self, database: Database, cached: Cached, registry: CollectorRegistry) -> None:
        self.database = database
        self.cached = cached
        self._registry = registry

    async def version(self, subject: int) -> int:
        entry = await self.cached.read(ITEM, str(subject), load_item(subject))
        assert entry.owner == OWNER
        return entry.message.value

    async def write(self, subject: int, version: int) -> None:
        await self.database.write(set_version(subject, version))

    def reads(self, outcome: str) -> int:
        """How many reads went so."""
        return int(self._sample("nipmesh_cache_reads_total", outcome))

    def fills(self, outcome: str) -> int:
        """How many fills went so."""
        return int(self._sample("nipmesh_cache_fills_total", outcome))

    def _sample(self, name: str, outcome: str) -> float:
        return self._registry.get_sample_value(name, {"kind": ITEM.name, "outcome": outcome}) or 0.0


@asynccontextmanager
async def reader_of(
    database: Database, server: CacheServer, shelf: Shelf | None = None, place: str = "mesh:item"
) -> AsyncIterator[Reader]:
    """A reader over `shelf`, which is the server itself unless a test puts something in between."""
    registry = CollectorRegistry()
    cached = Cached(database, shelf or server, await Sealer.open(database), place=place, registry=registry)
    try:
        yield Reader(database, cached, registry)
    finally:
        await cached.close()


@asynccontextmanager
async def cache_server(valkey: Valkey, call_s_max: float = 10.0) -> AsyncIterator[CacheServer]:
    """A connected one, patient by default: this machine may be busy."""
    server = CacheServer(SecretBytes(valkey.url.encode()), call_s_max)
    try:
        await until(lambda: server.working)
        yield server
    finally:
        await server.close()


async def until(condition: Callable[[], Any], seconds: float = 30.0) -> None:
    """Wait for something that happens beside us."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)

"""Opening the cache that the settings ask for, if they ask for one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from prometheus_client import CollectorRegistry

from services.chassis.settings import ChassisSettings
from services.storage.cache.reading import Cached, Direct, Reads
from services.storage.cache.sealing import Sealer
from services.storage.cache.server import CacheServer
from services.storage.database import Database
from services.storage.places import schema_of


@asynccontextmanager
async def open_reads(
    settings: ChassisSettings, database: Database, registry: CollectorRegistry, file_name: str
) -> AsyncIterator[Reads]:
    """Reads by id of this database, through the cache when NIPMESH_CACHE_URL is set. Raises StartError for a URL of something else.

    The server need not be there: reads do without it, then and whenever it is gone.
    """
    url = settings.cache_address()
    if url is None:
        yield Direct(database)
        return
    sealer = await Sealer.open(database)
    server = CacheServer(url)
    cached = Cached(database, server, sealer, place=f"{settings.mesh}:{schema_of(file_name)}", registry=registry)
    try:
        yield cached
    finally:
        await cached.close()
        await server.close()

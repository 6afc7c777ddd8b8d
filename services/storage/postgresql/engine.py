"""The parts of one PostgreSQL schema, put together."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Self, TypeVar

from services.storage.places import PostgresPlace
from services.storage.postgresql.listener import SchemaWatch
from services.storage.postgresql.migrating import prepare
from services.storage.postgresql.readers import Readers
from services.storage.postgresql.session import once_reachable
from services.storage.postgresql.writer import SchemaBatcher
from services.storage.sql import Connection
from services.storage.writing import Writer

T = TypeVar("T")


class PostgresEngine:
    """A schema: one writer thread with group commit, a listener for the other replicas' commits, and readers beside them."""

    def __init__(self, place: PostgresPlace) -> None:
        """For `open` only: needs a running event loop and a migrated schema."""
        self.name = place.schema
        channel, sender = f"nipmesh_{place.schema}", secrets.token_hex(8)
        self.watch = SchemaWatch(place, channel, sender)
        self.writer = Writer(place.schema, SchemaBatcher(place, channel, sender), self.watch.committed)
        self._readers = Readers(place)

    @classmethod
    async def open(cls, place: PostgresPlace, migrations: Path | None) -> Self:
        """Wait for the server and bring the schema to the newest version, safely beside other processes."""
        await once_reachable(lambda: prepare(place, migrations), place.schema)
        return cls(place)

    def read(self, work: Callable[[Connection], T], min_sequence: int | None) -> asyncio.Future[T]:
        """In a thread, on a read-only connection."""
        return self._readers.run(work, min_sequence)

    def close(self) -> None:
        """Blocks until the threads have ended; the writer's last results are delivered to the loop."""
        self.writer.close()
        self._readers.close()

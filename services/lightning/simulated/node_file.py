"""Where the simulated network lives, and the way into it that both sides and the outsiders share."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self, TypeVar

from services.chassis.errors import ServiceError
from services.lightning.node import NodeUnavailableError
from services.lightning.simulated.attempts import World
from services.lightning.simulated.chance import draw
from services.lightning.simulated.network import make_network
from services.lightning.simulated.profile import Profile
from services.storage.database import Database
from services.storage.places import Place, PostgresPlace
from services.storage.sql import Connection

T = TypeVar("T")

MIGRATIONS: Final = Path(__file__).parent / "migrations"
FILE_NAME: Final = "simulated-lightning.sqlite3"
"""In the data directory of a service; with PostgreSQL it is a schema. Nodes that share it are on one network: one can pay the other."""


def now_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, slots=True)
class NodeFile:
    """The network's file or schema, opened, and the world that its profile makes."""

    database: Database
    world: World
    clock: Callable[[], int]

    @classmethod
    async def open(cls, where: Place, profile: Profile, clock: Callable[[], int] = now_ms) -> Self:
        """Open or make the file in a folder, or the schema of a PostgreSQL database."""
        place = where if isinstance(where, PostgresPlace) else where / FILE_NAME
        database = await Database.open(place, migrations=MIGRATIONS)
        return cls(database, World(network=make_network(profile), profile=profile), clock)

    async def write(self, work: Callable[[Connection, int], T]) -> T:
        """Run `work(connection, now_ms)`; durable when it returns. Raises NodeUnavailableError."""
        self.answering()
        try:
            return await self.database.write(lambda connection: work(connection, self.clock()))
        except ServiceError as error:
            raise NodeUnavailableError(error.message) from error

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Run `work(connection)` on a snapshot. Raises NodeUnavailableError."""
        self.answering()
        try:
            return await self.database.read(work)
        except ServiceError as error:
            raise NodeUnavailableError(error.message) from error

    def answering(self) -> None:
        """Raise NodeUnavailableError while the node is down, as its profile says."""
        profile = self.world.profile
        if profile.down_ms == 0:
            return
        period, moment_ms = divmod(self.clock(), profile.down_every_ms)
        from_ms = draw(profile.seed, "down", period) % (profile.down_every_ms - profile.down_ms + 1)
        if from_ms <= moment_ms < from_ms + profile.down_ms:
            raise NodeUnavailableError("the simulated node is down for a while")

    async def close(self) -> None:
        """Close the file."""
        await self.database.close()

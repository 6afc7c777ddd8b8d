"""Reads by id, straight from the database and through the cache, without gRPC.

`python -m benchmarks.services.reads PLACE CACHE_URL` (`PLACE`: a file or a postgresql:// URL; either is given tables and rows that stay
there) prints reads per second of one process, for one caller and for 64, while nothing and while 100 rows per second change.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import logging
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Final

import structlog
from google.protobuf.wrappers_pb2 import BytesValue
from prometheus_client import CollectorRegistry

from services.chassis.secret import SecretBytes
from services.chassis.settings import ChassisSettings
from services.storage.cache import Direct, Entry, EntryKind, Reads, open_reads
from services.storage.database import Database
from services.storage.events import append_event
from services.storage.places import PostgresPlace
from services.storage.sql import Connection, value_of

ROWS: Final = 200
ROW_BYTES: Final = 600
"""About an invoice."""
CALLERS: Final = (1, 64)
CHANGE_PAUSE_S: Final = 0.01
KIND: Final = EntryKind(name="row", message_type=BytesValue)


async def rates(place: Path | PostgresPlace, cache_url: str, seconds: float) -> dict[str, float]:
    """Reads per second by how they are done."""
    settings = ChassisSettings.model_validate({"cache_url": cache_url})
    async with (
        await Database.open(place) as database,
        open_reads(settings, database, CollectorRegistry(), "reads") as cached,
    ):
        numbers = [await _change(database) for _ in range(ROWS)]
        ways: dict[str, Reads] = {"direct": Direct(database), "cached": cached}
        for _ in range(2):  # connects, then fills
            await asyncio.sleep(0.5)
            for number in numbers:
                await _read(cached, number)
        found = {}
        for callers, (name, reads) in itertools.product(CALLERS, ways.items()):
            found[f"{name}_{callers}"] = await _rate(reads, numbers, callers, seconds)
            async with _changing(database):
                found[f"{name}_{callers}_while_changing"] = await _rate(reads, numbers, callers, seconds)
    return found


async def _rate(reads: Reads, numbers: Sequence[int], callers: int, seconds: float) -> float:
    """Reads per second of so many callers."""
    loop, turn, done = asyncio.get_running_loop(), itertools.cycle(numbers), 0
    until_s = loop.time() + seconds

    async def caller() -> None:
        nonlocal done
        while loop.time() < until_s:
            await _read(reads, next(turn))
            done += 1

    await asyncio.gather(*(caller() for _ in range(callers)))
    return done / seconds


async def _read(reads: Reads, number: int) -> None:
    def load(connection: Connection) -> Entry[BytesValue]:
        row = connection.execute("SELECT payload FROM storage_event WHERE sequence = ?", (number,))
        return Entry(owner="", message=BytesValue(value=value_of(row)))

    entry = await reads.read(KIND, str(number), load)
    assert len(entry.message.value) == ROW_BYTES


async def _change(database: Database, subject: str = "") -> int:
    return await database.write(
        lambda connection: append_event(connection, kind="row", subject=subject, payload=bytes(ROW_BYTES))
    )


@contextlib.asynccontextmanager
async def _changing(database: Database) -> AsyncIterator[None]:
    """Rows change meanwhile."""

    async def change() -> None:
        for number in itertools.count():
            await _change(database, str(number % ROWS))
            await asyncio.sleep(CHANGE_PAUSE_S)

    task = asyncio.create_task(change())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait((task,))


def main() -> None:
    """Measure and print."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    parser = argparse.ArgumentParser(prog="python -m benchmarks.services.reads", description=__doc__)
    parser.add_argument("place", metavar="PLACE")
    parser.add_argument("cache_url", metavar="CACHE_URL")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each figure")
    arguments = parser.parse_args()
    is_url = arguments.place.startswith("postgresql://")
    place = (
        PostgresPlace(url=SecretBytes(arguments.place.encode()), schema="reads") if is_url else Path(arguments.place)
    )
    for name, per_second in asyncio.run(rates(place, arguments.cache_url, arguments.seconds)).items():
        print(f"{name:28} {per_second:8,.0f}/s")


if __name__ == "__main__":
    main()

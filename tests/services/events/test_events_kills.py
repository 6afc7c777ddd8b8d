"""`kill -9` of the service and of NATS in mid-delivery: of 10,000 events none is lost, and seen through the inbox none doubled."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from generator.outputs.local.processes import end_with_parent
from services.events.operations import list_dead_letters, outbox_status
from services.storage.database import Database
from services.storage.places import PostgresPlace
from support.events import append, until
from support.nats_server import NatsServer

EVENTS = {"sqlite": 10_000, "postgresql": int(os.environ.get("NIPMESH_EVENTS_KILLS", "3000"))}
"""The service's part is the same on both engines; NIPMESH_EVENTS_KILLS=10000 for the nightly run."""
KILLS_AT = (0.05, 0.2, 0.35, 0.5, 0.65, 0.8)
"""After this part of the effects the service, NATS, the service, … are killed."""
PROGRESS_S_MAX = 60
PROGRAM = Path(__file__).with_name("events_process.py")


class Process:
    """The service, started and killed."""

    def __init__(self, arguments: list[str]) -> None:
        self._arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        path = os.pathsep.join(each for each in sys.path if each)
        self._process = subprocess.Popen(
            [*end_with_parent(), sys.executable, str(PROGRAM), *self._arguments],
            env={**os.environ, "PYTHONPATH": path},
            stdout=subprocess.DEVNULL,
        )

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@contextlib.contextmanager
def killable(arguments: list[str]) -> Iterator[Process]:
    process = Process(arguments)
    process.start()
    try:
        yield process
    finally:
        process.kill()


async def effects(database: Database) -> int:
    def work(connection: Any) -> int:
        row = connection.execute("SELECT count(*) FROM effect").fetchone()
        return int(row[0])

    return await database.read(work)


@pytest.mark.timeout(240)
async def test_no_event_is_lost_and_none_has_its_effect_twice(
    database: Database, place: Any, migrations: Path, own_nats: NatsServer, stream: str
) -> None:
    number_of_events = EVENTS["postgresql" if isinstance(place, PostgresPlace) else "sqlite"]
    for start in range(0, number_of_events, 1_000):
        await database.write(lambda connection: append(connection, range(start, start + 1_000)))  # noqa: B023
    url = [place.url.reveal().decode()] if isinstance(place, PostgresPlace) else []
    kills = 0
    with killable([own_nats.url, stream, str(migrations.parent), *url]) as process:
        for at in KILLS_AT:

            async def reached(number: float = at * number_of_events) -> bool:
                return await effects(database) >= number

            await until(reached, f"{at:.0%} of the effects", PROGRESS_S_MAX)
            (process if kills % 2 == 0 else own_nats).kill()
            kills += 1
            time.sleep(0.1)
            (process if kills % 2 == 1 else own_nats).start()

        async def all_of_them() -> bool:
            return await effects(database) >= number_of_events

        await until(all_of_them, "all effects", PROGRESS_S_MAX)
        time.sleep(1.5)  # what was not acknowledged comes again now, and has no effect
    assert kills == len(KILLS_AT)
    rows = await database.read(lambda connection: connection.execute("SELECT event_id, subject FROM effect").fetchall())
    assert len(rows) == len({row[0] for row in rows}) == number_of_events
    assert {row[1] for row in rows} == {f"invoice-{number}" for number in range(number_of_events)}
    assert (await outbox_status(database)).published_sequence == number_of_events
    assert not await list_dead_letters(database)

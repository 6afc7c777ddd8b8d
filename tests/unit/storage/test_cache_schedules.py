"""No read returns what was before a write that was acknowledged before it began: random schedules of two replicas, over a real server.

Between the replicas and the server sits whoever delays everything and hands out any value that ever lay under a name, as servers that are
slow, fail over, or come back with old contents do. `NIPMESH_CACHE_SEEDS=100` runs more schedules than the few of each run.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import textwrap
from collections import defaultdict
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from services.storage.cache import history
from services.storage.cache.server import CacheServer, Found
from services.storage.database import Database
from services.storage.places import Place
from support.cached_items import Reader, cache_server, reader_of
from support.valkey import Valkey, running_valkey

SEEDS = int(os.environ.get("NIPMESH_CACHE_SEEDS", "3"))
SUBJECTS = 4
REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def valkey() -> Iterator[Valkey]:
    with running_valkey() as server:
        yield server


class Whims:
    """A shelf that is late, forgets, and remembers what it should have forgotten."""

    def __init__(self, server: CacheServer, chance: random.Random) -> None:
        self._server = server
        self._chance = chance
        self._ever: dict[str, list[bytes]] = defaultdict(list)

    async def get(self, name: str) -> Found:
        await self._pause()
        found = await self._server.get(name)
        await self._pause()
        ever, whim = self._ever[name], self._chance.random()
        if whim < 0.3 and ever:
            return Found(self._chance.choice(ever), reached=True)
        return Found(None, reached=whim < 0.35) if whim < 0.4 else found

    def put(self, name: str, value: bytes) -> bool:
        self._ever[name].append(value)
        if self._chance.random() < 0.5:
            asyncio.get_running_loop().call_later(self._chance.uniform(0, 0.02), self._server.put, name, value)
            return True
        return self._server.put(name, value)

    async def _pause(self) -> None:
        if self._chance.random() < 0.5:
            await asyncio.sleep(self._chance.uniform(0, 0.01))


class Books:
    """What was written to each item, and what was acknowledged: what a read may return."""

    def __init__(self) -> None:
        self._begun = [0] * SUBJECTS
        self._acknowledged = [0] * SUBJECTS
        self._locks = [asyncio.Lock() for _ in range(SUBJECTS)]
        self.reads = 0

    async def write(self, reader: Reader, subject: int) -> None:
        """The next version; the versions of one item are written one after the other, by whichever replica."""
        async with self._locks[subject]:
            self._begun[subject] += 1
            await reader.write(subject, self._begun[subject])
            self._acknowledged[subject] = self._begun[subject]

    async def read(self, reader: Reader, subject: int) -> None:
        """A read sees all that was acknowledged before it began, and nothing that was not begun before it ended."""
        least = self._acknowledged[subject]
        version = await reader.version(subject)
        assert least <= version <= self._begun[subject], f"item {subject}: {version} after {least} was acknowledged"
        self.reads += 1


async def client(books: Books, readers: list[Reader], chance: random.Random, operations: int) -> None:
    for _ in range(operations):
        subject, reader = chance.randrange(SUBJECTS), chance.choice(readers)
        await (books.write if chance.random() < 0.25 else books.read)(reader, subject)
        if chance.random() < 0.3:
            await asyncio.sleep(chance.uniform(0, 0.01))


@pytest.mark.parametrize("seed", range(SEEDS))
async def test_no_read_is_stale_in_any_schedule(
    seed: int, place: Place, migrations: Path, valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(seed)
    monkeypatch.setattr(history, "EVENTS_KEPT_MAX", chance.choice((3, 50, 50_000)))
    monkeypatch.setattr(history, "EVENTS_BEHIND_MAX", chance.choice((2, 20, 2_000)))
    books = Books()
    async with AsyncExitStack() as stack:
        readers = []
        for _ in range(2):
            database = await stack.enter_async_context(await Database.open(place, migrations=migrations))
            server = await stack.enter_async_context(cache_server(valkey))
            shelf = Whims(server, random.Random(chance.random()))
            readers.append(
                await stack.enter_async_context(reader_of(database, server, shelf, place=f"schedule {seed} {place}"))
            )
        async with asyncio.TaskGroup() as clients:
            for _ in range(8):
                clients.create_task(client(books, readers, random.Random(chance.random()), 60))
        assert books.reads > 200
        assert sum(reader.reads("outdated") for reader in readers) > 0


async def test_reads_stay_right_while_the_server_dies_and_returns_again_and_again(
    place: Place, migrations: Path
) -> None:
    chance, books = random.Random(4711), Books()
    with running_valkey() as valkey:
        async with AsyncExitStack() as stack:
            readers = []
            for _ in range(2):
                database = await stack.enter_async_context(await Database.open(place, migrations=migrations))
                server = await stack.enter_async_context(cache_server(valkey))
                readers.append(await stack.enter_async_context(reader_of(database, server)))
            async with asyncio.TaskGroup() as clients:
                tasks = [
                    clients.create_task(client(books, readers, random.Random(chance.random()), 250)) for _ in range(6)
                ]
                while not all(task.done() for task in tasks):
                    await asyncio.sleep(chance.uniform(0.05, 0.3))
                    if chance.random() < 0.7:
                        await asyncio.to_thread(valkey.client.save)  # old contents for the next start
                        await asyncio.sleep(chance.uniform(0, 0.2))
                    valkey.kill()
                    await asyncio.sleep(chance.uniform(0, 0.1))
                    await asyncio.to_thread(valkey.start)
    assert books.reads > 500
    assert sum(reader.reads("unreached") for reader in readers) > 0


WRITER = """
    import asyncio, sys
    from pathlib import Path
    from services.storage.database import Database
    from support.cached_items import set_version

    async def main():
        place, first = Path(sys.argv[1]), int(sys.argv[2])
        async with await Database.open(place) as database:
            for version in range(first, first + 100_000):
                await database.write(set_version(1, version))
                sys.stdout.write(f"{version}\\n")
                sys.stdout.flush()

    asyncio.run(main())
"""


async def test_a_writer_that_is_killed_anywhere_leaves_nothing_stale(
    tmp_path: Path, migrations: Path, valkey: Valkey
) -> None:
    place, version = tmp_path / "data" / "a.db", 0
    async with (
        await Database.open(place, migrations=migrations) as database,
        cache_server(valkey) as server,
        reader_of(database, server, place="killed") as reader,
    ):
        for _ in range(4):
            version = await read_beside_a_writer(reader, place, version)
        assert version > 0


async def read_beside_a_writer(reader: Reader, place: Path, version: int) -> int:
    """Start a writer, read while it writes, kill it, read on; return the version that is there in the end."""
    environment = os.environ | {"PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests'}:{REPOSITORY / 'protos'}"}
    writer = await asyncio.create_subprocess_exec(
        sys.executable, "-c", textwrap.dedent(WRITER), str(place), str(version + 1),
        stdout=asyncio.subprocess.PIPE, env=environment,
    )  # fmt: skip
    assert writer.stdout is not None
    try:
        for _ in range(60):
            acknowledged = int(await asyncio.wait_for(writer.stdout.readline(), 60))
            assert await reader.version(1) >= acknowledged
    finally:
        writer.send_signal(signal.SIGKILL)
        rest = (await writer.stdout.read()).split()
        await writer.wait()
    acknowledged = int(rest[-1]) if rest else acknowledged
    last = await reader.version(1)
    assert acknowledged <= last <= acknowledged + 1
    for _ in range(5):
        assert await reader.version(1) == last
    return last

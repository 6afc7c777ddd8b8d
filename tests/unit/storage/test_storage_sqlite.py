"""The SQLite engine: the file, its locks, full disks, other processes, the WAL."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator
from pathlib import Path

import apsw
import pytest

from services.chassis import ServiceError
from services.storage import Database
from services.storage.batches import BatchRunner
from services.storage.migrations import SQLITE, STORAGE_MIGRATIONS
from services.storage.sqlite.connection import connect, prepare_file
from services.storage.sqlite.writer import run_batch
from support.items import SQLITE_SCHEMA as SCHEMA
from support.items import insert, names, pending


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "a.db"


@pytest.fixture
async def database(path: Path, migrations: Path) -> AsyncIterator[Database]:
    async with await Database.open(path, migrations=migrations) as opened:
        yield opened


async def test_files_are_private(database: Database, path: Path) -> None:
    await database.write(insert("a"))
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    assert set(modes) == {"a.db", "a.db-wal", "a.db-shm"}
    assert set(modes.values()) == {0o600}


async def test_queued_writes_share_a_transaction(database: Database, path: Path) -> None:
    marks: list[int] = []

    def blocked(connection: apsw.Connection) -> None:
        time.sleep(0.1)

    first = asyncio.ensure_future(database.write(blocked))
    await asyncio.sleep(0.02)
    reader = connect(path, read_only=True)
    before = reader.pragma("data_version")

    async def one(number: int) -> None:
        await database.write(insert(str(number)))
        marks.append(len(await database.read(names)))

    await asyncio.gather(first, *(one(number) for number in range(200)))
    assert marks == [200] * 200, "whoever is told first sees what all wrote"
    assert reader.pragma("data_version") != before
    reader.close()


async def test_a_write_that_commits_by_itself_fails_the_batch(database: Database) -> None:
    with pytest.raises(ServiceError, match="BACKEND_UNAVAILABLE"):
        await database.write(lambda connection: connection.execute("COMMIT") and None)
    await database.write(insert("after"))
    assert await database.read(names) == ["after"]


async def test_a_failed_commit_fails_all(tmp_path: Path) -> None:
    prepare_file(tmp_path / "a.db")
    connection = connect(tmp_path / "a.db")
    connection.execute(SCHEMA)
    connection.execute("CREATE TABLE child (item INTEGER REFERENCES item (id) DEFERRABLE INITIALLY DEFERRED)")

    def orphan(connection: apsw.Connection) -> None:
        connection.execute("INSERT INTO child (item) VALUES (77)")

    batch = [pending(work) for work in (insert("a"), orphan, insert("b"))]
    assert run_batch(connection, batch, BatchRunner()) is False
    assert all(isinstance(write.error, ServiceError) for write in batch)
    assert names(connection) == []
    assert not connection.in_transaction
    connection.close()


async def test_a_file_that_stays_locked_is_said_so(database: Database, path: Path) -> None:
    other = connect(path)
    ours = connect(path, busy_timeout_ms=30)
    other.execute("BEGIN IMMEDIATE")
    write = pending(insert("a"))
    start_s = time.monotonic()
    assert run_batch(ours, [write], BatchRunner()) is False
    assert 0.08 < time.monotonic() - start_s < 1, "three tries of 30 ms"
    assert isinstance(write.error, ServiceError)
    assert write.error.reason == "BACKEND_UNAVAILABLE"
    other.execute("ROLLBACK")
    assert run_batch(ours, [pending(insert("a"))], BatchRunner()) is True
    for connection in (other, ours):
        connection.close()


async def test_a_full_disk_fails_the_batch_and_heals(database: Database, path: Path) -> None:
    connection = connect(path)
    pages = connection.pragma("page_count")
    connection.pragma("max_page_count", pages + 2)
    batch = [pending(insert("small")), pending(insert("x" * 100_000)), pending(insert("other"))]
    assert run_batch(connection, batch, BatchRunner()) is False
    reasons = [write.error.reason for write in batch if isinstance(write.error, ServiceError)]
    assert reasons == ["STORAGE_FULL"] * 3
    assert await database.read(names) == []
    connection.pragma("max_page_count", 1_000_000)
    assert run_batch(connection, [pending(insert("small"))], BatchRunner()) is True
    connection.close()


async def test_one_commit_wakes_once(database: Database) -> None:
    changes = database.changes()
    await database.write(insert("a"))
    assert await changes.wait(timeout_s=1) is True
    assert await changes.wait(timeout_s=0.15) is False


async def test_changes_of_another_process_are_seen(database: Database, path: Path) -> None:
    changes = database.changes()
    await changes.wait(timeout_s=0.06)
    other = connect(path)
    waiting = asyncio.ensure_future(changes.wait(timeout_s=5))
    await asyncio.sleep(0.02)
    start_s = time.monotonic()
    other.execute("INSERT INTO item (name) VALUES ('theirs')")
    assert await waiting is True
    assert time.monotonic() - start_s < 0.2
    other.close()


async def test_nobody_waits_nobody_polls(database: Database) -> None:
    changes = database.changes()
    await changes.wait(timeout_s=0.1)
    await asyncio.sleep(0.1)
    assert [task for task in asyncio.all_tasks() if task.get_name() == "data_version poll"] == []


async def test_the_wal_stays_small_under_load(database: Database, path: Path) -> None:
    async def caller(number: int) -> None:
        for step in range(60):
            await database.write(insert(f"{number}-{step}-" + "x" * 4_000))

    await asyncio.gather(*(caller(number) for number in range(64)))
    await asyncio.sleep(0.6)
    await database.write(insert("one more"))
    await asyncio.sleep(0.3)
    connection = connect(path)
    log, copied = connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
    connection.close()
    assert log == copied


WRITER_PROCESS = textwrap.dedent(
    """
    import asyncio, sys
    from pathlib import Path
    from services.storage import Database

    async def main():
        async with await Database.open(Path(sys.argv[1]), migrations=Path(sys.argv[2])) as database:
            async def caller(number):
                for step in range(int(sys.argv[4])):
                    name = f"{sys.argv[3]}-{number}-{step}"
                    await database.write(lambda c: c.execute("INSERT INTO item (name) VALUES (?)", (name,)) and None)
                    print(name, flush=True)
            await asyncio.gather(*(caller(number) for number in range(16)))

    asyncio.run(main())
    """
)


def spawn_writer(path: Path, migrations: Path, name: str, steps: int) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", WRITER_PROCESS, str(path), str(migrations), name, str(steps)]
    environment = dict(os.environ) | {"PYTHONPATH": f"{Path.cwd()}/protos:{Path.cwd()}"}
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def test_two_processes_start_and_write_at_once(tmp_path: Path, migrations: Path) -> None:
    children = [spawn_writer(tmp_path / "a.db", migrations, name, 60) for name in ("a", "b", "c")]
    results = [child.communicate(timeout=60) for child in children]
    assert [(child.returncode, result[1]) for child, result in zip(children, results, strict=True)] == [(0, "")] * 3
    connection = connect(tmp_path / "a.db")
    assert len(names(connection)) == 3 * 16 * 60
    assert connection.execute("SELECT count(*) FROM storage_migration").get == 1 + len(
        list((STORAGE_MIGRATIONS / SQLITE).glob("*.sql"))
    )
    connection.close()


def test_what_was_confirmed_survives_kill_9(tmp_path: Path, migrations: Path) -> None:
    child = spawn_writer(tmp_path / "a.db", migrations, "a", 100_000)
    assert child.stdout is not None
    confirmed = [child.stdout.readline().strip() for _ in range(300)]
    child.kill()
    rest = child.stdout.read()
    child.communicate()
    confirmed += [line for line in rest.split("\n")[:-1] if line]
    connection = connect(tmp_path / "a.db")
    assert set(confirmed) <= set(names(connection))
    assert connection.pragma("integrity_check") == "ok"
    connection.close()

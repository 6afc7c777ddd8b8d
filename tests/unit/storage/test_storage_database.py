"""The database: group commit, durability, two processes, changes, migrations; on real files."""

from __future__ import annotations

import asyncio
import contextvars
import os
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import apsw
import pytest

from services.chassis import ServiceError, current_caller, set_current_call
from services.chassis.caller import OUTSIDE, Caller, CallInfo
from services.storage import Database, DatabaseClosedError, MigrationError
from services.storage.connection import connect, prepare_file
from services.storage.writer import QUEUE_WRITES_MAX, PendingWrite, run_batch

SCHEMA = "CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE) STRICT"


@pytest.fixture
def migrations(tmp_path: Path) -> Path:
    folder = tmp_path / "migrations"
    folder.mkdir()
    (folder / "0001_items.sql").write_text(SCHEMA)
    return folder


@pytest.fixture
async def database(tmp_path: Path, migrations: Path) -> AsyncIterator[Database]:
    async with await Database.open(tmp_path / "data" / "a.db", migrations=migrations) as opened:
        yield opened


def insert(name: str) -> Any:
    return lambda connection: connection.execute("INSERT INTO item (name) VALUES (?)", (name,)) and None


def pending(work: Any) -> PendingWrite:
    return PendingWrite(
        work=work, context=contextvars.copy_context(), future=asyncio.get_running_loop().create_future()
    )


def names(connection: apsw.Connection) -> list[str]:
    return [row[0] for row in connection.execute("SELECT name FROM item ORDER BY id")]


async def test_a_write_is_seen_by_reads(database: Database) -> None:
    await database.write(insert("a"))
    assert await database.read(names) == ["a"]


async def test_files_are_private(database: Database) -> None:
    await database.write(insert("a"))
    assert stat.S_IMODE(database.path.parent.stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in database.path.parent.iterdir()}
    assert set(modes) == {"a.db", "a.db-wal", "a.db-shm"}
    assert set(modes.values()) == {0o600}


async def test_a_failing_write_undoes_itself_alone(database: Database) -> None:
    def fail_late(connection: apsw.Connection) -> None:
        connection.execute("INSERT INTO item (name) VALUES ('lost')")
        raise ValueError("no")

    results = await asyncio.gather(
        database.write(insert("a")),
        database.write(fail_late),
        database.write(insert("a")),
        database.write(insert("b")),
        return_exceptions=True,
    )
    assert [type(result) for result in results] == [type(None), ValueError, apsw.ConstraintError, type(None)]
    assert await database.read(names) == ["a", "b"]


async def test_queued_writes_share_a_transaction(database: Database) -> None:
    marks: list[int] = []

    def blocked(connection: apsw.Connection) -> None:
        time.sleep(0.1)

    first = asyncio.ensure_future(database.write(blocked))
    await asyncio.sleep(0.02)
    reader = connect(database.path, read_only=True)
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
    assert run_batch(connection, batch) is False
    assert all(isinstance(write.error, ServiceError) for write in batch)
    assert names(connection) == []
    assert not connection.in_transaction
    connection.close()


async def test_a_file_that_stays_locked_is_said_so(database: Database) -> None:
    other = connect(database.path)
    ours = connect(database.path, busy_timeout_ms=30)
    other.execute("BEGIN IMMEDIATE")
    write = pending(insert("a"))
    start_s = time.monotonic()
    assert run_batch(ours, [write]) is False
    assert 0.08 < time.monotonic() - start_s < 1, "three tries of 30 ms"
    assert isinstance(write.error, ServiceError)
    assert write.error.reason == "BACKEND_UNAVAILABLE"
    other.execute("ROLLBACK")
    assert run_batch(ours, [pending(insert("a"))]) is True
    for connection in (other, ours):
        connection.close()


async def test_a_full_disk_fails_the_batch_and_heals(database: Database) -> None:
    connection = connect(database.path)
    pages = connection.pragma("page_count")
    connection.pragma("max_page_count", pages + 2)
    batch = [pending(insert("small")), pending(insert("x" * 100_000)), pending(insert("other"))]
    assert run_batch(connection, batch) is False
    assert [type(write.error) for write in batch] == [ServiceError, apsw.FullError, ServiceError]
    assert await database.read(names) == []
    connection.pragma("max_page_count", 1_000_000)
    assert run_batch(connection, [pending(insert("small"))]) is True
    connection.close()


async def test_one_commit_wakes_once(database: Database) -> None:
    changes = database.changes()
    await database.write(insert("a"))
    assert await changes.wait(timeout_s=1) is True
    assert await changes.wait(timeout_s=0.15) is False


async def test_a_cancelled_awaiter_breaks_nothing(database: Database) -> None:
    tasks = [asyncio.ensure_future(database.write(insert(str(number)))) for number in range(50)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert not any(task.exception() for task in tasks[1::2])
    assert set(await database.read(names)) >= {str(number) for number in range(1, 50, 2)}


async def test_a_write_runs_in_the_callers_context(database: Database) -> None:
    set_current_call(CallInfo(method="/x", caller=Caller(subject="ab" * 32)))
    try:
        assert await database.write(lambda _: current_caller().subject) == "ab" * 32
    finally:
        set_current_call(OUTSIDE)


async def test_too_many_writes_are_refused_at_once(database: Database) -> None:
    blocker = asyncio.ensure_future(database.write(lambda _: time.sleep(0.3)))
    await asyncio.sleep(0.05)
    tasks = [asyncio.ensure_future(database.write(lambda _: None)) for _ in range(QUEUE_WRITES_MAX - 1)]
    await asyncio.sleep(0)
    with pytest.raises(ServiceError, match="OVERLOADED"):
        await database.write(lambda _: None)
    await asyncio.gather(blocker, *tasks)
    assert database._writer.depth == 0


async def test_reads_see_one_snapshot_and_cannot_write(database: Database) -> None:
    started, go_on = asyncio.Event(), __import__("threading").Event()
    loop = asyncio.get_running_loop()

    def twice(connection: apsw.Connection) -> tuple[int, int]:
        first = len(names(connection))
        loop.call_soon_threadsafe(started.set)
        go_on.wait(5)
        return first, len(names(connection))

    reading = asyncio.ensure_future(database.read(twice))
    await started.wait()
    await database.write(insert("a"))
    go_on.set()
    assert await reading == (0, 0)
    with pytest.raises(apsw.ReadOnlyError):
        await database.read(insert("b"))


async def test_after_close_nothing_is_taken(tmp_path: Path, migrations: Path) -> None:
    database = await Database.open(tmp_path / "a.db", migrations=migrations)
    waiting = [asyncio.ensure_future(database.write(insert(str(number)))) for number in range(100)]
    await asyncio.sleep(0)
    await database.close()
    await asyncio.gather(*waiting)
    with pytest.raises(DatabaseClosedError):
        await database.write(insert("late"))
    connection = connect(tmp_path / "a.db")
    assert len(names(connection)) == 100
    connection.close()


async def test_changes_of_this_process_wake_at_once(database: Database) -> None:
    changes = database.changes()
    assert await changes.wait(timeout_s=0.1) is False
    waiting = asyncio.ensure_future(changes.wait(timeout_s=5))
    await asyncio.sleep(0.01)
    await database.write(insert("a"))
    assert await asyncio.wait_for(waiting, 1) is True
    await database.write(insert("b"))
    assert await changes.wait(timeout_s=0) is True, "what was committed between two waits is not missed"


async def test_changes_of_another_process_are_seen(database: Database) -> None:
    changes = database.changes()
    await changes.wait(timeout_s=0.06)
    other = connect(database.path)
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


async def test_the_wal_stays_small_under_load(database: Database) -> None:
    async def caller(number: int) -> None:
        for step in range(60):
            await database.write(insert(f"{number}-{step}-" + "x" * 4_000))

    await asyncio.gather(*(caller(number) for number in range(64)))
    await asyncio.sleep(0.6)
    await database.write(insert("one more"))
    await asyncio.sleep(0.3)
    connection = connect(database.path)
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
    assert connection.execute("SELECT count(*) FROM storage_migration").get == 2
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


async def test_migrations_run_once_and_in_order(tmp_path: Path, migrations: Path) -> None:
    await (await Database.open(tmp_path / "a.db", migrations=migrations)).close()
    (migrations / "0002_more.sql").write_text(
        "ALTER TABLE item ADD COLUMN size INTEGER; CREATE INDEX by_size ON item (size);"
    )
    async with await Database.open(tmp_path / "a.db", migrations=migrations) as database:
        await database.write(lambda c: c.execute("INSERT INTO item (name, size) VALUES ('a', 1)") and None)


async def test_an_edited_migration_is_refused(tmp_path: Path, migrations: Path) -> None:
    await (await Database.open(tmp_path / "a.db", migrations=migrations)).close()
    (migrations / "0001_items.sql").write_text(SCHEMA + " -- edited")
    with pytest.raises(MigrationError, match="0001_items was edited"):
        await Database.open(tmp_path / "a.db", migrations=migrations)


async def test_an_older_program_is_refused(tmp_path: Path, migrations: Path) -> None:
    (migrations / "0002_more.sql").write_text("CREATE TABLE more (a INTEGER) STRICT")
    await (await Database.open(tmp_path / "a.db", migrations=migrations)).close()
    (migrations / "0002_more.sql").unlink()
    with pytest.raises(MigrationError, match="newer than this program"):
        await Database.open(tmp_path / "a.db", migrations=migrations)


@pytest.mark.parametrize(
    "text", ["CREATE TABLE broken (", "COMMIT", "CREATE TABLE x (a INTEGER); SELECT * FROM nowhere"]
)
async def test_a_broken_migration_leaves_nothing(tmp_path: Path, migrations: Path, text: str) -> None:
    (migrations / "0002_broken.sql").write_text(text)
    with pytest.raises(MigrationError, match="0002_broken"):
        await Database.open(tmp_path / "a.db", migrations=migrations)
    if text != "COMMIT":
        connection = connect(tmp_path / "a.db")
        assert connection.execute("SELECT count(*) FROM sqlite_schema WHERE name IN ('item', 'x')").get == 0
        connection.close()


@pytest.mark.parametrize("name", ["0003_gap.sql", "two.sql", "0001_double.sql"])
async def test_wrong_numbers_are_refused(tmp_path: Path, migrations: Path, name: str) -> None:
    (migrations / name).write_text("CREATE TABLE x (a INTEGER)")
    with pytest.raises(MigrationError):
        await Database.open(tmp_path / "a.db", migrations=migrations)

"""The database: group commit, savepoints, snapshots, changes; on both engines."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from services.chassis import ServiceError, current_caller, set_current_call
from services.chassis.caller import OUTSIDE, Caller, CallInfo
from services.storage import Database, DatabaseClosedError
from services.storage.places import Place
from services.storage.sql import Connection
from services.storage.writing import QUEUE_WRITES_MAX, BatchKind, BatchWrite
from support.items import CONSTRAINT_ERRORS, READ_ONLY_ERRORS, insert, names


async def test_a_write_is_seen_by_reads(database: Database) -> None:
    await database.write(insert("a"))
    assert await database.read(names) == ["a"]


async def test_a_failing_write_undoes_itself_alone(database: Database) -> None:
    def fail_late(connection: Connection) -> None:
        connection.execute("INSERT INTO item (name) VALUES ('lost')")
        raise ValueError("no")

    results = await asyncio.gather(
        database.write(insert("a")),
        database.write(fail_late),
        database.write(insert("a")),
        database.write(insert("b")),
        return_exceptions=True,
    )
    assert (results[0], type(results[1]), results[3]) == (None, ValueError, None)
    assert isinstance(results[2], CONSTRAINT_ERRORS)
    assert await database.read(names) == ["a", "b"]


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
    go_on = threading.Event()
    blocker = asyncio.ensure_future(database.write(lambda _: go_on.wait(60) and None))
    tasks = [asyncio.ensure_future(database.write(lambda _: None)) for _ in range(QUEUE_WRITES_MAX - 1)]
    await asyncio.sleep(0)
    with pytest.raises(ServiceError, match="OVERLOADED"):
        await database.write(lambda _: None)
    go_on.set()
    await asyncio.gather(blocker, *tasks)
    assert database._engine.writer.depth == 0


async def test_reads_see_one_snapshot_and_cannot_write(database: Database) -> None:
    started, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def twice(connection: Connection) -> tuple[int, int]:
        first = len(names(connection))
        loop.call_soon_threadsafe(started.set)
        go_on.wait(5)
        return first, len(names(connection))

    reading = asyncio.ensure_future(database.read(twice))
    await started.wait()
    await database.write(insert("a"))
    go_on.set()
    assert await reading == (0, 0)
    with pytest.raises(READ_ONLY_ERRORS):
        await database.read(insert("b"))


async def test_after_close_nothing_is_taken(place: Place, migrations: Path) -> None:
    database = await Database.open(place, migrations=migrations)
    waiting = [asyncio.ensure_future(database.write(insert(str(number)))) for number in range(100)]
    await asyncio.sleep(0)
    await database.close()
    await asyncio.gather(*waiting)
    with pytest.raises(DatabaseClosedError):
        await database.write(insert("late"))
    async with await Database.open(place, migrations=migrations) as again:
        assert len(await again.read(names)) == 100


async def test_changes_of_this_process_wake_at_once(database: Database) -> None:
    changes = database.changes()
    while await changes.wait(timeout_s=0.1):
        pass  # what was committed before may wake once more
    waiting = asyncio.ensure_future(changes.wait(timeout_s=5))
    await asyncio.sleep(0.01)
    await database.write(insert("a"))
    assert await asyncio.wait_for(waiting, 1) is True
    await database.write(insert("b"))
    assert await changes.wait(timeout_s=0) is True, "what was committed between two waits is not missed"


async def test_changes_of_another_replica_wake(database: Database, place: Place, migrations: Path) -> None:
    async with await Database.open(place, migrations=migrations) as other:
        changes = database.changes()
        await other.write(insert("theirs"))
        while "theirs" not in await database.read(names):
            assert await changes.wait(timeout_s=10) is True


async def test_a_write_sees_all_earlier_ones_of_other_replicas(
    database: Database, place: Place, migrations: Path
) -> None:
    def count_and_add(connection: Connection) -> int:
        count = len(names(connection))
        connection.execute("INSERT INTO item (name) VALUES (?)", (str(count),))
        return count

    async with await Database.open(place, migrations=migrations) as other:
        writes = [replica.write(count_and_add) for _ in range(150) for replica in (database, other)]
        assert sorted(await asyncio.gather(*writes)) == list(range(300)), "read and write are one, over all replicas"


def run_many(connection: Connection, items: Sequence[str]) -> list[int | Exception]:
    """Sets of more than 100 fail as a whole; empty names by themselves."""
    if len(items) > 100:
        raise RuntimeError("too many")
    return [ValueError("no name") if not item else add(connection, item) for item in items]


def add(connection: Connection, item: str) -> int:
    """What `run_many` does for one."""
    if not item:
        raise ValueError("no name")
    connection.execute("INSERT INTO item (name) VALUES (?)", (item,))
    return len(item)


ADD = BatchKind(name="add", run_one=add, run_many=run_many)


@pytest.mark.parametrize("count", [1, 2, 50, 200])
async def test_writes_of_a_kind_have_the_same_results_on_both_engines(database: Database, count: int) -> None:
    blocker = asyncio.ensure_future(database.write(lambda _: time.sleep(0.05)))
    await asyncio.sleep(0.01)
    items = ["" if number % 10 == 9 else f"{number:05d}" for number in range(count)]
    writes = [database.write(BatchWrite(ADD, item)) for item in items]
    results = await asyncio.gather(*writes, database.write(insert("last")), return_exceptions=True)
    await blocker
    assert [5 if item else ValueError for item in items] == [
        type(result) if isinstance(result, Exception) else result for result in results[:-1]
    ]
    assert sorted(await database.read(names)) == [*sorted(item for item in items if item), "last"]

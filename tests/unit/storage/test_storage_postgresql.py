"""The PostgreSQL engine: statements and values, other replicas, a server that ends, hangs, lags or is not there."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from services.chassis import ServiceError
from services.chassis.errors import StartError
from services.chassis.secret import SecretBytes
from services.storage import Database, PostgresPlace, append_event
from services.storage.postgresql import session, writer
from services.storage.postgresql.connection import LostError, PostgresConnection
from services.storage.postgresql.writer import SchemaBatcher
from services.storage.sets import insert_rows, update_rows
from services.storage.sql import Connection
from support.items import insert, names, pending
from support.postgresql import Server, running_server, schema_at, schema_connection


@pytest.fixture
def place(postgresql_url: str) -> PostgresPlace:
    return schema_at(postgresql_url)


@pytest.fixture
async def database(place: PostgresPlace, migrations: Path) -> AsyncIterator[Database]:
    async with await Database.open(place, migrations=migrations) as opened:
        yield opened


async def test_each_service_has_a_schema_of_its_own(postgresql_url: str, migrations: Path) -> None:
    for schema in ("nip", "invoice"):
        async with await Database.open(schema_at(postgresql_url, schema), migrations=migrations) as database:
            await database.write(insert(schema))
            assert await database.read(names) == [schema]


async def test_a_write_that_fails_late_undoes_itself_alone(database: Database) -> None:
    def nobody_reads(connection: Connection) -> str:
        connection.execute("INSERT INTO item (name) VALUES ('lost')")
        connection.execute("INSERT INTO item (name) VALUES ('a')")  # there is one: nobody asks for the outcome
        return "done"

    def goes_on(connection: Connection) -> None:
        try:
            connection.execute("INSERT INTO item (name) VALUES ('a')").fetchone()
        except psycopg.errors.UniqueViolation:
            connection.execute("INSERT INTO item (name) VALUES ('b')")

    writes = [insert("a"), nobody_reads, goes_on, insert("c")]
    results = await asyncio.gather(*(database.write(write) for write in writes), return_exceptions=True)
    assert [type(result) for result in results] == [
        type(None),
        psycopg.errors.UniqueViolation,
        psycopg.errors.InFailedSqlTransaction,
        type(None),
    ]
    assert await database.read(names) == ["a", "c"]


async def test_errors_hold_no_values_of_rows(database: Database) -> None:
    await database.write(insert("a secret"))
    with pytest.raises(psycopg.errors.UniqueViolation) as caught:
        await database.write(insert("a secret"))
    assert "secret" not in f"{caught.value!r} {caught.value}"


@pytest.mark.parametrize("sql", ["COMMIT", " rollback", "Savepoint x", "BEGIN"])
async def test_a_write_cannot_end_its_transaction(database: Database, sql: str) -> None:
    with pytest.raises(ValueError, match="who owns the connection"):
        await database.write(lambda connection: connection.execute(sql) and None)
    await database.write(insert("after"))


async def test_a_failed_commit_fails_all(database: Database) -> None:
    await database.write(
        lambda connection: (
            connection.execute("CREATE TABLE child (item BIGINT REFERENCES item (id) DEFERRABLE INITIALLY DEFERRED)")
            and None
        )
    )
    blocker = asyncio.ensure_future(database.write(lambda _: time.sleep(0.05)))
    await asyncio.sleep(0.01)
    orphan: Callable[[Connection], None] = lambda c: c.execute("INSERT INTO child (item) VALUES (77)") and None  # noqa: E731
    writes = [database.write(work) for work in (insert("a"), orphan, insert("b"))]
    results = await asyncio.gather(*writes, return_exceptions=True)
    await blocker
    assert all(isinstance(result, ServiceError) and result.reason == "BACKEND_UNAVAILABLE" for result in results)
    assert await database.read(names) == []


async def test_many_statements_and_large_answers_in_one_write(database: Database) -> None:
    def much(connection: Connection) -> int:
        for number in range(3_000):
            connection.execute("INSERT INTO item (name) VALUES (?)", (f"{number}-" + "x" * 1_000,))
        answers = [connection.execute("SELECT name FROM item") for _ in range(3)]
        return sum(len(answer.fetchall()) for answer in answers)

    assert await database.write(much) == 9_000


async def test_a_session_that_ends_between_writes_is_not_noticed(database: Database, postgresql_url: str) -> None:
    await database.write(insert("a"))
    assert await database.read(names) == ["a"]
    end_sessions(postgresql_url)
    assert await database.read(names) == ["a"]
    await database.write(insert("b"))
    assert await database.read(names) == ["a", "b"]


def end_sessions(url: str) -> None:
    """All but our own."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


async def test_a_session_that_ends_in_a_batch_fails_the_batch_alone(database: Database, postgresql_url: str) -> None:
    def cut_off(connection: Connection) -> None:
        connection.execute("INSERT INTO item (name) VALUES ('lost')").fetchone()
        end_sessions(postgresql_url)

    with pytest.raises(ServiceError, match="BACKEND_UNAVAILABLE"):
        await database.write(cut_off)
    await database.write(insert("after"))
    assert await database.read(names) == ["after"]


@contextmanager
def batcher_at(place: PostgresPlace) -> Iterator[SchemaBatcher]:
    """A writer's connection without its thread; each of its batches wrote something before."""
    batcher = SchemaBatcher(place, "nipmesh_item", "test")
    try:
        assert batcher.run([pending(insert("first"))])
        yield batcher
    finally:
        batcher.close()


def answers(batcher: SchemaBatcher, work: Callable[[Connection], object]) -> int:
    """How often the server is awaited for a batch of this write."""
    connection = batcher._connection
    assert connection is not None
    before = connection.answers
    assert batcher.run([pending(work)])
    assert batcher._connection is connection
    return connection.answers - before


@pytest.mark.usefixtures("database")
async def test_a_batch_awaits_the_server_twice(place: PostgresPlace) -> None:
    """Once for what it reads, with BEGIN and the lock; once for what it writes, with COMMIT."""

    def reads_and_writes(connection: Connection) -> None:
        known = names(connection)
        insert_rows(connection, "item", "name", [(f"{known[0]} {number}",) for number in range(7)])
        update_rows(connection, "item", ("name", "id"), [("first", 1_000), ("first 3", 1_001)])

    with batcher_at(place) as batcher:
        assert answers(batcher, reads_and_writes) == 2
        assert answers(batcher, insert("second")) == 2


@pytest.mark.usefixtures("database")
async def test_what_may_have_been_committed_is_not_done_again(
    place: PostgresPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that is lost while COMMIT is under way: nobody knows. One that is lost before begins again."""
    ran: list[str] = []
    settle = PostgresConnection.settle

    def write(connection: Connection) -> None:
        ran.append("write")
        names(connection)
        connection.execute("INSERT INTO item (name) VALUES (?)", (f"item {len(ran)}",))

    def lost_at(settles: int, *, done: bool) -> None:
        """The connection is lost at a settle: after the server did what was sent, or before."""
        left = [settles]

        def settle_or_lose(connection: PostgresConnection) -> None:
            left[0] -= 1
            if left[0] != 0 or done:
                settle(connection)
            if left[0] == 0:
                raise LostError("cut off")

        monkeypatch.setattr(PostgresConnection, "settle", settle_or_lose)

    with batcher_at(place) as batcher:
        lost_at(2, done=True)  # after what is read
        committing = pending(write)
        assert not batcher.run([committing])
        assert isinstance(committing.error, ServiceError)
        assert ran == ["write"]
        assert batcher.run([pending(insert("between"))])
        lost_at(1, done=False)
        assert batcher.run([pending(write)]), "with a new connection"
        assert ran == ["write"] * 3
        monkeypatch.setattr(PostgresConnection, "settle", settle)
        with schema_connection(place.url.reveal().decode(), place.schema) as connection:
            assert names(connection) == ["first", "item 1", "between", "item 3"]


async def test_commits_are_announced_together_under_load(
    database: Database, postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last of them as well, and without a further write."""
    monkeypatch.setattr(writer, "ANNOUNCE_S", 0.3)
    with psycopg.connect(postgresql_url, autocommit=True) as listener:
        listener.execute("LISTEN nipmesh_item")
        for number in range(20):
            await database.write(insert(f"item {number}"))
        heard = 0
        for _ in listener.notifies(timeout=1.0):
            heard += 1
        assert 2 <= heard < 20


async def test_a_replica_that_hangs_holds_the_others_up_for_a_moment_only(
    place: PostgresPlace, migrations: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "IDLE_MS_MAX", 400)
    go_on = threading.Event()

    def hang(connection: Connection) -> None:
        connection.execute("INSERT INTO item (name) VALUES ('hung')").fetchone()
        go_on.wait(60)

    async with (
        await Database.open(place, migrations=migrations) as hanging,
        await Database.open(place, migrations=migrations) as other,
    ):
        hung = asyncio.ensure_future(hanging.write(hang))
        await asyncio.sleep(0.1)
        await other.write(insert("theirs"))  # waits for the lock until the server has ended the other one's transaction
        go_on.set()
        with pytest.raises(ServiceError, match="BACKEND_UNAVAILABLE"):
            await hung
        assert await other.read(names) == ["theirs"]
        await hanging.write(insert("alive again"))


WRITER_PROCESS = textwrap.dedent(
    """
    import asyncio, sys
    from pathlib import Path
    from services.chassis import ServiceError
    from services.storage import Database, append_event
    from support.postgresql import schema_at

    async def main(url, migrations, name, steps):
        async with await Database.open(schema_at(url), migrations=Path(migrations)) as database:
            async def caller(number):
                for step in range(int(steps)):
                    text = f"{name}-{number}-{step}"
                    def work(connection):
                        connection.execute("INSERT INTO item (name) VALUES (?) ON CONFLICT DO NOTHING", (text,))
                        append_event(connection, kind="k", subject=text, payload=b"")
                    while True:
                        try:
                            await database.write(work)
                            break
                        except ServiceError:
                            await asyncio.sleep(0.02)
                    print(text, flush=True)
            await asyncio.gather(*(caller(number) for number in range(16)))

    asyncio.run(main(*sys.argv[1:]))
    """
)
ROOT = Path(__file__).parents[3]


def spawn_writer(url: str, migrations: Path, name: str, steps: int) -> subprocess.Popen[str]:
    environment = {"PYTHONPATH": f"{ROOT}/protos:{ROOT}:{ROOT}/tests", "PATH": "/usr/bin:/bin"}
    arguments = [sys.executable, "-c", WRITER_PROCESS, url, str(migrations), name, str(steps)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


async def test_a_reader_of_events_skips_none_of_any_process(
    database: Database, migrations: Path, postgresql_url: str
) -> None:
    steps, seen = 60, list[tuple[int, str]]()
    children = [spawn_writer(postgresql_url, migrations, name, steps) for name in ("a", "b")]
    try:
        changes = database.changes()
        while len(seen) < 2 * 16 * steps:
            last = seen[-1][0] if seen else 0
            found = await database.read(lambda connection: events_since(connection, last))  # noqa: B023
            seen += found
            if not found:
                await changes.wait(timeout_s=5)
            assert all(child.poll() in (None, 0) for child in children)
    finally:
        errors = [await asyncio.to_thread(child.communicate, timeout=30) for child in children]
    assert [error for _, error in errors] == ["", ""]
    assert [sequence for sequence, _ in seen] == sorted({sequence for sequence, _ in seen})
    assert {name for _, name in seen} == set(await database.read(names))


def events_since(connection: Connection, sequence: int) -> list[tuple[int, str]]:
    """Sequence and subject of the events after `sequence`."""
    sql = "SELECT sequence, subject FROM storage_event WHERE sequence > ? ORDER BY sequence LIMIT 100"
    return [(row[0], row[1]) for row in connection.execute(sql, (sequence,))]


@pytest.mark.parametrize("way", ["kill", "stop"])
async def test_nothing_confirmed_is_lost_with_the_server_and_writers_go_on(
    way: str, postgresql: Server, postgresql_url: str, migrations: Path
) -> None:
    await (await Database.open(schema_at(postgresql_url), migrations=migrations)).close()
    child = spawn_writer(postgresql_url, migrations, "a", 100_000)
    assert child.stdout is not None
    try:
        confirmed = [(await asyncio.to_thread(child.stdout.readline)).strip() for _ in range(300)]
        await asyncio.to_thread(postgresql.kill if way == "kill" else postgresql.stop)
        await asyncio.to_thread(postgresql.start)
        started_s = time.monotonic()
        for _ in range(2_000):  # more than the pipe holds of what was confirmed before
            confirmed.append((await asyncio.to_thread(child.stdout.readline)).strip())
        assert time.monotonic() - started_s < 30
    finally:
        child.kill()
        rest, errors = await asyncio.to_thread(child.communicate)
    confirmed += [line for line in rest.split("\n")[:-1] if line]
    async with await Database.open(schema_at(postgresql_url), migrations=migrations) as database:
        kept = set(await database.read(names))
    assert {line for line in confirmed if line.startswith("a-")} <= kept, errors  # the others are of the log


async def test_a_service_waits_for_a_server_that_starts_later(tmp_path: Path, migrations: Path) -> None:
    with running_server() as server:
        url = server.url()
        server.stop()
        opening = asyncio.ensure_future(Database.open(schema_at(url), migrations=migrations))
        await asyncio.sleep(0.3)
        assert not opening.done()
        await asyncio.to_thread(server.start)
        async with await asyncio.wait_for(opening, 30) as database:
            await database.write(insert("a"))
            server.stop()
            with pytest.raises(ServiceError, match="BACKEND_UNAVAILABLE"):
                await database.write(insert("b"))
            with pytest.raises(ServiceError, match="BACKEND_UNAVAILABLE"):
                await database.read(names)
            server.start()
            await database.write(insert("c"))
            assert await database.read(names) == ["a", "c"]


async def test_a_service_gives_up_without_showing_the_password(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(session, "START_S_MAX", 0.3)
    place = PostgresPlace(url=SecretBytes(b"postgresql://me:hunter2@127.0.0.1:1/x"), schema="item")
    with pytest.raises(StartError, match="cannot be reached") as caught:
        await Database.open(place)
    assert "hunter2" not in f"{caught.value} {place!r} {capsys.readouterr()}"


@pytest.mark.parametrize("url", ["postgresql://me:hunter2@[/x", "postgresql://me:hunter2%zz@h/x", "mysql://hunter2"])
async def test_a_malformed_url_is_not_shown(url: str) -> None:
    with pytest.raises(StartError, match="postgresql://") as caught:
        await Database.open(PostgresPlace(url=SecretBytes(url.encode()), schema="item"))
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None


async def test_a_replica_answers_when_it_is_far_enough(migrations: Path) -> None:
    with running_server() as server, server.standby() as standby:
        place = schema_at(server.url(), replica_url=standby.url())
        async with await Database.open(place, migrations=migrations) as database:
            await wait_for_rows(standby)
            sequence = await database.write(add_with_event("a"))
            assert await database.read(names, min_sequence=sequence) == ["a"]
            await until_standby_answers(database, 0)
            assert await database.read(where) == "primary"
            standby.execute("SELECT pg_wal_replay_pause()")
            sequence = await database.write(add_with_event("b"))
            assert await database.read(names, min_sequence=0) == ["a"], "any state will do"
            assert await database.read(names, min_sequence=sequence) == ["a", "b"], "the database itself was asked"
            standby.execute("SELECT pg_wal_replay_resume()")
            while await database.read(names, min_sequence=0) != ["a", "b"]:
                await asyncio.sleep(0.02)
            await until_standby_answers(database, sequence)
            standby.stop()
            assert await database.read(where, min_sequence=sequence) == "primary"


async def until_standby_answers(database: Database, min_sequence: int) -> None:
    """A standby that cancels a query, because of what it replays just then, is left alone for a moment."""
    while await database.read(where, min_sequence=min_sequence) != "standby":
        await asyncio.sleep(0.05)


async def wait_for_rows(standby: Server) -> None:
    """Until the standby has the schema."""
    while not standby.execute("SELECT 1 FROM pg_tables WHERE tablename = 'item'"):
        await asyncio.sleep(0.02)


def add_with_event(name: str) -> Callable[[Connection], int]:
    """A write that adds an item and returns the sequence of its event."""

    def work(connection: Connection) -> int:
        connection.execute("INSERT INTO item (name) VALUES (?)", (name,))
        return append_event(connection, kind="k", subject=name, payload=b"")

    return work


def where(connection: Connection) -> str:
    """Which server answers."""
    (standby,) = connection.execute("SELECT pg_is_in_recovery()").fetchone() or (None,)
    return "standby" if standby else "primary"

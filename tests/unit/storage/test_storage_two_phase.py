"""Prepared transactions on a real PostgreSQL: durable, repeatable, never in anybody's way, and refused where there are none."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psycopg
import pytest

from services.chassis.errors import Reason, ServiceError, StartError
from services.storage.database import Database
from services.storage.places import Place, PostgresPlace
from services.storage.postgresql.two_phase import PreparedTransactions
from support.items import insert, names
from support.postgresql import Server, running_server, schema_at


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running_server(prepared_max=4) as running:
        yield running


@pytest.fixture
def place(server: Server) -> Iterator[Place]:
    url = server.new_database()
    yield schema_at(url)
    with psycopg.connect(url, autocommit=True) as connection:  # a database with prepared transactions cannot be dropped
        for (gid,) in connection.execute("SELECT gid FROM pg_prepared_xacts WHERE database = current_database()"):
            connection.execute(f"ROLLBACK PREPARED '{gid}'".encode())
    server.drop_database(url)


@pytest.fixture
async def transactions(database: Database, place: Place) -> AsyncIterator[PreparedTransactions]:
    """Beside the database's writer."""
    async with PreparedTransactions.open(place) as opened:
        yield opened


async def test_what_is_prepared_is_there_once_it_is_committed(
    database: Database, transactions: PreparedTransactions
) -> None:
    await transactions.prepare("a-1", insert("prepared"))
    assert await database.read(names) == []
    await database.write(insert("meanwhile"))  # the writers' lock is not kept
    assert await transactions.names() == ["a-1"]
    assert await transactions.names(older_than_ms=60_000) == []
    assert await transactions.commit("a-1")
    assert not await transactions.commit("a-1"), "again: nothing is prepared"
    assert not await transactions.rollback("a-1")
    assert sorted(await database.read(names)) == ["meanwhile", "prepared"]


async def test_what_is_rolled_back_never_was(database: Database, transactions: PreparedTransactions) -> None:
    await transactions.prepare("a-1", insert("prepared"))
    assert await transactions.rollback("a-1")
    assert not await transactions.rollback("a-1")
    assert await database.read(names) == []
    assert await transactions.names() == []


async def test_work_that_fails_leaves_nothing_prepared(database: Database, transactions: PreparedTransactions) -> None:
    def fail(connection: object) -> None:
        insert("half")(connection)
        raise LookupError("no")

    with pytest.raises(LookupError):
        await transactions.prepare("a-1", fail)
    assert await transactions.names() == []
    await transactions.prepare("a-1", insert("whole"))
    with pytest.raises(ServiceError) as caught:
        await transactions.prepare("a-1", insert("same name"))
    assert caught.value.reason == Reason.BACKEND_UNAVAILABLE
    assert await transactions.names() == ["a-1"]


async def test_it_outlives_the_server_and_other_schemas_are_left_alone(
    database: Database, place: PostgresPlace, server: Server, transactions: PreparedTransactions
) -> None:
    await transactions.prepare("a-1", insert("prepared"))
    server.kill()
    server.start()
    with pytest.raises(ServiceError):
        await transactions.names()  # over the connection that is lost
    assert await transactions.names() == ["a-1"]
    async with PreparedTransactions.open(schema_at(place.url.reveal().decode(), "item2")) as others:
        assert await others.names() == []
        assert not await others.commit("a-1")
    assert await transactions.commit("a-1")
    assert await database.read(names) == ["prepared"]


async def test_a_server_that_keeps_none_is_said_at_the_start(postgresql_url: str) -> None:
    with pytest.raises(StartError, match=r"max_prepared_transactions above 0.*restart the server"):
        async with PreparedTransactions.open(schema_at(postgresql_url)):
            pass


async def test_files_take_no_part(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"NIPMESH_TWO_PHASE_COMMIT needs PostgreSQL.*NIPMESH_DATABASE_URL"):
        async with PreparedTransactions.open(tmp_path / "a.db"):
            pass

"""Reads through the cache: what is served from it, and that nothing the server does makes a read wrong."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from services.chassis.errors import StartError
from services.chassis.secret import SecretBytes
from services.storage.cache import history, reading
from services.storage.cache.sealing import DAY_S, Sealer
from services.storage.cache.server import CacheServer
from services.storage.database import Database
from services.storage.places import Place
from support.cached_items import Reader, cache_server, reader_of, set_version, until
from support.valkey import Valkey, running_valkey

KEY = SecretBytes(b"k" * 32)


@pytest.fixture(scope="module")
def shared() -> Iterator[Valkey]:
    with running_valkey() as server:
        yield server


@pytest.fixture
def valkey(shared: Valkey) -> Iterator[Valkey]:
    yield shared
    shared.client.flushall()


@pytest.fixture
async def server(valkey: Valkey) -> AsyncIterator[CacheServer]:
    async with cache_server(valkey) as opened:
        yield opened


@pytest.fixture
async def reader(database: Database, server: CacheServer) -> AsyncIterator[Reader]:
    async with reader_of(database, server) as opened:
        yield opened


async def filled(reader: Reader, subject: int) -> None:
    """Read an item until it is served from the cache."""
    hits = reader.reads("hit")
    async with asyncio.timeout(30):
        while reader.reads("hit") == hits:
            await reader.version(subject)
            await asyncio.sleep(0.002)


async def test_the_second_read_is_served_from_the_cache_and_a_write_ends_that(reader: Reader, valkey: Valkey) -> None:
    await reader.write(1, 1)
    await filled(reader, 1)
    assert await reader.version(1) == 1
    await reader.write(1, 2)
    outdated = reader.reads("outdated")
    assert await reader.version(1) == 2
    assert reader.reads("outdated") == outdated + 1


async def test_writes_to_others_do_not_end_it(reader: Reader, valkey: Valkey) -> None:
    await reader.write(1, 1)
    await filled(reader, 1)
    await reader.write(2, 1)
    hits = reader.reads("hit")
    assert await reader.version(1) == 1
    assert reader.reads("hit") == hits + 1


async def test_another_replicas_write_ends_it_at_once(
    reader: Reader, valkey: Valkey, place: Place, migrations: Path
) -> None:
    async with await Database.open(place, migrations=migrations) as other:
        for version in range(1, 30):
            await other.write(set_version(1, version))
            assert await reader.version(1) == version
            await filled(reader, 1)
    assert reader.reads("outdated") >= 25


async def test_replicas_share_what_one_of_them_fetched(
    reader: Reader, server: CacheServer, valkey: Valkey, place: Place, migrations: Path
) -> None:
    await reader.write(1, 7)
    await filled(reader, 1)
    async with await Database.open(place, migrations=migrations) as database, reader_of(database, server) as other:
        assert await other.version(1) == 7
        assert other.reads("hit") == 1


async def test_the_server_sees_no_content(reader: Reader, valkey: Valkey) -> None:
    await reader.write(1, 1)
    await filled(reader, 1)
    (sealed,) = valkey.dump().values()
    assert b"whoever" not in sealed
    assert 0 < valkey.client.ttl("nipmesh:mesh:item:item:1") <= 600


async def test_what_was_tampered_with_or_moved_is_not_believed(reader: Reader, valkey: Valkey) -> None:
    for subject in (1, 2):
        await reader.write(subject, subject)
    for subject in (1, 2):
        await filled(reader, subject)
    held = valkey.dump()
    first, second = (f"nipmesh:mesh:item:item:{subject}" for subject in (1, 2))
    forged = held[first][:-1] + bytes([held[first][-1] ^ 1])
    for value in (held[second], forged, b"", b"x" * 200, held[first][:20], b"\0" * 40):
        valkey.client.set(first, value)
        unreadable = reader.reads("unreadable")
        assert await reader.version(1) == 1
        assert reader.reads("unreadable") == unreadable + 1
        await until(lambda: valkey.client.get(first) != value)  # noqa: B023  # awaited here


async def test_old_contents_put_back_are_not_believed(reader: Reader, valkey: Valkey) -> None:
    name = "nipmesh:mesh:item:item:1"
    olds = []
    for version in range(1, 6):
        await reader.write(1, version)
        await filled(reader, 1)
        olds.append(valkey.dump()[name])
    for old in olds[:-1]:
        valkey.client.set(name, old)
        assert await reader.version(1) == 5


async def test_an_entry_that_is_too_large_is_not_kept(
    reader: Reader, valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "ENTRY_BYTES_MAX", 10)
    await reader.write(1, 1)
    assert await reader.version(1) == await reader.version(1) == 1
    assert reader.fills("too_large") == 2
    assert valkey.dump() == {}


async def test_nothing_is_kept_of_a_database_without_events(reader: Reader, valkey: Valkey) -> None:
    assert await reader.version(1) == await reader.version(1) == 0
    assert reader.fills("sent") == 0


async def test_what_a_restored_backup_never_saw_is_not_believed(
    tmp_path: Path, migrations: Path, server: CacheServer, valkey: Valkey
) -> None:
    """The backup's future is written anew, with the same numbers; what the cache knows of the old one is not true."""
    live, saved = tmp_path / "live.db", tmp_path / "saved.db"
    async with await Database.open(live, migrations=migrations) as database, reader_of(database, server) as reader:
        await reader.write(1, 1)
    shutil.copy(live, saved)  # closed: the file is whole
    async with await Database.open(live, migrations=migrations) as database, reader_of(database, server) as reader:
        await reader.write(1, 100)
        await filled(reader, 1)
    held = valkey.dump()
    shutil.copy(saved, live)
    async with await Database.open(live, migrations=migrations) as database, reader_of(database, server) as reader:
        assert await reader.version(1) == 1
        await reader.write(2, 1)  # the number that version 100 had
        await until(lambda: valkey.dump() != held)
        valkey.client.mset(held)
        outdated = reader.reads("outdated")
        assert await reader.version(1) == 1
        assert reader.reads("outdated") == outdated + 1


async def test_a_database_that_goes_back_under_a_running_replica_is_noticed(
    database: Database, reader: Reader, valkey: Valkey
) -> None:
    """As when a standby is promoted that had not got everything: the newest events are gone, other ones take their numbers."""
    await reader.write(1, 1)
    await reader.write(1, 2)
    await filled(reader, 1)

    def rewind(connection: object) -> None:
        connection.execute("DELETE FROM storage_event WHERE sequence = 2")  # type: ignore[attr-defined]
        connection.execute("UPDATE item SET name = '1 1' WHERE id = 1")  # type: ignore[attr-defined]

    await database.write(rewind)
    assert await reader.version(1) == 1
    await reader.write(2, 1)
    assert await reader.version(1) == 1


async def test_a_replica_that_was_far_behind_starts_anew(
    database: Database, reader: Reader, valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "EVENTS_BEHIND_MAX", 5)
    await reader.write(1, 1)
    await filled(reader, 1)
    for version in range(10):
        await database.write(set_version(2, version))
    assert await reader.version(1) == 1
    await filled(reader, 1)
    await reader.write(1, 2)
    assert await reader.version(1) == 2


async def test_events_that_were_removed_do_not_mislead(database: Database, reader: Reader, valkey: Valkey) -> None:
    await reader.write(1, 1)
    await filled(reader, 1)
    await reader.write(1, 2)
    await reader.write(2, 1)
    await database.write(
        lambda connection: connection.execute("DELETE FROM storage_event WHERE sequence <= 2") and None
    )
    assert await reader.version(1) == 2


async def test_reads_go_on_while_the_server_is_killed_and_comes_back_with_old_contents(
    database: Database, migrations: Path
) -> None:
    with running_valkey() as valkey:
        async with cache_server(valkey) as server, reader_of(database, server) as reader:
            await reader.write(1, 1)
            await filled(reader, 1)
            valkey.client.save()
            await reader.write(1, 2)
            await filled(reader, 1)
            valkey.kill()
            assert await reader.version(1) == 2
            await reader.write(1, 3)
            assert await reader.version(1) == 3
            assert not server.working
            valkey.start()
            await until(lambda: server.working)
            assert valkey.dump(), "it is back with what it saved"
            assert await reader.version(1) == 3
            await filled(reader, 1)
            assert reader.reads("unreached") >= 1


async def test_a_server_that_does_not_answer_is_left_alone(database: Database) -> None:
    with running_valkey() as valkey:
        async with cache_server(valkey, 0.2) as server, reader_of(database, server) as reader:
            await reader.write(1, 1)
            await filled(reader, 1)
            valkey.freeze()
            try:
                assert await reader.version(1) == 1
                assert not server.working, "one read waited"
                unreached = reader.reads("unreached")
                for _ in range(20):
                    assert await reader.version(1) == 1
                assert reader.reads("unreached") == unreached + 20
            finally:
                valkey.thaw()
            await until(lambda: server.working)
            assert await reader.version(1) == 1


async def test_a_closed_server_takes_nothing(valkey: Valkey) -> None:
    async with cache_server(valkey) as server:
        assert server.put("a", b"1")
    assert not server.put("a", b"2")
    assert not (await server.get("a")).reached


async def test_a_url_of_something_else_stops_the_start() -> None:
    for url in ("redis://host:notaport/0", "http://127.0.0.1/"):
        with pytest.raises(StartError) as caught:
            CacheServer(SecretBytes(url.encode()))
        assert url not in str(caught.value)


def test_sealed_content_opens_under_its_name_and_key_within_two_days() -> None:
    moment = [DAY_S * 20_000.0]
    sealer = Sealer(KEY, lambda: moment[0])
    sealed = sealer.seal("a", b"content")
    assert sealer.open_sealed("a", sealed) == b"content"
    assert sealer.open_sealed("b", sealed) is None
    assert Sealer(SecretBytes(b"l" * 32), lambda: moment[0]).open_sealed("a", sealed) is None
    assert sealer.seal("a", b"content") != sealed
    moment[0] += DAY_S
    assert sealer.open_sealed("a", sealed) == b"content"
    moment[0] += DAY_S
    assert sealer.open_sealed("a", sealed) is None


async def test_replicas_agree_on_a_key(place: Place, migrations: Path) -> None:
    async with (
        await Database.open(place, migrations=migrations) as one,
        await Database.open(place, migrations=migrations) as two,
    ):
        sealed = (await Sealer.open(one)).seal("a", b"content")
        assert (await Sealer.open(two)).open_sealed("a", sealed) == b"content"

"""The databases of a composition: files of the server, a role for each service that enters its own alone, and an agent that tries again."""

from __future__ import annotations

import asyncio
import contextlib
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from generator.outputs.compose import databases as module
from generator.outputs.compose import layout
from generator.outputs.compose.databases import Databases
from generator.outputs.compose.layout import ContainerPaths
from generator.outputs.local.certificates import utc_now
from generator.outputs.local.events import Happening, Journal
from generator.pki import Authority, issue_leaf, publish_leaf
from generator.pki.authority import LEAF_LIFETIME_MAX
from support.meshes import repository_mesh
from support.postgresql import Server

SEEN_S = 20


@pytest.fixture
def databases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Databases:
    for name in ("CERTIFICATES", "POSTGRESQL_FILES"):
        monkeypatch.setattr(layout, name, tmp_path / name.lower())
    (tmp_path / "certificates" / "postgresql").mkdir(parents=True)
    (tmp_path / "state" / "secrets").mkdir(parents=True, mode=0o700)
    found = Databases(mesh=repository_mesh(), paths=ContainerPaths(root=tmp_path / "state"), journal=Journal())
    authority = Authority.open(tmp_path / "state" / "pki", "nip.mesh", utc_now())
    leaf = issue_leaf(authority, identity="spiffe://nip.mesh/postgresql", lifetime=LEAF_LIFETIME_MAX, now=utc_now())
    publish_leaf(found.paths.certificates("postgresql"), leaf)
    return found


def test_a_service_is_told_where_its_own_database_is(databases: Databases, tmp_path: Path) -> None:
    given = {}
    for role in ("nip", "payment"):
        folder = tmp_path / role
        folder.mkdir()
        databases.give(role, folder)
        assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
        assert (folder / "database-ca.crt").read_bytes().startswith(b"-----BEGIN CERTIFICATE")
        given[role] = (folder / "database.url").read_text()
        databases.give(role, folder)
        assert (folder / "database.url").read_text() == given[role], "a password stays"
    head, _, rest = given["payment"].partition("@")
    assert head.startswith("postgresql://nipmesh_payment:")
    assert rest == (
        "postgresql:5432/nipmesh_payment?sslmode=verify-full&sslrootcert=/etc/nipmesh/secrets/database-ca.crt"
    )
    assert given["nip"].partition("@")[0].rpartition(":")[2] != head.rpartition(":")[2]


def test_the_server_starts_closed(databases: Databases, tmp_path: Path) -> None:
    databases.write()
    folder = tmp_path / "postgresql_files"
    access = (folder / "pg_hba.conf").read_text()
    rules = [line.split() for line in access.splitlines() if not line.startswith("#")]
    assert {(rule[0], rule[-1]) for rule in rules} == {("local", "scram-sha-256"), ("hostssl", "scram-sha-256")}
    owner = (folder / "owner.password").read_bytes()
    databases.give("nip", tmp_path)
    assert owner.decode() not in (tmp_path / "database.url").read_text()
    databases.write()
    assert (folder / "owner.password").read_bytes() == owner


@pytest.fixture
def connection(databases: Databases, postgresql: Server) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    """The owner's, at a server that both roles leave again."""
    with psycopg.connect(postgresql.url(), autocommit=True) as found:
        yield found
        for role in ("nip", "pay-ment"):
            found.execute(f'DROP DATABASE IF EXISTS "nipmesh_{role}" WITH (FORCE)')
            found.execute(f'DROP ROLE IF EXISTS "nipmesh_{role}"')


def test_each_service_enters_its_own_database_alone(
    databases: Databases, connection: psycopg.Connection[tuple[Any, ...]], postgresql: Server
) -> None:
    for role in ("nip", "pay-ment", "nip"):
        databases._provide(connection, role)
    with psycopg.connect(make_conninfo(postgresql.url("nipmesh_nip"), user="nipmesh_nip")) as mine:
        mine.execute("CREATE SCHEMA nip")
    with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
        psycopg.connect(make_conninfo(postgresql.url("nipmesh_nip"), user="nipmesh_pay-ment"))
    stored = connection.execute("SELECT rolpassword FROM pg_authid WHERE rolname = 'nipmesh_nip'").fetchone()
    password = databases.paths.database_password("nip").read_text()
    assert stored is not None
    assert stored[0].startswith("SCRAM-SHA-256$")
    assert password not in stored[0]
    rights = connection.execute(
        "SELECT rolsuper OR rolcreatedb OR rolcreaterole OR rolreplication FROM pg_roles WHERE rolname = 'nipmesh_nip'"
    ).fetchone()
    assert rights == (False,)


async def test_the_agent_tries_again_until_the_server_answers_and_tells_it_of_its_next_certificate(
    databases: Databases, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Happening] = []
    databases.journal.listen(told.append)
    monkeypatch.setattr(module, "RETRY_S", 0.001)
    tries: list[bool] = []
    at: list[str] = []
    looks = iter([(), (), ("10.0.0.1",), (), ("10.0.0.2",), ("10.0.0.4", "10.0.0.3"), ("10.0.0.5",)])

    async def addresses(host: str) -> frozenset[str]:
        assert host == "postgresql"
        return frozenset(next(looks))

    def provide(address: str, is_renewed: bool) -> None:
        tries.append(is_renewed)
        at.append(address)
        if len(tries) < 4:
            raise psycopg.OperationalError("the database system\nis starting up")

    monkeypatch.setattr(databases, "_provide_all", provide)
    keeping = asyncio.create_task(databases.keep(addresses))
    try:
        await _until(tries, 4)
        databases.renewed()
        await _until(tries, 5)
        monkeypatch.setattr(module, "AGAIN_S", 0.001)
        databases.renewed()
        await _until(tries, 8)
    finally:
        keeping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await keeping
    assert tries[:6] == [True] * 6
    assert tries[7] is False, "only a renewal is told"
    # Looked for after each failure, and never again once it answers.
    assert at[:3] == ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
    assert set(at[3:]) == {"10.0.0.5"}
    assert [(one.kind, one.text) for one in told] == [
        ("database-waiting", "the database system is starting up; tried again")
    ]


async def test_an_image_without_the_services_says_what_it_lacks(
    databases: Databases, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    assert await databases._prepare("10.0.0.1") == "this image has no psycopg; build it with nipmesh[services]"


async def _until(tries: list[bool], count: int) -> None:
    async with asyncio.timeout(SEEN_S):
        while len(tries) < count:
            await asyncio.sleep(0.001)

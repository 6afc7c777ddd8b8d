"""What the agent does for PostgreSQL: its files before it starts; then a role and a database of its own for each service.

A password never leaves the agent but in the volume of its service: the server is told only what it needs to check it. Nobody has to say
that the server runs: it is looked for by its name.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from generator.model import Mesh
from generator.outputs.compose.layout import (
    DATABASE_AUTHORITIES,
    DATABASE_URL,
    POSTGRESQL,
    POSTGRESQL_OWNER,
    POSTGRESQL_PORT,
    SECRETS,
    ContainerPaths,
    database_role,
    database_roles,
)
from generator.outputs.compose.postgresql import ACCESS_FILE, OWNER_PASSWORD_FILE, PREPARED_FILE
from generator.outputs.local.events import Journal
from generator.pki import PrivateBytes, private_directory, write_private
from generator.pki.store import AUTHORITIES, DATA_LINK

if TYPE_CHECKING:
    import psycopg

ACCESS = b"""\
# Nobody without a password, and over a network nobody without TLS.
local all all scram-sha-256
hostssl all all all scram-sha-256
"""
PASSWORD_BYTES = 32
CONNECT_S_MAX = 3
STATEMENT_MS_MAX = 10_000
RETRY_S = 1.0
AGAIN_S = 60.0
"""Whoever empties the volume of its databases finds roles and empty databases made again."""
_SCHEME = "scram-sha-256"


@dataclass(kw_only=True)
class Databases:
    """Of one mesh; `write` and `give` before the server starts, `keep` until the end."""

    mesh: Mesh
    paths: ContainerPaths
    journal: Journal
    _is_renewed: asyncio.Event = field(default_factory=asyncio.Event)

    def write(self) -> None:
        """Write what the server starts with. Raises OSError."""
        folder = private_directory(self.paths.postgresql)
        write_private(folder / ACCESS_FILE, ACCESS)
        write_private(folder / OWNER_PASSWORD_FILE, _password(self.paths.postgresql_password))

    def give(self, role: str, folder: Path) -> None:
        """Write where a service's database is into the volume of its secrets. Raises OSError."""
        name, password = database_role(role), _password(self.paths.database_password(role)).reveal().decode()
        checked = f"sslmode=verify-full&sslrootcert={SECRETS / DATABASE_AUTHORITIES}"
        url = f"postgresql://{name}:{password}@{POSTGRESQL}:{POSTGRESQL_PORT}/{name}?{checked}"
        write_private(folder / DATABASE_URL, PrivateBytes(url.encode()))
        authorities = self.paths.certificates(POSTGRESQL) / DATA_LINK / AUTHORITIES
        write_private(folder / DATABASE_AUTHORITIES, authorities.read_bytes())

    def renewed(self) -> None:
        """The server's certificate is another: it has to be told."""
        self._is_renewed.set()

    async def keep(self, addresses: Callable[[str], Awaitable[frozenset[str]]]) -> None:
        """Once the server runs, keep roles, databases and its certificate as they should be, until cancelled.

        It is looked for again only when it does not answer: names are not found for seconds while containers come and go, and a renewal
        is to be told at once.
        """
        found, is_told = frozenset[str](), False
        self._is_renewed.set()
        while True:
            found = found or await addresses(POSTGRESQL)
            if not found:
                await asyncio.sleep(RETRY_S)
                continue
            failed = await self._prepare(min(found))
            if failed is not None:
                found = frozenset()
                if not is_told:
                    self.journal.tell("database-waiting", f"{failed}; tried again", workload=POSTGRESQL)
                is_told = True
                await asyncio.sleep(RETRY_S)
                continue
            is_told = False
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(AGAIN_S):
                    await self._is_renewed.wait()

    async def _prepare(self, address: str) -> str | None:
        """Do all of it once; say why it could not be done."""
        try:
            import psycopg
        except ImportError:
            return "this image has no psycopg; build it with nipmesh[services]"
        is_renewed = self._is_renewed.is_set()
        self._is_renewed.clear()
        try:
            await asyncio.to_thread(self._provide_all, address, is_renewed)
        except (psycopg.Error, OSError) as error:
            if is_renewed:
                self._is_renewed.set()
            return " ".join(str(error).split())
        return None

    def _provide_all(self, address: str, is_renewed: bool) -> None:
        with self._connected(address) as connection:
            for role in database_roles(self.mesh):
                self._provide(connection, role)
            if is_renewed:
                connection.execute("SELECT pg_reload_conf()")
        write_private(self.paths.postgresql / PREPARED_FILE, b"")

    def _connected(self, address: str) -> psycopg.Connection[tuple[Any, ...]]:
        """Come in as the owner.

        Who answers must know what the password is checked with, and be the end of this very connection (channel binding): so a server whose
        certificate has expired can still be told of its next one.
        """
        import psycopg

        return psycopg.connect(
            host=POSTGRESQL,
            hostaddr=address,
            port=POSTGRESQL_PORT,
            user=POSTGRESQL_OWNER,
            dbname=POSTGRESQL_OWNER,
            password=_password(self.paths.postgresql_password).reveal().decode(),
            sslmode="require",
            channel_binding="require",
            connect_timeout=CONNECT_S_MAX,
            options=f"-c statement_timeout={STATEMENT_MS_MAX}",
            autocommit=True,
        )

    def _provide(self, connection: psycopg.Connection[tuple[Any, ...]], role: str) -> None:
        """Make a service's role and its database, which nobody else may enter."""
        from psycopg import sql

        name = database_role(role)
        password = _password(self.paths.database_password(role)).reveal()
        verifier = connection.pgconn.encrypt_password(password, name.encode(), _SCHEME.encode()).decode()
        named = sql.Identifier(name)
        if connection.execute("SELECT FROM pg_roles WHERE rolname = %s", (name,)).fetchone() is None:
            connection.execute(sql.SQL("CREATE ROLE {}").format(named))
        connection.execute(sql.SQL("ALTER ROLE {} WITH LOGIN PASSWORD {}").format(named, sql.Literal(verifier)))
        if connection.execute("SELECT FROM pg_database WHERE datname = %s", (name,)).fetchone() is None:
            connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(named, named))
            self.journal.tell("database", f"made for {role}", workload=POSTGRESQL)
        connection.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(named))


def _password(path: Path) -> PrivateBytes:
    """Read a password that is made once, of digits and letters that need no escape anywhere. Raises OSError."""
    if not path.exists():
        private_directory(path.parent)
        write_private(path, PrivateBytes(secrets.token_hex(PASSWORD_BYTES).encode()))
    return PrivateBytes(path.read_bytes())

"""Connecting to PostgreSQL: the limits of a session, the schema it works in, and waiting for a server that is not there yet."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from typing import Any, Final

import psycopg
from psycopg import conninfo

from services.chassis.errors import StartError
from services.chassis.logs import get_logger
from services.chassis.secret import SecretBytes

CONNECT_S_MAX: Final = 3
"""How long one try to connect may take (libpq takes whole seconds, 2 at least)."""
START_S_MAX: Final = 60.0
"""How long a service waits for its database before it gives up and is started again."""
START_PAUSE_S: Final = 0.5
"""Pause between two tries at start; it doubles up to START_PAUSE_S_MAX."""
START_PAUSE_S_MAX: Final = 5.0
"""Longest pause between two tries at start."""
LOCK_MS_MAX: Final = 5_000
"""How long a batch waits for the other replicas' batches, each of which takes milliseconds. Then it is tried again or fails."""
STATEMENT_MS_MAX: Final = 10_000
"""How long a statement may run: far more than any of a service's should."""
IDLE_MS_MAX: Final = 5_000
"""A replica that hangs in the middle of a batch holds the others up for at most this long; then the server ends its transaction."""
KEEPALIVE_S: Final = 2
"""Pause between two signs of life on an idle TCP connection, on either side; three lost ones end it."""
SERVER_VERSION_MIN: Final = 140_000
"""PostgreSQL 14: the oldest that its makers still mend."""

_log = get_logger("storage")
_CLIENT: Final[dict[str, Any]] = {
    "connect_timeout": CONNECT_S_MAX,
    "keepalives_idle": KEEPALIVE_S,
    "keepalives_interval": KEEPALIVE_S,
    "keepalives_count": 3,
    "tcp_user_timeout": 3 * KEEPALIVE_S * 1_000,
}


def connect(url: SecretBytes, schema: str, *, use: str) -> psycopg.Connection[tuple[object, ...]]:
    """Connect, with limits on everything, to work in `schema`; `use` is shown in the server's list of sessions.

    Raises psycopg.OperationalError when that fails, and StartError when the URL is none. Neither shows the password.
    """
    try:
        values = conninfo.conninfo_to_dict(url.reveal().decode())
    except (psycopg.ProgrammingError, UnicodeDecodeError):
        raise StartError(
            "the URL of the database is malformed; write postgresql://user:password@host:port/database"
        ) from None
    named = {"application_name": f"nipmesh {schema} {use}"}
    wanted = conninfo.make_conninfo("", **(_CLIENT | {k: v for k, v in values.items() if v is not None} | named))
    connection = psycopg.connect(wanted, autocommit=True)
    try:
        _set_up(connection, schema)
    except BaseException:
        connection.close()
        raise
    return connection


def _set_up(connection: psycopg.Connection[tuple[object, ...]], schema: str) -> None:
    """Check the server's version, set the session's limits and the schema."""
    if connection.info.server_version < SERVER_VERSION_MIN:
        raise StartError(
            f"the database needs PostgreSQL 14 or newer, this is {connection.info.server_version // 10_000}"
        )
    limits = (
        f"SET lock_timeout = {LOCK_MS_MAX}; SET statement_timeout = {STATEMENT_MS_MAX};"
        f" SET idle_in_transaction_session_timeout = {IDLE_MS_MAX}; SET tcp_keepalives_idle = {KEEPALIVE_S};"
        f" SET tcp_keepalives_interval = {KEEPALIVE_S}; SET tcp_keepalives_count = 3;"
    )
    formats = "SET bytea_output = 'hex'; SET client_encoding = 'UTF8'; SET standard_conforming_strings = on;"
    place = f"SET synchronous_commit = on; SET search_path = {schema};"  # PostgresPlace checks the name
    connection.execute((limits + formats + place).encode())


async def once_reachable(work: Callable[[], None], schema: str) -> None:
    """Run `work` in a thread once the server takes connections, with a log line for each try. Raises StartError after START_S_MAX."""
    until_s = time.monotonic() + START_S_MAX
    pause_s = START_PAUSE_S
    while True:
        try:
            return await asyncio.to_thread(work)
        except psycopg.OperationalError as error:
            reason = " ".join(str(error).split())
        if time.monotonic() > until_s:
            raise StartError(f"the database cannot be reached: {reason}")
        _log.warning("waiting for the database", schema=schema, reason=reason, pause_s=pause_s)
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, START_PAUSE_S_MAX)


def lock_key(schema: str) -> int:
    """The advisory lock that a batch holds: one for all replicas of the service that lives in this schema of a database."""
    return int.from_bytes(hashlib.sha256(b"nipmesh writer " + schema.encode()).digest()[:8], signed=True)

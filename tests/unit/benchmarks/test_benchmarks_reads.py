"""The benchmark of reads by id runs, on both engines, and its reads through the cache are answered."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.services.reads import CALLERS, rates
from support.postgresql import schema_at
from support.valkey import running_valkey


@pytest.mark.parametrize("engine", ["sqlite", "postgresql"])
async def test_reads_are_measured(engine: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    place = tmp_path / "data" / "reads.db"
    with running_valkey() as valkey:
        where = place if engine == "sqlite" else schema_at(request.getfixturevalue("postgresql_url"), "reads")
        found = await rates(where, valkey.url, 0.2)
        assert len(valkey.dump()) > 0
    assert len(found) == 2 * 2 * len(CALLERS)
    assert all(per_second > 0 for per_second in found.values())

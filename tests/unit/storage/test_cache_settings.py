"""Whether there is a cache is said by the environment; its URL holds a password."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from services.chassis.secret import SecretFileError
from services.chassis.settings import ChassisSettings
from services.storage.cache import Direct, open_reads
from services.storage.cache.reading import Cached
from services.storage.database import Database
from support.items import write_migrations

URL = "redis://user:hunter2@127.0.0.1:1/0"


def test_there_is_no_cache_by_default() -> None:
    assert ChassisSettings().cache_address() is None


def test_the_url_may_lie_in_a_file_that_is_nobody_elses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "url"
    file.write_text(URL + "\n")
    file.chmod(0o600)
    monkeypatch.setenv("NIPMESH_CACHE_URL_FILE", str(file))
    address = ChassisSettings.load().cache_address()
    assert address is not None
    assert address.reveal().decode() == URL
    file.chmod(0o644)
    with pytest.raises(SecretFileError):
        ChassisSettings.load().cache_address()


@pytest.mark.parametrize(
    ("variables", "problem"),
    [
        ({"NIPMESH_CACHE_URL": "http://user:hunter2@cache"}, "NIPMESH_CACHE_URL"),
        ({"NIPMESH_CACHE_URL": URL, "NIPMESH_CACHE_URL_FILE": "/nowhere"}, "NIPMESH_CACHE_URL_FILE"),
    ],
)
def test_a_wrong_setting_stops_the_start_and_is_not_shown(
    variables: dict[str, str], problem: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        ChassisSettings.load()
    shown = capsys.readouterr().err
    assert f"{problem}:" in shown
    assert "hunter2" not in shown


async def test_a_server_that_is_not_there_keeps_nobody_from_starting(tmp_path: Path) -> None:
    migrations = write_migrations(tmp_path / "migrations")
    async with await Database.open(tmp_path / "data" / "a.db", migrations=migrations) as database:
        for settings, kind in ((ChassisSettings(cache_url=URL), Cached), (ChassisSettings(), Direct)):
            async with open_reads(settings, database, CollectorRegistry(), "a.db") as reads:
                assert isinstance(reads, kind)

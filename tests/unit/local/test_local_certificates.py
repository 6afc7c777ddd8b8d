"""Renewal while the mesh runs, without waiting for it."""

import asyncio
import datetime as dt
from pathlib import Path

import pytest

from generator.outputs.local import certificates
from generator.outputs.local.certificates import CertificateKeeper
from generator.outputs.local.events import Journal
from generator.outputs.local.paths import StatePaths
from generator.pki import installed_leaf

IDENTITY = "spiffe://test.mesh/service/echo"


@pytest.fixture
def paths(tmp_path: Path) -> StatePaths:
    paths = StatePaths(root=tmp_path / ".nipmesh")
    paths.make()
    return paths


def test_a_certificate_is_due_at_half_of_its_life(paths: StatePaths) -> None:
    keeper = CertificateKeeper(paths, "test.mesh", 3_600_000, Journal())
    keeper.issue("echo-0", IDENTITY)
    expires = keeper.expires("echo-0")
    assert expires is not None
    assert keeper.due(expires - dt.timedelta(minutes=31)) == ()
    assert keeper.due(expires - dt.timedelta(minutes=29)) == ("echo-0",)
    keeper.forget("echo-0")
    assert keeper.due(expires) == ()
    assert keeper.expires("echo-0") is None


async def test_what_is_due_is_renewed_and_a_failure_is_told_and_tried_again(
    paths: StatePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificates, "CHECK_INTERVAL_S", 0.01)
    monkeypatch.setattr(certificates, "RETRY_S", 0.01)
    journal = Journal()
    keeper = CertificateKeeper(paths, "test.mesh", 1_000, journal)
    keeper.issue("echo-0", IDENTITY)
    first = installed_leaf(paths.certificates("echo-0"))
    (key,) = paths.authorities.glob("*.key")
    content = key.read_bytes()
    key.write_text("nonsense")
    renewing = asyncio.create_task(keeper.renew_for_ever())
    queue = journal.subscribe()
    async with asyncio.timeout(5):
        assert (await queue.get()).kind == "certificate-failed"
        key.write_bytes(content)
        while (await queue.get()).kind != "certificate":
            continue
    renewing.cancel()
    second = installed_leaf(paths.certificates("echo-0"))
    assert first is not None
    assert second is not None
    assert second.serial_number != first.serial_number


def test_a_slow_subscriber_loses_old_happenings_and_blocks_nobody() -> None:
    journal = Journal()
    queue = journal.subscribe()
    for number in range(1_100):
        journal.tell("kind", str(number))
    assert queue.qsize() == 1_000
    assert queue.get_nowait().text == "100"
    assert len(journal.history) == 500
    journal.unsubscribe(queue)
    journal.tell("kind", "more")
    assert queue.qsize() == 999


def test_a_happening_is_a_line_and_a_json_object() -> None:
    journal = Journal()
    journal.tell("died", "exited with code 1", workload="echo-0", part="app", log=("boom",))
    happening = journal.history[0]
    assert happening.line().endswith("echo-0 app             died: exited with code 1\n    | boom")
    assert happening.to_json()["workload"] == "echo-0"

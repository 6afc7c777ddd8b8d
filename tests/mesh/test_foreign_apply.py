"""`nipmesh apply` on a mesh that is not ours: an application that has only TCP, versions, and hosts outside."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from mesh.conftest import alive, process_ids
from mesh.test_foreign_life import load, replicas_that_answer
from support.foreign import CourierMesh, only
from support.mesh import free_port

pytestmark = [pytest.mark.mesh, pytest.mark.timeout(240)]


@pytest.fixture
def courier(tmp_path: Path) -> Iterator[CourierMesh]:
    mesh = CourierMesh(tmp_path, only("customs"))
    mesh.up()
    yield mesh
    pids = process_ids(mesh)
    mesh.down()
    assert not [pid for pid in pids if alive(pid)]


async def applied(mesh: CourierMesh, document: dict[str, Any]) -> str:
    mesh.write(document)
    return await asyncio.to_thread(mesh.succeed, "apply")


async def test_an_application_with_tcp_only_moves_and_gets_ways_out_without_a_failed_call(courier: CourierMesh) -> None:
    document = deepcopy(courier.document)
    customs = document["services"]["customs"]
    async with load(courier, "customs") as failed:
        before = courier.replicas("customs")
        customs["listen"] = f"127.0.0.1:{free_port()}"
        assert "~ customs: restarts (" in await applied(courier, document)
        assert failed == []
        moved = courier.replicas("customs")
        assert moved[0]["listen"] == customs["listen"]
        assert {replica["pid"] for replica in before}.isdisjoint(replica["pid"] for replica in moved)
        assert await replicas_that_answer(courier, "customs", 2) == {0, 1}

        document["external"] = {"archive": {"address": "127.0.0.1:9", "plaintext": "this is only a test"}}
        customs["external"] = ["archive"]
        assert "env NIPMESH_EXTERNAL_ARCHIVE" in await applied(courier, document)
        assert failed == []
        (pid, *_) = (replica["pid"] for replica in courier.replicas("customs"))
        assert b"NIPMESH_EXTERNAL_ARCHIVE=" in Path(f"/proc/{pid}/environ").read_bytes()

        del document["external"], customs["external"]
        assert "applied in " in await applied(courier, document)
        assert await replicas_that_answer(courier, "customs", 2) == {0, 1}
    assert failed == []


async def test_a_version_comes_takes_calls_and_goes_without_a_failed_call(courier: CourierMesh) -> None:
    document = deepcopy(courier.document)
    services = document["services"]
    async with load(courier, "customs") as failed:
        services["customs-next"] = {
            "run": "python apps/customs.py",
            "version_of": "customs",
            "replicas": 1,
            "listen": f"127.0.0.1:{free_port()}",
        }
        services["customs"]["traffic"] = {"routing": {"split": {"customs": 50, "customs-next": 50}}}
        assert "+ customs-next: service, 1 replica" in await applied(courier, document)
        assert failed == []
        del services["customs-next"], services["customs"]["traffic"]
        assert "- customs-next: service" in await applied(courier, document)
    assert failed == []
    assert [replica["name"] for replica in courier.replicas("customs")] == ["customs-0", "customs-1"]

"""The carrier without Node.js: a depot that sorts by hand. On its own, for each Envoy costs a user inotify instances."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from mesh.conftest import alive, process_ids
from support.courier import DELIVERY, GATEWAY, STREAMS, callers
from support.foreign import CourierMesh, only, without_machine

pytestmark = [pytest.mark.mesh, pytest.mark.timeout(180)]


async def test_without_the_machine_every_stream_works_in_python(tmp_path: Path) -> None:
    mesh = CourierMesh(tmp_path, without_machine, only("delivery", "tracking"))
    mesh.up()
    pids = process_ids(mesh)
    try:
        async with mesh.channel() as channel:
            for calling, (outer, _, inner) in STREAMS.values():
                call_id = str(uuid.uuid4())
                await calling(channel, mesh, call_id)
                found = {f"delivery/{outer}": GATEWAY, f"tracking/{inner}": DELIVERY}
                assert callers(mesh, call_id) == found
    finally:
        mesh.down()
    assert not [pid for pid in pids if alive(pid)]

"""The runner's own server of events without the rest of a mesh, and connections to it as this or that service."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import signal
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nats.aio.client import Client

from generator.model import Mesh
from generator.model.events import EVENTS
from generator.outputs.local.binary import find_nats
from generator.outputs.local.certificates import CertificateKeeper
from generator.outputs.local.environment import Surroundings, event_environment
from generator.outputs.local.event_server import HOSTS, EventServer
from generator.outputs.local.events import Journal
from generator.outputs.local.paths import StatePaths
from generator.outputs.local.ports import PortPool
from generator.outputs.local.record import RunRecord
from generator.outputs.local.runner import Changes, Runner
from generator.outputs.local.workload import Part, Stage, Workload
from generator.pki import UserKey
from generator.render.nats import hearers


@dataclass(kw_only=True)
class Served:
    """A server that runs, and what it was made of."""

    server: EventServer
    runner: Runner
    changes: Changes
    certificates: CertificateKeeper
    around: Surroundings
    refusals: list[str] = field(default_factory=list)
    """What the server refused to the connections of this test, in its own words."""

    async def until(self, is_so: bool = True) -> None:
        """Wait until the server is ready, or is not."""
        async with asyncio.timeout(10):
            while self.runner.workload.is_ready is not is_so:
                await self.changes.wait()

    async def connect(self, service: str, *, key: UserKey | None = None, **options: Any) -> Client:
        """Connect with what the runner tells a service, as any program of its would."""
        told = event_environment(self.around, self.around.mesh.service(service))
        user = key or UserKey.load(Path(told["NIPMESH_EVENTS_CREDENTIALS_FILE"]))
        client = Client()
        client._public_nkey = user.public

        async def refused(error: Exception) -> None:
            self.refusals.append(str(error))

        await client.connect(
            told["NIPMESH_EVENTS_URL"],
            tls=ssl.create_default_context(cafile=told["NIPMESH_EVENTS_CA_FILE"]),
            signature_cb=lambda nonce: base64.b64encode(user.sign(nonce.encode())),
            inbox_prefix=f"_INBOX_{service}".encode(),
            **{"error_cb": refused, "reconnect_time_wait": 0.05, "max_reconnect_attempts": 200, **options},
        )
        return client


@contextlib.asynccontextmanager
async def served(folder: Path, mesh: Mesh) -> AsyncIterator[Served]:
    """Run the server of a mesh in a folder until the block ends; its stream and consumers are made."""
    paths = StatePaths(root=folder / ".nipmesh")
    paths.make()
    journal = Journal()
    ports = PortPool(seed=folder)
    around = Surroundings(
        mesh=mesh, paths=paths, manifest_directory=folder, outer={"PATH": "/bin:/usr/bin"}, events=ports.take_shared()
    )
    assert around.events is not None
    server = EventServer(program=find_nats(), address=around.events, around=around)
    certificates = CertificateKeeper(paths, mesh.trust_domain, mesh.certificate_lifetime_ms, journal)
    certificates.issue(EVENTS, f"spiffe://{mesh.trust_domain}/{EVENTS}", HOSTS)
    server.write(hearers(mesh))
    record = RunRecord(paths.runs / "test.json", sockets=folder / "sockets", current=paths.current)
    changes = Changes()
    workload = Workload(name=EVENTS, order=(Part.APP,), drain_ms_max=0, grace_ms=5_000)
    runner = Runner(workload, server, journal=journal, record=record, changes=changes)
    server.reload = lambda: runner.send(Part.APP, signal.SIGHUP)
    task = asyncio.create_task(runner.run())
    found = Served(server=server, runner=runner, changes=changes, certificates=certificates, around=around)
    try:
        await found.until()
        await server.allow(mesh)
        yield found
    finally:
        runner.retire(leave_ms=0)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(10):
                while runner.workload.stage is not Stage.GONE:
                    await changes.wait()
        record.kill_all()
        task.cancel()
        await asyncio.wait({task})
        ports.close()

"""The server of events that the runner starts: its files, its probe, and how it learns who may hear what.

A change of `consumes` reaches it by a signal: it reads its configuration again, keeps every connection, and says in its log that it did.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nats.js import JetStreamContext

from generator.model import Hearing, Mesh, SocketAddress
from generator.model.events import EVENTS
from generator.outputs.local.environment import Surroundings
from generator.outputs.local.logs import size_of, tail
from generator.outputs.local.paths import StatePaths
from generator.outputs.local.ports import host_and_port
from generator.outputs.local.probes import READY_INTERVAL_S, STARTING_INTERVAL_S, Report
from generator.outputs.local.processes import Command
from generator.outputs.local.workload import Part, Verdict
from generator.outputs.nats import AdminConnection, EventsError, Keepers, ensure, topology
from generator.outputs.nats.state import state_of
from generator.outputs.workloads import Place, Where, event_server
from generator.pki import UserKey, private_directory, write_private
from generator.pki.store import AUTHORITIES, CERTIFICATE, DATA_LINK, PRIVATE_KEY
from generator.render.nats import NatsPlace, NatsUsers, accounts, configuration, hearers

HOSTS = ("127.0.0.1", "localhost")
"""Names in its certificate: it listens on loopback."""
RELOAD_TIMEOUT_S = 5.0
RELOAD_POLL_S = 0.01
RELOADED, NOT_RELOADED = "Reloaded server configuration", "Failed to reload"
"""How NATS says in its log what became of a signal; there is no other word of it without opening a port for anybody."""
LOG_LINES = 50
STATUS_TIMEOUT_S = 0.5
"""A status is shown without what does not come by then."""


@dataclass(kw_only=True)
class EventServer:
    """NATS as a part of the mesh: one process, beside no sidecar."""

    program: Path
    address: SocketAddress
    around: Surroundings
    reload: Callable[[], bool] = field(default=lambda: False)
    """Sends the signal; false while there is no process that could read its files again."""
    admin: Path = Path("/nonexistent/admin.sock")
    is_open: bool = False
    """The stream and its consumers are there: services may start."""
    _jetstream: JetStreamContext | None = None
    """The probe's connection, while it has one."""

    @property
    def url(self) -> str:
        """Where services connect."""
        return f"tls://{host_and_port(self.address)}"

    def command(self, part: Part) -> Command:
        """Say what to run."""
        assert part is Part.APP, part
        return Command(
            arguments=(str(self.program), *event_server().arguments(self._resolve)),
            environment=dict(self.around.outer),
            working_directory=self.around.paths.event_configuration.parent,
            log=self.log(part),
        )

    def _resolve(self, place: Place) -> str:
        assert place.where is Where.CONFIGURATION, place
        return str(self.around.paths.event_configuration)

    def log(self, part: Part) -> Path:
        """Say where it writes."""
        return self.around.paths.log(EVENTS, part.value)

    def clear(self, part: Part) -> None:
        """A dead server leaves nothing that would be in the way."""

    async def rotate(self, *, into: bool) -> None:
        """Nobody's Envoy knows it: there is nothing to change."""

    async def probe(self, part: Part, report: Report) -> None:
        """Report verdicts until cancelled: it is ready when it answers who keeps its stream."""
        while True:
            try:
                async with self._connected() as jetstream:
                    while True:
                        await jetstream.account_info()
                        await report(Verdict.READY)
                        await asyncio.sleep(READY_INTERVAL_S)
            except EventsError:
                await report(Verdict.SILENT)
            await asyncio.sleep(STARTING_INTERVAL_S)

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncIterator[JetStreamContext]:
        async with self.connection().open() as jetstream:
            self._jetstream = jetstream
            try:
                yield jetstream
            finally:
                self._jetstream = None

    def connection(self) -> AdminConnection:
        """How to reach it as the one that keeps the mesh's stream."""
        return connection_at(self.url, self.around.paths, self.around.paths.event_admin)

    def keepers(self, services: Iterable[str]) -> Keepers:
        """How to reach it as those that keep its streams."""
        return keepers_at(self.url, self.around.paths, services)

    def write(self, hears: Mapping[str, tuple[Hearing, ...]]) -> None:
        """Write its configuration, and the keys of services that have none. Raises OSError and ValueError."""
        paths, name = self.around.paths, self.around.mesh.name
        found = accounts(name, hears, event_users(paths, hears))
        write_private(paths.event_configuration, configuration(name, event_place(paths, self.address), found))

    async def allow(self, *meshes: Mesh) -> None:
        """Let services hear what any of these meshes lets them; the last one says the rest. Raises EventsError, OSError, ValueError."""
        hears = hearers(*meshes)
        await asyncio.to_thread(self.write, hears)
        await self._reloaded()
        await ensure(self.keepers(hears), topology(meshes[-1], hears))

    async def _reloaded(self) -> None:
        """Signal, and wait for its word; a server that is not there reads the new file when it starts."""
        log = self.log(Part.APP)
        before = size_of(log)
        if not self.reload():
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RELOAD_TIMEOUT_S):
                while True:
                    lines = tail(log, LOG_LINES, since=before)
                    if any(RELOADED in line for line in lines):
                        return
                    refused = [line for line in lines if NOT_RELOADED in line]
                    if refused:
                        raise EventsError(f"the server of events does not take its configuration: {refused[-1]}")
                    await asyncio.sleep(RELOAD_POLL_S)
        raise EventsError(f"the server of events has not read its configuration within {RELOAD_TIMEOUT_S:.0f} s")

    def renewed(self) -> None:
        """Its certificate is another: let it read it."""
        self.reload()

    async def describe(self) -> dict[str, Any]:
        """The mesh's stream, for `nipmesh status`; empty while it does not answer."""
        if self._jetstream is None:
            return {}
        try:
            async with asyncio.timeout(STATUS_TIMEOUT_S):
                return {"stream": state_of(await self._jetstream.stream_info(self.around.mesh.name))}
        except Exception:  # noqa: BLE001  # whatever it is, the probe finds it too, and says so
            return {}


def event_place(paths: StatePaths, listen: SocketAddress, monitor: SocketAddress | None = None) -> NatsPlace:
    """Say where the server's files are, and make the folder of its streams. Raises OSError."""
    certificates = paths.certificates(EVENTS) / DATA_LINK
    return NatsPlace(
        listen=listen,
        certificate=certificates / CERTIFICATE,
        private_key=certificates / PRIVATE_KEY,
        store=private_directory(paths.event_store),
        monitor=monitor,
    )


def event_users(paths: StatePaths, services: Iterable[str], system: str | None = None) -> NatsUsers:
    """Everybody's public key; whoever has none gets one. Raises OSError and ValueError."""
    names = tuple(services)
    return NatsUsers(
        admin=UserKey.open(paths.event_admin).public,
        services={name: UserKey.open(paths.event_credentials(name)).public for name in names},
        keepers={name: UserKey.open(paths.event_keeper(name)).public for name in names},
        system=system,
    )


def keepers_at(url: str, paths: StatePaths, services: Iterable[str]) -> Keepers:
    """How to reach a server as those that keep its streams."""
    mine = {name: connection_at(url, paths, paths.event_keeper(name)) for name in services}
    return Keepers(mesh=connection_at(url, paths, paths.event_admin), services=mine)


def connection_at(url: str, paths: StatePaths, key: Path) -> AdminConnection:
    """How to reach a server with one of the keys."""
    return AdminConnection(url=url, key=key, authorities=paths.certificates(EVENTS) / DATA_LINK / AUTHORITIES)

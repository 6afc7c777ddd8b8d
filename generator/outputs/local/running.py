"""One `nipmesh up`: from the manifest to a running mesh and back to nothing.

Errors: UpError with a message for the user; whatever was started is stopped and removed before it is raised.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import secrets
import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path

from generator.model import Mesh, SocketAddress
from generator.model.overrides import Overrides
from generator.outputs.local.applied import applied, manifest_digest
from generator.outputs.local.binary import NatsNotFoundError, find_nats
from generator.outputs.local.certificates import CertificateKeeper
from generator.outputs.local.control import Control
from generator.outputs.local.environment import Surroundings
from generator.outputs.local.event_server import EventServer
from generator.outputs.local.events import Happening, Journal
from generator.outputs.local.inotify import shortage
from generator.outputs.local.keys import key_set
from generator.outputs.local.lock import UpError
from generator.outputs.local.paths import SocketPathError, StatePaths, make_socket_directory
from generator.outputs.local.placing import Placer
from generator.outputs.local.ports import PortError, PortPool, host_and_port
from generator.outputs.local.record import Reaper, RunRecord, sweep_old_runs
from generator.outputs.local.rotation import Board
from generator.outputs.local.supervisor import Setup, Supervisor
from generator.pki import write_private
from generator.resources import ResourceError

RUN_ID_BYTES = 4
Display = Callable[[Supervisor], Coroutine[None, None, None]]
"""Shows the state of a run until it is cancelled."""
REAPER_CHECK_S = 1.0
"""How soon a reaper that was killed is replaced: until then nobody cleans up after a supervisor that is killed too."""
PORT_CAUSES = {
    errno.EADDRINUSE: "another program has this port; stop it, or use --gateway-listen 127.0.0.1:PORT",
    errno.EADDRNOTAVAIL: "this machine has no such address; use one that it has, e.g. --gateway-listen 127.0.0.1:PORT",
    errno.EACCES: "this user may not listen there; use a port from 1024 on, e.g. --gateway-listen 127.0.0.1:8080",
}
"""What the system's refusal of a port means, and what helps."""
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the user asked for."""

    manifest: Path
    mesh: Mesh
    overrides: Overrides
    envoy: Path
    ready_timeout_s: float | None
    """Give up when the mesh is not ready by then, or a replica keeps dying; None: never give up."""


class Run:
    """Everything that one run opens, so that it can be closed again."""

    def __init__(self, request: Request, paths: StatePaths, journal: Journal) -> None:
        self.journal = journal
        self.killed = False
        self._request = request
        self._paths = paths
        self._stop = asyncio.Event()
        self._ports = PortPool(seed=paths.root, leave=request.mesh.written_ports)
        self._sockets = make_socket_directory(_workload_names(request.mesh), request.mesh.connected)
        record = paths.runs / f"{secrets.token_hex(RUN_ID_BYTES)}.json"
        self._record = RunRecord(record, sockets=self._sockets, current=paths.current)
        self._reaper = Reaper(record)
        self._supervisor = self._make_supervisor()
        self._control = Control(self._supervisor, self._sockets / "control.sock", self.ask_to_stop)

    @property
    def supervisor(self) -> Supervisor:
        """The supervisor of this run."""
        return self._supervisor

    async def run(self, on_ready: Callable[[], None]) -> None:
        """Start, wait for the stop, stop. Raises UpError when the mesh does not become ready in time."""
        await self._control.open()
        self._write_current()
        await self._supervisor.start()
        waiting = asyncio.create_task(self._stop.wait())
        starting = asyncio.create_task(self._until_ready())
        guarding = asyncio.create_task(keep_reaper(self._reaper, self.journal))
        try:
            await asyncio.wait({waiting, starting}, return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                starting.result()
                on_ready()
                await self._until_stop_or_failure(waiting)
        finally:
            waiting.cancel()
            starting.cancel()
            guarding.cancel()
            if not self.killed:
                await self._supervisor.stop()

    def ask_to_stop(self) -> None:
        """Stop in good order; asked a second time (by a signal), at once."""
        self._stop.set()

    def on_signal(self) -> None:
        """Handle Ctrl-C and its like: first in good order, then by force."""
        if self._stop.is_set():
            self.killed = True
            self._supervisor.kill()
        self._stop.set()

    async def close(self) -> None:
        """Remove every trace: processes, sockets, ports, records."""
        self._supervisor.kill()
        self._paths.current.unlink(missing_ok=True)
        self._paths.prometheus.unlink(missing_ok=True)
        await asyncio.to_thread(self._record.close)
        self._reaper.close()
        self._ports.close()
        await self._control.close()

    async def _until_ready(self) -> None:
        supervisor, timeout_s = self._supervisor, self._request.ready_timeout_s
        if timeout_s is None:
            while not await supervisor.until(lambda: supervisor.is_ready, timeout_s=3600):
                continue
            return
        looping = await supervisor.until(lambda: supervisor.is_ready or bool(self._failing()), timeout_s)
        if not supervisor.is_ready:
            names = self._failing() or [
                name for name, runner in supervisor.runners.items() if not runner.workload.is_ready
            ]
            why = "keeps dying" if looping else f"not ready within {timeout_s:.0f} s"
            raise UpError(f"the mesh did not start ({why})\n" + "\n".join(map(supervisor.complain, names)))

    def _failing(self) -> list[str]:
        runners = self._supervisor.runners.items()
        return [name for name, runner in runners if runner.workload.is_crash_looping]

    async def _until_stop_or_failure(self, waiting: asyncio.Task[bool]) -> None:
        while not waiting.done():
            changed = asyncio.create_task(self._supervisor.changes.wait())
            await asyncio.wait({waiting, changed}, return_when=asyncio.FIRST_COMPLETED)
            changed.cancel()
            if self._supervisor.failure is not None:
                raise self._supervisor.failure

    def _make_supervisor(self) -> Supervisor:
        request, paths = self._request, self._paths
        mesh = request.mesh
        setup = Setup(
            manifest=request.manifest,
            paths=paths,
            overrides=request.overrides,
            envoy=request.envoy,
            sockets=self._sockets,
        )
        placer = Placer(paths, self._sockets, self._ports)
        events = placer.place_events() if mesh.events is not None and mesh.events.cluster is None else None
        around = Surroundings(
            mesh=mesh, paths=paths, manifest_directory=request.manifest.parent, outer=dict(os.environ), events=events
        )
        return Supervisor(
            setup,
            around=around,
            applied=applied(manifest_digest(request.manifest), mesh, around),
            board=Board(mesh, paths.envoy, key_set(mesh, paths, request.manifest.parent)),
            placer=placer,
            certificates=CertificateKeeper(paths, mesh.trust_domain, mesh.certificate_lifetime_ms, self.journal),
            record=self._record,
            journal=self.journal,
            events=None if events is None else EventServer(program=find_nats(), address=events, around=around),
        )

    def _write_current(self) -> None:
        gateway = self._request.mesh.gateway
        address = "none"
        if gateway is not None:
            address = host_and_port(SocketAddress(host=gateway.listen_host, port=gateway.listen_port))
        current = {"pid": os.getpid(), "control": str(self._sockets / "control.sock"), "gateway": address}
        write_private(self._paths.current, json.dumps(current | {"mesh": self._request.mesh.name}).encode())


async def keep_reaper(reaper: Reaper, journal: Journal) -> None:
    """Replace the reaper whenever it is gone, until cancelled."""
    while True:
        await asyncio.sleep(REAPER_CHECK_S)
        try:
            is_new = reaper.replace_dead()
        except OSError as error:
            journal.tell("reaper-failed", f"the reaper is gone, and another does not start: {error}; tried again")
            continue
        if is_new:
            journal.tell("reaper", f"the reaper was gone; process {reaper.pid} replaces it")


async def run_mesh(
    request: Request,
    *,
    listener: Callable[[Happening], None],
    on_ready: Callable[[], None],
    display: Display | None = None,
) -> None:
    """Run a mesh until a signal or `nipmesh down`. Needs the lock. Raises UpError."""
    journal = Journal()
    journal.listen(listener)
    async with opened(request, journal) as run:
        showing = None if display is None else asyncio.create_task(display(run.supervisor))
        try:
            await run.run(on_ready)
        except (PortError, ResourceError, OSError, ValueError) as error:
            raise UpError(explain(error)) from error
        finally:
            if showing is not None:
                showing.cancel()
                await asyncio.wait({showing})
    journal.tell("stopped", "nothing is left behind")


@contextlib.asynccontextmanager
async def opened(request: Request, journal: Journal) -> AsyncIterator[Run]:
    """Open a run and close it whatever happens. Raises UpError when there is no room for it."""
    paths = StatePaths.beside(request.manifest)
    swept = sweep_old_runs(paths.runs, lambda record: journal.tell("damaged", describe_damaged(record)))
    if swept:
        journal.tell("swept", f"killed {swept} processes that an earlier run left")
    missing = shortage(request.mesh)
    if missing is not None:
        raise UpError(missing)
    try:
        run = Run(request, paths, journal)
    except (SocketPathError, NatsNotFoundError, PortError, OSError, ValueError) as error:
        raise UpError(explain(error)) from error
    loop = asyncio.get_running_loop()
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, run.on_signal)
    try:
        yield run
    finally:
        await run.close()
        for number in STOP_SIGNALS:
            loop.remove_signal_handler(number)


def explain(error: Exception) -> str:
    """Say what an error means for the user."""
    cause = PORT_CAUSES.get(error.number or 0) if isinstance(error, PortError) else None
    return str(error) if cause is None else f"{error}: {cause}"


def describe_damaged(record: Path) -> str:
    """Say what became of a record that cannot be read."""
    return f"an earlier run's record was unreadable and is now {record}; look for processes of it, then remove it"


def _workload_names(mesh: Mesh) -> tuple[str, ...]:
    """Name the longest that may come: scaling adds digits."""
    return tuple(f"{service.name}-99" for service in mesh.services)

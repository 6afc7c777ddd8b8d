"""The supervisor of one mesh on this machine: starts it, keeps it, changes it, stops it, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from generator.model import Gateway, Mesh, ReplicaPlacement, Service
from generator.model.events import EVENTS
from generator.model.mesh import GATEWAY
from generator.model.overrides import Overrides
from generator.outputs.local.applied import Applied
from generator.outputs.local.bodies import GatewayBody, ReplicaBody, write_introspection
from generator.outputs.local.certificates import CertificateKeeper
from generator.outputs.local.environment import Surroundings, materialize_secrets
from generator.outputs.local.errors import OperationError
from generator.outputs.local.event_server import HOSTS, EventServer
from generator.outputs.local.events import Journal
from generator.outputs.local.logs import CHECK_INTERVAL_S, rotate
from generator.outputs.local.paths import StatePaths
from generator.outputs.local.placing import Placer
from generator.outputs.local.record import RunRecord
from generator.outputs.local.rotation import CONFIRM_AFTER_S, Board, Publisher, RejectionWatch
from generator.outputs.local.runner import Body, Changes, Runner
from generator.outputs.local.sight import until_seen
from generator.outputs.local.workload import Part, Phase, Stage, Workload
from generator.outputs.nats import EventsError, cluster_keepers, ensure, topology
from generator.outputs.workloads import application, event_server, introspection
from generator.render.nats import hearers

REPLICA_ORDER = (Part.SIDECAR, Part.APP)
GATEWAY_ORDER = (Part.APP, Part.SIDECAR)
DRAIN_MS_MAX = 2_000
"""How long running calls may delay SIGTERM; the application itself then finishes what runs, within its grace."""
GATEWAY_DRAIN_MS_MAX = 3_000
EVENTS_ORDER = (Part.APP,)
EVENTS_RETRY_S = 1.0
"""Between two tries to make the stream, on a disk that refuses or in a cluster that is not there yet."""
EVENTS_READY_S = 10.0
"""For the server of events to be back, when it is away in the moment of a change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """Everything that is fixed for the life of a supervisor."""

    manifest: Path
    paths: StatePaths
    overrides: Overrides
    envoy: Path
    sockets: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """What a replica is made with at its next start."""

    service: Service
    around: Surroundings


class Supervisor:
    """Owns the runners. Operations on it (scale, restart) are in `operations`; they run one at a time."""

    def __init__(
        self,
        setup: Setup,
        *,
        around: Surroundings,
        applied: Applied,
        board: Board,
        placer: Placer,
        certificates: CertificateKeeper,
        record: RunRecord,
        journal: Journal,
        events: EventServer | None = None,
    ) -> None:
        self.setup = setup
        self.events = events
        self.around = around
        self.applied = applied
        self.board = board
        self.journal = journal
        self.certificates = certificates
        self.changes = Changes()
        self.publisher = Publisher(board, setup.paths, journal)
        self.runners: dict[str, Runner] = {}
        self.operation = asyncio.Lock()
        self.is_open = False
        self.is_stopping = False
        self.failure: BaseException | None = None
        self._placer = placer
        self._record = record
        self._rejections = RejectionWatch(journal)
        self._tasks: dict[str, asyncio.Task[None]] = {}

    @property
    def mesh(self) -> Mesh:
        """The mesh as it is meant to be now."""
        return self.board.mesh

    @property
    def is_ready(self) -> bool:
        """Every workload is ready and takes traffic, and its callers know."""
        are_in = all(runner.workload.in_rotation for runner in self.runners.values())
        return self.is_open and are_in and not self.is_stopping

    async def start(self) -> None:
        """Place and start everything; return when the processes are on their way. Raises PortError, OSError."""
        gateway = self.mesh.gateway
        if gateway is not None:
            self._add_gateway(gateway)
        if self.events is not None:
            self._add_events(self.events)
        for service in self.mesh.services:
            for index in range(service.replicas):
                self.add_replica(service, index)
        await self.publisher.publish()
        for name in tuple(self.runners):
            self.begin(name)
        self._keep("certificates", self.certificates.renew_for_ever())
        self._keep("logs", self._bound_logs())
        self._keep("rejections", self._watch_rejections())
        self._keep("open", self._open())
        if self.mesh.events is not None:
            self._keep("open-events", self._open_events())

    def add_replica(self, service: Service, index: int) -> Runner:
        """Place a replica and prepare its files; `begin` starts it once its configuration is published."""
        self._placer.leave(self.mesh.written_ports)
        replica = self._placer.place_replica(service, index)
        try:
            self.certificates.issue(replica.name, service.identity)
        except BaseException:
            self._placer.release(replica)
            raise
        self.board.put(replica)
        described = application(self.mesh, service, index)
        workload = Workload(
            name=replica.name,
            order=REPLICA_ORDER,
            drain_ms_max=DRAIN_MS_MAX,
            grace_ms=described.stop_grace_ms,
            start_ms_max=service.probe.start_period_ms,
            silences_max=service.probe.failures,
            is_held=EVENTS in described.before and self.events is not None and not self.events.is_open,
        )
        return self._add_runner(workload, self._replica_body(service, replica))

    def has_chosen(self, port: int) -> bool:
        """Whether one of the mesh's own listeners was given this port when it started."""
        return self._placer.has_chosen(port)

    def begin(self, name: str) -> None:
        """Start a workload; it runs until it is retired."""
        self._keep(name, self.runners[name].run())

    def renew_runner(self, name: str) -> Runner:
        """Give a workload that is gone a new life at the same addresses."""
        old = self.runners[name]
        assert old.workload.stage is Stage.GONE, name
        fresh = Workload(
            name=name,
            order=old.workload.order,
            drain_ms_max=old.workload.drain_ms_max,
            grace_ms=old.workload.grace_ms,
        )
        if isinstance(old.body, ReplicaBody):
            probe = old.body.service.probe
            fresh = replace(fresh, start_ms_max=probe.start_period_ms, silences_max=probe.failures)
        return self._add_runner(fresh, old.body)

    def has_begun(self, name: str) -> bool:
        """Tell whether a workload was ever started."""
        return name in self._tasks

    def retool(self, name: str, tools: Tools) -> Tools:
        """Let a replica be something else from its next start on; give what it was."""
        body = self.runners[name].body
        assert isinstance(body, ReplicaBody), name
        before = Tools(service=body.service, around=body.around)
        body.service, body.around = tools.service, tools.around
        body.secret_files = self._secret_files(tools.service)
        return before

    async def remove_replica(self, name: str) -> None:
        """Forget a replica that is gone, or that never began: its configuration, certificate and ports."""
        assert self.runners[name].workload.stage is Stage.GONE or not self.has_begun(name), name
        del self.runners[name]
        self._tasks.pop(name, None)
        self._placer.release(self.board.remove(name))
        self.certificates.forget(name)
        await self.publisher.publish_or_retry()
        await self.publisher.forget(name)
        self.changes.notify()

    async def until(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Wait for something about the workloads to become true; false when it did not in time."""
        try:
            async with asyncio.timeout(timeout_s):
                while not condition():
                    self._raise_failure()
                    await self.changes.wait()
        except TimeoutError:
            return False
        return True

    async def until_seen(self, names: Iterable[str]) -> bool:
        """Wait until the callers of these replicas use them; false when they do not in time."""
        return await until_seen(self.mesh, self.admins(), [self.board.replica(name) for name in names])

    async def stop(self) -> None:
        """Stop everything in good order: the gateway first, then all replicas at once, then the server of events."""
        self.is_stopping = True
        self.journal.tell("stopping", "the gateway drains, then the services")
        for task in ("open", "open-events", "certificates", "rejections"):
            self._drop(task)
        self.publisher.close()
        await self._retire_all([name for name in self.runners if name == GATEWAY])
        await self._retire_all([name for name in self.runners if name not in (GATEWAY, EVENTS)])
        await self._retire_all([name for name in self.runners if name == EVENTS])
        self._drop("logs")

    def kill(self) -> None:
        """End every process at once."""
        self.is_stopping = True
        for name in tuple(self._tasks):
            self._drop(name)
        self._record.kill_all()

    def admins(self) -> dict[str, Path]:
        """Give the admin socket of every workload whose Envoy is ready."""
        return {
            name: runner.body.admin
            for name, runner in self.runners.items()
            if runner.workload.sidecar.phase is Phase.READY
        }

    def complain(self, name: str) -> str:
        """Say what is wrong with a workload that should be ready, with its last log lines."""
        runner = self.runners[name]
        for part in runner.workload.order:
            process = runner.workload.process(part)
            if process.phase is not Phase.READY:
                lines = "\n".join(f"    | {line}" for line in runner.log_tail(part))
                died = f", died {process.restarts} times" if process.restarts else ""
                return f"{name}: its {part.value} is {process.phase.value}{died}; last lines of its log:\n{lines}"
        return f"{name}: not in rotation"

    async def _retire_all(self, names: list[str]) -> None:
        for name in names:
            self.runners[name].retire(leave_ms=0)
        tasks = [self._tasks[name] for name in names if name in self._tasks]
        if tasks:
            await asyncio.wait(tasks)

    def _replica_body(self, service: Service, replica: ReplicaPlacement) -> Body:
        return ReplicaBody(
            replica=replica,
            service=service,
            around=self.around,
            secret_files=self._secret_files(service),
            envoy=self.setup.envoy,
            board=self.board,
            publisher=self.publisher,
        )

    def _secret_files(self, service: Service) -> dict[str, Path]:
        return materialize_secrets(service, self.setup.paths, self.around.manifest_directory)

    def _add_gateway(self, gateway: Gateway) -> None:
        placement = self._placer.place_gateway(gateway)
        self.board.gateway = placement
        self.certificates.issue(GATEWAY, gateway.identity)
        write_introspection(self.mesh, self.setup.paths)
        body = GatewayBody(placement=placement, around=self.around, envoy=self.setup.envoy)
        workload = Workload(
            name=GATEWAY,
            order=GATEWAY_ORDER,
            drain_ms_max=GATEWAY_DRAIN_MS_MAX,
            grace_ms=introspection().stop_grace_ms,
            is_held=True,
        )
        self._add_runner(workload, body)

    def _add_events(self, events: EventServer) -> None:
        """Place the server of events: its certificate, keys and configuration. Raises OSError and ValueError."""
        self.certificates.issue(EVENTS, f"spiffe://{self.mesh.trust_domain}/{EVENTS}", HOSTS)
        events.write(hearers(self.mesh))
        workload = Workload(name=EVENTS, order=EVENTS_ORDER, drain_ms_max=0, grace_ms=event_server().stop_grace_ms)
        runner = self._add_runner(workload, events)
        events.reload = lambda: runner.send(Part.APP, signal.SIGHUP)
        self.certificates.on_renewal(EVENTS, events.renewed)

    async def _open_events(self) -> None:
        """Make the stream and its consumers, then let the applications start; in a cluster of others they need not wait."""
        while not (EVENTS not in self.runners or self.runners[EVENTS].workload.is_ready):
            await self.changes.wait()
        while True:
            try:
                await self.hear(self.mesh)
                break
            except OperationError as error:
                self.journal.tell("events-failed", f"{error}; tried again", workload=EVENTS)
                await asyncio.sleep(EVENTS_RETRY_S)
        if self.events is not None:
            self.events.is_open = True
        for name, runner in self.runners.items():
            if name not in (GATEWAY, EVENTS):
                runner.release()

    async def hear(self, *meshes: Mesh) -> None:
        """Let services hear what any of these meshes lets them; the last one says the rest. Raises OperationError."""
        events = meshes[-1].events
        if events is None:
            return
        try:
            if self.events is not None:
                await self.until(lambda: self.runners[EVENTS].workload.is_ready, EVENTS_READY_S)
                await self.events.allow(*meshes)
            elif (keepers := cluster_keepers(events)) is not None:
                await ensure(keepers, topology(meshes[-1], hearers(*meshes)))
        except (EventsError, OSError, ValueError) as error:
            raise OperationError(f"the server of events: {error}") from error

    def _add_runner(self, workload: Workload, body: Body) -> Runner:
        runner = Runner(workload, body, journal=self.journal, record=self._record, changes=self.changes)
        self.runners[workload.name] = runner
        return runner

    async def _open(self) -> None:
        """Open the gateway when every replica is ready, or known not to become so; tell when everything is."""
        while not self._are_settled():
            await self.changes.wait()
        await self.until_seen(self._replicas_in_rotation())
        if GATEWAY in self.runners:
            self.runners[GATEWAY].release()
        while not all(runner.workload.in_rotation for runner in self.runners.values()):
            await self.changes.wait()
        await self.until_seen(self._replicas_in_rotation())
        self.is_open = True
        self.changes.notify()
        url = f"; the gateway listens at {self.mesh.gateway.public_url}" if self.mesh.gateway is not None else ""
        self.journal.tell("ready", f"all replicas are ready{url}")

    def _replicas_in_rotation(self) -> list[str]:
        return [replica.name for replica in self.board.placement().replicas if replica.in_rotation]

    def _are_settled(self) -> bool:
        workloads = [runner.workload for name, runner in self.runners.items() if name != GATEWAY]
        return all(workload.in_rotation or workload.is_crash_looping for workload in workloads)

    async def _bound_logs(self) -> None:
        while True:
            await asyncio.sleep(CHECK_INTERVAL_S)
            for path in self.setup.paths.logs.glob("*.log"):
                await asyncio.to_thread(rotate, path)

    async def _watch_rejections(self) -> None:
        """After each publication, ask every Envoy once whether it took the files."""
        seen = 0
        while True:
            await asyncio.sleep(CONFIRM_AFTER_S)
            if self.publisher.count != seen:
                seen = self.publisher.count
                await self._rejections.look(self.admins())

    def _keep(self, name: str, work: Coroutine[None, None, None]) -> None:
        """Run a task for as long as the supervisor lives; when it fails, so does the supervisor."""
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(self._task_ended)
        self._tasks[name] = task

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None and self.failure is None:
            self.failure = error
        self.changes.notify()

    def _drop(self, name: str) -> None:
        task = self._tasks.pop(name, None)
        if task is not None:
            task.cancel()

    def _raise_failure(self) -> None:
        if self.failure is not None:
            raise self.failure

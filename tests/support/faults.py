"""What can go wrong with a replica, each as something that is done to it and undone."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from collections.abc import Set as AbstractSet
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from support import mortal_app
from support.envoys import Envoys
from support.executions import METHOD_NAMES, Behaviour, Callers, CountingApplication, Ended, Executions, answer
from support.raw_app import Misbehaviour, RawApplication

CALLS_ONE = 24
"""Calls of each method while one of two replicas is faulty: that none of them meets it happens once in 10,000,000 times."""
CALLS_BOTH = 4
TIMEOUT_S = 20.0
"""Longer than any call here takes, however busy the machine is."""
DEADLINE_S = 3.0
HANG_S = 60.0
SETTLE_S = 0.3
GRACE_S = 5.0
POLL_S = 0.01
CALLS_MAX = 200
"""Calls of one method until some hang in the victim; each has one chance of four or better."""
HANGING = 2

Done = AbstractAsyncContextManager[None]


@dataclass
class Scene:
    """The mesh, what its applications have counted, and a channel of the caller."""

    envoys: Envoys
    executions: Executions
    callers: Callers

    def application(self, name: str) -> CountingApplication:
        application = self.envoys.applications[name]
        assert isinstance(application, CountingApplication)
        return application


def nothing(scene: Scene, name: str) -> Done:
    """Nothing goes wrong."""
    return contextlib.nullcontext()


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A row of the table."""

    label: str
    happen: Callable[[Scene, str], Done] = nothing
    """Make it happen to a replica; undone at the end."""
    lost: str | None = None
    """Why a method that may run twice does not succeed although a healthy replica exists; None: it does."""
    unseen: bool = False
    """Whether the application provably saw nothing of the call."""
    timeout_s: float = TIMEOUT_S
    alone: bool = True
    """Whether it is measured with one of two replicas."""
    together: bool = True
    """Whether it is measured with both."""
    one_at_a_time: bool = False
    """Whether each call has the connection to the application for itself: it breaks with all calls on it."""

    async def measure(self, scene: Scene, replicas: tuple[str, ...]) -> dict[str, list[Ended]]:
        """Call every method while it happens."""
        calls = CALLS_ONE if len(replicas) == 1 else CALLS_BOTH
        async with contextlib.AsyncExitStack() as stack:
            for name in replicas:
                await stack.enter_async_context(self.happen(scene, name))
            return await scene.callers.every_method(calls, self.timeout_s, one_at_a_time=self.one_at_a_time)


@contextlib.asynccontextmanager
async def application_gone(scene: Scene, name: str) -> AsyncIterator[None]:
    application = scene.application(name)
    await application.stop()
    Path(application.listen.removeprefix("unix:")).unlink(missing_ok=True)
    try:
        yield
    finally:
        await application.start()


@contextlib.asynccontextmanager
async def sidecar_gone(scene: Scene, name: str) -> AsyncIterator[None]:
    scene.envoys.processes[name].kill()
    scene.envoys.processes[name].wait()
    try:
        yield
    finally:
        await scene.envoys.restart_envoy(name)


@contextlib.asynccontextmanager
async def closed_breaker(envoys: Envoys, workload: str, cluster: str) -> AsyncIterator[None]:
    """No call of this Envoy may go to this cluster."""
    file = envoys.placement.directory / workload / "cds" / "cds.json"
    whole = file.read_text()
    resources = json.loads(whole)
    found = next(resource for resource in resources["resources"] if resource["name"] == cluster)
    for threshold in found["circuit_breakers"]["thresholds"]:
        threshold["max_requests"] = 0
    try:
        await take(envoys, workload, file, json.dumps(resources))
        yield
    finally:
        await take(envoys, workload, file, whole)


async def take(envoys: Envoys, workload: str, file: Path, text: str) -> None:
    """Have an Envoy take other clusters; it sees files that are moved."""
    modified = envoys.stat(workload, "^cluster_manager.cluster_modified$")
    new = file.with_suffix(".new")
    new.write_text(text)
    new.replace(file)
    await clusters_taken(envoys, workload, modified)


async def clusters_taken(envoys: Envoys, workload: str, modified: int) -> None:
    """Wait until an Envoy has modified a cluster since it had modified so many, and uses it."""
    await envoys.until(
        lambda: (
            envoys.stat(workload, "^cluster_manager.cluster_modified$") > modified
            and envoys.stat(workload, "^cluster_manager.warming_clusters$") == 0
        ),
        f"{workload} does not take its clusters",
    )


def no_room(scene: Scene, name: str) -> Done:
    """The sidecar's breaker towards the application is open: it answers 503 itself."""
    return closed_breaker(scene.envoys, name, "application")


@contextlib.asynccontextmanager
async def sidecar_overloaded(scene: Scene, name: str) -> AsyncIterator[None]:
    """Its memory is full, so it takes no more calls: 503 before anything else is looked at."""
    file = scene.envoys.placement.directory / name / "bootstrap.json"
    whole = file.read_text()
    bootstrap = json.loads(whole)
    bootstrap["overload_manager"]["resource_monitors"][0]["typed_config"]["max_heap_size_bytes"] = 1
    file.write_text(json.dumps(bootstrap))
    try:
        await scene.envoys.restart_envoy(name)
        pressure = "overload.envoy.overload_actions.stop_accepting_requests.active"
        await scene.envoys.until(lambda: scene.envoys.stat(name, pressure) == 1, f"{name} is not overloaded")
        yield
    finally:
        file.write_text(whole)
        await scene.envoys.restart_envoy(name)


def behaves(behaviour: Behaviour) -> Callable[[Scene, str], Done]:
    """The application behaves so."""

    @contextlib.asynccontextmanager
    async def happen(scene: Scene, name: str) -> AsyncIterator[None]:
        scene.application(name).behaviour = behaviour
        try:
            yield
        finally:
            scene.application(name).behaviour = answer

    return happen


def refuses(
    code: grpc.StatusCode, *metadata: tuple[str, str], after_headers: bool = False
) -> Callable[[Scene, str], Done]:
    """The application answers with this status."""

    async def behaviour(context: grpc.aio.ServicerContext[Any, Any]) -> None:
        if after_headers:
            await context.send_initial_metadata(())
        await context.abort(code, "no", trailing_metadata=metadata)

    return behaves(behaviour)


async def hang(context: grpc.aio.ServicerContext[Any, Any]) -> None:
    await asyncio.sleep(HANG_S)


def misbehaves(misbehaviour: Misbehaviour, *, at_once: bool = False) -> Callable[[Scene, str], Done]:
    """Instead of the application there is one that speaks raw frames."""

    @contextlib.asynccontextmanager
    async def happen(scene: Scene, name: str) -> AsyncIterator[None]:
        def seen(call_id: bytes) -> None:
            scene.executions[call_id] += 1

        async with application_gone(scene, name):
            listen = scene.application(name).listen
            async with RawApplication(listen, misbehaviour, seen, at_once=at_once):
                yield

    return happen


@dataclass(frozen=True, kw_only=True)
class Victim:
    """A replica in which calls hang: which have arrived, and how it ends."""

    arrived: Callable[[], AbstractSet[bytes]]
    strike: Callable[[], Awaitable[None]]


@dataclass(frozen=True, kw_only=True)
class Strike(Fault):
    """Something that happens in the middle of calls: in each round some calls of every method hang in the replica, then it is struck."""

    victim: Callable[[Scene, str], AbstractAsyncContextManager[Victim]]
    rounds: int = 2

    async def measure(self, scene: Scene, replicas: tuple[str, ...]) -> dict[str, list[Ended]]:
        """Strike one replica, several times."""
        (name,) = replicas
        ended: dict[str, list[Ended]] = {method: [] for method in METHOD_NAMES}
        for _ in range(self.rounds):
            async with self.victim(scene, name) as victim:
                tasks = await asyncio.gather(*(self._hanging(scene, method, victim) for method in METHOD_NAMES))
                await victim.strike()
                for method, calls in zip(METHOD_NAMES, tasks, strict=True):
                    ended[method] += await asyncio.gather(*calls)
        return ended

    async def _hanging(self, scene: Scene, method: str, victim: Victim) -> list[asyncio.Task[Ended]]:
        """Call until some of the calls hang in the victim, and some are over."""
        tasks: list[asyncio.Task[Ended]] = []
        for _ in range(CALLS_MAX):
            call_id = scene.callers.new_id(method)
            task = asyncio.create_task(scene.callers.call(method, self.timeout_s, call_id))
            tasks.append(task)
            while not task.done() and call_id not in victim.arrived():
                await asyncio.sleep(POLL_S)
            hanging = sum(not task.done() for task in tasks)
            if HANGING <= hanging < len(tasks):
                return tasks
        raise AssertionError(f"of {CALLS_MAX} calls of {method} none went to the victim")


@contextlib.asynccontextmanager
async def killed_application(scene: Scene, name: str) -> AsyncIterator[Victim]:
    """`kill -9` for the application's process."""
    journal = scene.envoys.folder / f"{name}.journal"
    journal.write_bytes(b"")
    async with application_gone(scene, name):
        listen = scene.application(name).listen
        process = await asyncio.create_subprocess_exec(sys.executable, mortal_app.__file__, listen, str(journal))

        async def strike() -> None:
            process.kill()
            await process.wait()

        try:
            await scene.envoys.until(Path(listen.removeprefix("unix:")).is_socket, "the application does not listen")
            yield Victim(arrived=lambda: set(journal.read_bytes().split()), strike=strike)
        finally:
            if process.returncode is None:
                await strike()
            scene.executions.update(journal.read_bytes().split())


@contextlib.asynccontextmanager
async def killed_sidecar(scene: Scene, name: str) -> AsyncIterator[Victim]:
    """`kill -9` for the sidecar's process."""

    async def strike() -> None:
        scene.envoys.processes[name].kill()
        scene.envoys.processes[name].wait()

    async with behaves(hang)(scene, name):
        application = scene.application(name)
        try:
            yield Victim(arrived=lambda: application.own.keys(), strike=strike)
        finally:
            await scene.envoys.restart_envoy(name)


@contextlib.asynccontextmanager
async def too_slow(scene: Scene, name: str) -> AsyncIterator[Victim]:
    """Nothing strikes but the deadline."""

    async def strike() -> None:
        return

    async with behaves(hang)(scene, name):
        application = scene.application(name)
        yield Victim(arrived=lambda: application.own.keys(), strike=strike)


@dataclass(frozen=True, kw_only=True)
class Drain(Fault):
    """A replica is taken out as the runner does it, under load."""

    async def measure(self, scene: Scene, replicas: tuple[str, ...]) -> dict[str, list[Ended]]:
        """Call every method, one call after the other, from before the drain until after it."""
        (name,) = replicas
        over = asyncio.Event()
        loops = [asyncio.create_task(self._until(scene, method, over)) for method in METHOD_NAMES]
        try:
            async with self.happen(scene, name):
                over.set()
                ended = await asyncio.gather(*loops)
        finally:
            over.set()
        return dict(zip(METHOD_NAMES, ended, strict=True))

    async def _until(self, scene: Scene, method: str, over: asyncio.Event) -> list[Ended]:
        ended = []
        while not over.is_set():
            ended.append(await scene.callers.call(method, self.timeout_s, scene.callers.new_id(method)))
        return ended


@contextlib.asynccontextmanager
async def drained(scene: Scene, name: str) -> AsyncIterator[None]:
    """Out of the endpoints, health checks fail, the listeners drain, the application stops with grace, the sidecar ends."""
    envoys, application = scene.envoys, scene.application(name)
    await asyncio.sleep(SETTLE_S)
    envoys.rotate(name, into=False)
    await envoys.until(lambda: envoys.stat("front-0", "outbound_echo.membership_total") == 1, "still two")
    envoys.admin(name, "/healthcheck/fail", "POST")
    envoys.admin(name, "/drain_listeners?graceful&skip_exit", "POST")
    await envoys.until(lambda: envoys.stat(name, r"^http.inbound.downstream_rq_active$") == 0, "calls do not end")
    await application.stop(GRACE_S)
    envoys.processes[name].kill()
    envoys.processes[name].wait()
    try:
        await asyncio.sleep(SETTLE_S)
        yield
    finally:
        await application.start()
        await envoys.restart_envoy(name)
        envoys.rotate(name, into=True)
        await envoys.until(lambda: envoys.stat("front-0", "outbound_echo.membership_healthy") == 2, "not back")


@contextlib.asynccontextmanager
async def caller_is_full(scene: Scene, name: str) -> AsyncIterator[None]:
    """The breaker of the caller's sidecar towards the service is open: as many calls run as may."""
    if name != "echo-0":  # one breaker for all replicas
        yield
        return
    async with closed_breaker(scene.envoys, "front-0", "outbound_echo"):
        yield

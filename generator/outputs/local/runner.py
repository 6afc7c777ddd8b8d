"""Runs one workload: feeds what happens into the state machine and does what it answers."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from abc import abstractmethod
from collections.abc import Coroutine
from pathlib import Path
from typing import Protocol

from generator.introspection.admin import AdminError, calls_run, post
from generator.outputs.local.events import Journal
from generator.outputs.local.lifecycle import deadline_ms, decide
from generator.outputs.local.logs import size_of, tail
from generator.outputs.local.probes import Report
from generator.outputs.local.processes import Child, Command, spawn
from generator.outputs.local.record import RunRecord
from generator.outputs.local.workload import (
    Action,
    Announce,
    Begin,
    DrainSidecar,
    Event,
    Exited,
    Idle,
    Kill,
    Part,
    Phase,
    Probed,
    Release,
    Retire,
    Rotate,
    Spawn,
    Spawned,
    Stage,
    Terminate,
    Tick,
    Verdict,
    Workload,
)

LOG_LINES_SHOWN = 15
"""Of a process that keeps dying."""
IDLE_POLL_S = 0.1
IDLE_POLLS = 2
"""So many polls in a row without a running call mean idle: between two polls one may begin and end."""


def now_ms() -> int:
    """Tell the monotonic clock's time."""
    return int(time.monotonic() * 1000)


class Body(Protocol):
    """What differs between a replica, the gateway and the server of events."""

    admin: Path
    """Envoy's admin socket; of what has no Envoy, a path where there is none."""

    @abstractmethod
    def command(self, part: Part) -> Command:
        """Say what to run. Raises OSError and ValueError when a file that it needs is not there."""

    @abstractmethod
    def log(self, part: Part) -> Path:
        """Say where a process writes."""

    @abstractmethod
    def clear(self, part: Part) -> None:
        """Remove the sockets that a dead predecessor left: they would look like a living process."""

    @abstractmethod
    async def probe(self, part: Part, report: Report) -> None:
        """Report verdicts until cancelled."""

    @abstractmethod
    async def rotate(self, *, into: bool) -> None:
        """Put the workload into its callers' endpoint sets, or take it out; return when that is on disk."""


class Changes:
    """Wakes everybody who waits for a workload to change."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def notify(self) -> None:
        """Wake all waiters."""
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self) -> None:
        """Wait for the next change."""
        await self._event.wait()


class Runner:
    """One workload's shell. `run` lives as long as the workload."""

    def __init__(
        self, workload: Workload, body: Body, *, journal: Journal, record: RunRecord, changes: Changes
    ) -> None:
        self.workload = workload
        self.body = body
        self._journal = journal
        self._record = record
        self._changes = changes
        self._events: asyncio.Queue[tuple[Part | None, int, Event | BaseException]] = asyncio.Queue()
        self._children: dict[Part, Child] = {}
        self._generations = dict.fromkeys(Part, 0)
        self._log_starts = dict.fromkeys(Part, 0)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._dice = random.SystemRandom()

    async def run(self) -> None:
        """Start the workload and keep it running until it is retired and gone."""
        try:
            await self._feed(Begin())
            while self.workload.stage is not Stage.GONE:
                await self._feed(await self._next())
        finally:
            await self._end_tasks()

    def retire(self, *, leave_ms: int) -> None:
        """Ask for a stop in good order."""
        self._put(Retire(leave_ms=leave_ms))

    def release(self) -> None:
        """Let the second process start."""
        self._put(Release())

    def send(self, part: Part, number: signal.Signals) -> bool:
        """Send a signal to a process that is ready, and so means something by it; false when it is not."""
        if self.workload.process(part).phase is not Phase.READY:
            return False
        self._children[part].signal_group(number)
        return True

    def log_tail(self, part: Part, lines: int = LOG_LINES_SHOWN) -> tuple[str, ...]:
        """Give the last lines that a process wrote since its last start."""
        return tuple(tail(self.body.log(part), lines, since=self._log_starts[part]))

    def _put(self, event: Event, part: Part | None = None) -> None:
        generation = 0 if part is None else self._generations[part]
        self._events.put_nowait((part, generation, event))

    async def _next(self) -> Event:
        """Wait for the next event that still is about a living process, or for the machine's own deadline."""
        while True:
            due = deadline_ms(self.workload)
            patience_s = None if due is None else max(0, due - now_ms()) / 1000
            try:
                async with asyncio.timeout(patience_s):
                    part, generation, event = await self._events.get()
            except TimeoutError:
                return Tick()
            if isinstance(event, BaseException):
                raise event
            if part is None or generation == self._generations[part]:
                return event

    async def _feed(self, event: Event) -> None:
        before = self.workload
        self.workload, actions = decide(before, event, now_ms())
        for action in actions:
            await self._act(action)
        if self.workload != before:
            self._changes.notify()

    async def _act(self, action: Action) -> None:
        match action:
            case Spawn(part=part):
                await self._spawn(part)
            case Rotate(into=into):
                await self.body.rotate(into=into)
            case DrainSidecar():
                self._start_task("drain", self._drain())
            case Terminate(part=part):
                self._children[part].terminate()
            case Kill(part=part):
                self._children[part].kill()
            case Announce():
                self._announce(action)

    async def _spawn(self, part: Part) -> None:
        """Start a process and the two tasks that watch it; a failure to start is a death."""
        self._generations[part] += 1
        try:
            self.body.clear(part)
            self._log_starts[part] = size_of(self.body.log(part))
            child = await spawn(self.body.command(part))
        except (OSError, ValueError) as error:
            self._exited(part, f"could not be started: {error}")
            return
        self._children[part] = child
        self._record.add(child.pid)
        self._put(Spawned(part=part, pid=child.pid), part)
        self._start_task(f"wait-{part.value}", self._wait(part, child))
        self._start_task(f"probe-{part.value}", self._probe(part))

    async def _wait(self, part: Part, child: Child) -> None:
        reason = await child.wait()
        self._record.remove(child.pid)
        probing = self._tasks.pop(f"probe-{part.value}", None)
        if probing is not None:
            probing.cancel()
        self._exited(part, reason)

    def _exited(self, part: Part, reason: str) -> None:
        self._put(Exited(part=part, reason=reason, jitter=self._dice.random()), part)

    async def _probe(self, part: Part) -> None:
        async def report(verdict: Verdict) -> None:
            self._put(Probed(part=part, verdict=verdict), part)

        await self.body.probe(part, report)

    async def _drain(self) -> None:
        """Drain Envoy and wait until no call runs. What the application still has to call on its way out may pass."""
        try:
            await post(self.body.admin, "/healthcheck/fail")
            await post(self.body.admin, "/drain_listeners?inboundonly&graceful&skip_exit")
            quiet = 0
            while quiet < IDLE_POLLS:
                await asyncio.sleep(IDLE_POLL_S)
                quiet = 0 if await calls_run(self.body.admin) else quiet + 1
        except (OSError, TimeoutError, AdminError) as error:
            self._journal.tell("drain-failed", str(error), workload=self.workload.name, part="sidecar")
        self._put(Idle())

    def _announce(self, action: Announce) -> None:
        part = action.part
        log = self.log_tail(part) if part is not None and action.with_log else ()
        where = "" if part is None else part.value
        self._journal.tell(action.kind, action.text, workload=self.workload.name, part=where, log=log)

    def _start_task(self, name: str, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work, name=f"{self.workload.name}-{name}")
        task.add_done_callback(self._task_ended)
        self._tasks[name] = task

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        """Hand a mistake in one of our own tasks to `run`, which ends with it."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self._events.put_nowait((None, 0, error))

    async def _end_tasks(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        for task in self._tasks.values():
            await asyncio.wait({task})

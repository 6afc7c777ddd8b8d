"""`nipmesh apply`: the running mesh becomes what the edited manifest says, step by step, or stays what it was.

The steps are those of `transition`; each is written, and taken by every Envoy, before the next. When anything refuses, the
files of the last good configuration are back first, and what was started or restarted is undone afterwards.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from generator.model import Mesh, ReplicaPlacement, Service
from generator.model.events import EVENTS
from generator.outputs.local.bodies import GatewayBody, write_introspection
from generator.outputs.local.confirm import moment, until_taken
from generator.outputs.local.difference import blamed, service_of
from generator.outputs.local.errors import NotReadyError, OperationError, RefusedError
from generator.outputs.local.event_server import EventServer
from generator.outputs.local.operations import (
    STOPPING,
    begin_replicas,
    remove_replicas,
    require_others,
    restart_replica,
)
from generator.outputs.local.planning import Plan, plan_change
from generator.outputs.local.ports import PortError
from generator.outputs.local.supervisor import Supervisor, Tools
from generator.render import PlacementError
from generator.resources import ResourceError

RETREAT_TIMEOUT_S = 0.25
"""For all Envoys to read a file, on the way back: whoever is slower reads it later."""
SETTLE_TIMEOUT_S = 10.0
"""For all Envoys to read the last files of a change that has already come to its end."""
HELPER_INDEX_MAX = 99
"""As many digits as socket paths have room for."""
FAILURES = (OperationError, PlacementError, PortError, ResourceError, OSError, ValueError)
"""What a step may end with that is no mistake of ours: a refusal, a file, a disk, a port."""


@dataclass(slots=True, kw_only=True)
class _Done:
    """What was done so far, to be undone."""

    meshes: list[Mesh] = field(default_factory=list)
    """Published, the old one first."""
    started: list[str] = field(default_factory=list)
    rolled: list[tuple[ReplicaPlacement, Tools, Service]] = field(default_factory=list)
    """Replicas that run the new definition: where, what they were, and what they are."""


async def apply(supervisor: Supervisor, *, is_dry: bool) -> str:
    """Check, plan and do it. Raises OperationError; the mesh is as before then."""
    async with supervisor.operation:
        try:
            result = await _apply(supervisor, is_dry=is_dry)
        except OperationError as error:
            supervisor.journal.tell("not-applied", str(error))
            raise
        supervisor.journal.tell("applied", result)
        return result


async def _apply(supervisor: Supervisor, *, is_dry: bool) -> str:
    started = time.monotonic()
    plan = await plan_change(supervisor)
    for finding in plan.findings:
        supervisor.journal.tell("finding", str(finding))
    for line in plan.difference.lines():
        supervisor.journal.tell("plan", line)
    if is_dry:
        return "nothing was changed: this was a dry run"
    if plan.difference.is_empty:
        supervisor.applied = plan.applied
        return "the running mesh is what the manifest says"
    absent = await _carry_out(supervisor, plan)
    missing = f"; not running, to read it when they start: {', '.join(absent)}" if absent else ""
    return f"applied in {time.monotonic() - started:.1f} s{missing}"


async def _carry_out(supervisor: Supervisor, plan: Plan) -> tuple[str, ...]:
    """Do it; give the workloads whose Envoy was not there to confirm."""
    done = _Done(meshes=[supervisor.mesh])
    around, jwks = supervisor.around, supervisor.board.jwks
    supervisor.around = replace(around, mesh=plan.transition.new)
    try:
        absent = await _forward(supervisor, plan, done)
    except FAILURES as error:
        if supervisor.is_stopping:
            raise OperationError(STOPPING) from error
        text = _explained(plan, error)
        supervisor.around, supervisor.board.jwks = around, jwks
        await _back(supervisor, plan, done)
        raise OperationError(text) from error
    _note(supervisor, plan, done)
    await _finish(supervisor, plan)
    return absent


async def _forward(supervisor: Supervisor, plan: Plan, done: _Done) -> tuple[str, ...]:
    """Everything that can still be undone. Services may hear what is new to them before they start, and what goes until they have gone."""
    way = plan.transition
    await supervisor.hear(way.old, way.new)
    names = _place(supervisor, plan, done)
    await _step(supervisor, way.accepting, done)
    await begin_replicas(supervisor, names)
    await _step(supervisor, way.opening, done)
    for name in callees_first(plan.difference.restarted, way.new):
        await _roll(supervisor, way.new.service(name), done)
    supervisor.board.jwks = plan.jwks
    await _step(supervisor, way.switching, done)
    write_introspection(way.new, supervisor.setup.paths)
    absent = await _step(supervisor, way.closing, done)
    await supervisor.hear(way.closing)
    return absent


def _place(supervisor: Supervisor, plan: Plan, done: _Done) -> list[str]:
    """Give every replica that is to come its place; nobody starts yet."""
    board, way = supervisor.board, plan.transition
    board.mesh, board.is_whole = way.accepting, False
    names = []
    for service in (service for service in way.accepting.services if service.name not in way.removed):
        present = {replica.index for replica in board.placement().of_service(service.name)}
        for index in (index for index in range(service.replicas) if index not in present):
            names.append(supervisor.add_replica(service, index).workload.name)
            done.started.append(names[-1])
    return names


async def _step(supervisor: Supervisor, mesh: Mesh, done: _Done) -> tuple[str, ...]:
    """Publish one mesh of the way and wait until every Envoy has taken it."""
    if supervisor.is_stopping:
        raise OperationError(STOPPING)
    before = await moment(supervisor)
    supervisor.board.mesh = mesh
    done.meshes.append(mesh)
    await supervisor.publisher.publish()
    return await until_taken(supervisor, before)


async def _roll(supervisor: Supervisor, service: Service, done: _Done) -> None:
    """Restart a service with its new definition, one replica at a time, behind a helper that shows that it starts.

    A service that has just got more replicas has shown it already.
    """
    present = supervisor.board.placement().of_service(service.name)
    helper = max(replica.index for replica in present) + 1
    has_helper = helper <= HELPER_INDEX_MAX and not any(replica.name in done.started for replica in present)
    if has_helper:
        done.started.append(supervisor.add_replica(service, helper).workload.name)
        await supervisor.publisher.publish()
        await begin_replicas(supervisor, done.started[-1:])
    tools = Tools(service=service, around=supervisor.around)
    for replica in sorted(present, key=lambda replica: replica.in_rotation):
        if replica.name not in done.started:
            require_others(supervisor, replica)
            before = supervisor.retool(replica.name, tools)
            done.rolled.append((replica, before, service))
            await _restart(supervisor, replica, before.service, service)
    if has_helper:
        await remove_replicas(supervisor, service.name, [helper])


async def _restart(supervisor: Supervisor, replica: ReplicaPlacement, old: Service, new: Service) -> None:
    """Start a replica anew; where it listens in another way now, at another place."""
    if (old.listen_port, old.external_connections) == (new.listen_port, new.external_connections):
        await restart_replica(supervisor, replica)
        return
    if replica.name in supervisor.runners:
        await remove_replicas(supervisor, replica.service, [replica.index])
    supervisor.add_replica(new, replica.index)
    await supervisor.publisher.publish()
    await begin_replicas(supervisor, [replica.name])


async def _back(supervisor: Supervisor, plan: Plan, done: _Done) -> None:
    """Bring the last good files back, the way that led here; then undo what was done to processes."""
    started = time.monotonic()
    way = plan.transition
    for mesh in (*reversed(done.meshes[1:-1]), way.retreat()):
        await _retreat(supervisor, mesh, RETREAT_TIMEOUT_S)
    took_ms = (time.monotonic() - started) * 1000
    supervisor.journal.tell("reverted", f"the last good configuration is back after {took_ms:.0f} ms")
    try:
        write_introspection(way.old, supervisor.setup.paths)
        await _undo(supervisor, done)
        await supervisor.hear(way.old)
    except FAILURES as error:
        supervisor.journal.tell("undo-failed", str(error))
    if not supervisor.is_stopping:
        await _settle(supervisor, way.old)


async def _undo(supervisor: Supervisor, done: _Done) -> None:
    """Give restarted replicas their old definition, and take away those that were started."""
    for replica, tools, present in reversed(done.rolled):
        if replica.name in supervisor.runners:
            supervisor.retool(replica.name, tools)
        await _restart(supervisor, replica, present, tools.service)
    for name in done.started:
        if name in supervisor.runners:
            service, _, index = name.rpartition("-")
            await remove_replicas(supervisor, service, [int(index)])


def _note(supervisor: Supervisor, plan: Plan, done: _Done) -> None:
    """From now on this is what runs: also for replicas that crash and start again."""
    supervisor.applied = plan.applied
    rolled = {replica.name for replica, _, _ in done.rolled}
    for name, runner in supervisor.runners.items():
        if isinstance(runner.body, GatewayBody | EventServer):
            runner.body.around = supervisor.around
        elif service_of(name) not in plan.transition.removed and name not in rolled:
            tools = Tools(service=plan.transition.new.service(service_of(name)), around=supervisor.around)
            supervisor.retool(name, tools)


async def _finish(supervisor: Supervisor, plan: Plan) -> None:
    """Stop what is no more, callers before their callees, and forget it."""
    way, board = plan.transition, supervisor.board
    for name in reversed(callees_first(way.removed, way.old)):
        await remove_replicas(supervisor, name, [replica.index for replica in board.placement().of_service(name)])
    for service in way.new.services:
        present = board.placement().of_service(service.name)
        surplus = [replica.index for replica in present if replica.index >= service.replicas]
        await remove_replicas(supervisor, service.name, surplus)
    await _settle(supervisor, way.new)
    if way.removed:
        await _forget_hearers(supervisor, way.new)


async def _forget_hearers(supervisor: Supervisor, mesh: Mesh) -> None:
    """Take their users and consumers from services that are gone; what does not work now is done at the next start."""
    try:
        await supervisor.hear(mesh)
    except OperationError as error:
        supervisor.journal.tell("events-failed", str(error), workload=EVENTS)


async def _settle(supervisor: Supervisor, mesh: Mesh) -> None:
    """Publish the mesh that the way ends in."""
    supervisor.board.is_whole = True
    await _retreat(supervisor, mesh, SETTLE_TIMEOUT_S)


async def _retreat(supervisor: Supervisor, mesh: Mesh, timeout_s: float) -> None:
    """Publish a mesh that was in force before, or is safe beside it: whoever does not take it in time is told of."""
    before = await moment(supervisor)
    supervisor.board.mesh = mesh
    await supervisor.publisher.publish_or_retry()
    try:
        await until_taken(supervisor, before, timeout_s)
    except OperationError as error:
        supervisor.journal.tell("not-taken", str(error))


def _explained(plan: Plan, error: Exception) -> str:
    """Say what was refused, with the line of the manifest that led to it."""
    services = [service.name for service in plan.transition.accepting.services]
    match error:
        case RefusedError(workload=workload, key=key, words=words):
            name = blamed(key, workload, words, services)
            message = f"the Envoy of {workload} refuses its {' '.join(key).strip()}"
            return str(plan.finding(name, message, words))
        case NotReadyError(workload=workload):
            head, _, log = str(error).partition("\n")
            finding = plan.finding(service_of(workload), f"{workload} does not become ready", head)
            return f"{finding}\n{log}".rstrip()
        case _:
            return f"{error or type(error).__name__}; the running mesh is as it was"


def callees_first(names: Iterable[str], mesh: Mesh) -> list[str]:
    """Order services so that each comes after those that it calls, as far as circles allow."""
    wanted = set(names)
    ordered: list[str] = []
    visited: set[str] = set()

    def visit(name: str) -> None:
        if name in visited:
            return
        visited.add(name)
        for edge in mesh.service(name).calls:
            for destination in edge.destinations:
                visit(destination.service)
        if name in wanted:
            ordered.append(name)

    for name in sorted(wanted):
        visit(name)
    return ordered

"""Changes to a running mesh: scale a service, restart it replica by replica. No call fails because of them.

The order is always: what comes is ready and seen by every caller before what goes is taken away.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace

from generator.analysis import check_manifest
from generator.manifest import Severity
from generator.model import Mesh, ReplicaPlacement
from generator.model.overrides import Overrides
from generator.outputs.local.applied import manifest_digest
from generator.outputs.local.errors import NotReadyError, OperationError
from generator.outputs.local.supervisor import Supervisor
from generator.outputs.local.workload import Stage

READY_TIMEOUT_S = 90.0
"""For one replica, restarts included; longer than a start may take."""
STOP_TIMEOUT_S = 40.0
"""Leave, drain, grace and kill, one after the other, with room."""
LEAVE_MS = 500
"""Between leaving the endpoint sets and draining: callers see the file within 4 ms, busy ones a little later."""

STOPPING = "the mesh is being stopped"
CHANGED = "the manifest or its protos have changed since they were applied; apply that first with `nipmesh apply`"


async def scale(supervisor: Supervisor, service_name: str, replicas: int) -> str:
    """Run this many replicas of a service. Raises OperationError; the mesh is as before then."""
    async with supervisor.operation:
        mesh = await _mesh_with(supervisor, service_name, replicas)
        present = [replica.index for replica in supervisor.board.placement().of_service(service_name)]
        missing = [index for index in range(replicas) if index not in present]
        surplus = [index for index in present if index >= replicas]
        before = supervisor.mesh
        supervisor.board.mesh = mesh
        try:
            await add_replicas(supervisor, service_name, missing)
        except OperationError:
            supervisor.board.mesh = before
            await supervisor.publisher.publish_or_retry()
            raise
        _note_scaled(supervisor, service_name, replicas)
        await remove_replicas(supervisor, service_name, surplus)
        return f"{service_name} runs {replicas} replicas"


async def restart(supervisor: Supervisor, service_name: str) -> str:
    """Restart a service, one replica at a time; a single replica is helped out by a temporary one."""
    async with supervisor.operation:
        replicas = _replicas_of(supervisor, service_name)
        helper = max(replica.index for replica in replicas) + 1
        if len(replicas) == 1:
            await add_replicas(supervisor, service_name, [helper])
        for replica in sorted(replicas, key=lambda replica: replica.in_rotation):
            require_others(supervisor, replica)
            await restart_replica(supervisor, replica)
        if len(replicas) == 1:
            await remove_replicas(supervisor, service_name, [helper])
        return f"{service_name} restarted"


async def add_replicas(supervisor: Supervisor, service_name: str, indexes: list[int]) -> None:
    """Start replicas and wait until callers use them; when one fails, all of them are removed again."""
    service = supervisor.mesh.service(service_name)
    names = [supervisor.add_replica(service, index).workload.name for index in indexes]
    await supervisor.publisher.publish()
    try:
        await begin_replicas(supervisor, names)
    except OperationError:
        await remove_replicas(supervisor, service_name, indexes)
        raise


async def begin_replicas(supervisor: Supervisor, names: Iterable[str]) -> None:
    """Start replicas whose configuration is published; return when their callers use them. Raises OperationError."""
    if supervisor.is_stopping:
        raise OperationError(STOPPING)
    for name in names:
        supervisor.begin(name)
    for name in names:
        await _until_in_use(supervisor, name)


async def remove_replicas(supervisor: Supervisor, service_name: str, indexes: list[int]) -> None:
    """Take replicas out of rotation, drain and stop them, and forget them."""
    names = [f"{service_name}-{index}" for index in indexes]
    begun = [name for name in names if supervisor.has_begun(name)]
    for name in begun:
        supervisor.runners[name].retire(leave_ms=LEAVE_MS)
    for name in names:
        if name in begun:
            await _until_gone(supervisor, name)
        await supervisor.remove_replica(name)


async def restart_replica(supervisor: Supervisor, replica: ReplicaPlacement) -> None:
    """Stop one replica in good order and start it again at the same addresses; return when callers use it."""
    supervisor.runners[replica.name].retire(leave_ms=LEAVE_MS)
    await _until_gone(supervisor, replica.name)
    supervisor.renew_runner(replica.name)
    supervisor.begin(replica.name)
    await _until_in_use(supervisor, replica.name)


def _replicas_of(supervisor: Supervisor, service_name: str) -> tuple[ReplicaPlacement, ...]:
    replicas = supervisor.board.placement().of_service(service_name)
    if not replicas:
        known = ", ".join(service.name for service in supervisor.mesh.services)
        raise OperationError(f"there is no service {service_name}; the mesh has {known}")
    return replicas


def require_others(supervisor: Supervisor, replica: ReplicaPlacement) -> None:
    """Refuse to take a working replica away while another one does not work: those come first, and cost nothing."""
    others = supervisor.board.placement().of_service(replica.service)
    missing = [other.name for other in others if other.name != replica.name and not other.in_rotation]
    if missing and supervisor.board.replica(replica.name).in_rotation:
        raise OperationError(
            f"{replica.name} stays: {', '.join(missing)} is not ready\n{supervisor.complain(missing[0])}"
        )


def _note_scaled(supervisor: Supervisor, service_name: str, replicas: int) -> None:
    """Remember the number for later operations, unless it is the manifest's own."""
    noted = supervisor.applied
    scaled = {name: count for name, count in noted.scaled.items() if name != service_name}
    if replicas != noted.written[service_name]:
        scaled[service_name] = replicas
    supervisor.applied = replace(noted, scaled=scaled)


async def _mesh_with(supervisor: Supervisor, service_name: str, replicas: int) -> Mesh:
    """Analyse the manifest anew with another replica count: policies depend on it."""
    _replicas_of(supervisor, service_name)
    if manifest_digest(supervisor.setup.manifest) != supervisor.applied.manifest_digest:
        raise OperationError(CHANGED)
    counts = {service.name: service.replicas for service in supervisor.mesh.services} | {service_name: replicas}
    overrides = Overrides(replicas=counts, gateway_listen=supervisor.setup.overrides.gateway_listen)
    analysis = await asyncio.to_thread(check_manifest, supervisor.setup.manifest, overrides=overrides)
    if analysis.mesh is None:
        errors = [str(finding) for finding in analysis.findings if finding.severity is Severity.ERROR]
        raise OperationError("\n".join(errors))
    if analysis.mesh.descriptor_set != supervisor.mesh.descriptor_set:
        raise OperationError(CHANGED)
    return analysis.mesh


async def _until_gone(supervisor: Supervisor, name: str) -> None:
    runner = supervisor.runners[name]
    if not await supervisor.until(lambda: runner.workload.stage is Stage.GONE, STOP_TIMEOUT_S):
        raise OperationError(f"{name} does not stop")


async def _until_in_use(supervisor: Supervisor, name: str) -> None:
    """Wait until a replica is in rotation and each caller's own health check has found it."""
    runner = supervisor.runners[name]

    def is_decided() -> bool:
        workload = runner.workload
        return workload.in_rotation or workload.is_crash_looping or supervisor.is_stopping

    decided = await supervisor.until(is_decided, READY_TIMEOUT_S)
    if not decided or not runner.workload.in_rotation:
        raise NotReadyError(name, supervisor.complain(name))
    if not await supervisor.until_seen((name,)):
        raise NotReadyError(name, f"{name} is ready, but its callers' health checks do not find it")

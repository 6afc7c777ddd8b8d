"""What a replica and a gateway are made of: their commands, probes and place in the rotation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from generator.introspection.exposure import ExposedService, Exposure
from generator.model import GatewayPlacement, Mesh, Probe, ReplicaPlacement, Service, UnixAddress
from generator.model.mesh import GATEWAY
from generator.outputs.local.environment import (
    Surroundings,
    application_command,
    application_environment,
    target,
)
from generator.outputs.local.paths import StatePaths
from generator.outputs.local.probes import Report, probe_application, probe_sidecar
from generator.outputs.local.processes import Command
from generator.outputs.local.rotation import Board, Publisher
from generator.outputs.local.workload import Part
from generator.outputs.workloads import Place, Process, Where, gateway, introspection, sidecar
from generator.outputs.workloads.helpers import DESCRIPTORS, EXPOSURE
from generator.pki import private_directory, write_private
from generator.render import cluster_name
from nipmesh_home import module_command


@dataclass(kw_only=True)
class ReplicaBody:
    """An application and its sidecar."""

    replica: ReplicaPlacement
    service: Service
    around: Surroundings
    secret_files: Mapping[str, Path]
    envoy: Path
    board: Board
    publisher: Publisher
    admin: Path = field(init=False)

    def __post_init__(self) -> None:
        self.admin = self.replica.admin.path

    def command(self, part: Part) -> Command:
        """Say what to run; what an application keeps has a folder by then. Raises OSError."""
        if part is Part.SIDECAR:
            return sidecar_command(self.envoy, sidecar(self.replica.name, self.service.name), self.around)
        private_directory(self.around.paths.data(self.service.role))
        return Command(
            arguments=application_command(self.service),
            environment=application_environment(self.around, self.service, self.replica, self.secret_files),
            working_directory=self.around.manifest_directory / (self.service.working_directory or ""),
            log=self.log(part),
        )

    def log(self, part: Part) -> Path:
        """Say where a process writes."""
        return self.around.paths.log(self.replica.name, part.value)

    async def probe(self, part: Part, report: Report) -> None:
        """Ask the application over gRPC, the sidecar over its admin socket."""
        if part is Part.APP:
            await probe_application(self.replica.app, self.service.probe, any_answer=False, report=report)
        else:
            await probe_sidecar(self.admin, report=report)

    def clear(self, part: Part) -> None:
        """Remove the sockets that a dead predecessor left: they would look like a living process."""
        mine = (self.replica.app, self.replica.app_metrics)
        for address in mine if part is Part.APP else (self.replica.egress, self.replica.admin):
            if isinstance(address, UnixAddress):
                address.path.unlink(missing_ok=True)

    async def rotate(self, *, into: bool) -> None:
        """Change the endpoint sets of the callers."""
        self.board.rotate(self.replica.name, into=into)
        await self.publisher.publish_or_retry()


@dataclass(kw_only=True)
class GatewayBody:
    """The edge Envoy (the sidecar) and its introspection server (the application)."""

    placement: GatewayPlacement
    around: Surroundings
    envoy: Path
    admin: Path = field(init=False)

    def __post_init__(self) -> None:
        self.admin = self.placement.admin.path

    def command(self, part: Part) -> Command:
        """Say what to run."""
        if part is Part.SIDECAR:
            return sidecar_command(self.envoy, gateway(self.around.mesh), self.around)
        arguments = introspection_arguments(self.placement, self.around.paths)
        return Command(
            arguments=arguments,
            environment=dict(self.around.outer),
            working_directory=self.around.manifest_directory,
            log=self.log(part),
        )

    def log(self, part: Part) -> Path:
        """Say where a process writes."""
        return self.around.paths.log(GATEWAY, part.value)

    async def probe(self, part: Part, report: Report) -> None:
        """Any answer of the introspection server will do: before the gateway runs it must say NOT_SERVING."""
        if part is Part.APP:
            await probe_application(self.placement.introspection, Probe(), any_answer=True, report=report)
        else:
            await probe_sidecar(self.admin, report=report)

    def clear(self, part: Part) -> None:
        """Remove the sockets that a dead predecessor left."""
        mine = self.placement.introspection if part is Part.APP else self.placement.admin
        mine.path.unlink(missing_ok=True)

    async def rotate(self, *, into: bool) -> None:
        """Nobody inside calls the gateway: there is nothing to change."""


def sidecar_command(envoy: Path, described: Process, around: Surroundings) -> Command:
    """Say how Envoy is run."""
    bootstrap = around.paths.envoy / described.workload / "bootstrap.json"

    def resolve(place: Place) -> str:
        assert place.where is Where.BOOTSTRAP, place
        return str(bootstrap)

    return Command(
        arguments=(str(envoy), *described.arguments(resolve)),
        environment=dict(around.outer),
        working_directory=around.manifest_directory,
        log=around.paths.log(described.workload, Part.SIDECAR.value),
    )


def introspection_arguments(placement: GatewayPlacement, paths: StatePaths) -> tuple[str, ...]:
    """Say how the introspection server is run."""

    def resolve(place: Place) -> str:
        match place.where:
            case Where.LISTEN:
                return target(placement.introspection)
            case Where.ADMIN:
                return str(placement.admin.path)
            case _:
                assert place.where is Where.EXPOSURE, place
                return str(paths.introspection / place.name)

    module, *words = introspection().arguments(resolve)
    return (*module_command(module), *words)


def write_introspection(mesh: Mesh, paths: StatePaths) -> None:
    """Write what the introspection server reads, and reads again when it changes. Raises OSError."""
    for name, content in exposure_files(mesh).items():
        write_private(paths.introspection / name, content)


def exposure_files(mesh: Mesh) -> dict[str, bytes]:
    """Give the files that tell the introspection server what is exposed; none without a gateway."""
    if mesh.gateway is None:
        return {}
    methods: dict[str, set[str]] = {}
    clusters: dict[str, str] = {}
    for edge in mesh.gateway.exposes:
        for policy in edge.methods:
            methods.setdefault(policy.method.service, set()).add(policy.method.name)
            clusters[policy.method.service] = cluster_name(edge.destinations[0].service)
    exposure = Exposure(
        services=tuple(
            ExposedService(name=name, cluster=clusters[name], methods=frozenset(names))
            for name, names in sorted(methods.items())
        )
    )
    return {DESCRIPTORS: mesh.descriptor_set, EXPOSURE: exposure.to_json()}

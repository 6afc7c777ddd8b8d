"""The one way from a mesh to its resources, and what is remembered between two renderings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from generator.model import Gateway, Mesh, Placement, ReplicaPlacement
from generator.render.gateway import gateway_workload
from generator.render.probes import FIRST, SECOND, are_plain, inputs_of, kind_of, probe
from generator.render.scope import Scope, Surroundings
from generator.render.sidecar import sidecar
from generator.resources import (
    Family,
    ResourceError,
    ResourceSet,
    UnliftableError,
    WorkloadResources,
    check_references,
    family_of,
)
from generator.resources.memo import Memo, collector_paused

SERVICES_MAX = 2_000
"""Services whose sidecars are remembered."""
FAMILY_MEMBERS_MIN = 3
"""A family costs two renderings."""
FAMILIES_MAX = 32
"""Of one service: more zones and kinds of addresses than that are not worth their own."""


class PlacementError(Exception):
    """The placement does not fit the mesh."""


def render(mesh: Mesh, placement: Placement, *, is_whole: bool = True) -> ResourceSet:
    """Give every workload of the placement its resources, all checked.

    `is_whole`: false between two meshes, when clusters are there before their routes, or still.

    Workloads whose inputs are those of an earlier call are that call's. Raises PlacementError, and ResourceError when a
    template or a value makes something that Envoy would refuse.
    """
    with collector_paused():
        return _renderer.render(mesh, placement, is_whole=is_whole)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """The sidecars of one service as its scope makes them."""

    scope: Scope
    is_whole: bool
    families: dict[tuple[object, ...], Family | None] = field(default_factory=dict)
    workloads: dict[str, tuple[ReplicaPlacement, WorkloadResources]] = field(default_factory=dict)

    def sidecar(self, replica: ReplicaPlacement, alike: int) -> WorkloadResources:
        """The sidecar of one replica, of a service with so many."""
        known = self.workloads.get(replica.name)
        if known is not None and known[0] == replica:
            return known[1]
        made = self._of_family(replica) if alike >= FAMILY_MEMBERS_MIN else None
        if made is None:
            made = self._sidecar(replica, self._zone(replica))
        self.workloads[replica.name] = (replica, made)
        return made

    def _of_family(self, replica: ReplicaPlacement) -> WorkloadResources | None:
        kind, inputs = (self._zone(replica), *kind_of(replica)), inputs_of(replica)
        if kind not in self.families:
            self.families[kind] = self._family(replica) if len(self.families) < FAMILIES_MAX else None
        family = self.families[kind]
        return family.member(replica.name, inputs) if family is not None and are_plain(inputs) else None

    def _family(self, replica: ReplicaPlacement) -> Family | None:
        probes = [probe(replica, which) for which in (FIRST, SECOND)]
        try:
            first, second = (self._sidecar(made_up, self._zone(replica)) for made_up in probes)
        except (ResourceError, UnliftableError):
            return None  # the replicas themselves will say what is wrong, in their own names
        return family_of(first, second, *(inputs_of(made_up) for made_up in probes))

    def _zone(self, replica: ReplicaPlacement) -> str | None:
        return self.scope.mesh.service(replica.service).zone(replica.index)

    def _sidecar(self, replica: ReplicaPlacement, zone: str | None) -> WorkloadResources:
        made = sidecar(self.scope.mesh, self.scope.placement, replica, zone)
        check_references(made, spare_allowed=not self.is_whole)
        return made


class Renderer:
    """Renders meshes, and remembers the sidecars of each service and the gateway until their scope changes."""

    def __init__(self) -> None:
        self._before: Surroundings | None = None
        self._rendered: Memo[tuple[str, str, str], Rendered] = Memo(SERVICES_MAX)
        self._gateway: tuple[Scope, WorkloadResources] | None = None
        self._is_whole = True

    def render(self, mesh: Mesh, placement: Placement, *, is_whole: bool = True) -> ResourceSet:
        """See the function `render`."""
        self._is_whole = is_whole
        surroundings = self._before = Surroundings.of(mesh, placement, self._before)
        workloads = list(self._sidecars(mesh, surroundings, placement))
        if mesh.gateway is not None:
            workloads.append(self._edge(mesh.gateway, surroundings, placement))
        return ResourceSet(workloads=tuple(sorted(workloads, key=lambda workload: workload.name)))

    def _sidecars(self, mesh: Mesh, around: Surroundings, placement: Placement) -> Iterator[WorkloadResources]:
        for replica in placement.replicas:
            if replica.service not in around.services:
                raise PlacementError(f"{replica.name} is placed, but the mesh has no service {replica.service}")
        for service, replicas in around.replicas.items():
            if replicas:
                rendered = self._service(mesh, around.scope(service), service)
                for name in rendered.workloads.keys() - {replica.name for replica in replicas}:
                    del rendered.workloads[name]
                for replica in replicas:
                    yield rendered.sidecar(replica, len(replicas))

    def _service(self, mesh: Mesh, scope: Scope, service: str) -> Rendered:
        key = (mesh.name, str(scope.placement.directory), service)
        known = self._rendered.get(key)
        is_same = known is not None and (known.scope is scope or known.scope == scope)
        if known is not None and is_same and known.is_whole == self._is_whole:
            return known
        return self._rendered.put(key, Rendered(scope=scope, is_whole=self._is_whole))

    def _edge(self, gateway: Gateway, around: Surroundings, placement: Placement) -> WorkloadResources:
        if placement.gateway is None:
            raise PlacementError("the mesh has a gateway, but it is not placed")
        if gateway.authentication is not None and placement.jwks is None:
            raise PlacementError("the gateway verifies tokens, but the placement has no key set")
        scope = around.gateway_scope(gateway, placement.gateway, placement.jwks)
        if self._gateway is not None and self._gateway[0] == scope:
            return self._gateway[1]
        made = gateway_workload(scope.mesh, scope.placement, gateway, placement.gateway)
        check_references(made, spare_allowed=not self._is_whole)
        self._gateway = (scope, made)
        return made


_renderer = Renderer()

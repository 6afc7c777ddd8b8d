"""What one service's sidecars may know of the mesh and of the placement: the service, its callers and its callees.

Rendering sees nothing else, so the scope is all that its result depends on: the same scope gives the same sidecars. What
sidecars shall depend on beyond it has to be let in here; what is the mesh's own (not a service's) is in every scope.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

from generator.model import Edge, Gateway, GatewayPlacement, Mesh, Placement, ReplicaPlacement, Service
from generator.model.mesh import GATEWAY

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """The mesh and the placement as one service's sidecars, or the gateway, see them."""

    mesh: Mesh
    placement: Placement


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Surroundings:
    """A mesh and a placement, ready to be cut into scopes."""

    mesh: Mesh
    """Without its services."""
    placement: Placement
    """Without its replicas, gateway and key set."""
    services: dict[str, Service]
    replicas: dict[str, tuple[ReplicaPlacement, ...]]
    hidden: Gateway | None
    """The gateway for those that it does not call."""

    @classmethod
    def of(cls, mesh: Mesh, placement: Placement, before: Surroundings | None) -> Surroundings:
        """Take what is equal from `before`, so that comparing scopes ends at once where nothing changed."""
        services = {service.name: service for service in mesh.services}
        replicas = {name: placement.of_service(name) for name in services}
        bare = replace(mesh, services=())
        gateway = mesh.gateway
        hidden = None if gateway is None else replace(gateway, exposes=())
        if before is not None:
            services = {name: _kept(before.services.get(name), service) for name, service in services.items()}
            replicas = {name: _kept(before.replicas.get(name), placed) for name, placed in replicas.items()}
            bare, hidden = _kept(before.mesh, bare), _kept(before.hidden, hidden)
        found = Placement(directory=placement.directory, replicas=(), gateway=None, jwks=None)
        return cls(mesh=bare, placement=found, services=services, replicas=replicas, hidden=hidden)

    def scope(self, name: str) -> Scope:
        """The scope of one service."""
        service = self.services[name]
        callees = _reached(service.calls)
        known = {name, *callees, *(edge.caller for edge in service.callers if edge.caller != GATEWAY)}
        return Scope(
            mesh=replace(self.mesh, services=self._services(known), gateway=self._gateway(name)),
            placement=replace(self.placement, replicas=self._replicas(callees)),
        )

    def gateway_scope(self, gateway: Gateway, edge: GatewayPlacement, jwks: str | None) -> Scope:
        """The scope of the gateway."""
        callees = _reached(gateway.exposes)
        return Scope(
            mesh=replace(self.mesh, services=self._services(callees)),
            placement=replace(self.placement, replicas=self._replicas(callees), gateway=edge, jwks=jwks),
        )

    def _services(self, names: set[str]) -> tuple[Service, ...]:
        return tuple(self.services[name] for name in sorted(names) if name in self.services)

    def _replicas(self, services: set[str]) -> tuple[ReplicaPlacement, ...]:
        return tuple(replica for name in sorted(services) for replica in self.replicas.get(name, ()))

    def _gateway(self, callee: str) -> Gateway | None:
        if self.mesh.gateway is None or self.hidden is None:
            return None
        exposes = tuple(edge for edge in self.mesh.gateway.exposes if edge.callee == callee)
        return replace(self.hidden, exposes=exposes) if exposes else self.hidden


def _reached(edges: tuple[Edge, ...]) -> set[str]:
    """The callees with all their versions that calls may reach."""
    return {name for edge in edges for name in (edge.callee, *(found.service for found in edge.destinations))}


def _kept(old: T | None, new: T) -> T:
    return old if old is not None and old == new else new

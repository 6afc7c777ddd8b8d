"""What one service's sidecars may know of mesh and placement: the service, and what concerns both it and its neighbours.

Neighbours are its callers and its callees, with their versions. Rendering sees nothing else, so the scope is all that its
result depends on: the same scope gives the same sidecars. What sidecars shall depend on beyond it has to be let in here;
what is the mesh's own (not a service's) is in every scope.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from operator import is_ as is_same
from typing import TypeVar

from generator.model import Edge, Gateway, GatewayPlacement, Mesh, Placement, ReplicaPlacement, Service
from generator.model.mesh import GATEWAY

T = TypeVar("T")
Inputs = tuple[object, ...]


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
    scopes_before: dict[str, tuple[Inputs, Scope]]
    """What earlier scopes were made of."""
    scopes: dict[str, tuple[Inputs, Scope]] = field(default_factory=dict)

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
        return cls(
            mesh=bare,
            placement=Placement(directory=placement.directory, replicas=(), gateway=None, jwks=None),
            services=services,
            replicas=replicas,
            hidden=hidden,
            scopes_before={} if before is None else before.scopes,
        )

    def scope(self, name: str) -> Scope:
        """The scope of one service."""
        service = self.services[name]
        callees = _reached(service.calls)
        known = {name, *callees, *(edge.caller for edge in service.callers if edge.caller != GATEWAY)}
        replicas = tuple(self.replicas[callee] for callee in sorted(callees) if callee in self.replicas)
        inputs = (self.mesh, self.placement.directory, *self._services(known), *replicas)
        before = self.scopes_before.get(name)
        if before is not None and len(before[0]) == len(inputs) and all(map(is_same, before[0], inputs)):
            self.scopes[name] = before
        else:
            self.scopes[name] = (inputs, self._scope(service, known, callees))
        return self.scopes[name][1]

    def _scope(self, service: Service, known: set[str], callees: set[str]) -> Scope:
        services = tuple(_as_seen_by(service.name, other) for other in self._services(known))
        return Scope(
            mesh=replace(self.mesh, services=services, gateway=self._gateway(service.name)),
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


def _as_seen_by(name: str, other: Service) -> Service:
    """A neighbour, with the edges between both alone."""
    if other.name == name:
        return other
    calls = tuple(edge for edge in other.calls if edge.callee == name)
    callers = tuple(edge for edge in other.callers if edge.caller == name)
    return replace(other, calls=calls, callers=callers, external_calls=(), external_connections=())


def _kept(old: T | None, new: T) -> T:
    return old if old is not None and old == new else new

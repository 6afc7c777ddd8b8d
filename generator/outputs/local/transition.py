"""From one mesh to another without a moment in which a call that either allows is refused: pure, mesh in, meshes out.

What is added is there before anybody uses it, what goes is used by nobody before it goes (in Envoy's words: clusters and
endpoints before routes, and the callee before its callers; the other way round for what goes). Each of these meshes is safe
beside the one before it, however long some Envoy takes to read its files:

    old         as it is
    accepting   every callee admits the old and the new callers and methods; every caller has the clusters of both
    opening     services may also call the methods that are new to them; what starts or restarts now finds its way
    switching   all routes are the new ones
    closing     callees admit and callers have what the new mesh says; only services that go keep what they need to drain
    new         services that go are gone
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from generator.model import Edge, External, Gateway, Mesh, Service


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition:
    """The way from one mesh to another."""

    old: Mesh
    accepting: Mesh
    opening: Mesh
    switching: Mesh
    closing: Mesh
    new: Mesh

    @property
    def added(self) -> tuple[str, ...]:
        """Services that the old mesh does not have."""
        return _only_in(self.new, self.old)

    @property
    def removed(self) -> tuple[str, ...]:
        """Services that the new mesh does not have."""
        return _only_in(self.old, self.new)

    def retreat(self) -> Mesh:
        """Give the old mesh, with the added services cut off: they are still on this machine, and nobody's callees."""
        lost = tuple(_lost(self.new.service(name)) for name in self.added)
        coming = {service.name: service for service in self.new.services}
        kept = (
            replace(service, external_connections=_connections(service, coming.get(service.name, service)))
            for service in self.old.services
        )
        externals = _externals(self.new, self.old)
        return replace(self.old, services=_sorted((*kept, *lost)), externals=externals)


def transition(old: Mesh, new: Mesh) -> Transition:
    """Compute the meshes in between. Both have a gateway, or neither."""
    assert (old.gateway is None) == (new.gateway is None), "a gateway is not added while the mesh runs"
    before = {service.name: service for service in old.services}
    leaving = tuple(old.service(name) for name in _only_in(old, new))
    pairs = tuple((before.get(service.name), service) for service in new.services)
    accepting = tuple(_accepting(was, service) for was, service in pairs)
    opening = tuple(_opening(was, service) for was, service in pairs)
    switching = tuple(_switching(was, service) for was, service in pairs)
    hidden, shown = _gateway(old.gateway, other=new.gateway), _gateway(new.gateway, other=old.gateway)
    externals = _externals(old, new)
    return Transition(
        old=old,
        accepting=replace(old, services=_sorted((*accepting, *leaving)), gateway=hidden, externals=externals),
        opening=replace(old, services=_sorted((*opening, *leaving)), gateway=hidden, externals=externals),
        switching=replace(new, services=_sorted((*switching, *leaving)), gateway=shown, externals=externals),
        closing=_closing(replace(new, externals=externals if leaving else new.externals), leaving),
        new=new,
    )


def _lost(service: Service) -> Service:
    return replace(service, calls=(), callers=(), external_calls=())


def _accepting(was: Service | None, service: Service) -> Service:
    if was is None:
        return service
    return replace(
        service,
        callers=_united(service.callers, was.callers),
        calls=_spared(was.calls, service.calls),
        external_calls=_spared(was.external_calls, service.external_calls),
        external_connections=_connections(was, service),
    )


def _opening(was: Service | None, service: Service) -> Service:
    """Add the methods that this service never called; those that moved to another callee follow when all routes switch."""
    accepting = _accepting(was, service)
    if was is None:
        return accepting
    known = {policy.method.path for edge in (*was.calls, *was.external_calls) for policy in edge.methods}
    return replace(
        accepting,
        calls=_united(accepting.calls, _without(service.calls, known)),
        external_calls=_united(accepting.external_calls, _without(service.external_calls, known)),
    )


def _switching(was: Service | None, service: Service) -> Service:
    if was is None:
        return service
    return replace(
        service,
        callers=_united(service.callers, was.callers),
        calls=_spared(service.calls, was.calls),
        external_calls=_spared(service.external_calls, was.external_calls),
        external_connections=_connections(was, service),
    )


def _closing(new: Mesh, leaving: tuple[Service, ...]) -> Mesh:
    """Give the new mesh, and beside it the services that go: nobody but they themselves calls them any more."""
    names = {service.name for service in leaving}

    def admitting(service: Service, others: tuple[Edge, ...]) -> Service:
        theirs = (edge for going in leaving for edge in going.calls if edge.callee == service.role)
        return replace(service, callers=_united(others, theirs))

    staying = (admitting(service, service.callers) for service in new.services)
    going = (admitting(service, tuple(edge for edge in service.callers if edge.caller in names)) for service in leaving)
    return replace(new, services=_sorted((*staying, *going)))


def _gateway(gateway: Gateway | None, *, other: Gateway | None) -> Gateway | None:
    if gateway is None or other is None:
        return None
    return replace(gateway, exposes=_spared(gateway.exposes, other.exposes))


def _externals(old: Mesh, new: Mesh) -> tuple[External, ...]:
    found = {external.name: external for external in (*old.externals, *new.externals)}
    return tuple(found[name] for name in sorted(found))


def _connections(was: Service, service: Service) -> tuple[str, ...]:
    return tuple(sorted({*was.external_connections, *service.external_connections}))


def _without(edges: Iterable[Edge], paths: set[str]) -> tuple[Edge, ...]:
    return tuple(
        replace(edge, methods=tuple(policy for policy in edge.methods if policy.method.path not in paths))
        for edge in edges
    )


def _spared(edges: tuple[Edge, ...], others: tuple[Edge, ...]) -> tuple[Edge, ...]:
    """Add where other edges lead, without their methods: clusters and endpoints, and no route."""
    return _united(edges, _without(others, {policy.method.path for edge in others for policy in edge.methods}))


def _united(edges: Iterable[Edge], others: Iterable[Edge]) -> tuple[Edge, ...]:
    """Merge edges between the same two; a method may be there twice, with both policies: a callee takes the wider one."""
    found: dict[tuple[str, str], Edge] = {}
    for edge in (*edges, *others):
        before = found.get((edge.caller, edge.callee))
        found[edge.caller, edge.callee] = edge if before is None else _merged(before, edge)
    return tuple(found[key] for key in sorted(found))


def _merged(one: Edge, other: Edge) -> Edge:
    known = {destination.service for destination in one.destinations}
    more = (destination for destination in other.destinations if destination.service not in known)
    return replace(
        one,
        methods=tuple(dict.fromkeys((*one.methods, *other.methods))),
        destinations=tuple(sorted((*one.destinations, *more), key=lambda destination: destination.service)),
    )


def _only_in(one: Mesh, other: Mesh) -> tuple[str, ...]:
    known = {service.name for service in other.services}
    return tuple(service.name for service in one.services if service.name not in known)


def _sorted(services: Iterable[Service]) -> tuple[Service, ...]:
    return tuple(sorted(services, key=lambda service: service.name))

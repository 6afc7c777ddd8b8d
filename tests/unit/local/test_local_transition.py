"""From one mesh to another: every step is safe beside the one before it, whichever Envoy reads its files first."""

from dataclasses import replace
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from generator.model import Destination, Edge, Idempotency, Mesh, Method, MethodPolicy, Service, StreamingKind
from generator.outputs.local.apply import callees_first
from generator.outputs.local.transition import transition
from support.meshes import repository_mesh

NAMES = ("a", "b", "c", "d")
Calls = dict[tuple[str, str], frozenset[int]]
"""(caller, callee) to the numbers of methods."""
GRAPHS = st.dictionaries(
    st.tuples(st.sampled_from((*NAMES, "gateway")), st.sampled_from(NAMES)).filter(lambda pair: pair[0] != pair[1]),
    st.frozensets(st.integers(0, 2), min_size=1),
    max_size=8,
)
SERVICES = st.frozensets(st.sampled_from(NAMES), min_size=1)
DEADLINES = st.integers(1_000, 3_000)


def made(names: frozenset[str], calls: Calls, deadline_ms: int) -> Mesh:
    """Build a mesh of these services and calls on the fixture's settings."""
    edges = [edge(pair, numbers, deadline_ms) for pair, numbers in calls.items() if pair[1] in names]
    edges = [edge for edge in edges if edge.caller in {*names, "gateway"}]
    base = repository_mesh()
    services = tuple(service(base, name, edges) for name in sorted(names))
    assert base.gateway is not None
    gateway = replace(base.gateway, exposes=of(edges, caller="gateway"), authentication=None)
    return replace(base, services=services, gateway=gateway)


def service(base: Mesh, name: str, edges: list[Edge]) -> Service:
    identity = f"spiffe://test.mesh/service/{name}"
    calls, callers = of(edges, caller=name), tuple(edge for edge in edges if edge.callee == name)
    callers = tuple(sorted(callers, key=lambda edge: edge.caller))
    return replace(base.services[0], name=name, identity=identity, calls=calls, callers=callers)


def of(edges: list[Edge], caller: str) -> tuple[Edge, ...]:
    return tuple(sorted((edge for edge in edges if edge.caller == caller), key=lambda edge: edge.callee))


def edge(pair: tuple[str, str], numbers: frozenset[int], deadline_ms: int) -> Edge:
    caller, callee = pair
    methods = tuple(policy(callee, number, deadline_ms) for number in sorted(numbers))
    destination = Destination(service=callee, traffic=repository_mesh().services[0].traffic)
    return Edge(caller=caller, callee=callee, methods=methods, destinations=(destination,))


def policy(owner: str, number: int, deadline_ms: int) -> MethodPolicy:
    """Method 2 has the same path whoever serves it: it moves between services."""
    package = "shared" if number == 2 else owner
    method = Method(
        service=f"{package}.v1.S",
        name=f"M{number}",
        streaming=StreamingKind.UNARY,
        idempotency=Idempotency.UNKNOWN,
        request="x",
        response="y",
    )
    return MethodPolicy(method=method, deadline_ms=deadline_ms, idle_timeout_ms=None, duration_ms_max=None, retry=None)


def outgoing(mesh: Mesh) -> set[tuple[str, str, str, int]]:
    """Every route: caller, callee, path, deadline."""
    assert mesh.gateway is not None
    edges = [*mesh.gateway.exposes, *(edge for service in mesh.services for edge in service.calls)]
    return {(e.caller, e.callee, p.method.path, p.deadline_ms or 0) for e in edges for p in e.methods}


def admitted(mesh: Mesh) -> dict[tuple[str, str, str], int]:
    """Every admission with its most generous deadline."""
    found: dict[tuple[str, str, str], int] = {}
    for one in mesh.services:
        for e in one.callers:
            for p in e.methods:
                key = (e.caller, one.name, p.method.path)
                found[key] = max(found.get(key, 0), p.deadline_ms or 0)
    return found


def clusters(mesh: Mesh) -> set[tuple[str, str]]:
    """Every caller with the callees that it has a cluster of."""
    assert mesh.gateway is not None
    edges = [*mesh.gateway.exposes, *(edge for service in mesh.services for edge in service.calls)]
    return {(edge.caller, destination.service) for edge in edges for destination in edge.destinations}


@given(old=GRAPHS, new=GRAPHS, before=SERVICES, after=SERVICES, deadlines=st.tuples(DEADLINES, DEADLINES))
def test_every_step_is_safe_beside_its_neighbours(
    old: Calls, new: Calls, before: frozenset[str], after: frozenset[str], deadlines: tuple[int, int]
) -> None:
    way = transition(made(before, old, deadlines[0]), made(after, new, deadlines[1]))
    steps = (way.old, way.accepting, way.opening, way.switching, way.closing)
    for one, other in pairwise(steps):
        for routes, callees in ((one, other), (other, one), (one, one), (other, other)):
            accepts = admitted(callees)
            for caller, callee, path, deadline_ms in outgoing(routes):
                if caller in way.added and callees is way.old:
                    continue  # it does not run yet
                assert accepts[caller, callee, path] >= deadline_ms, (caller, callee, path)
        assert {route[:2] for route in outgoing(other)} - clusters(one) <= {
            (caller, callee) for caller, callee in clusters(other) if caller in way.added
        }, "clusters are there before their routes"
        assert {route[:2] for route in outgoing(one)} <= clusters(other), "and go after them"


@given(old=GRAPHS, new=GRAPHS, before=SERVICES, after=SERVICES)
def test_the_way_ends_in_the_new_mesh_and_the_retreat_in_the_old(
    old: Calls, new: Calls, before: frozenset[str], after: frozenset[str]
) -> None:
    way = transition(made(before, old, 1_000), made(after, new, 1_000))
    assert set(way.added) == after - before
    assert set(way.removed) == before - after
    kept = {service.name: service for service in way.retreat().services}
    assert all(kept[service.name] == service for service in way.old.services)
    assert all(kept[name].calls == kept[name].callers == () for name in way.added)
    if not way.removed:
        assert way.closing == way.new
    staying = {service.name: service for service in way.closing.services}
    for service in way.new.services:
        assert staying[service.name].calls == service.calls
        assert {e.caller for e in staying[service.name].callers} <= {e.caller for e in service.callers} | set(
            way.removed
        )


def test_without_a_change_every_step_is_the_same() -> None:
    mesh = made(frozenset("abc"), {("a", "b"): frozenset({0, 1}), ("gateway", "a"): frozenset({0})}, 1_000)
    way = transition(mesh, mesh)
    assert {way.accepting, way.opening, way.switching, way.closing} == {mesh}


def test_callees_come_first_and_circles_end() -> None:
    chain = made(frozenset("abcd"), {("a", "b"): frozenset({0}), ("b", "c"): frozenset({0})}, 1_000)
    assert callees_first(("a", "c", "d"), chain) == ["c", "a", "d"]
    circle = made(frozenset("ab"), {("a", "b"): frozenset({0}), ("b", "a"): frozenset({0})}, 1_000)
    assert sorted(callees_first(("a", "b"), circle)) == ["a", "b"]

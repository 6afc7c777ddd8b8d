"""Ports that nobody has to look for: they differ, they stay where they are, and they are nobody else's."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest

from generator.model import External, Mesh, Placement, SocketAddress
from generator.outputs.files import default_placement
from generator.outputs.files.placement import events_address
from generator.outputs.files.ports import PORT_FIRST, PORT_MAX, PORTS_PER_SLOT, SLOTS, SPARE_FIRST, Ports
from support.meshes import repository_mesh


def with_replicas(mesh: Mesh, **counts: int) -> Mesh:
    services = (replace(service, replicas=counts.get(service.name, service.replicas)) for service in mesh.services)
    return replace(mesh, services=tuple(services))


def listening_at(mesh: Mesh, port: int, name: str = "nip") -> Mesh:
    services = (replace(one, listen_port=port if one.name == name else None) for one in mesh.services)
    return replace(mesh, services=tuple(services))


def placed(mesh: Mesh) -> Placement:
    return default_placement(mesh, Path("/mesh"))


def inner(placement: Placement) -> dict[str, set[int]]:
    """The ports that were chosen, by workload."""
    found = {
        replica.name: {
            address.port
            for address in (
                replica.inbound,
                replica.scrape,
                replica.app,
                replica.egress,
                *dict(replica.external).values(),
            )
            if isinstance(address, SocketAddress)
        }
        for replica in placement.replicas
    }
    assert placement.gateway is not None
    return found | {"gateway": {placement.gateway.scrape.port}}


def test_more_replicas_move_nobodys_port() -> None:
    before = inner(placed(with_replicas(repository_mesh(), nip=1, payment=3)))
    after = inner(placed(with_replicas(repository_mesh(), nip=40, payment=1)))
    shared = before.keys() & after.keys()
    assert {"nip-0", "invoice-0", "invoice-1", "payment-0", "gateway"} <= shared
    assert all(before[name] == after[name] for name in shared)
    assert events_address(with_replicas(repository_mesh(), nip=40)) == events_address(repository_mesh())


def test_another_service_moves_at_most_the_one_whose_slot_it_takes() -> None:
    mesh = repository_mesh()
    before = inner(placed(mesh))
    moved = []
    for name in (f"audit-{number}" for number in range(30)):
        other = replace(mesh.service("nip"), name=name)
        after = inner(placed(replace(mesh, services=(other, *mesh.services))))
        moved.append({workload.rpartition("-")[0] for workload, ports in before.items() if after[workload] != ports})
    assert all(len(services) <= 1 for services in moved)
    assert sum(map(bool, moved)) <= 3, "a slot is seldom taken"


def test_every_port_of_the_manifest_stays_free() -> None:
    """Also where a replica would have its slot: then the replica has another, and nobody else moves."""
    mesh = repository_mesh()
    for taken in chain.from_iterable(inner(placed(mesh)).values()):
        after = inner(placed(listening_at(mesh, taken)))
        everybody = [port for ports in after.values() for port in ports]
        assert everybody.count(taken) == 1, "only the service that listens there has it"
        assert len(everybody) == len(set(everybody))


def test_every_port_is_somebodys_alone() -> None:
    """With a hundred replicas, an application without Unix sockets, hosts outside and the server of events."""
    mesh = repository_mesh()
    outside = tuple(
        External(name=f"db-{number}", host="127.0.0.1", port=SPARE_FIRST + number, tls=None, methods=())
        for number in range(20)
    )
    names = tuple(external.name for external in outside)
    many = with_replicas(listening_at(replace(mesh, externals=outside), 9_000), nip=100)
    many = replace(many, services=tuple(replace(one, external_connections=names[:5]) for one in many.services))
    ports = [port for found in inner(placed(many)).values() for port in found]
    ports.append(events_address(many).port)
    assert len(ports) == len(set(ports))
    assert not {external.port for external in outside} & set(ports)
    assert all(SPARE_FIRST <= port <= PORT_MAX for port in ports if port != 9_000)


def test_a_mesh_that_fills_every_slot_is_placed_and_one_more_is_not() -> None:
    mesh = repository_mesh()
    (service, *_) = mesh.services
    alone = replace(mesh, services=(service,), gateway=None, events=None)
    ports = Ports(with_replicas(alone, **{service.name: SLOTS - 1}))  # the gateway's slot is kept, too
    found = {ports.port(service.name, index, 0) for index in range(SLOTS - 1)}
    assert len(found) == SLOTS - 1
    assert max(found) + PORTS_PER_SLOT - 1 <= PORT_MAX
    assert min(found) >= PORT_FIRST
    with pytest.raises(ValueError, match="too few ports"):
        Ports(with_replicas(alone, **{service.name: SLOTS}))


def test_several_machines_have_their_own_addresses() -> None:
    mesh = repository_mesh()
    addresses = {"nip-0": "10.0.0.1", "nip-1": "10.0.0.2", "events": "10.0.0.3"}
    here, there = placed(mesh), default_placement(mesh, Path("/mesh"), addresses=addresses)
    inbound = {replica.name: replica.inbound.host for replica in there.replicas}
    assert (inbound["nip-0"], inbound["nip-1"], inbound["payment-0"]) == ("10.0.0.1", "10.0.0.2", "127.0.0.1")
    assert inner(here) == inner(there), "the same ports: a workload may move to another machine"
    assert all(replica.scrape.host == "127.0.0.1" for replica in there.replicas)
    assert events_address(mesh, addresses).host == "10.0.0.3"

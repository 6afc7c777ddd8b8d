"""Sidecars made of their family are, to the byte, those that are made one by one."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import pytest

from generator.analysis import check_manifest
from generator.model import Mesh, Placement, ReplicaPlacement, SocketAddress, UnixAddress
from generator.model.overrides import Overrides
from generator.outputs.files import contents, default_placement
from generator.outputs.files.layout import members
from generator.render import making
from generator.render.parse import parse_yaml
from generator.render.probes import FIRST, probe
from generator.render.render import Renderer
from generator.render.templates import render_text
from generator.resources import (
    OPEN,
    Resource,
    ResourceError,
    ResourceSet,
    ResourceType,
    UnliftableError,
    WorkloadResources,
    family_of,
    fill,
    make_resource,
    shape_of,
    twin,
)
from generator.resources.memo import Memo
from generator.resources.references import every
from support.foreign import FOREIGN
from support.mesh import REPOSITORY
from support.rich_mesh import rich_mesh

gateway_module = import_module("generator.render.gateway")
render_module = import_module("generator.render.render")
sidecar_module = import_module("generator.render.sidecar")
workload_module = import_module("generator.render.workload")
GOLDEN = Path(__file__).parents[2] / "golden" / "in"
PATHS = {path.stem: path for path in sorted(GOLDEN.glob("*.yaml"))} | {
    "courier": FOREIGN / "mesh.yaml",
    "nip": REPOSITORY / "mesh.yaml",
}
REPLICAS = 3
INPUTS = ("/one/socket", 7_310_001), ("/2/another/socket.of", 842_002)


def mesh_of(path: Path) -> Mesh:
    first = check_manifest(path).mesh
    assert first is not None
    replicas = {service.name: REPLICAS for service in first.services if service.version_of is None}
    mesh = check_manifest(path, overrides=Overrides(replicas=replicas)).mesh
    assert mesh is not None
    return mesh


def scattered(placement: Placement, seed: int) -> Placement:
    """The same replicas in places that have nothing in common; one in five is out of rotation."""
    chance = random.Random(seed)
    return replace(placement, replicas=tuple(elsewhere(replica, chance) for replica in placement.replicas))


def elsewhere(replica: ReplicaPlacement, chance: random.Random) -> ReplicaPlacement:
    def moved(address: Any) -> Any:
        if isinstance(address, UnixAddress):
            return UnixAddress(path=path())
        return SocketAddress(host=chance.choice(["127.0.0.1", "10.1.2.3", "::1"]), port=chance.randrange(1024, 65536))

    def path() -> Path:
        names = [chance.choice(["a", "run", "x y", "é", "q'\"", "n\nm", "{{ 1 }}", "..data"]) for _ in range(4)]
        return Path("/", *names, str(chance.randrange(10**9)))

    return replace(
        replica,
        app=moved(replica.app),
        app_metrics=UnixAddress(path=path()),
        egress=moved(replica.egress),
        admin=UnixAddress(path=path()),
        inbound=moved(replica.inbound),
        scrape=moved(replica.scrape),
        certificates=path(),
        in_rotation=chance.random() < 0.8,
        external=tuple((name, moved(address)) for name, address in replica.external),
    )


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on no shape, no family and no memo is used."""

    def switch() -> None:
        def one_by_one(kind: ResourceType, template: str, **values: Any) -> Resource:
            return make_resource(kind, parse_yaml(render_text(template, values), template))

        for module in (sidecar_module, workload_module, gateway_module):
            monkeypatch.setattr(module, "resource", one_by_one)
        monkeypatch.setattr(render_module, "FAMILY_MEMBERS_MIN", 1_000)

    return switch


def described(resources: ResourceSet) -> dict[str, Any]:
    return {workload.name: list(facts(workload)) for workload in resources.workloads}


def facts(workload: WorkloadResources) -> Iterator[Any]:
    for resource in every(workload):
        yield resource.type, resource.name, resource.version, resource.uses, resource.text
    yield members(twin(workload))
    yield dict(contents(workload))


def case(name: str, folder: Path) -> Mesh:
    return rich_mesh(folder, replicas=REPLICAS) if name == "rich" else mesh_of(PATHS[name])


@pytest.fixture(params=["rich", *PATHS])
def mesh(request: pytest.FixtureRequest, tmp_path: Path) -> Mesh:
    return case(request.param, tmp_path)


@pytest.fixture(params=[0, 1], ids=["default", "scattered"])
def placement(request: pytest.FixtureRequest, mesh: Mesh) -> Placement:
    default = default_placement(mesh, Path("/mesh"))
    return scattered(default, request.param) if request.param else default


def test_every_byte_is_as_made_one_by_one(mesh: Mesh, placement: Placement, plain: Callable[[], None]) -> None:
    fast = Renderer().render(mesh, placement)
    assert {workload.name for workload in fast.workloads if workload.member is None} <= {"gateway"}
    found = described(fast)
    plain()
    expected = described(Renderer().render(mesh, placement))
    assert list(found) == list(expected)
    for name, facts_expected in expected.items():
        assert found[name] == facts_expected, name


def test_nothing_is_made_the_plain_way(mesh: Mesh, placement: Placement, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(making, "plain_resource", refuse)
    monkeypatch.setattr(making, "_filled", Memo(1))
    Renderer().render(mesh, placement)


def refuse(*_: object) -> NoReturn:
    raise AssertionError("made the plain way")


@pytest.mark.parametrize("change", ["folder", "length", "sum", "presence"])
def test_what_depends_on_an_input_in_another_way_makes_no_family(change: str) -> None:
    def body(path: str, number: int) -> dict[str, Any]:
        ids = {"folder": path.rpartition("/")[0], "length": str(len(path)), "sum": str(number + 1), "presence": "x"}
        flags = {"flags_path": "long"} if change == "presence" and number > 900_000 else {}
        return {"node": {"id": ids[change]}, **flags}

    first, second = (lone(make_resource(ResourceType.BOOTSTRAP, body(*one))) for one in INPUTS)
    assert family_of(first, second, *INPUTS) is None


def test_what_is_written_as_it_is_makes_a_family() -> None:
    shape = shape_of(ResourceType.BOOTSTRAP, {"node": {"id": OPEN, "cluster": OPEN}})
    first, second = (lone(fill(shape, (f"{path}-{number}", "same"))) for path, number in INPUTS)
    family = family_of(first, second, *INPUTS)
    assert family is not None
    member = family.member("x", ('/"\n', 3))
    assert member is not None
    assert member.bootstrap.body == {"node": {"id": '/"\n-3', "cluster": "same"}}


def lone(bootstrap: Resource | None) -> WorkloadResources:
    assert bootstrap is not None
    return WorkloadResources(
        name="x", bootstrap=bootstrap, listeners=(), clusters=(), routes=(), endpoints=(), secrets=()
    )


def test_a_value_that_envoy_would_refuse_is_refused_in_the_replicas_own_name(tmp_path: Path) -> None:
    mesh = rich_mesh(tmp_path, replicas=REPLICAS)
    placement = default_placement(mesh, Path("/mesh"))
    wrong = replace(placement.replicas[1], scrape=SocketAddress(host="127.0.0.1", port=70_000))
    with pytest.raises(
        ResourceError, match=r"Listener scrape: address.socket_address.port_value: must be at most 65535"
    ):
        Renderer().render(mesh, replace(placement, replicas=(placement.replicas[0], wrong, *placement.replicas[2:])))


def test_a_path_that_is_no_unicode_is_refused(tmp_path: Path) -> None:
    mesh = rich_mesh(tmp_path, replicas=REPLICAS)
    placement = default_placement(mesh, Path("/mesh"))
    wrong = replace(placement.replicas[1], admin=UnixAddress(path=Path("/\udcff/admin.sock")))
    with pytest.raises(ValueError, match="surrogate"):
        Renderer().render(mesh, replace(placement, replicas=(placement.replicas[0], wrong, *placement.replicas[2:])))


def test_a_changed_copy_is_written_as_it_is(tmp_path: Path) -> None:
    mesh = rich_mesh(tmp_path, replicas=REPLICAS)
    workload = Renderer().render(mesh, default_placement(mesh, Path("/mesh"))).workload("orders-0")
    assert workload.member is not None
    fewer = replace(workload, clusters=workload.clusters[1:])
    assert fewer.member is None
    (written,) = (content for path, content in contents(fewer).items() if path.name == "cds.json")
    assert [found["name"] for found in json.loads(written)["resources"]] == [found.name for found in fewer.clusters]


def test_the_index_of_a_made_up_replica_can_be_written_and_nothing_else(tmp_path: Path) -> None:
    mesh = rich_mesh(tmp_path, replicas=REPLICAS)
    made_up = probe(default_placement(mesh, Path("/mesh")).replicas[0], FIRST)
    assert made_up.name == "orders-7310001"
    for look in (
        lambda index: index % 3,
        lambda index: index < 2,
        lambda index: index == 0,
    ):
        with pytest.raises(UnliftableError, match="index"):
            look(made_up.index)

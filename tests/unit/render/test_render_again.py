"""What is done again when something changes: counted, never timed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from generator.model import Mesh, Placement
from generator.outputs.files import default_placement, publish
from generator.outputs.files import publish as publish_function
from generator.render import making
from generator.render.render import Renderer
from generator.resources import ResourceSet
from generator.resources.memo import Memo
from support.rich_mesh import MANIFEST, rich_mesh

render_module = import_module("generator.render.render")
publish_module = import_module("generator.outputs.files.publish")
SERVICES = ["orders", "orders-next", "rds", "route", "stock"]
REPLICAS = 10

assert publish_function is publish


@pytest.fixture
def mesh(tmp_path: Path) -> Mesh:
    return rich_mesh(tmp_path, replicas=REPLICAS)


@pytest.fixture
def placement(mesh: Mesh, tmp_path: Path) -> Placement:
    return default_placement(mesh, tmp_path / "out")


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Counter[str]]:
    """Counts calls since it was asked last: of `sidecar` by service, of `shape_of`, `fill` and `plain_resource`."""
    calls: Counter[str] = Counter()

    def spy(module: Any, name: str, label: Callable[..., str]) -> None:
        original = getattr(module, name)

        def counted(*arguments: Any) -> Any:
            calls[label(*arguments)] += 1
            return original(*arguments)

        monkeypatch.setattr(module, name, counted)

    spy(render_module, "sidecar", lambda *arguments: f"sidecar of {arguments[2].service}")
    spy(render_module, "gateway_workload", lambda *_: "gateway")
    for name in ("shape_of", "fill", "plain_resource"):
        spy(making, name, lambda *_, name=name: name)
    for memo in ("_shapes", "_filled", "_plain"):
        monkeypatch.setattr(making, memo, Memo(10_000))

    def taken() -> Counter[str]:
        found = calls.copy()
        calls.clear()
        return found

    return taken


def sidecars(counted: Counter[str]) -> dict[str, int]:
    return {key.removeprefix("sidecar of "): number for key, number in counted.items() if key.startswith("sidecar")}


def test_ten_replicas_are_rendered_twice_for_each_zone(
    mesh: Mesh, placement: Placement, count: Callable[[], Counter[str]]
) -> None:
    resources = Renderer().render(mesh, placement)
    counted = count()
    zones = {"orders": 3, "orders-next": 3, "rds": 1, "route": 3, "stock": 3}
    assert sidecars(counted) == {name: 2 * number for name, number in zones.items()}
    assert counted["plain_resource"] == 0
    total = sum(5 + len(workload.listeners) for workload in resources.workloads)
    assert counted["shape_of"] < 60 < total, "far fewer shapes than resources"


def test_nothing_is_done_when_nothing_changed(
    mesh: Mesh, placement: Placement, tmp_path: Path, count: Callable[[], Counter[str]]
) -> None:
    renderer = Renderer()
    first = renderer.render(mesh, placement)
    count()
    (tmp_path / "again").mkdir()
    loaded = rich_mesh(tmp_path / "again", replicas=REPLICAS)
    assert loaded is not mesh
    again = renderer.render(replace(loaded, services=loaded.services), default_placement(mesh, tmp_path / "out"))
    assert count() == Counter()
    assert all(one is other for one, other in zip(first.workloads, again.workloads, strict=True))


def test_a_replica_that_leaves_concerns_its_callers_alone(
    mesh: Mesh, placement: Placement, count: Callable[[], Counter[str]]
) -> None:
    renderer = Renderer()
    before = renderer.render(mesh, placement)
    count()
    out = tuple(replace(replica, in_rotation=replica.name != "rds-4") for replica in placement.replicas)
    after = renderer.render(mesh, replace(placement, replicas=out))
    counted = count()
    # Itself, too: whether it takes traffic is a field of its placement, and it makes a family of its own with two.
    assert set(sidecars(counted)) <= {"orders", "orders-next", "route", "rds"}
    assert counted["shape_of"] <= 1, "only the endpoint set has another shape"
    assert counted["fill"] <= 2
    changed = [new.name for old, new in zip(before.workloads, after.workloads, strict=True) if old != new]
    assert {name.rpartition("-")[0] for name in changed} == {"orders", "orders-next", "route"}


def test_a_changed_service_concerns_itself_and_its_neighbours(
    mesh: Mesh, placement: Placement, tmp_path: Path, count: Callable[[], Counter[str]]
) -> None:
    renderer = Renderer()
    renderer.render(mesh, placement)
    count()
    manifest = MANIFEST.replace("max_concurrency: 200", "max_concurrency: 300")
    changed = rich_mesh(tmp_path, replicas=REPLICAS, manifest=manifest)
    renderer.render(changed, placement)
    counted = count()
    assert set(sidecars(counted)) == {"stock", "orders", "orders-next"}
    assert counted["gateway"] == 1
    assert counted["plain_resource"] == 0
    assert counted["shape_of"] == 0, "a number changed, no structure"
    assert counted["fill"] == 2, "the inbound listeners of two made-up replicas; zones are not in them"


def test_what_is_remembered_of_replicas_that_are_no_more_goes(mesh: Mesh, placement: Placement) -> None:
    renderer = Renderer()
    renderer.render(mesh, placement)
    fewer = tuple(replica for replica in placement.replicas if replica.index == 0)
    renderer.render(mesh, replace(placement, replicas=fewer))
    remembered = [name for rendered in renderer._rendered._young.values() for name in rendered.workloads]
    assert sorted(remembered) == sorted(f"{name}-0" for name in SERVICES)


def test_only_files_of_changed_workloads_are_made(
    mesh: Mesh, placement: Placement, monkeypatch: pytest.MonkeyPatch
) -> None:
    renderer = Renderer()
    made: list[str] = []
    original = publish_module.contents
    monkeypatch.setattr(
        publish_module, "contents", lambda workload: (made.append(workload.name), original(workload))[1]
    )

    def published(resources: ResourceSet) -> tuple[list[str], set[str]]:
        made.clear()
        changed = publish(resources, placement.directory)
        return made.copy(), {str(path.relative_to(placement.directory)) for path in changed}

    every, _ = published(renderer.render(mesh, placement))
    assert len(every) == len(SERVICES) * REPLICAS + 1
    assert published(renderer.render(mesh, placement)) == ([], set())
    out = tuple(replace(replica, in_rotation=replica.name != "stock-4") for replica in placement.replicas)
    names, files = published(renderer.render(mesh, replace(placement, replicas=out)))
    callers = {f"{name}-{index}" for name in ("orders", "orders-next") for index in range(REPLICAS)} | {"gateway"}
    assert set(names) - callers <= {"stock-4"}
    assert files == {f"{name}/{file}" for name in callers for file in ("eds/outbound_stock.json", "validate.json")}


@pytest.mark.parametrize("damage", ["content", "removed", "added"])
def test_what_others_did_to_files_is_mended(mesh: Mesh, placement: Placement, damage: str) -> None:
    resources = Renderer().render(mesh, placement)
    publish(resources, placement.directory)
    folder = placement.directory / "stock-1" / "cds"
    good = (folder / "cds.json").read_bytes()
    if damage == "content":
        (folder / "cds.json").write_bytes(good[:-1] + b" ")
    elif damage == "removed":
        (folder / "cds.json").unlink()
    else:
        (folder / "stray.json").write_text("{}")
    assert len(publish(resources, placement.directory)) == 1
    assert (folder / "cds.json").read_bytes() == good
    assert [path.name for path in folder.iterdir()] == ["cds.json"]

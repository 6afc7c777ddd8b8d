"""What an edited manifest changes, in words."""

from dataclasses import replace
from pathlib import Path

import pytest

from generator.model import Destination, Keepalive, Mesh, Secret, Service
from generator.outputs.local.applied import Applied, applied, manifest_digest, still_scaled
from generator.outputs.local.definition import definition, differences
from generator.outputs.local.difference import (
    Difference,
    blamed,
    bootstrap_changes,
    of_services,
    replica_changes,
    resource_changes,
    service_of,
)
from generator.outputs.local.environment import Surroundings
from generator.outputs.local.paths import StatePaths
from generator.render import render
from support.meshes import repository_mesh, repository_placement

NOTHING = Difference(
    added={},
    removed=(),
    scaled={},
    restarted={},
    configured={},
    sidecars={},
    hearing={},
    is_exposure_new=False,
    kept={},
)


@pytest.fixture
def around(tmp_path: Path, mesh: Mesh) -> Surroundings:
    paths = StatePaths(root=tmp_path / ".nipmesh")
    paths.make()
    return Surroundings(mesh=mesh, paths=paths, manifest_directory=tmp_path, outer={"PATH": "/bin"})


def test_every_change_has_its_line() -> None:
    lines = Difference(
        added={"x": 2, "y": 1},
        removed=("z",),
        scaled={"payment": (2, 3)},
        restarted={"nip": ("run", "env A")},
        configured={"invoice": ("clusters", "routes"), "nip": ("routes",), "gateway": ("listeners",)},
        sidecars={"invoice": 4, "nip": 1},
        hearing={"events": ("kept for 1h, 5 bytes",), "nip": ("hears a.v1.* of payment", "hears * of invoice no more")},
        is_exposure_new=True,
        kept={"echo": (5, 2)},
    ).lines()
    assert lines == (
        "+ x: service, 2 replicas",
        "+ y: service, 1 replica",
        "- z: service",
        "~ payment: replicas 2 -> 3",
        "~ nip: restarts (run, env A)",
        "~ invoice: 4 sidecars get new clusters, routes",
        "~ nip: 1 sidecar gets new routes",
        "~ gateway: new listeners",
        "~ events: kept for 1h, 5 bytes",
        "~ nip: hears a.v1.* of payment, hears * of invoice no more",
        "~ gateway: reflection and health follow what is exposed",
        "  echo: keeps the 5 replicas of `nipmesh scale`; the manifest says 2",
    )


def test_what_is_kept_is_no_change() -> None:
    assert NOTHING.is_empty
    assert replace(NOTHING, kept={"echo": (5, 2)}, sidecars={"echo": 5}).is_empty
    assert not replace(NOTHING, is_exposure_new=True).is_empty
    assert not replace(NOTHING, configured={"gateway": ("routes",)}).is_empty


def pinged(destination: Destination) -> Destination:
    """Change something of what a caller applies."""
    return replace(
        destination, traffic=replace(destination.traffic, keepalive=Keepalive(interval_ms=1_000, timeout_ms=1_000))
    )


def test_changed_resources_are_summed_up_by_service() -> None:
    mesh, placement = repository_mesh(), repository_placement()
    payment = mesh.service("payment")
    calls = tuple(replace(edge, destinations=tuple(map(pinged, edge.destinations))) for edge in payment.calls)
    services = tuple(replace(s, calls=calls) if s.name == "payment" else s for s in mesh.services)
    old, new = render(mesh, placement), render(replace(mesh, services=services), placement)
    changes = resource_changes(old, new)
    assert changes == dict.fromkeys(("payment-0", "payment-1"), ("clusters",))
    assert of_services(changes, mesh) == {"payment": ("clusters",)}
    assert resource_changes(old, old) == {}
    assert bootstrap_changes(old, new) == frozenset()
    other = old.workload("nip-0")
    bootstrap = replace(other.bootstrap, version="other")
    others = tuple(replace(w, bootstrap=bootstrap) if w.name == "nip-0" else w for w in old.workloads)
    assert bootstrap_changes(old, replace(old, workloads=others)) == {"nip-0"}


def test_replicas_count_in_services_that_stay(mesh: Mesh) -> None:
    echo, foreign = mesh.services
    new = replace(mesh, services=(replace(echo, replicas=5), replace(foreign, name="fresh")))
    assert replica_changes(mesh, new) == {"echo": (2, 5)}


@pytest.mark.parametrize(
    ("key", "workload", "words", "expected"),
    [
        (("endpoints", "outbound_nip"), "payment-0", "", "nip"),
        (("clusters", ""), "payment-0", "Error adding cluster 'outbound_nip-two': bad", "nip-two"),
        (("listeners", ""), "payment-0", "listener inbound", "payment"),
        (("routes", "gateway"), "gateway", "", "gateway"),
    ],
)
def test_a_refusal_is_laid_at_somebodys_door(key: tuple[str, str], workload: str, words: str, expected: str) -> None:
    assert blamed(key, workload, words, ("nip", "nip-two", "payment")) == expected


def test_workloads_belong_to_services() -> None:
    assert [service_of(name) for name in ("nip-0", "a-b-12", "gateway")] == ["nip", "a-b", "gateway"]


def test_a_definition_knows_what_a_replica_is_started_with(
    around: Surroundings, echo_service: Service, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("one")
    (tmp_path / "env").write_text("A=1\nB=2\n")
    files = (Secret(variable="KEY_FILE", source=tmp_path / "secret"),)
    service = replace(echo_service, environment_file=tmp_path / "env", secrets=files)
    before = definition(around, service)
    assert differences(before, definition(around, service)) == ()
    (tmp_path / "secret").write_text("two")
    (tmp_path / "env").write_text("A=1\nB=3\n")
    other = replace(service, command=("x",), environment=(("COLOUR", "blue"),), working_directory=tmp_path / "w")
    assert differences(before, definition(around, replace(other, listen_port=9_000))) == (
        "run",
        "env B",
        "env COLOUR",
        "env NIPMESH_LISTEN",
        "env PORT",
        "secret KEY_FILE",
        "cwd",
        "listen",
    )
    assert "two" not in repr(definition(around, service)), "no secret, not even of the environment"
    assert "blue" not in repr(definition(around, other))


def test_files_that_cannot_be_read_are_a_difference_and_no_failure(
    around: Surroundings, echo_service: Service, tmp_path: Path
) -> None:
    service = replace(echo_service, environment_file=tmp_path / "nowhere")
    broken = definition(around, service)
    assert "nowhere" in broken.problem
    (tmp_path / "nowhere").write_text("A=1\n")
    assert "files" in differences(broken, definition(around, service))


def noted(written: dict[str, int], scaled: dict[str, int]) -> Applied:
    return Applied(manifest_digest="", written=written, scaled=scaled, definitions={})


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ({"a": 2, "b": 2}, {"a": 4}),
        ({"a": 3, "b": 2}, {}),
        ({"b": 2}, {}),
    ],
)
def test_the_manifest_wins_over_scale_when_its_number_changes(
    written: dict[str, int], expected: dict[str, int]
) -> None:
    assert still_scaled(noted({"a": 2, "b": 2}, {"a": 4}), written) == expected
    assert still_scaled(noted({"a": 2}, {"a": 2}), {"a": 2}) == {}


def test_what_runs_is_noted(around: Surroundings, mesh: Mesh, tmp_path: Path) -> None:
    manifest = tmp_path / "mesh.yaml"
    assert manifest_digest(manifest) == ""
    manifest.write_text("mesh: x\n")
    digest = manifest_digest(manifest)
    now = applied(digest, mesh, around)
    assert now.written == {"echo": 2, "foreign": 2}
    assert now.definitions.keys() == {"echo", "foreign"}
    assert now.scaled == {}
    manifest.write_text("mesh: y\n")
    assert manifest_digest(manifest) != digest

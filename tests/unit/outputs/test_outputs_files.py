"""Files: only what changed is written, whole and for its owner alone; what is no more is removed."""

from __future__ import annotations

import json
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from generator.model import Placement
from generator.outputs.files import contents, default_placement, publish
from generator.outputs.files.placement import nobodys_key_set
from generator.outputs.files.publish import _with_old_clusters
from generator.render import render
from generator.resources import ResourceSet
from support.meshes import repository_mesh, repository_placement


@pytest.fixture
def resources() -> ResourceSet:
    return render(repository_mesh(), repository_placement())


def test_what_did_not_change_is_not_written(resources: ResourceSet, tmp_path: Path) -> None:
    first = publish(resources, tmp_path)
    assert len(first) == sum(len(contents(workload)) for workload in resources.workloads)
    inodes = {path: path.stat().st_ino for path in first}
    assert publish(resources, tmp_path) == ()
    assert {path: path.stat().st_ino for path in first} == inodes


def test_a_replica_that_leaves_changes_its_callers_endpoints_and_twins_only(
    resources: ResourceSet, tmp_path: Path
) -> None:
    publish(resources, tmp_path)
    changed = publish(render(repository_mesh(), without(repository_placement(), "nip-1")), tmp_path)
    names = {str(path.relative_to(tmp_path)) for path in changed}
    callers = ("invoice-0", "invoice-1", "payment-0", "payment-1", "gateway")
    assert names == {f"{name}/{file}" for name in callers for file in ("eds/outbound_nip.json", "validate.json")}


def without(placement: Placement, name: str) -> Placement:
    replicas = tuple(replace(replica, in_rotation=replica.name != name) for replica in placement.replicas)
    return replace(placement, replicas=replicas)


def test_files_are_their_owners_alone_and_nothing_half_written_stays(resources: ResourceSet, tmp_path: Path) -> None:
    changed = publish(resources, tmp_path / "envoy")
    assert {stat.S_IMODE(path.stat().st_mode) for path in changed} == {0o600}
    folders = {folder for path in changed for folder in path.relative_to(tmp_path).parents if folder.name}
    assert {stat.S_IMODE((tmp_path / folder).stat().st_mode) for folder in folders} == {0o700}
    assert sorted(path for path in (tmp_path / "envoy").rglob("*") if path.is_file()) == sorted(changed)


def test_workloads_and_resources_that_are_no_more_are_removed(resources: ResourceSet, tmp_path: Path) -> None:
    publish(resources, tmp_path)
    (tmp_path / "payment-0" / "eds" / "outbound_gone.json").write_text("{}")
    (tmp_path / "certificates").mkdir()
    fewer = ResourceSet(workloads=tuple(found for found in resources.workloads if found.name != "nip-1"))
    changed = publish(fewer, tmp_path)
    assert set(changed) == {tmp_path / "nip-1", tmp_path / "payment-0" / "eds" / "outbound_gone.json"}
    assert not (tmp_path / "nip-1").exists()
    assert (tmp_path / "certificates").is_dir()


def test_what_is_referred_to_is_written_first(resources: ResourceSet) -> None:
    order = [path.parts[1] for path in contents(resources.workload("payment-0"))]
    first = {kind: order.index(kind) for kind in ("sds", "eds", "cds", "rds", "lds")}
    assert list(first) == sorted(first, key=first.__getitem__)


def test_a_cluster_goes_after_the_routes_that_name_it(resources: ResourceSet, tmp_path: Path) -> None:
    publish(resources, tmp_path)
    payment = resources.workload("payment-0")
    fewer = replace(payment, clusters=tuple(found for found in payment.clusters if found.name != "outbound_nip"))
    interim = _with_old_clusters(tmp_path / "payment-0" / "cds" / "cds.json", fewer)
    assert interim is not None
    names = [cluster["name"] for cluster in json.loads(interim)["resources"]]
    assert sorted(names) == sorted(cluster.name for cluster in payment.clusters)
    assert _with_old_clusters(tmp_path / "payment-0" / "cds" / "cds.json", payment) is None


def test_a_damaged_file_is_replaced(resources: ResourceSet, tmp_path: Path) -> None:
    publish(resources, tmp_path)
    damaged = tmp_path / "payment-0" / "cds" / "cds.json"
    good = damaged.read_bytes()
    for content in (b"", b"[1]", b"{", b'{"resources": [7]}'):
        damaged.write_bytes(content)
        assert publish(resources, tmp_path) == (damaged,)
        assert damaged.read_bytes() == good


def test_versions_are_those_of_the_content(resources: ResourceSet) -> None:
    files = contents(resources.workload("nip-0"))
    versions = {json.loads(content)["version_info"] for path, content in files.items() if path.parts[1] == "lds"}
    again = contents(render(repository_mesh(), repository_placement()).workload("nip-0"))
    assert versions == {
        json.loads(content)["version_info"] for path, content in again.items() if path.parts[1] == "lds"
    }


def test_the_default_placement_is_fixed_by_the_mesh() -> None:
    one, two = (default_placement(repository_mesh(), Path("/x")) for _ in range(2))
    assert one == two
    ports = [address.port for replica in one.replicas for address in (replica.inbound, replica.scrape)]
    assert len(ports) == len(set(ports))
    assert one.jwks == nobodys_key_set()


def test_ports_run_out_with_an_error() -> None:
    mesh = repository_mesh()
    many = replace(mesh, services=(replace(mesh.services[0], replicas=20_000),))
    with pytest.raises(ValueError, match="too few ports"):
        default_placement(many, Path("/x"))

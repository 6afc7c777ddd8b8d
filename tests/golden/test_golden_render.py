"""What each manifest of `in`, our own mesh and the carrier's become, down to the last field, in `out`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from generator.analysis import check_manifest
from generator.model import Mesh
from generator.outputs.compose import render_compose
from generator.outputs.compose.emit import emit
from generator.outputs.files import default_placement
from generator.outputs.systemd import Layout, Programs, PublicKeys, machine_of, tree
from generator.render import render
from generator.render.nats import accounts_of_cluster
from generator.resources import WorkloadResources
from support.foreign import FOREIGN
from support.mesh import REPOSITORY

FOLDER = Path(__file__).parent
MANIFESTS = {path.stem: path for path in (FOLDER / "in").glob("*.yaml")} | {
    "courier": FOREIGN / "mesh.yaml",
    "nip": REPOSITORY / "mesh.yaml",
}
CASES = sorted(MANIFESTS)
IN_FULL: dict[str, set[str]] = {
    "courier": {"gateway", "customs-0"},
    "nip": {"gateway", "payment-0"},
    "events": set(),
    "cluster": set(),
}
"""Of the real meshes these workloads; the others differ from them only where call graph and protobufs do. Events change no Envoy."""
ON_SYSTEMD = {"events", "foreign", "nip"}
"""Of these the units, too: two have a server of events, one an application with a TCP port."""
KINDS = ("listeners", "clusters", "routes", "endpoints", "secrets")
HINT = "run `pytest tests/golden --update-golden` and read the difference"


def rendered(case: str) -> dict[str, str]:
    """Files of one case: one per workload and kind; replicas differ in addresses only, so the first stands for all."""
    analysis = check_manifest(MANIFESTS[case])
    assert analysis.mesh is not None, [str(finding) for finding in analysis.findings]
    resources = render(analysis.mesh, default_placement(analysis.mesh, Path("/mesh")))
    firsts = [
        workload for workload in resources.workloads if workload.name == "gateway" or workload.name.endswith("-0")
    ]
    full = IN_FULL.get(case, {workload.name for workload in firsts})
    files = {
        name: text
        for workload in firsts
        for name, text in (in_full if workload.name in full else in_short)(workload).items()
    }
    if case in ON_SYSTEMD:
        files |= units_of(analysis.mesh)
    if MANIFESTS[case].parent != REPOSITORY:  # ours stands at the root, where `make lint` compares it
        files["compose.yaml"] = render_compose(analysis.mesh)
    if analysis.mesh.events is not None and analysis.mesh.events.cluster is not None:
        files["events.accounts.json"] = accounts_of_cluster(analysis.mesh).decode()
    return files


def units_of(mesh: Mesh) -> dict[str, str]:
    """What one machine has, but for what depends on the checkout: units of first replicas, users, folders, certificates."""
    programs = Programs.below(Path("/opt/nipmesh/bin"))
    machine = machine_of(mesh, Layout(project=Path("/srv/mesh"), programs=programs), None, None, PublicKeys())
    found = {".".join(("systemd", *path.parts[-2:])): content for path, content in tree(machine, PublicKeys()).items()}
    return {name: content.decode() for name, content in found.items() if not re.search(r"-[1-9]|binpb|exposure", name)}


def in_full(workload: WorkloadResources) -> dict[str, str]:
    """The bootstrap, and a file for each kind of resource."""
    files = {f"{workload.name}.bootstrap.yaml": emit(workload.bootstrap.body)}
    for kind in KINDS:
        bodies = {resource.name: resource.body for resource in getattr(workload, kind)}
        if bodies:
            files[f"{workload.name}.{kind}.yaml"] = emit(bodies)
    return files


def in_short(workload: WorkloadResources) -> dict[str, str]:
    """One file: who may call what of it, with which limits; and what it calls, and how."""
    inbound = next(listener.body for listener in workload.listeners if listener.name == "inbound")
    manager = inbound["filter_chains"][0]["filters"][0]["typed_config"]
    decided = {
        "inbound": {"http_filters": manager["http_filters"]},
        "outbound": {cluster.name: cluster.body for cluster in workload.clusters if "outbound_" in cluster.name},
        "routes": {route.name: route.body for route in workload.routes},
        "endpoints": {endpoints.name: endpoints.body for endpoints in workload.endpoints},
    }
    return {f"{workload.name}.yaml": emit(decided)}


@pytest.mark.parametrize("case", CASES)
def test_rendered_as_before(case: str, update_golden: bool) -> None:
    folder, files = FOLDER / "out" / case, rendered(case)
    if update_golden:
        folder.mkdir(parents=True, exist_ok=True)
        for stale in set(folder.iterdir()) - {folder / name for name in files}:
            stale.unlink()
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
    assert sorted(path.name for path in folder.iterdir()) == sorted(files), HINT
    for name, text in files.items():
        assert (folder / name).read_text(encoding="utf-8") == text, f"{case}/{name}: {HINT}"


def test_no_golden_folder_is_left_over() -> None:
    assert sorted(path.name for path in (FOLDER / "out").iterdir()) == CASES, HINT

"""How long it takes from a manifest to checked Envoy configuration. `python -m benchmarks.render --services 1000`.

The workload, of so many services with so many replicas each (`benchmarks/large.py`), in a fresh process each:

- `resources`: six resources per service, as its sidecar is told them: its inbound listener, egress listener and the routes
  of both, the cluster of one service that it calls, and that service's endpoint set with all its replicas. Made by the real
  templates, strictly decoded, checked against Envoy's rules, versioned. `cold_s` is the first time in the process, with
  templates to compile and descriptors to load; `one_change_s` after one service got another deadline in the manifest, which
  was loaded anew. Loading and analysis are `load_s`. `peak_mib` is the process's most, Python and the mesh included.
- `varied`: the same of a mesh in which hardly two services have the same methods, callers and callees.
- `whole`: everything that every sidecar is told, and all files of it written, as `nipmesh render` does it; `rotate` is one
  replica that leaves rotation.

With `--peers` other control planes have their turn, as far as they can be had: see the end.

`..._s` is wall time, `..._cpu_s` processor time of the process alone: on a machine that does other things the second is
what can be compared.
"""

from __future__ import annotations

import argparse
import json
import resource as process
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from benchmarks import peers
from benchmarks.figures import command_ms, end_whole
from benchmarks.large import first_callee, write_uniform_mesh, write_varied_mesh
from generator.analysis import check_manifest
from generator.model import Mesh, Placement
from generator.outputs.files import default_placement, publish
from generator.render import render
from generator.render.scope import Scope, Surroundings
from generator.render.sidecar import egress_listener, inbound_listener, routes
from generator.render.workload import Scene, endpoint_sets, service_clusters
from generator.resources import Resource
from generator.resources.memo import collector_paused
from generator.resources.references import every

ROOT = Path(__file__).resolve().parents[1]
T = TypeVar("T")
Figures = dict[str, float | str]


def measure(services: int = 100, replicas: int = 10, runs: int = 5) -> dict[str, float]:
    """Milliseconds of commands as whole processes, and of rendering alone inside one process."""
    figures = {
        "help_ms": command_ms("--help", runs=runs),
        "check_ms": command_ms("check", runs=runs, cwd=str(ROOT)),
        "check_without_envoy_ms": command_ms("check", "--no-envoy", runs=runs, cwd=str(ROOT)),
    }
    with tempfile.TemporaryDirectory() as name:
        manifest = write_uniform_mesh(Path(name), services, replicas)
        timed: Figures = {}
        mesh = clock(timed, "load", lambda: load(manifest))
        clock(timed, "render", lambda: render(mesh, default_placement(mesh, Path(name) / "out")))
        figures |= {f"large_{part}_ms": float(timed[f"{part}_s"]) * 1e3 for part in ("load", "render")}
        figures["large_check_without_envoy_ms"] = command_ms("-f", str(manifest), "check", "--no-envoy", runs=1)
    return figures


def load(manifest: Path) -> Mesh:
    """Analyse a manifest that has no error."""
    analysis = check_manifest(manifest)
    assert analysis.mesh is not None, analysis.findings[:3]
    return analysis.mesh


def clock(figures: Figures, name: str, work: Callable[[], T]) -> T:
    """Do the work; its wall time is the figure `<name>_s`, this process's processor time `<name>_cpu_s`."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    figures[f"{name}_s"], figures[f"{name}_cpu_s"] = time.perf_counter() - wall, time.process_time() - cpu
    return result


class SixEach:
    """Six resources of each service, made anew where the service's scope changed, as `generator.render` does."""

    def __init__(self) -> None:
        self._before: Surroundings | None = None
        self._made: dict[str, tuple[Scope, tuple[Resource, ...]]] = {}

    def render(self, mesh: Mesh, placement: Placement) -> dict[tuple[str, str], Resource]:
        """All resources, by owner and name."""
        with collector_paused():
            around = self._before = Surroundings.of(mesh, placement, self._before)
            for name in around.services:
                scope = around.scope(name)
                known = self._made.get(name)
                if known is None or (known[0] is not scope and known[0] != scope):
                    self._made[name] = (scope, _six(scope, around, name))
        found = {}
        for name, (_, resources) in self._made.items():
            for each in resources:
                owner = name if each.type.short in {"Listener", "RouteConfiguration"} else ""
                found[owner, f"{each.type.short} {each.name}"] = each
        return found


def _six(scope: Scope, around: Surroundings, name: str) -> tuple[Resource, ...]:
    service, replica = scope.mesh.service(name), around.replicas[name][0]
    scene = Scene(
        mesh=scope.mesh,
        placement=scope.placement,
        workload=replica.name,
        service=name,
        zone=service.zone(replica.index),
        admin=replica.admin,
        scrape=replica.scrape,
        certificates=replica.certificates,
    )
    number, services = int(name[1:]), len(around.services)
    called = [edge for edge in service.calls if edge.callee == f"s{first_callee(number, services)}"]
    return (
        inbound_listener(scene, service, replica),
        egress_listener(scene, service, replica),
        *routes(scene, service),
        *service_clusters(scene, called),
        *endpoint_sets(scene, called),
    )


def measure_resources(folder: Path, services: int, replicas: int) -> Figures:
    """The part `resources`."""
    figures: Figures = {}
    manifest = write_uniform_mesh(folder, services, replicas)
    mesh = clock(figures, "load", lambda: load(manifest))
    placement, six = default_placement(mesh, folder / "out"), SixEach()
    before = clock(figures, "cold", lambda: six.render(mesh, placement))
    figures["peak_mib"] = peak_mib()
    changed = load(write_uniform_mesh(folder, services, replicas, changed=services // 2))
    after = clock(figures, "one_change", lambda: six.render(changed, placement))
    figures["resources"] = len(before)
    figures["one_change_resources"] = sum(after[key] != before[key] for key in after)
    figures["one_change_peak_mib"] = peak_mib()
    return figures


def measure_varied(folder: Path, services: int, replicas: int) -> Figures:
    """The part `varied`."""
    figures: Figures = {}
    mesh = load(write_varied_mesh(folder, services, replicas))
    placement = default_placement(mesh, folder / "out")
    made = clock(figures, "varied_cold", lambda: SixEach().render(mesh, placement))
    figures["varied_peak_mib"] = peak_mib()
    figures["varied_resources"] = len(made)
    figures["varied_shapes"] = len({each.shape for each in made.values()})
    return figures


def measure_whole(folder: Path, services: int, replicas: int) -> Figures:
    """The part `whole`."""
    figures: Figures = {}
    mesh, out = load(write_uniform_mesh(folder, services, replicas)), folder / "out"
    placement = default_placement(mesh, out)
    resources = clock(figures, "whole_cold", lambda: render(mesh, placement))
    figures["whole_sidecars"] = len(resources.workloads)
    figures["whole_resources"] = sum(len(every(workload)) for workload in resources.workloads)
    figures["whole_peak_mib"] = peak_mib()
    files = clock(figures, "whole_publish", lambda: publish(resources, out))
    figures["whole_files"] = len(files)
    changed = load(write_uniform_mesh(folder, services, replicas, changed=services // 2))
    _change(figures, "whole_one_change", changed, placement)
    drained = replace(placement.replicas[0], in_rotation=False)
    _change(figures, "whole_rotate", changed, replace(placement, replicas=(drained, *placement.replicas[1:])))
    figures["whole_publish_peak_mib"] = peak_mib()
    return figures


def _change(figures: Figures, name: str, mesh: Mesh, placement: Placement) -> None:
    resources = clock(figures, name, lambda: render(mesh, placement))
    files = clock(figures, f"{name}_publish", lambda: publish(resources, placement.directory))
    figures[f"{name}_files"] = len(files)


def peak_mib() -> float:
    """The most memory that this process has held so far."""
    return process.getrusage(process.RUSAGE_SELF).ru_maxrss / 1024


def measure_against_peers(folder: Path, services: int, replicas: int) -> Figures:
    """What peers need for the resources of the part `resources`, or for a mesh as large."""
    mesh = load(write_uniform_mesh(folder, services, replicas))
    made = SixEach().render(mesh, default_placement(mesh, folder / "out"))
    return peers.measure_peers(list(made.values()), services, replicas, folder / "peers")


PARTS: dict[str, Callable[[Path, int, int], Figures]] = {
    "resources": measure_resources,
    "varied": measure_varied,
    "whole": measure_whole,
    "peers": measure_against_peers,
}


def in_own_process(part: str, services: int, replicas: int) -> Figures:
    """A part's figures from a process that has done nothing else."""
    command = [sys.executable, "-m", "benchmarks.render", "--services", str(services), "--replicas", str(replicas)]
    done = subprocess.run(
        [*command, "--part", part, "--output", "json"], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    )
    return dict(json.loads(done.stdout))


def main() -> None:
    """Measure and print."""
    end_whole()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.render",
        description=__doc__,
        epilog=f"peers:\n{peers.__doc__}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--services", type=int, default=1_000)
    parser.add_argument("--replicas", type=int, default=10)
    parser.add_argument("--part", choices=PARTS, help="this part alone, in this process")
    parser.add_argument("--peers", action="store_true", help="compare with other control planes; fetches them")
    parser.add_argument("--output", choices=["table", "json"], default="table")
    arguments = parser.parse_args()
    services, replicas = arguments.services, arguments.replicas
    if arguments.part is None:
        parts = [part for part in PARTS if part != "peers" or arguments.peers]
        figures = {name: value for part in parts for name, value in in_own_process(part, services, replicas).items()}
    else:
        with tempfile.TemporaryDirectory(prefix="nipmesh-benchmark-") as folder:
            figures = PARTS[arguments.part](Path(folder), services, replicas)
    if arguments.output == "json":
        print(json.dumps(figures, indent=2))
    else:
        print(table(figures))


def table(figures: Figures) -> str:
    """The figures as a table in Markdown; a peer that is missing has its reason for a value."""
    values = {name: value if isinstance(value, str) else f"{value:,.3f}" for name, value in figures.items()}
    return "\n".join(["| figure | value |", "|---|---:|", *(f"| {name} | {value} |" for name, value in values.items())])


if __name__ == "__main__":
    main()

"""Other control planes, on the same machine in the same run, where these can be had.

None of them is a dependency: each is fetched into a temporary folder, by Go's module proxy or from PyPI. Of one that
cannot be had, built or run, the figure `<peer>_skipped` says why. Two get our resources:

- go-control-plane: `go_control_plane_from_json_s` decodes the resources' JSON strictly and checks Envoy's rules;
  `go_control_plane_snapshots_s` builds each message in memory, checks, marshals and hashes it, and sets one snapshot
  per six resources. Filling templates is in neither.
- sovereign: a Jinja2 template that writes the same resources, its YAML parser, its hash. It checks nothing.

One makes its own, of as many services with as many replicas:

- Istio's pilot, in its own fake discovery server: a ServiceEntry per service with a gRPC port and replicas that speak
  mTLS, strict mTLS in the mesh, everything else as Istio has it by default. It generates what **one** sidecar is told
  that sees all services, as Istio's do unless they are scoped: a cluster and an endpoint set per service, but one
  egress listener and one route configuration for all. Ours are listeners, routes and one callee of **every** service's
  own sidecar, which is scoped: more listeners and routes, of which none grows with the mesh. Istio's are marshalled,
  but not checked against Envoy's rules. The server has generated nothing before, but it has taken all configuration in:
  its reading and events are in no figure, so the counterpart of our `load_s` is missing.
  `istio_cold_s`: the push context from nothing, caches empty, then clusters, endpoint sets, listeners and routes;
  `istio_next_sidecar_s`: each further sidecar, on average of up to 100 other services', out of warm caches;
  `istio_one_change_s`: an incremental push to the one sidecar after a service got another deadline by a VirtualService;
  `istio_one_replica_s`: after a service lost a replica. `..._sent` resources were generated anew, `..._resources` of
  these differ. `istio_..._cpu_s` is all threads' processor time, the garbage collector's included.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from generator.resources import Resource

HERE = Path(__file__).parent
GO_MODULES = ("github.com/envoyproxy/go-control-plane@v0.14.0", "github.com/envoyproxy/go-control-plane/envoy@v1.40.0")
GO_ROOT = "github.com/envoyproxy/go-control-plane/envoy"
ISTIO_MODULE = "istio.io/istio@v0.0.0-20260827124520-eed52ebb66ad"
SOVEREIGN = "sovereign==0.32.12"
TYPE = re.compile(r'"@type":"type\.googleapis\.com/envoy\.([a-z0-9_.]+)\.[A-Za-z0-9]+"')
SECONDS_MAX = 600
BUILD_SECONDS_MAX = 3_600
"""Istio's pilot brings the libraries of Kubernetes along, which two busy cores compile for a long time."""
WORDS_MAX = 300


class PeerMissingError(Exception):
    """A peer cannot be had here; the text says why."""


def measure_peers(resources: Sequence[Resource], services: int, replicas: int, folder: Path) -> dict[str, float | str]:
    """The figures of every peer; of one that cannot be had, why. `folder` is made."""
    figures: dict[str, float | str] = {}
    peers: dict[str, Callable[[Path], dict[str, float]]] = {
        "go_control_plane": partial(go_control_plane, resources),
        "sovereign": partial(sovereign, resources),
        "istio": partial(istio, services, replicas),
    }
    for name, measure in peers.items():
        (folder / name).mkdir(parents=True)
        try:
            figures |= measure(folder / name)
        except PeerMissingError as error:
            figures[f"{name}_skipped"] = str(error)
    return figures


def go_control_plane(resources: Sequence[Resource], folder: Path) -> dict[str, float]:
    """Build and run the Go program. Raises PeerMissingError."""
    lines = [f'{{"@type":"{each.type_url}",{each.text[1:]}' for each in resources]
    packages = sorted({found.replace(".", "/") for line in lines for found in TYPE.findall(line)})
    imports = "\n\t".join(f'_ "{GO_ROOT}/{package}"' for package in packages)
    source = (HERE / "go_control_plane.go.txt").read_text(encoding="utf-8")
    (folder / "resources.jsonl").write_text("\n".join(lines), encoding="utf-8")
    _go_build(folder, source.replace("// IMPORTS", imports), *GO_MODULES)
    return dict(json.loads(_run(folder, "./peer", "resources.jsonl")))


def istio(services: int, replicas: int, folder: Path) -> dict[str, float]:
    """Build and run the Go program on Istio's pilot. Raises PeerMissingError."""
    _go_build(folder, (HERE / "istio.go.txt").read_text(encoding="utf-8"), ISTIO_MODULE)
    return dict(json.loads(_run(folder, "./peer", str(services), str(replicas))))


def sovereign(resources: Sequence[Resource], folder: Path) -> dict[str, float]:
    """Install sovereign in an environment of its own and run it. Raises PeerMissingError."""
    by_kind: dict[str, list[object]] = {}
    for each in resources:
        by_kind.setdefault(each.type.short.lower(), []).append({"@type": each.type_url, **each.body})
    (folder / "resources").mkdir()
    for kind, found in by_kind.items():
        (folder / "resources" / f"{kind}.json").write_text(json.dumps(found), encoding="utf-8")
    _run(folder, sys.executable, "-m", "venv", "venv")
    python = str(folder / "venv" / "bin" / "python")
    _run(folder, python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", SOVEREIGN)
    shutil.copy(HERE / "sovereign.py.txt", folder / "run_sovereign.py")
    output = _run(folder, python, "run_sovereign.py", str(folder / "resources"))
    return dict(json.loads(output.splitlines()[-1]))


def _go_build(folder: Path, source: str, *modules: str) -> None:
    """Build the program `peer`."""
    if shutil.which("go") is None:
        raise PeerMissingError("there is no Go on this machine")
    (folder / "main.go").write_text(source, encoding="utf-8")
    _run(folder, "go", "mod", "init", "peer")
    _run(folder, "go", "get", *modules)
    _run(folder, "go", "mod", "tidy")
    _run(folder, "go", "build", "-o", "peer", ".", seconds_max=BUILD_SECONDS_MAX)


def _run(folder: Path, *command: str, seconds_max: int = SECONDS_MAX) -> str:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=seconds_max, check=False)
    except subprocess.TimeoutExpired as error:
        raise PeerMissingError(f"{command[0]} {command[1]} took more than {seconds_max} s") from error
    if done.returncode:
        words = " ".join((done.stderr or done.stdout).split())
        raise PeerMissingError(f"`{' '.join(command[:4])}` failed: {words[-WORDS_MAX:]}")
    return done.stdout

"""`python -m benchmarks.containers [--output json]`: how large the images are, and how long it is until the mesh is ready in containers.

- `nipmesh_mib`, `base_mib`: what the Dockerfile's last stage adds, and the Python and the libraries below it as this machine has them;
  `envoy_mib`, `nats_mib`: the programs of PyPI alone. Published images have systems of their own below theirs;
- `build_s`: all images, from this machine's files;
- `agent_ready_s`: from `podman-compose up` of the agent until its health check passes: keys, certificates and files are there;
- `ready_s`: from the same moment until the gateway is well, one container after another that it depends on: podman-compose's own seconds,
  a third of a second for each container and volume, are most of it;
- `down_s`: all containers, networks and volumes removed.

It needs what tests/containers needs: root, Podman, podman-compose.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.figures import Figures, end_whole, print_figures
from benchmarks.mesh import ROOT

sys.path.insert(0, str(ROOT / "tests"))  # where the next three are

from support.composition import Composition  # type: ignore[import-not-found]
from support.images import build_images  # type: ignore[import-not-found]
from support.podman import Podman, reason_without  # type: ignore[import-not-found]


def mebibytes(folder: Path) -> float:
    """What the files below a folder take."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink()) / 1024**2


def measure(podman: Podman, folder: Path) -> Figures:
    """Build, bring up, take down."""
    start = time.perf_counter()
    build_images(podman, folder / "images")
    build_s = time.perf_counter() - start
    sizes: Figures = {
        "nipmesh_mib": mebibytes(folder / "images/own/opt"),
        "base_mib": mebibytes(folder / "images/own/base"),
        "envoy_mib": mebibytes(folder / "images/envoyproxy-envoy/usr"),
        "nats_mib": mebibytes(folder / "images/nats/usr"),
    }
    (folder / "mesh").mkdir()
    composition = Composition(podman, folder / "mesh", lifetime="1h")
    start = time.perf_counter()
    agent_ready_s = 0.0
    for stage in composition.stages():
        composition.compose("up", "--detach", "--no-deps", "--no-recreate", *stage)
        for name in stage:
            composition.until_well(name)
        agent_ready_s = agent_ready_s or time.perf_counter() - start
    ready_s = time.perf_counter() - start
    start = time.perf_counter()
    composition.down()
    times: Figures = {"build_s": build_s, "agent_ready_s": agent_ready_s, "ready_s": ready_s}
    return sizes | times | {"containers": float(len(composition.services)), "down_s": time.perf_counter() - start}


def main() -> None:
    """Measure and print."""
    end_whole()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.containers", description=__doc__)
    parser.add_argument("--output", choices=["table", "json"], default="table")
    arguments = parser.parse_args()
    reason = reason_without()
    if reason is not None:
        sys.exit(reason)
    podman = Podman(folder=Path(tempfile.mkdtemp(prefix="nipmesh-", dir="/tmp")))
    podman.prepare()
    folder = Path(tempfile.mkdtemp(prefix="nipmesh-containers-"))
    try:
        print_figures(measure(podman, folder), arguments.output, part="containers")
    finally:
        podman.remove_all()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()

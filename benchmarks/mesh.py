"""The mesh that is measured: the repository's own manifest, with `echo` and `nest` beside its services."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
PROTOS = ROOT / "benchmarks" / "protos"
UP_SECONDS_MAX = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkMesh:
    """A running mesh: its folder, its gateway, and how long it took to get ready."""

    folder: Path
    gateway: str
    ready_s: float

    def status(self) -> dict[str, Any]:
        """What `nipmesh status --output json` says."""
        return dict(json.loads(nipmesh(self.folder, "status", "--output", "json")))

    def replica(self, service: str, index: int = 0) -> dict[str, Any]:
        """One replica in the status."""
        return dict(self.status()["services"][service]["replicas"][index])

    def token(self, subject: str, *options: str) -> str:
        """A token for the time of the benchmark."""
        return nipmesh(self.folder, "token", "--subject", subject, *options).strip()


def nipmesh(folder: Path, *arguments: str) -> str:
    """Run a command in the mesh's folder; its standard output. Raises CalledProcessError with what it printed."""
    command = [sys.executable, "-m", "generator", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=UP_SECONDS_MAX, check=False)
    if done.returncode:
        raise RuntimeError(f"nipmesh {' '.join(arguments)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def compile_stubs(folder: Path) -> None:
    """Make the benchmark's own stubs in `folder`."""
    outputs = [f"--python_out={folder}", f"--grpc_python_out={folder}"]
    command = [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={PROTOS}", *outputs]
    subprocess.run([*command, "benchmark/v1/benchmark.proto"], check=True)


def manifest(stubs: Path) -> dict[str, Any]:
    """The repository's manifest and the two services more."""
    document: dict[str, Any] = yaml.safe_load((ROOT / "mesh.yaml").read_text())
    document["protos"] = [str(ROOT / "protos"), str(PROTOS)]
    common = {"env": {"PYTHONPATH": f"{ROOT}:{stubs}"}, "replicas": 2}
    document["services"]["echo"] = {
        "run": "python -m benchmarks.echo",
        "serves": ["benchmark.v1.EchoService"],
        **common,
    }
    document["services"]["nest"] = {
        "run": "python -m benchmarks.nest",
        "serves": ["benchmark.v1.NestService"],
        "calls": {"echo": ["EchoService/Echo"]},
        **common,
    }
    document["gateway"]["expose"] |= {"echo": ["EchoService/*"], "nest": ["NestService/*"]}
    return document


@contextmanager
def running_mesh() -> Iterator[BenchmarkMesh]:
    """Bring the mesh up in a folder of its own, and down again."""
    with tempfile.TemporaryDirectory(prefix="nipmesh-benchmark-") as name:
        folder, stubs = Path(name), Path(name) / "stubs"
        stubs.mkdir()
        compile_stubs(stubs)
        sys.path.insert(0, str(stubs))
        (folder / "mesh.yaml").write_text(yaml.safe_dump(manifest(stubs)))
        gateway = f"127.0.0.1:{free_port()}"
        start = time.perf_counter()
        nipmesh(folder, "up", "--detach", "--gateway-listen", gateway)
        try:
            yield BenchmarkMesh(folder=folder, gateway=gateway, ready_s=time.perf_counter() - start)
        finally:
            nipmesh(folder, "down")
            sys.path.remove(str(stubs))


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

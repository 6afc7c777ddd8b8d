"""How long it takes from a manifest to checked Envoy configuration: this mesh, and 100 services of 10 replicas."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from benchmarks.figures import command_ms

ROOT = Path(__file__).resolve().parents[1]
CALLS_EACH = 3
"""Each service of the large mesh calls so many others."""


def write_large_mesh(folder: Path, services: int, replicas: int) -> Path:
    """A manifest of `services` services, each with a proto of its own and a few callees; its path."""
    protos = folder / "protos"
    protos.mkdir()
    lines = ["mesh: large", "trust_domain: large.mesh", "protos: [protos]", "services:"]
    for number in range(services):
        name = f"s{number}"
        (protos / f"{name}.proto").write_text(
            f'syntax = "proto3";\npackage {name}.v1;\nservice Service{number} {{\n'
            f"  rpc Get(Message) returns (Message) {{ option idempotency_level = NO_SIDE_EFFECTS; }}\n"
            f"  rpc Set(Message) returns (Message);\n  rpc Watch(Message) returns (stream Message);\n}}\n"
            "message Message { string text = 1; }\n"
        )
        lines += [
            f"  {name}:",
            "    run: serve",
            f"    serves: [{name}.v1.Service{number}]",
            f"    replicas: {replicas}",
        ]
        callees = sorted({(number * 7 + step) % services for step in range(1, CALLS_EACH + 1)} - {number})
        if callees:
            lines += ["    calls:", *(f"      s{callee}: [Service{callee}/Get]" for callee in callees)]
    path = folder / "mesh.yaml"
    path.write_text("\n".join(lines) + "\n")
    return path


def measure(services: int = 100, replicas: int = 10, runs: int = 5) -> dict[str, float]:
    """Milliseconds of commands as whole processes, and of rendering alone inside one process."""
    from generator.analysis import check_manifest
    from generator.outputs.files import default_placement
    from generator.render import render

    figures = {
        "help_ms": command_ms("--help", runs=runs),
        "check_ms": command_ms("check", runs=runs, cwd=str(ROOT)),
        "check_without_envoy_ms": command_ms("check", "--no-envoy", runs=runs, cwd=str(ROOT)),
    }
    with tempfile.TemporaryDirectory() as name:
        manifest = write_large_mesh(Path(name), services, replicas)
        start = time.perf_counter()
        mesh = check_manifest(manifest).mesh
        assert mesh is not None
        loaded = time.perf_counter()
        render(mesh, default_placement(mesh, Path(name) / "out"))
        figures["large_load_ms"] = (loaded - start) * 1e3
        figures["large_render_ms"] = (time.perf_counter() - loaded) * 1e3
        figures["large_check_without_envoy_ms"] = command_ms("-f", str(manifest), "check", "--no-envoy", runs=1)
    return figures

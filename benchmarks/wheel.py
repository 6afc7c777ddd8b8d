"""`python -m benchmarks.wheel [--walk] [--output json]`: what a stranger downloads, and how long it is until their mesh is ready.

- `wheel_kib`, `environment_mib`: nipmesh's own wheel; a fresh environment with it and all that it requires, without pip;
- `install_s`: `pip install` of the wheel, from the caches and networks that there are;
- `project_s`: `nipmesh init --example` and `nipmesh check` with Envoy's validation, after that the first of its kind;
- `first_ready_s`, `ready_s`: the first `nipmesh up --detach` of that project until two replicas, their sidecars and the gateway are
  ready, keys and certificates made; and the next one;
- `walk_minutes` (with `--walk`): every command of docs/five-minutes.md, its environment, downloads and clients of eleven seconds
  included. It needs grpcurl and Node.js.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.figures import Figures, end_whole, print_figures
from benchmarks.mesh import ROOT, free_port
from benchmarks.walk import script, steps

SECONDS_MAX = 900


def run(*words: str, folder: Path, path: str = "", **more: str) -> float:
    """Run a command; its seconds. Raises RuntimeError with what it printed."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    environment = kept | {"PATH": f"{path}:{os.environ['PATH']}" if path else os.environ["PATH"]} | more
    start = time.perf_counter()
    done = subprocess.run(
        words, cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS_MAX, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return time.perf_counter() - start


def build(folder: Path) -> Path:
    """The wheel of this checkout, built as pip builds it."""
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(folder), str(ROOT), folder=folder)
    (wheel,) = folder.glob("*.whl")
    return wheel


def measure(folder: Path) -> Figures:
    """Everything but the walk."""
    wheel = build(folder)
    run(sys.executable, "-m", "venv", "--without-pip", str(folder / "venv"), folder=folder)
    programs = folder / "venv" / "bin"
    pip = (sys.executable, "-m", "pip", "--python", str(programs / "python"), "install", "--quiet")
    install_s = run(*pip, str(wheel), folder=folder)
    project = folder / "project"
    project.mkdir()
    nipmesh = str(programs / "nipmesh")
    project_s = run(nipmesh, "init", "--example", folder=project) + run(nipmesh, "check", folder=project)
    up = (nipmesh, "up", "--detach", "--gateway-listen", f"127.0.0.1:{free_port()}")
    ready_s = []
    for _ in range(2):
        ready_s.append(run(*up, folder=project))
        run(nipmesh, "down", folder=project)
    size = sum(file.stat().st_size for file in (folder / "venv").rglob("*") if file.is_file() and not file.is_symlink())
    return {
        "wheel_kib": wheel.stat().st_size / 1024,
        "environment_mib": size / 1024**2,
        "install_s": install_s,
        "project_s": project_s,
        "first_ready_s": ready_s[0],
        "ready_s": ready_s[1],
    }


def walk(folder: Path, wheel: Path) -> Figures:
    """The whole page, from an empty folder."""
    constraints = folder / "constraints.txt"
    constraints.write_text(f"nipmesh @ {wheel.as_uri()}\n")  # so that `pip install nipmesh` finds this one
    text = script(steps(), gateway=f"127.0.0.1:{free_port()}", tcp=f"127.0.0.1:{free_port()}")
    try:
        seconds = run("bash", "-eu", "-c", text, folder=folder, PIP_CONSTRAINT=str(constraints))
    finally:
        guide = folder / "guide"
        nipmesh = guide / ".venv" / "bin" / "nipmesh"
        if nipmesh.exists():
            subprocess.run([nipmesh, "down"], cwd=guide, capture_output=True, timeout=SECONDS_MAX, check=False)
    return {"walk_minutes": seconds / 60}


def main() -> None:
    """Measure and print."""
    end_whole()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.wheel", description=__doc__)
    parser.add_argument("--walk", action="store_true", help="also the whole of docs/five-minutes.md")
    parser.add_argument("--output", choices=["table", "json"], default="table")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nipmesh-wheel-") as name:
        figures = measure(Path(name))
        if arguments.walk:
            (wheel,) = Path(name).glob("*.whl")
            figures |= walk(Path(name), wheel)
    print_figures(figures, arguments.output, part="wheel")


if __name__ == "__main__":
    main()

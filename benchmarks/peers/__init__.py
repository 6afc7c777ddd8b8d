"""The same resources through other control planes, on the same machine in the same run, where these can be had.

None of them is a dependency: each is fetched into a temporary folder, by Go's module proxy or from PyPI.

- go-control-plane: `go_control_plane_from_json_s` decodes the resources' JSON strictly and checks Envoy's rules;
  `go_control_plane_snapshots_s` builds each message in memory, checks, marshals and hashes it, and sets one snapshot per
  five resources. Filling templates is in neither.
- sovereign: a Jinja2 template that writes the same resources, its YAML parser, its hash. It checks nothing.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from generator.resources import Resource

HERE = Path(__file__).parent
GO_MODULES = ("github.com/envoyproxy/go-control-plane@v0.14.0", "github.com/envoyproxy/go-control-plane/envoy@v1.40.0")
GO_ROOT = "github.com/envoyproxy/go-control-plane/envoy"
SOVEREIGN = "sovereign==0.32.12"
TYPE = re.compile(r'"@type":"type\.googleapis\.com/envoy\.([a-z0-9_.]+)\.[A-Za-z0-9]+"')
SECONDS_MAX = 600
WORDS_MAX = 300


class PeerMissingError(Exception):
    """A peer cannot be had here; the text says why."""


def measure_peers(resources: Sequence[Resource], folder: Path) -> dict[str, float | str]:
    """The figures of every peer; of one that cannot be had, why. `folder` is made."""
    figures: dict[str, float | str] = {}
    peers: dict[str, Callable[[Sequence[Resource], Path], dict[str, float]]] = {
        "go_control_plane": go_control_plane,
        "sovereign": sovereign,
    }
    for name, measure in peers.items():
        (folder / name).mkdir(parents=True)
        try:
            figures |= measure(resources, folder / name)
        except PeerMissingError as error:
            figures[f"{name}_skipped"] = str(error)
    return figures


def go_control_plane(resources: Sequence[Resource], folder: Path) -> dict[str, float]:
    """Build and run the Go program. Raises PeerMissingError."""
    if shutil.which("go") is None:
        raise PeerMissingError("there is no Go on this machine")
    lines = [f'{{"@type":"{each.type_url}",{each.text[1:]}' for each in resources]
    packages = sorted({found.replace(".", "/") for line in lines for found in TYPE.findall(line)})
    imports = "\n\t".join(f'_ "{GO_ROOT}/{package}"' for package in packages)
    source = (HERE / "go_control_plane.go.txt").read_text(encoding="utf-8")
    (folder / "main.go").write_text(source.replace("// IMPORTS", imports), encoding="utf-8")
    (folder / "resources.jsonl").write_text("\n".join(lines), encoding="utf-8")
    _run(folder, "go", "mod", "init", "peer")
    _run(folder, "go", "get", *GO_MODULES)
    _run(folder, "go", "mod", "tidy")
    _run(folder, "go", "build", "-o", "peer", ".")
    return dict(json.loads(_run(folder, "./peer", "resources.jsonl")))


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


def _run(folder: Path, *command: str) -> str:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=SECONDS_MAX, check=False)
    except subprocess.TimeoutExpired as error:
        raise PeerMissingError(f"{command[0]} {command[1]} took more than {SECONDS_MAX} s") from error
    if done.returncode:
        words = " ".join((done.stderr or done.stdout).split())
        raise PeerMissingError(f"`{' '.join(command[:4])}` failed: {words[-WORDS_MAX:]}")
    return done.stdout

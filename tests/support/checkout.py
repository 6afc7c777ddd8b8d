"""A copy of the repository on a gateway port of its own, and the command blocks of its documents, as a newcomer would type them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from support.mesh import REPOSITORY, free_port

BLOCK = re.compile(r"^```(sh|python|yaml)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
DEFAULT_GATEWAY = "127.0.0.1:8080"
ARTIFACTS = ("generator/resources/data/*", "services/**/*_pb2*")


def blocks(document: str, language: str, mark: str = "") -> list[str]:
    """The blocks of one language that have this word behind it; `notest` marks what runs inside a service."""
    text = (REPOSITORY / document).read_text()
    return [body for kind, words, body in BLOCK.findall(text) if (kind, words.strip()) == (language, mark)]


def copy_checkout(folder: Path) -> str:
    """Copy the tracked files to `folder`, with this environment as `.venv`; the address of the copy's gateway."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
    ).stdout.split("\n")  # fmt: skip
    for name in (*filter(None, listed), *_installed()):
        if (REPOSITORY / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, folder / name)
    (folder / ".venv").symlink_to(Path(sys.executable).parent.parent)
    manifest, gateway = folder / "mesh.yaml", f"127.0.0.1:{free_port()}"
    manifest.write_text(manifest.read_text().replace(DEFAULT_GATEWAY, gateway))
    return gateway


def _installed() -> list[str]:
    """What `make install` made inside the packages."""
    found = (path for pattern in ARTIFACTS for path in REPOSITORY.glob(pattern))
    return [str(path.relative_to(REPOSITORY)) for path in found]


def environment() -> dict[str, str]:
    """This environment, with the programs that `go install` made on PATH."""
    go_path = os.environ.get("GOPATH", str(Path.home() / "go"))
    return {**os.environ, "PATH": f"{os.environ['PATH']}:{go_path}/bin"}


def run_script(script: str, folder: Path, seconds: float, **more: str) -> subprocess.CompletedProcess[str]:
    """Run it as a shell would that stops at the first command that fails."""
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder, env=environment() | more, capture_output=True, text=True, timeout=seconds, check=False,
    )  # fmt: skip

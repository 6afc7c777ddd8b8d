"""Where a running mesh keeps its files: everything durable in `.nipmesh/` beside the manifest, sockets elsewhere."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from generator.model.events import EVENTS
from generator.model.placement import external_socket
from generator.pki import private_directory

SOCKET_PATH_BYTES_MAX = 107
"""`sun_path` holds 108 bytes with the terminating zero (unix(7))."""
SOCKET_NAME_LONGEST = "metrics.sock"
SOCKET_DIRECTORY_PREFIX = "nipmesh-"


class SocketPathError(Exception):
    """No folder is short enough for this mesh's socket paths."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StatePaths:
    """The layout of `.nipmesh/`; all absolute, all 0700."""

    root: Path

    @classmethod
    def beside(cls, manifest: Path) -> StatePaths:
        """Give the state folder of a manifest; it need not exist."""
        return cls(root=manifest.resolve().parent / ".nipmesh")

    @property
    def authorities(self) -> Path:
        """Keys and certificates of the local authority."""
        return self.root / "pki"

    @property
    def token_key(self) -> Path:
        """The ES256 key that signs users' tokens."""
        return self.authorities / "token" / "token.key"

    @property
    def envoy(self) -> Path:
        """Bootstraps and xDS files, one folder per workload."""
        return self.root / "envoy"

    @property
    def logs(self) -> Path:
        """One file per process, and the supervisor's own."""
        return self.root / "logs"

    @property
    def runs(self) -> Path:
        """One record per running supervisor: its processes and its socket folder."""
        return self.root / "runs"

    @property
    def lock(self) -> Path:
        """Held by the running supervisor."""
        return self.root / "lock"

    @property
    def current(self) -> Path:
        """How to reach the running supervisor (JSON); there while one runs."""
        return self.root / "current.json"

    @property
    def prometheus(self) -> Path:
        """Prometheus' file service discovery."""
        return self.root / "prometheus" / "file_sd.json"

    @property
    def introspection(self) -> Path:
        """What the introspection server is started with."""
        return self.root / "introspection"

    @property
    def event_configuration(self) -> Path:
        """What the server of events is started with, and reads again when it is told to."""
        return self.root / "events" / "nats.json"

    @property
    def event_store(self) -> Path:
        """Where the server of events keeps its streams."""
        return self.root / "data" / EVENTS

    @property
    def event_admin(self) -> Path:
        """The seed of the user that keeps the stream."""
        return self.root / "secrets" / EVENTS / "admin.nk"

    def event_keeper(self, service: str) -> Path:
        """Give the seed of the user that keeps a service's stream."""
        return self.event_admin.parent / "keepers" / f"{service}.nk"

    def event_credentials(self, service: str) -> Path:
        """Give the seed of a service's user at the server of events."""
        return self.secrets(service) / "events.nk"

    def certificates(self, workload: str) -> Path:
        """Give the folder with a workload's `..data` link."""
        return self.authorities / "workloads" / workload

    def data(self, service: str) -> Path:
        """Give a service's durable state, shared by its replicas."""
        return self.root / "data" / service

    def secrets(self, service: str) -> Path:
        """Give the folder of a service's generated secrets."""
        return self.root / "secrets" / service

    def log(self, workload: str, part: str) -> Path:
        """Give the log file of one process."""
        return self.logs / f"{workload}-{part}.log"

    def make(self) -> None:
        """Make the folders that every run needs. Raises OSError."""
        folders = (self.root, self.authorities, self.envoy, self.logs, self.runs, self.introspection)
        own = (self.prometheus.parent, self.event_configuration.parent, self.root / "data", self.root / "secrets")
        for folder in (*folders, *own):
            private_directory(folder)


def make_socket_directory(workloads: tuple[str, ...], externals: tuple[str, ...] = ()) -> Path:
    """Make a fresh 0700 folder whose sockets' paths are short enough for every workload and every host outside.

    Raises SocketPathError when there is none, and OSError.
    """
    longest = max(workloads, key=len, default="")
    for base in socket_bases():
        length = socket_path_length(base, longest, externals)
        if length <= SOCKET_PATH_BYTES_MAX and os.access(base, os.W_OK | os.X_OK):
            return Path(tempfile.mkdtemp(prefix=f"{SOCKET_DIRECTORY_PREFIX}{os.getuid()}-", dir=base))
    raise SocketPathError(
        f"the name {longest} makes socket paths longer than {SOCKET_PATH_BYTES_MAX} bytes; choose a shorter name"
    )


def socket_bases() -> tuple[Path, ...]:
    """Give the folders that may hold the socket folder, best first."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return (*((Path(runtime),) if runtime else ()), Path("/tmp"))  # noqa: S108  # mkdtemp makes it private


def longest_socket_path(sockets: Path, workload: str, externals: tuple[str, ...]) -> int:
    """Count the bytes of the longest socket path of a workload in the folder of a run."""
    name = max(SOCKET_NAME_LONGEST, *map(external_socket, externals), key=len)
    return len(os.fsencode(sockets / workload / name))


def socket_path_length(base: Path, workload: str, externals: tuple[str, ...] = ()) -> int:
    """Count the bytes of the longest socket path of a workload below a fresh folder in `base`."""
    folder = base / f"{SOCKET_DIRECTORY_PREFIX}{os.getuid()}-xxxxxxxx"
    return longest_socket_path(folder, workload, externals)

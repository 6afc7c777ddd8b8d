"""Where everything is on a machine whose processes systemd runs."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from generator.outputs.local.paths import StatePaths

ROOT = Path("/")
USER_PREFIX = "nipmesh-"
USER_LENGTH_MAX = 31
"""Of a name in /etc/passwd (useradd(8), systemd's `ValidUserName`)."""
DIGEST_LENGTH = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Programs:
    """The programs that units start; all absolute."""

    python: Path
    nipmesh: Path
    envoy: Path
    nats: Path
    needed: tuple[Path, ...] = ()
    """Folders without which they do not start, e.g. that of the interpreter behind a virtual environment."""

    @classmethod
    def below(cls, directory: Path) -> Programs:
        """Those of one folder, e.g. of a virtual environment into which nipmesh was installed."""
        return cls(
            python=directory / "python",
            nipmesh=directory / "nipmesh",
            envoy=directory / "envoy",
            nats=directory / "nats-server",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The folders of one machine."""

    project: Path
    """The manifest's folder, where the applications' programs are."""
    programs: Programs
    root: Path = ROOT
    """What stands for `/`: something else for a trial without root's rights."""

    @property
    def units(self) -> Path:
        """Where the administrator's units are (systemd.unit(5))."""
        return self.root / "etc/systemd/system"

    @property
    def users(self) -> Path:
        """The users that `systemd-sysusers` makes."""
        return self.root / "etc/sysusers.d/nipmesh.conf"

    @property
    def folders(self) -> Path:
        """The folders that `systemd-tmpfiles` makes at each start."""
        return self.root / "etc/tmpfiles.d/nipmesh.conf"

    @property
    def configuration(self) -> Path:
        """What is rendered: nothing secret, root's, for everybody to read."""
        return self.root / "etc/nipmesh"

    @property
    def envoy(self) -> Path:
        """Bootstraps and xDS files, one folder per workload."""
        return self.configuration / "envoy"

    @property
    def introspection(self) -> Path:
        """What the gateway exposes."""
        return self.configuration / "introspection"

    @property
    def event_configuration(self) -> Path:
        """What the server of events is started with."""
        return self.configuration / "events/nats.json"

    @property
    def streams(self) -> Path:
        """The streams that it has to have."""
        return self.configuration / "events/streams.json"

    @property
    def certificate_plan(self) -> Path:
        """Whose certificates this machine keeps."""
        return self.configuration / "certificates.json"

    @property
    def state(self) -> Path:
        """What is kept: keys, certificates, data."""
        return self.root / "var/lib/nipmesh"

    @property
    def secrets(self) -> StatePaths:
        """Secrets and keys of the mesh as `nipmesh up` keeps them, too; root's alone."""
        return StatePaths(root=self.state)

    @property
    def certificates(self) -> Path:
        """The folders with the workloads' `..data` links, each its user's."""
        return certificates_of(self.state)

    @property
    def trust(self) -> Path:
        """The folder of the certificates that vouch for the mesh's servers, for everybody to read."""
        return trust_of(self.state)

    @property
    def sockets(self) -> Path:
        """The parent of the workloads' socket folders."""
        return self.root / "run/nipmesh"

    def data(self, service: str) -> Path:
        """What a service keeps, shared by its replicas."""
        return self.state / "data" / service

    def volume(self, name: str) -> Path:
        """One of the mesh's named volumes."""
        return self.state / "volumes" / name


def certificates_of(state: Path) -> Path:
    """The parent of the workloads' certificate folders."""
    return state / "certificates"


def trust_of(state: Path) -> Path:
    """The folder of what everybody may know of the authorities."""
    return state / "trust"


def user_of(role: str) -> str:
    """The user of a service's replicas and their sidecars, of the gateway and its server, or of the server of events.

    Long names are cut and told apart by a hash.
    """
    name = USER_PREFIX + role
    if len(name) <= USER_LENGTH_MAX:
        return name
    digest = hashlib.sha256(role.encode()).hexdigest()[:DIGEST_LENGTH]
    return f"{name[: USER_LENGTH_MAX - DIGEST_LENGTH - 1]}-{digest}"

"""What a process may do on its machine: its own folders, its sockets, the network, nothing of the kernel's (systemd.exec(5))."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from generator.model import Resources
from generator.outputs.systemd.words import Setting, literal, word

HOMES = (Path("/home"), Path("/root"), Path("/run/user"))
PORT_PRIVILEGED_MAX = 1023

STRICT: tuple[Setting, ...] = (
    ("UMask", "0077"),
    ("NoNewPrivileges", "yes"),
    ("ProtectSystem", "strict"),
    ("PrivateTmp", "yes"),
    ("PrivateDevices", "yes"),
    ("ProtectClock", "yes"),
    ("ProtectControlGroups", "yes"),
    ("ProtectHostname", "yes"),
    ("ProtectKernelLogs", "yes"),
    ("ProtectKernelModules", "yes"),
    ("ProtectKernelTunables", "yes"),
    ("ProtectProc", "invisible"),
    ("LockPersonality", "yes"),
    ("RestrictNamespaces", "yes"),
    ("RestrictRealtime", "yes"),
    ("RestrictSUIDSGID", "yes"),
    ("RemoveIPC", "yes"),
    ("SystemCallArchitectures", "native"),
)
"""For every process."""
SYSTEM_CALLS: tuple[Setting, ...] = (
    ("SystemCallFilter", "@system-service"),
    ("SystemCallFilter", "~@privileged @resources"),
    ("SystemCallErrorNumber", "EPERM"),
)
"""For every process that is not root's."""
SYSTEM_CALLS_OF_ROOT: tuple[Setting, ...] = (
    ("SystemCallFilter", "@system-service"),
    ("SystemCallErrorNumber", "EPERM"),
)
FILES_MAX = "65536"
"""Open files of an Envoy or a server of events: each connection is one."""
HOMES_READ_ONLY = ("ProtectHome", "read-only")
FAMILIES = ("RestrictAddressFamilies", "AF_UNIX AF_INET AF_INET6")
FAMILIES_OF_APPLICATIONS = ("RestrictAddressFamilies", "AF_UNIX AF_INET AF_INET6 AF_NETLINK")
"""Netlink: how the C library, Go and Node.js ask which addresses this machine has."""
NO_CODE_AT_RUN_TIME = ("MemoryDenyWriteExecute", "yes")
"""Not for applications: Node.js, Java and .NET compile while they run."""


def own(*, port: int | None = None) -> Iterator[Setting]:
    """For our own programs, which compile nothing; a low port needs the one capability that is for it."""
    yield from (*STRICT, *SYSTEM_CALLS)
    yield FAMILIES
    yield NO_CODE_AT_RUN_TIME
    yield "LimitNOFILE", FILES_MAX
    yield from capabilities(("CAP_NET_BIND_SERVICE",) if port is not None and port <= PORT_PRIVILEGED_MAX else ())


def application() -> Iterator[Setting]:
    """For a user's program."""
    yield from (*STRICT, *SYSTEM_CALLS)
    yield FAMILIES_OF_APPLICATIONS
    yield from capabilities(())


def capabilities(names: Iterable[str]) -> Iterator[Setting]:
    """These, and no other."""
    found = " ".join(names)
    yield "CapabilityBoundingSet", found
    yield "AmbientCapabilities", found


def homes(paths: Iterable[Path]) -> Setting:
    """Nobody's home is there, unless something that the process needs is in one."""
    needed = any(path.is_relative_to(home) for path in paths for home in HOMES)
    return HOMES_READ_ONLY if needed else ("ProtectHome", "yes")


def writable(*paths: Path) -> Iterator[Setting]:
    """What it may write to; everything else is read-only."""
    yield "ReadWritePaths", " ".join(word(literal(str(path))) for path in paths)


def limits(resources: Resources) -> Iterator[Setting]:
    """What it may use at most."""
    if resources.cpu_millis is not None:
        yield "CPUQuota", f"{max(1, round(resources.cpu_millis / 10))}%"
    if resources.memory_bytes is not None:
        yield "MemoryMax", str(resources.memory_bytes)

"""inotify instances: each file that an Envoy watches takes one, and Linux gives a user 128 by default.

Without one Envoy aborts. So they are counted before a mesh starts.
"""

from __future__ import annotations

import os
from pathlib import Path

from generator.model import Edge, Mesh

LIMIT = Path("/proc/sys/fs/inotify/max_user_instances")
PER_SIDECAR = 7
"""Listeners, clusters, two routes, two secrets, and the certificates' folder."""
PER_GATEWAY = 8
"""As above, with the edge's own certificate."""
SPARE = 8
"""While a changed cluster warms, it and the one before it watch their files."""


def instances_needed(mesh: Mesh) -> int:
    """Count what the Envoys of a mesh take: a constant each, and one per service that they call."""
    sidecars = sum(service.replicas * (PER_SIDECAR + _versions(service.calls)) for service in mesh.services)
    gateway = PER_GATEWAY + _versions(mesh.gateway.exposes) if mesh.gateway is not None else 0
    return sidecars + gateway + SPARE


def _versions(edges: tuple[Edge, ...]) -> int:
    return sum(len(edge.destinations) for edge in edges)


def instances_used() -> int:
    """Count the instances that this user's processes hold: the limit is per user."""
    return sum(_held_by(entry) for entry in Path("/proc").iterdir() if entry.name.isdigit())


def instances_limit() -> int | None:
    """Read the kernel's limit per user; None where there is none."""
    try:
        return int(LIMIT.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def shortage(mesh: Mesh) -> str | None:
    """Say what is missing for this mesh; None when there is enough."""
    limit, used, needed = instances_limit(), instances_used(), instances_needed(mesh)
    if limit is None or used + needed <= limit:
        return None
    return (
        f"this mesh needs {needed} inotify instances; the kernel allows {limit} and {used} are in use: "
        f"run `sudo sysctl fs.inotify.max_user_instances={max(1024, 2 * (used + needed))}`"
    )


def shortage_between(old: Mesh, new: Mesh) -> str | None:
    """Say what is missing for a running mesh to become another one; None when there is enough."""
    limit, used = instances_limit(), instances_used()
    more = instances_needed(new) - instances_needed(old)
    if limit is None or more <= 0 or used + more + SPARE <= limit:
        return None
    return (
        f"the change needs {more} more inotify instances; the kernel allows {limit} and {used} are in use: "
        f"run `sudo sysctl fs.inotify.max_user_instances={max(1024, 2 * (used + more))}`"
    )


def _held_by(process: Path) -> int:
    try:
        if process.stat().st_uid != os.getuid():
            return 0
        return sum(str(link.readlink()) == "anon_inode:inotify" for link in (process / "fd").iterdir())
    except OSError:
        return 0

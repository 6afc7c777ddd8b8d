"""Where everything is right now, and the configuration that follows from it.

The board is the one place that knows the placement; the publisher turns it into files. Publishing is coalesced: what
was asked for while one publication ran is done by the next one, and each caller returns when its own change is on disk.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from generator.introspection.admin import AdminError, gauges
from generator.model import GatewayPlacement, Mesh, Placement, ReplicaPlacement, SocketAddress
from generator.model.mesh import GATEWAY
from generator.outputs.files import publish
from generator.outputs.local.events import Journal
from generator.outputs.local.paths import StatePaths
from generator.pki import write_private
from generator.render import render

T = TypeVar("T")

CONFIRM_AFTER_S = 1.0
"""Envoy reads a moved file within 4 ms; a new cluster warms within its first health check."""
RETRY_S = 1.0
"""Between two tries to write configuration files on a disk that refuses."""
REJECTED_STATS = "update_rejected$|update_failure$"


class Board:
    """The mesh as it is meant to be, and where each workload is."""

    def __init__(self, mesh: Mesh, directory: Path, jwks: str | None) -> None:
        self.mesh = mesh
        self.is_whole = True
        """False between two meshes, when clusters wait for their routes or outlive them."""
        self.jwks = jwks
        self.gateway: GatewayPlacement | None = None
        self._directory = directory
        self._replicas: dict[str, ReplicaPlacement] = {}

    def put(self, replica: ReplicaPlacement) -> None:
        """Add a replica."""
        assert replica.name not in self._replicas, replica.name
        self._replicas[replica.name] = replica

    def remove(self, name: str) -> ReplicaPlacement:
        """Take a replica off the board and give its placement."""
        return self._replicas.pop(name)

    def rotate(self, name: str, *, into: bool) -> None:
        """Change whether callers send it traffic."""
        self._replicas[name] = replace(self._replicas[name], in_rotation=into)

    def replica(self, name: str) -> ReplicaPlacement:
        """Look a replica up; KeyError when there is none."""
        return self._replicas[name]

    def placement(self) -> Placement:
        """Give the present placement, replicas in a fixed order."""
        ordered = sorted(self._replicas.values(), key=lambda replica: (replica.service, replica.index))
        return Placement(directory=self._directory, replicas=tuple(ordered), gateway=self.gateway, jwks=self.jwks)


class Publisher:
    """Renders the board and writes what changed."""

    def __init__(self, board: Board, paths: StatePaths, journal: Journal) -> None:
        self._board = board
        self._paths = paths
        self._journal = journal
        self._lock = asyncio.Lock()
        self._asked = 0
        self._is_closed = False
        self._done = 0

    @property
    def count(self) -> int:
        """How often something was published: a change means that Envoys have something new to read."""
        return self._done

    async def publish(self) -> None:
        """Bring the files in line with the board. Raises what rendering or writing raises; nothing is written then."""
        if self._is_closed:
            return
        self._asked += 1
        wanted = self._asked
        async with self._lock:
            if self._done >= wanted:
                return
            covered = self._asked
            mesh, placement, is_whole = self._board.mesh, self._board.placement(), self._board.is_whole
            started = time.monotonic()
            changed = await asyncio.to_thread(self._write, mesh, placement, is_whole)
            self._done = covered
            took_ms = (time.monotonic() - started) * 1000
            self._journal.tell("published", f"{len(changed)} files in {took_ms:.0f} ms")

    async def aside(self, work: Callable[[], T]) -> T:
        """Render something else, on a thread, while nothing is published: the renderer remembers what it made last."""
        async with self._lock:
            return await asyncio.to_thread(work)

    def close(self) -> None:
        """Leave the files as they are from now on: the whole mesh stops, and nobody will read them."""
        self._is_closed = True

    async def publish_or_retry(self) -> None:
        """Publish; where the disk refuses, tell it and try again until it works: the last good files stay in force."""
        while True:
            try:
                return await self.publish()
            except OSError as error:
                self._journal.tell("publish-failed", f"{error}; tried again")
                await asyncio.sleep(RETRY_S)

    async def forget(self, workload: str) -> None:
        """Remove the files of a workload that is no more."""
        async with self._lock:
            for folder in (self._paths.envoy / workload, self._paths.certificates(workload)):
                await asyncio.to_thread(shutil.rmtree, folder, True)

    def _write(self, mesh: Mesh, placement: Placement, is_whole: bool) -> tuple[Path, ...]:
        changed = publish(render(mesh, placement, is_whole=is_whole), placement.directory)
        write_private(self._paths.prometheus, scrape_targets(mesh, placement))
        return changed


class RejectionWatch:
    """Asks each Envoy whether it refused a file: a refused file changes nothing, which nobody would notice."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._seen: dict[tuple[str, str], int] = {}

    async def look(self, admins: dict[str, Path]) -> None:
        """Tell of refusals that are new since the last look; sidecars that do not answer are left alone."""
        for workload, admin in admins.items():
            try:
                counters = await gauges(admin, REJECTED_STATS)
            except (OSError, TimeoutError, AdminError):
                continue
            for name, count in counters.items():
                before = self._seen.get((workload, name), 0)
                if count > before:
                    self._journal.tell("config-refused", f"{name} is {count}", workload=workload, part="sidecar")
                self._seen[workload, name] = count


def scrape_targets(mesh: Mesh, placement: Placement) -> bytes:
    """Write Prometheus' file_sd: two targets per sidecar, the application's metrics and Envoy's own."""
    entries = [
        scrape_entry(mesh, replica.scrape, replica.service, str(replica.index), part)
        for replica in placement.replicas
        for part in ("app", "envoy")
    ]
    if placement.gateway is not None:
        entries.append(scrape_entry(mesh, placement.gateway.scrape, GATEWAY, "0", "envoy"))
    return json.dumps(entries, indent=2).encode()


def scrape_entry(mesh: Mesh, address: SocketAddress, service: str, replica: str, part: str) -> dict[str, object]:
    """Describe one target."""
    labels = {"mesh": mesh.name, "service": service, "replica": replica, "part": part}
    return {
        "targets": [f"{address.host}:{address.port}"],
        "labels": labels | {"__metrics_path__": f"/metrics/{part}"},
    }

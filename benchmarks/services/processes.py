"""Which processes of the mesh used how much processor time."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.figures import cpu_seconds
from benchmarks.mesh import BenchmarkMesh


@dataclass(slots=True, kw_only=True)
class Meter:
    """Sums up the processor time of each part of the mesh, by kind of call; a part is the replicas of one service, or their sidecars."""

    pids: Mapping[str, tuple[int, ...]]
    seconds: dict[str, dict[str, float]] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, mesh: BenchmarkMesh) -> Meter:
        """A meter for the mesh and for this process, the client."""
        status = mesh.status()
        pids = {
            "client": (os.getpid(),),
            "runner": (status["pid"],),
            "gateway_sidecar": (status["gateway"]["sidecar_pid"],),
        }
        for name, service in status["services"].items():
            pids[name] = tuple(replica["pid"] for replica in service["replicas"])
            pids[f"{name}_sidecar"] = tuple(replica["sidecar_pid"] for replica in service["replicas"])
        return cls(pids=pids)

    def read(self) -> dict[str, float]:
        """What each part has used so far, in seconds."""
        return {part: sum(cpu_seconds(pid) for pid in pids) for part, pids in self.pids.items()}

    def add(self, kind: str, before: Mapping[str, float], calls: int) -> None:
        """Count what was used since `before` for so many calls of a kind."""
        sums = self.seconds.setdefault(kind, dict.fromkeys(self.pids, 0.0))
        for part, seconds in self.read().items():
            sums[part] += seconds - before[part]
        self.calls[kind] = self.calls.get(kind, 0) + calls

    def figures(self, *, by_part: bool) -> dict[str, float]:
        """Milliseconds per call: `<kind>_cpu_ms`, and with `by_part` also `<kind>_cpu_ms_of_<part>`."""
        found: dict[str, float] = {}
        for kind, sums in self.seconds.items():
            per_call = {part: seconds * 1e3 / self.calls[kind] for part, seconds in sums.items()}
            found[f"{kind}_cpu_ms"] = sum(per_call.values())
            if by_part:
                found |= {f"{kind}_cpu_ms_of_{part}": value for part, value in per_call.items()}
        return found


def family_cpu_seconds(pid: int | None) -> dict[int, float]:
    """What a process and its children have used so far, in seconds; nothing without a process."""
    if pid is None:
        return {}
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    found: dict[int, float] = {}
    for each in (pid, *map(int, children)):
        with suppress(FileNotFoundError, ProcessLookupError):  # a child that ended meanwhile
            found[each] = cpu_seconds(each)
    return found

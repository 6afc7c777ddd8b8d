"""The manifest's words about processes: what they may use, which folders they see, when they are ready."""
# ruff: noqa: RUF009  (key() makes a dataclasses.field, which is what belongs there)

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from generator.manifest.collections import ListOf, RecordOf, key
from generator.manifest.kinds import Command, Duration, Number, Text
from generator.manifest.quantities import Cpu, Memory
from generator.manifest.values import Located, Record

VOLUMES_MAX = 50
CPU_MILLIS_MIN = 10
"""With less a process does not get through its start."""
CPU_MILLIS_MAX = 512_000
MEMORY_BYTES_MIN = 6 * 1024**2
"""Docker refuses less."""
MEMORY_BYTES_MAX = 16 * 1024**4
PROBE_INTERVAL_MS_MIN = 100
PROBE_MS_MAX = 300_000
PROBE_FAILURES_MAX = 100
START_PERIOD_MS_MAX = 3_600_000

VOLUME: Final = Text(
    word="a volume like `cache:/var/cache` or `./rates:/etc/rates:ro`",
    pattern=r"[^:\x00]+:/[^:\x00]*(:(ro|rw))?",
    length_max=2_048,
    rule="a volume is the name of one of the mesh's volumes or a folder (./here, ../there, /anywhere), a colon, the folder "
    "that the program sees, and perhaps :ro",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourcesEntry(Record):
    """What one replica may use at most."""

    cpu: Located[int] | None = key(
        Cpu(millis_min=CPU_MILLIS_MIN, millis_max=CPU_MILLIS_MAX),
        "Cores, e.g. `2`, `0.5` or `250m`.",
        default="as many as there are",
    )
    memory: Located[int] | None = key(
        Memory(bytes_min=MEMORY_BYTES_MIN, bytes_max=MEMORY_BYTES_MAX),
        "Memory, e.g. `256Mi`; a process that wants more is killed.",
        default="as much as there is",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeEntry(Record):
    """When a replica counts as ready, and when as dead."""

    interval: Located[int] | None = key(
        Duration(minimum_ms=PROBE_INTERVAL_MS_MIN, maximum_ms=PROBE_MS_MAX),
        "How often a replica that runs is asked.",
        default="1s",
    )
    timeout: Located[int] | None = key(
        Duration(minimum_ms=PROBE_INTERVAL_MS_MIN, maximum_ms=PROBE_MS_MAX),
        "How long an answer may take.",
        default="2s",
    )
    failures: Located[int] | None = key(
        Number(minimum=1, maximum=PROBE_FAILURES_MAX),
        "So many probes without an answer in a row, and the replica is out of rotation.",
        default="5",
    )
    start_period: Located[int] | None = key(
        Duration(minimum_ms=1_000, maximum_ms=START_PERIOD_MS_MAX),
        "How long a replica may take from its start until it is ready.",
        default="60s",
    )
    command: Located[tuple[str, ...]] | None = key(
        Command(),
        "What is run inside a container to ask it: exit code 0 means ready. For images other than nipmesh's own.",
        default="gRPC's health protocol",
    )


VOLUMES: Final = ListOf(item=VOLUME, count_max=VOLUMES_MAX, word="a list of volumes")
RESOURCES: Final = RecordOf(record=ResourcesEntry, word="`{cpu: 500m, memory: 256Mi}`")
PROBE: Final = RecordOf(record=ProbeEntry, word="`{interval: 1s, timeout: 2s, failures: 5}`")

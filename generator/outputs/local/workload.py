"""The state of one workload and the words of its state machine: events that come in, actions that go out."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from generator.model.process import PROBE_FAILURES, START_PERIOD_MS

CRASH_LOOP_DEATHS = 4
"""So many deaths in a row, and the user is told with the last log lines."""


class Part(enum.Enum):
    """Which of the two processes. The gateway's introspection server is its application."""

    APP = "app"
    SIDECAR = "sidecar"


class Phase(enum.Enum):
    """Where one process is in its life; the values are what `status` prints."""

    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    UNREADY = "unready"
    WAITING = "waiting"
    """Dead, and to be started again when its back-off is over."""


class Stage(enum.Enum):
    """Where the workload as a whole is; the values are what `status` prints."""

    RUNNING = "running"
    LEAVING = "leaving"
    DRAINING = "draining"
    STOPPING = "stopping"
    GONE = "gone"


class Verdict(enum.Enum):
    """What a probe said."""

    READY = "ready"
    REFUSED = "refused"
    """It answered, and said no."""
    SILENT = "silent"
    """It did not answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """One of a workload's processes."""

    phase: Phase = Phase.STOPPED
    pid: int | None = None
    since_ms: int = 0
    """When the phase began."""
    deaths: int = 0
    """In a row, since it was last stable."""
    restarts: int = 0
    """In all."""
    retry_ms: int = 0
    """While WAITING: when to start again."""
    silences: int = 0
    kill_sent: bool = False

    @property
    def is_alive(self) -> bool:
        """True when there is (or is about to be) a process."""
        return self.phase in {Phase.STARTING, Phase.READY, Phase.UNREADY}


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The whole state of one workload."""

    name: str
    order: tuple[Part, ...]
    """Start order; the stop order is its reverse. The server of events is an application alone."""
    drain_ms_max: int
    """How long running calls may delay the stop before the application is asked to end by itself."""
    grace_ms: int
    """What the application gets between SIGTERM and SIGKILL."""
    start_ms_max: int = START_PERIOD_MS
    """What its first or second process may take until it is ready."""
    silences_max: int = PROBE_FAILURES
    """So many probes without any answer, and the workload leaves the rotation."""
    stage: Stage = Stage.RUNNING
    until_ms: int = 0
    """When the present stage ends by itself."""
    in_rotation: bool = False
    is_held: bool = False
    """The second process waits for Release: the gateway's Envoy starts when the services are ready, and these when events are."""
    app: Process = Process()
    sidecar: Process = Process()

    def process(self, part: Part) -> Process:
        """Pick one of the two."""
        return self.app if part is Part.APP else self.sidecar

    @property
    def is_ready(self) -> bool:
        """Every process answers, and the workload is meant to run."""
        all_answer = all(self.process(part).phase is Phase.READY for part in self.order)
        return all_answer and self.stage is Stage.RUNNING

    @property
    def is_crash_looping(self) -> bool:
        """One of the two has died too often in a row."""
        return max(self.app.deaths, self.sidecar.deaths) >= CRASH_LOOP_DEATHS


# Events: what happened outside.


@dataclass(frozen=True, slots=True, kw_only=True)
class Begin:
    """Start the first process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spawned:
    """The process exists."""

    part: Part
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Exited:
    """The process is gone. `jitter` in [0, 1) is the shell's dice for the back-off."""

    part: Part
    reason: str
    jitter: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    """A probe of a living process came back."""

    part: Part
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """The second process may start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Idle:
    """The sidecar carries no call any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """Time went by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retire:
    """Stop in good order; callers get `leave_ms` to learn that this replica is out."""

    leave_ms: int


Event = Begin | Release | Spawned | Exited | Probed | Idle | Tick | Retire


# Actions: what the shell has to do, in order.


@dataclass(frozen=True, slots=True, kw_only=True)
class Spawn:
    """Start the process and report Spawned, or Exited when that fails."""

    part: Part


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotate:
    """Put the replica into its callers' endpoint sets, or take it out."""

    into: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainSidecar:
    """Tell Envoy to fail its health checks and to drain its listeners; report Idle when nothing runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terminate:
    """SIGTERM."""

    part: Part


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """SIGKILL to the process and its group."""

    part: Part


@dataclass(frozen=True, slots=True, kw_only=True)
class Announce:
    """Tell the user. `with_log`: with the process's last log lines."""

    kind: str
    text: str
    part: Part | None = None
    with_log: bool = False


Action = Spawn | Rotate | DrainSidecar | Terminate | Kill | Announce
Step = tuple[Workload, tuple[Action, ...]]

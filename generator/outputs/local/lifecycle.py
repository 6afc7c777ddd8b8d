"""The life of one workload as a pure state machine: no clock, no process, no file. `decide` is the only transition.

A workload is two processes. A replica starts its sidecar, then its application; the gateway starts its introspection
server, then its Envoy. Either way the second starts once the first is ready, and stopping goes the other way round (the server of
events is one process, for which the same holds):

    RUNNING --Retire--> LEAVING --time--> DRAINING --Idle or time--> STOPPING --exits--> GONE
    out of endpoints    callers learn     what runs ends             second, then first

Each process while RUNNING:

    STOPPED --> STARTING --probe--> READY <--probes--> UNREADY
                    ^                 |                   |
                    +---- WAITING <---+------ exit -------+      (back-off doubles, with jitter, up to a limit)

In rotation means: callers' endpoint sets hold this replica. It is so exactly while both processes are READY and the
workload is RUNNING.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from generator.outputs.local.workload import (
    CRASH_LOOP_DEATHS,
    Action,
    Announce,
    Begin,
    DrainSidecar,
    Event,
    Exited,
    Idle,
    Kill,
    Part,
    Phase,
    Probed,
    Process,
    Release,
    Retire,
    Rotate,
    Spawn,
    Spawned,
    Stage,
    Step,
    Terminate,
    Tick,
    Verdict,
    Workload,
)
from generator.outputs.workloads.helpers import SIDECAR_GRACE_MS

BACKOFF_MS_MIN = 200
"""After the first death: soon enough that one crash is hardly seen."""
BACKOFF_MS_MAX = 30_000
"""A process that always dies costs one start in half a minute."""
STABLE_MS = 10_000
"""Ready for this long, and earlier deaths are forgotten."""
SILENT_MS_MAX = 60_000
"""A process that has answered nothing for so long is as good as dead: it is killed and started again."""
STOP_SIDECAR_MS_MAX = SIDECAR_GRACE_MS


def decide(workload: Workload, event: Event, now_ms: int) -> Step:
    """Give the next state and what to do; the one place where a workload changes."""
    if workload.stage is Stage.GONE:
        return workload, ()
    match event:
        case Begin():
            return _start(workload, workload.order[0], now_ms)
        case Release():
            return _start_second(replace(workload, is_held=False), now_ms)
        case Spawned(part=part, pid=pid):
            return _with(workload, part, lambda process: replace(process, pid=pid)), ()
        case Exited():
            return _exited(workload, event, now_ms)
        case Probed(part=part, verdict=verdict):
            return _probed(workload, part, verdict, now_ms)
        case Idle():
            return _stop_next(workload, now_ms) if workload.stage is Stage.DRAINING else (workload, ())
        case Tick():
            return _tick(workload, now_ms)
        case Retire(leave_ms=leave_ms):
            return _retire(workload, leave_ms, now_ms)


def deadline_ms(workload: Workload) -> int | None:
    """When the next Tick is due; None when only something from outside can change anything."""
    if workload.stage is Stage.GONE:
        return None
    if workload.stage is not Stage.RUNNING:
        return workload.until_ms
    moments = [moment for part in Part if (moment := _process_deadline(workload, part)) is not None]
    return min(moments, default=None)


def backoff_ms(deaths: int, jitter: float) -> int:
    """Half to all of a delay that doubles with each death in a row."""
    assert deaths >= 1, deaths
    assert 0.0 <= jitter < 1.0, jitter
    whole = min(BACKOFF_MS_MAX, BACKOFF_MS_MIN * 2 ** min(deaths - 1, 16))
    return int(whole * (1.0 - jitter / 2))


def _with(workload: Workload, part: Part, change: Callable[[Process], Process]) -> Workload:
    changed = change(workload.process(part))
    return replace(workload, app=changed) if part is Part.APP else replace(workload, sidecar=changed)


def _start(workload: Workload, part: Part, now_ms: int) -> Step:
    assert not workload.process(part).is_alive, part

    def starting(process: Process) -> Process:
        return replace(
            process, phase=Phase.STARTING, pid=None, since_ms=now_ms, silences=0, retry_ms=0, kill_sent=False
        )

    return _with(workload, part, starting), (Spawn(part=part),)


def _start_second(workload: Workload, now_ms: int) -> Step:
    """Start the second process when the first is ready, nobody holds it back, and it never ran."""
    if len(workload.order) == 1:
        return workload, ()
    first, second = (workload.process(part) for part in workload.order)
    may_start = first.phase is Phase.READY and second.phase is Phase.STOPPED and workload.stage is Stage.RUNNING
    if workload.is_held or not may_start:
        return workload, ()
    return _start(workload, workload.order[1], now_ms)


def _exited(workload: Workload, event: Exited, now_ms: int) -> Step:
    if workload.stage is not Stage.RUNNING:
        return _exited_at_the_end(workload, event.part, now_ms)
    before = workload.process(event.part)
    was_stable = before.phase is Phase.READY and now_ms - before.since_ms >= STABLE_MS
    deaths = 1 if was_stable else before.deaths + 1
    delay_ms = backoff_ms(deaths, event.jitter)
    after = Process(
        phase=Phase.WAITING,
        since_ms=now_ms,
        deaths=deaths,
        restarts=before.restarts + 1,
        retry_ms=now_ms + delay_ms,
    )
    is_loop = deaths == CRASH_LOOP_DEATHS
    told = Announce(kind="died", text=f"{event.reason}; starts again in {delay_ms} ms", part=event.part)
    loop = Announce(kind="crash-loop", text=f"died {deaths} times in a row", part=event.part, with_log=True)
    leave, out = _leave_rotation(_with(workload, event.part, lambda _: after))
    return leave, (*out, told, *((loop,) if is_loop else ()))


def _exited_at_the_end(workload: Workload, part: Part, now_ms: int) -> Step:
    """Handle an exit while stopping: the one that was asked to, or one that died on its own on the way."""
    stopped = _with(
        workload, part, lambda process: Process(since_ms=now_ms, deaths=process.deaths, restarts=process.restarts)
    )
    return _stop_next(stopped, now_ms) if stopped.stage is Stage.STOPPING else (stopped, ())


def _leave_rotation(workload: Workload) -> Step:
    if not workload.in_rotation:
        return workload, ()
    return replace(workload, in_rotation=False), (Rotate(into=False),)


def _probed(workload: Workload, part: Part, verdict: Verdict, now_ms: int) -> Step:
    process = workload.process(part)
    if workload.stage is not Stage.RUNNING or not process.is_alive:
        return workload, ()
    if verdict is Verdict.READY:
        return _probed_ready(workload, part, now_ms)
    silences = process.silences + 1 if verdict is Verdict.SILENT else 0
    counted = _with(workload, part, lambda process: replace(process, silences=silences))
    if process.phase is not Phase.READY or (verdict is Verdict.SILENT and silences < workload.silences_max):
        return counted, ()
    unready = _with(counted, part, lambda process: replace(process, phase=Phase.UNREADY, since_ms=now_ms))
    told = Announce(kind="unready", text=f"its probe is {verdict.value}", part=part)
    left, out = _leave_rotation(unready)
    return left, (*out, told)


def _probed_ready(workload: Workload, part: Part, now_ms: int) -> Step:
    process = workload.process(part)
    if process.phase is Phase.READY:
        if process.silences == 0:
            return workload, ()
        return _with(workload, part, lambda process: replace(process, silences=0)), ()
    took = f"after {now_ms - process.since_ms} ms" if process.phase is Phase.STARTING else "again"
    ready = _with(workload, part, lambda process: replace(process, phase=Phase.READY, since_ms=now_ms, silences=0))
    told = Announce(kind="ready", text=took, part=part)
    started, out = _start_second(ready, now_ms)
    if out:
        return started, (told, *out)
    if ready.is_ready and not ready.in_rotation:
        return replace(ready, in_rotation=True), (told, Rotate(into=True))
    return ready, (told,)


def _tick(workload: Workload, now_ms: int) -> Step:
    if workload.stage is Stage.RUNNING:
        return _tick_running(workload, now_ms)
    if now_ms < workload.until_ms:
        return workload, ()
    if workload.stage is Stage.LEAVING:
        return _drain(workload, now_ms)
    if workload.stage is Stage.DRAINING:
        return _stop_next(workload, now_ms)
    return _stop_overdue(workload, now_ms)


def _tick_running(workload: Workload, now_ms: int) -> Step:
    actions: tuple[Action, ...] = ()
    for part in workload.order:
        due = _process_deadline(workload, part)
        if due is None or now_ms < due:
            continue
        workload, more = _process_due(workload, part, now_ms)
        actions += more
    return workload, actions


def _process_deadline(workload: Workload, part: Part) -> int | None:
    process = workload.process(part)
    if process.phase is Phase.WAITING:
        return process.retry_ms
    if process.kill_sent:
        return None
    if process.phase is Phase.STARTING:
        return process.since_ms + workload.start_ms_max
    if process.phase is Phase.UNREADY and process.silences:
        return process.since_ms + SILENT_MS_MAX
    if process.phase is Phase.READY and process.deaths:
        return process.since_ms + STABLE_MS
    return None


def _process_due(workload: Workload, part: Part, now_ms: int) -> Step:
    phase = workload.process(part).phase
    if phase is Phase.WAITING:
        return _start(workload, part, now_ms)
    if phase is Phase.READY:
        return _with(workload, part, lambda process: replace(process, deaths=0)), ()
    text = "was not ready in time" if phase is Phase.STARTING else "has been silent for too long"
    told = Announce(kind="killed", text=text, part=part, with_log=True)
    return _with(workload, part, lambda process: replace(process, kill_sent=True)), (told, Kill(part=part))


def _retire(workload: Workload, leave_ms: int, now_ms: int) -> Step:
    if workload.stage is not Stage.RUNNING:
        return workload, ()
    was_in_rotation = workload.in_rotation
    left, out = _leave_rotation(workload)
    told = Announce(kind="leaving", text="out of its callers' endpoints" if was_in_rotation else "was not in rotation")
    wait_ms = leave_ms if was_in_rotation else 0
    return replace(left, stage=Stage.LEAVING, until_ms=now_ms + wait_ms), (*out, told)


def _drain(workload: Workload, now_ms: int) -> Step:
    if workload.sidecar.phase is not Phase.READY:
        return _stop_next(workload, now_ms)
    draining = replace(workload, stage=Stage.DRAINING, until_ms=now_ms + workload.drain_ms_max)
    return draining, (DrainSidecar(),)


def _stop_next(workload: Workload, now_ms: int) -> Step:
    """Ask the next living process of the stop order to end; GONE when none is left."""
    for part in reversed(workload.order):
        if workload.process(part).is_alive:
            patience_ms = workload.grace_ms if part is Part.APP else STOP_SIDECAR_MS_MAX
            stopping = replace(workload, stage=Stage.STOPPING, until_ms=now_ms + patience_ms)
            return stopping, (Terminate(part=part),)
    parts = {part: replace(workload.process(part), phase=Phase.STOPPED) for part in Part}
    gone = replace(workload, stage=Stage.GONE, app=parts[Part.APP], sidecar=parts[Part.SIDECAR])
    return gone, (Announce(kind="stopped", text="its processes have ended"),)


def _stop_overdue(workload: Workload, now_ms: int) -> Step:
    for part in reversed(workload.order):
        if workload.process(part).is_alive:
            told = Announce(kind="killed", text="did not end in time", part=part)
            again = replace(workload, until_ms=now_ms + STOP_SIDECAR_MS_MAX)
            return again, (told, Kill(part=part))
    return _stop_next(workload, now_ms)

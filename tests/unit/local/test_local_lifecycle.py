"""The state machine of a workload: what must hold whatever happens, and the sequences that matter."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from generator.model.process import PROBE_FAILURES, START_PERIOD_MS
from generator.outputs.local.lifecycle import (
    BACKOFF_MS_MAX,
    BACKOFF_MS_MIN,
    STABLE_MS,
    STOP_SIDECAR_MS_MAX,
    backoff_ms,
    deadline_ms,
    decide,
)
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
    Release,
    Retire,
    Rotate,
    Spawn,
    Spawned,
    Stage,
    Terminate,
    Tick,
    Verdict,
    Workload,
)

REPLICA = Workload(name="nip-0", order=(Part.SIDECAR, Part.APP), drain_ms_max=2_000, grace_ms=12_000)
GATEWAY = Workload(name="gateway", order=(Part.APP, Part.SIDECAR), drain_ms_max=3_000, grace_ms=2_000)


class World:
    """Applies events, keeps the clock and the actions, and checks the invariants after each step."""

    def __init__(self, workload: Workload = REPLICA) -> None:
        self.workload = workload
        self.now_ms = 1_000
        self.alive: set[Part] = set()
        self.actions: list[Action] = []

    def feed(self, event: Event, after_ms: int = 0) -> list[Action]:
        self.now_ms += after_ms
        before = self.workload
        self.workload, actions = decide(before, event, self.now_ms)
        if isinstance(event, Exited):
            self.alive.discard(event.part)
        for action in actions:
            self.check(action)
        self.actions.extend(actions)
        self.check_state()
        return list(actions)

    def check(self, action: Action) -> None:
        first, second = self.workload.order
        if isinstance(action, Spawn):
            assert action.part not in self.alive, "never two of one"
            assert self.workload.stage is Stage.RUNNING
            self.alive.add(action.part)
        if isinstance(action, Terminate | Kill):
            assert action.part in self.alive, "only what lives is signalled"
        if isinstance(action, Terminate) and action.part is first:
            assert second not in self.alive, "the first to start is the last to stop"
        if isinstance(action, Rotate):
            assert action.into == self.workload.in_rotation

    def check_state(self) -> None:
        if self.workload.in_rotation:
            assert self.workload.is_ready, "in rotation means ready"
        for part in Part:
            assert self.workload.process(part).is_alive == (part in self.alive)
        if self.workload.stage is Stage.GONE:
            assert not self.alive
            assert deadline_ms(self.workload) is None

    def tick_at_deadline(self) -> list[Action]:
        due = deadline_ms(self.workload)
        assert due is not None
        return self.feed(Tick(), max(0, due - self.now_ms))

    def bring_up(self) -> None:
        self.feed(Begin())
        for part in self.workload.order:
            self.feed(Spawned(part=part, pid=100))
            self.feed(Probed(part=part, verdict=Verdict.SILENT))
            self.feed(Probed(part=part, verdict=Verdict.READY), 300)
        assert self.workload.in_rotation


def kinds(actions: list[Action]) -> list[str]:
    return [action.kind if isinstance(action, Announce) else type(action).__name__ for action in actions]


def died(part: Part, jitter: float = 0.0) -> Exited:
    return Exited(part=part, reason="killed by signal 9", jitter=jitter)


def test_a_replica_starts_its_sidecar_then_its_application_then_takes_traffic() -> None:
    world = World()
    assert world.feed(Begin()) == [Spawn(part=Part.SIDECAR)]
    assert world.feed(Spawned(part=Part.SIDECAR, pid=1)) == []
    assert Spawn(part=Part.APP) in world.feed(Probed(part=Part.SIDECAR, verdict=Verdict.READY))
    assert not world.workload.in_rotation
    assert Rotate(into=True) in world.feed(Probed(part=Part.APP, verdict=Verdict.READY))


def test_the_gateway_starts_its_introspection_server_first() -> None:
    world = World(GATEWAY)
    assert world.feed(Begin()) == [Spawn(part=Part.APP)]
    assert Spawn(part=Part.SIDECAR) in world.feed(Probed(part=Part.APP, verdict=Verdict.READY))


def test_what_is_held_waits_for_its_release() -> None:
    world = World(replace(GATEWAY, is_held=True))
    world.feed(Begin())
    assert kinds(world.feed(Probed(part=Part.APP, verdict=Verdict.READY))) == ["ready"]
    assert world.feed(Release()) == [Spawn(part=Part.SIDECAR)]
    assert world.feed(Release()) == []
    early = World(replace(GATEWAY, is_held=True))
    early.feed(Begin())
    assert early.feed(Release()) == []
    assert Spawn(part=Part.SIDECAR) in early.feed(Probed(part=Part.APP, verdict=Verdict.READY))


def test_a_dead_application_leaves_the_rotation_at_once_and_comes_back() -> None:
    for part in Part:
        world = World()
        world.bring_up()
        assert kinds(world.feed(died(part))) == ["Rotate", "died"]
        assert world.workload.process(part).phase is Phase.WAITING
        assert world.tick_at_deadline() == [Spawn(part=part)]
        world.feed(Spawned(part=part, pid=101))
        assert kinds(world.feed(Probed(part=part, verdict=Verdict.READY))) == ["ready", "Rotate"]
        assert world.workload.process(part).restarts == 1


def test_back_off_doubles_and_a_crash_loop_is_reported_once() -> None:
    world = World()
    world.feed(Begin())
    delays = []
    for _ in range(CRASH_LOOP_DEATHS + 2):
        world.feed(died(Part.SIDECAR))
        delays.append(world.workload.sidecar.retry_ms - world.now_ms)
        world.tick_at_deadline()
    assert delays == [200, 400, 800, 1600, 3200, 6400]
    assert kinds(world.actions).count("crash-loop") == 1
    assert world.workload.is_crash_looping


def test_stable_time_forgives() -> None:
    world = World()
    world.bring_up()
    world.feed(died(Part.APP))
    world.tick_at_deadline()
    world.feed(Probed(part=Part.APP, verdict=Verdict.READY))
    assert world.workload.app.deaths == 1
    world.feed(Tick(), STABLE_MS)
    assert world.workload.app.deaths == 0
    world.feed(died(Part.APP))
    assert world.workload.app.retry_ms - world.now_ms == BACKOFF_MS_MIN


def test_a_refusal_takes_it_out_and_readiness_brings_it_back() -> None:
    world = World()
    world.bring_up()
    assert kinds(world.feed(Probed(part=Part.APP, verdict=Verdict.REFUSED))) == ["Rotate", "unready"]
    assert world.feed(Probed(part=Part.APP, verdict=Verdict.REFUSED)) == []
    assert kinds(world.feed(Probed(part=Part.APP, verdict=Verdict.READY))) == ["ready", "Rotate"]


def test_a_single_silence_is_forgiven_and_many_are_not() -> None:
    world = World()
    world.bring_up()
    for _ in range(PROBE_FAILURES - 1):
        assert world.feed(Probed(part=Part.APP, verdict=Verdict.SILENT)) == []
    world.feed(Probed(part=Part.APP, verdict=Verdict.READY))
    for _ in range(PROBE_FAILURES - 1):
        world.feed(Probed(part=Part.APP, verdict=Verdict.SILENT))
    assert world.workload.in_rotation
    assert kinds(world.feed(Probed(part=Part.APP, verdict=Verdict.SILENT))) == ["Rotate", "unready"]
    assert kinds(world.tick_at_deadline()) == ["killed", "Kill"]
    assert deadline_ms(world.workload) is None


def test_a_process_that_never_gets_ready_is_killed_once() -> None:
    world = World()
    world.feed(Begin())
    assert kinds(world.feed(Tick(), START_PERIOD_MS)) == ["killed", "Kill"]
    assert world.feed(Tick(), START_PERIOD_MS) == []


def test_stopping_goes_through_every_stage_in_order() -> None:
    world = World()
    world.bring_up()
    assert kinds(world.feed(Retire(leave_ms=500))) == ["Rotate", "leaving"]
    assert world.feed(Tick(), 499) == []
    assert world.feed(Tick(), 1) == [DrainSidecar()]
    assert world.feed(Idle()) == [Terminate(part=Part.APP)]
    assert world.feed(died(Part.APP)) == [Terminate(part=Part.SIDECAR)]
    assert kinds(world.feed(died(Part.SIDECAR))) == ["stopped"]
    assert world.workload.stage is Stage.GONE


def test_the_gateway_stops_its_envoy_first() -> None:
    world = World(GATEWAY)
    world.bring_up()
    world.feed(Retire(leave_ms=0))
    world.tick_at_deadline()
    assert world.feed(Idle()) == [Terminate(part=Part.SIDECAR)]
    assert world.feed(died(Part.SIDECAR)) == [Terminate(part=Part.APP)]


def test_calls_that_never_end_do_not_keep_it_alive() -> None:
    world = World()
    world.bring_up()
    world.feed(Retire(leave_ms=0))
    world.tick_at_deadline()
    assert world.feed(Tick(), REPLICA.drain_ms_max) == [Terminate(part=Part.APP)]
    assert kinds(world.feed(Tick(), REPLICA.grace_ms)) == ["killed", "Kill"]
    assert world.feed(died(Part.APP)) == [Terminate(part=Part.SIDECAR)]
    assert kinds(world.feed(Tick(), STOP_SIDECAR_MS_MAX)) == ["killed", "Kill"]


def test_a_death_while_leaving_does_not_restart_anything() -> None:
    world = World()
    world.bring_up()
    world.feed(Retire(leave_ms=500))
    assert world.feed(died(Part.APP)) == []
    assert world.tick_at_deadline() == [DrainSidecar()]
    assert world.feed(Idle()) == [Terminate(part=Part.SIDECAR)]


def test_retiring_what_waits_for_its_restart_is_immediate() -> None:
    world = World()
    world.feed(Begin())
    world.feed(died(Part.SIDECAR))
    world.feed(Retire(leave_ms=500))
    world.tick_at_deadline()
    assert world.workload.stage is Stage.GONE


@given(st.integers(min_value=1, max_value=10_000), st.floats(min_value=0, max_value=1, exclude_max=True))
def test_every_delay_is_bounded(deaths: int, jitter: float) -> None:
    assert BACKOFF_MS_MIN // 2 <= backoff_ms(deaths, jitter) <= BACKOFF_MS_MAX


STEP = st.one_of(
    st.builds(Probed, part=st.sampled_from(Part), verdict=st.sampled_from(Verdict)),
    st.builds(died, part=st.sampled_from(Part), jitter=st.floats(min_value=0, max_value=1, exclude_max=True)),
    st.builds(Retire, leave_ms=st.integers(min_value=0, max_value=1_000)),
    st.builds(Idle),
    st.builds(Release),
    st.builds(Tick),
)


@given(
    st.sampled_from([REPLICA, GATEWAY, replace(GATEWAY, is_held=True)]),
    st.lists(st.tuples(STEP, st.integers(0, 40_000)), max_size=60),
)
def test_the_invariants_hold_whatever_happens(start: Workload, steps: list[tuple[Event, int]]) -> None:
    world = World(start)
    world.feed(Begin())
    for event, after_ms in steps:
        if isinstance(event, Exited) and event.part not in world.alive:
            continue
        world.feed(event, after_ms)


@given(
    st.sampled_from([REPLICA, GATEWAY, replace(GATEWAY, is_held=True)]),
    st.lists(st.tuples(STEP, st.integers(0, 40_000)), max_size=30),
)
def test_it_always_ends_when_asked_to(start: Workload, steps: list[tuple[Event, int]]) -> None:
    world = World(start)
    world.feed(Begin())
    for event, after_ms in steps:
        if not (isinstance(event, Exited) and event.part not in world.alive):
            world.feed(event, after_ms)
    world.feed(Retire(leave_ms=500))
    for _ in range(20):
        if world.workload.stage is Stage.GONE:
            return
        killed = [action.part for action in world.tick_at_deadline() if isinstance(action, Kill)]
        for part in killed:
            world.feed(died(part))
    raise AssertionError(world.workload)

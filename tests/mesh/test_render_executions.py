"""How often a call runs, and what its caller sees, whatever goes wrong: the table of docs/executions.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
import pytest
import pytest_asyncio

from generator.model import TrafficPolicy
from support.envoys import Envoys
from support.executions import MANIFEST, METHODS, PROTO, STREAMS_MAX, Callers, Cell, CountingApplication, cell
from support.faults import (
    DEADLINE_S,
    Drain,
    Fault,
    Scene,
    Strike,
    application_gone,
    caller_is_full,
    clusters_taken,
    drained,
    killed_application,
    killed_sidecar,
    misbehaves,
    no_room,
    refuses,
    sidecar_gone,
    sidecar_overloaded,
    too_slow,
)
from support.meshes import retuned
from support.raw_app import INTERNAL_ERROR, REFUSED_STREAM, babble, close, go_away, reset, reset_after_headers

pytestmark = [pytest.mark.mesh, pytest.mark.timeout(600)]
DOCUMENT = Path(__file__).parents[2] / "docs" / "executions.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
HINT = "run `pytest tests/mesh/test_render_executions.py --update-docs` and read the difference"
NEVER, HOUR_MS = 1_000_000, 3_600_000
"""Health checks and outlier detection would soon spare the calls the faulty replica; here every call has an even chance to meet it."""
ATTEMPTS = 4
"""The first and three more, of two replicas."""
ONCE = ("unary", "server stream", "client stream", "bidirectional stream")
"""Columns whose calls run at most once."""
REPEATABLE = ("unary, IDEMPOTENT", "unary, NO_SIDE_EFFECTS")
UNARY = ("unary", *REPEATABLE)
UNAVAILABLE, RESOURCE_EXHAUSTED = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED
PUSH_BACK = ("grpc-retry-pushback-ms", "20")
NO_MORE = ("grpc-retry-pushback-ms", "-1")
DEPENDENCY = ("x-nipmesh-dependency-failed", "true")
BEGUN = "the answer has begun: the caller's sidecar has passed it on"

FAULTS: tuple[Fault, ...] = (
    Fault(label="the application is gone, its sidecar lives", happen=application_gone, unseen=True),
    Fault(label="the sidecar is gone", happen=sidecar_gone, unseen=True),
    Fault(
        label="the application refuses the stream (`REFUSED_STREAM`)",
        happen=misbehaves(reset(REFUSED_STREAM), at_once=True),
        unseen=True,
    ),
    Fault(label="`GOAWAY` that does not take the call", happen=misbehaves(go_away, at_once=True), unseen=True),
    Fault(label="503 from the sidecar: no room towards the application", happen=no_room, unseen=True),
    Fault(label="503 from the sidecar: it is overloaded", happen=sidecar_overloaded, unseen=True),
    Fault(label="the caller's own breaker is open", happen=caller_is_full, alone=False, unseen=True),
    Fault(label="`RST_STREAM` before headers", happen=misbehaves(reset(INTERNAL_ERROR))),
    Fault(label="the connection breaks before headers", happen=misbehaves(close), one_at_a_time=True),
    Fault(label="the application speaks no HTTP/2", happen=misbehaves(babble), one_at_a_time=True),
    Strike(label="`kill -9` of the application in the middle of the call", victim=killed_application, together=False),
    Strike(label="`kill -9` of the sidecar in the middle of the call", victim=killed_sidecar, together=False),
    Fault(label="`UNAVAILABLE`, trailers only", happen=refuses(UNAVAILABLE)),
    Fault(label="`UNAVAILABLE` with a push-back of 20 ms", happen=refuses(UNAVAILABLE, PUSH_BACK)),
    Fault(
        label="`UNAVAILABLE` with a negative push-back",
        happen=refuses(UNAVAILABLE, NO_MORE),
        lost="the service forbids it",
    ),
    Fault(
        label="`UNAVAILABLE` because of a dependency",
        happen=refuses(UNAVAILABLE, DEPENDENCY),
        lost="another replica would fail alike",
    ),
    Fault(label="`RESOURCE_EXHAUSTED` with a push-back of 20 ms", happen=refuses(RESOURCE_EXHAUSTED, PUSH_BACK)),
    Fault(
        label="`RESOURCE_EXHAUSTED`, trailers only",
        happen=refuses(RESOURCE_EXHAUSTED),
        lost="a quota is not a replica's: without a push-back another attempt only adds to the load",
    ),
    Fault(label="`UNAVAILABLE` after initial metadata", happen=refuses(UNAVAILABLE, after_headers=True), lost=BEGUN),
    Fault(
        label="`RESOURCE_EXHAUSTED` after initial metadata",
        happen=refuses(RESOURCE_EXHAUSTED, PUSH_BACK, after_headers=True),
        lost=BEGUN,
    ),
    Fault(label="`RST_STREAM` after headers", happen=misbehaves(reset_after_headers(INTERNAL_ERROR)), lost=BEGUN),
    Strike(
        label="slower than the deadline",
        victim=too_slow,
        timeout_s=DEADLINE_S,
        rounds=1,
        lost="there is no time left",
        together=False,
    ),
    Drain(label="the replica drains", happen=drained, together=False, unseen=True),
)
Row = dict[str, Cell]


@dataclass(frozen=True)
class Measured:
    """The cells of each row: with one of two replicas faulty, and with both."""

    alone: dict[str, Row]
    together: dict[str, Row]

    def rows(self) -> Iterator[tuple[str, Row]]:
        """All rows of both."""
        yield from self.alone.items()
        yield from self.together.items()


def patient(traffic: TrafficPolicy) -> TrafficPolicy:
    """The same policy, but replicas are never taken for sick."""
    outlier = replace(
        traffic.outlier_detection,
        consecutive_errors=NEVER,
        consecutive_gateway_errors=NEVER,
        success_rate=None,
        failure_percentage=None,
    )
    check = replace(traffic.health_check, interval_ms=HOUR_MS)
    return replace(traffic, outlier_detection=outlier, health_check=check)


async def have_patience(envoys: Envoys) -> None:
    """Only now: a first check that comes too early would be the last one."""
    modified = envoys.stat("front-0", "^cluster_manager.cluster_modified$")
    envoys.mesh = retuned(envoys.mesh, patient)
    envoys.publish()
    await clusters_taken(envoys, "front-0", modified)
    await envoys.until(lambda: envoys.healthy("front-0"), "front-0 sees no healthy peers")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def measured(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Measured]:
    executions: Counter[bytes] = Counter()
    envoys = Envoys(
        tmp_path_factory.mktemp("executions"),
        MANIFEST,
        PROTO,
        application=lambda listen: CountingApplication(listen, executions=executions),
    )
    try:
        await envoys.start()
        await have_patience(envoys)
        target = f"unix:{envoys.sockets / 'front-0' / 'egress.sock'}"
        async with envoys.channel("front-0") as channel:
            with grpc.insecure_channel(target) as blocking, ThreadPoolExecutor(STREAMS_MAX) as threads:
                measured = await measure(Scene(envoys, executions, Callers(channel, blocking, threads)))
        yield measured
    finally:
        await envoys.stop()


async def measure(scene: Scene) -> Measured:
    alone = {fault.label: await row(scene, fault, ("echo-0",)) for fault in FAULTS if fault.alone}
    together = {fault.label: await row(scene, fault, ("echo-0", "echo-1")) for fault in FAULTS if fault.together}
    return Measured(alone, together)


async def row(scene: Scene, fault: Fault, replicas: tuple[str, ...]) -> Row:
    ended = await fault.measure(scene, replicas)
    active = r"^(cluster.outbound_echo.upstream_rq_active|http.inbound.downstream_rq_active)$"
    for name in ("front-0", "echo-0", "echo-1"):
        await scene.envoys.until(lambda name=name: scene.envoys.stat(name, active) == 0, "calls do not end")
    return {
        column: cell((call for name in names for call in ended[name]), scene.executions)
        for column, names in METHODS.items()
    }


def test_what_may_not_run_twice_runs_at_most_once_whatever_happens(measured: Measured) -> None:
    for label, cells in measured.rows():
        for column in ONCE:
            assert cells[column].executions_max <= 1, f"{label}, {column}: {cells[column]}"


def test_what_the_application_never_saw_is_repeated_for_every_unary_method(measured: Measured) -> None:
    for fault in FAULTS:
        if fault.unseen and fault.alone:
            for column in UNARY:
                assert str(measured.alone[fault.label][column]) == "1x OK", f"{fault.label}, {column}"


def test_what_may_run_twice_succeeds_while_a_replica_is_healthy(measured: Measured) -> None:
    for fault in FAULTS:
        for column in REPEATABLE:
            if fault.alone and fault.lost is None:
                assert measured.alone[fault.label][column].codes == {"OK"}, f"{fault.label}, {column}"


def test_what_the_service_or_the_time_forbids_is_not_repeated(measured: Measured) -> None:
    for fault in FAULTS:
        for column in REPEATABLE:
            if fault.lost is not None:
                cells = measured.alone[fault.label]
                assert cells[column] == cells["unary"], f"{fault.label}, {column}: {cells[column]}"


def test_attempts_have_an_end(measured: Measured) -> None:
    for label, cells in measured.rows():
        assert max(each.executions_max for each in cells.values()) <= ATTEMPTS, label


def test_the_faults_were_met(measured: Measured) -> None:
    """A replica that no call reaches would make every rule hold."""
    for fault in FAULTS:
        if fault.alone and not isinstance(fault, Drain):
            assert measured.alone[fault.label]["server stream"].codes > {"OK"}, fault.label
        if fault.together:
            assert all("OK" not in each.codes for each in measured.together[fault.label].values()), fault.label


def test_the_document_says_what_is_measured(measured: Measured, update_docs: bool) -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin, f"{DOCUMENT} lacks {BEGIN}"
    assert end, f"{DOCUMENT} lacks {END}"
    now = before + begin + section(measured) + end + after
    if update_docs:
        DOCUMENT.write_text(now, encoding="utf-8")
        text = now
    assert text == now, HINT


def section(measured: Measured) -> str:
    """What stands between the markers."""
    reasons = [f"- {fault.label}: {fault.lost}." for fault in FAULTS if fault.lost is not None]
    parts = (
        "## One of two replicas is faulty",
        table(measured.alone),
        "Where a method that may run twice fails although the other replica is healthy:",
        "\n".join(reasons),
        "## Both replicas are faulty",
        table(measured.together),
    )
    return "\n\n" + "\n\n".join(parts) + "\n\n"


def table(rows: dict[str, Row]) -> str:
    heads = ["fault", *METHODS]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    lines += [
        "| " + " | ".join([label, *(str(cells[column]) for column in METHODS)]) + " |" for label, cells in rows.items()
    ]
    return "\n".join(lines)

"""What stands beside applications: sidecars, the gateway, the introspection server and the server of events."""

from __future__ import annotations

from generator.model import Mesh
from generator.model.defaults import STREAM_DURATION_MS_MAX
from generator.model.events import EVENTS
from generator.model.mesh import GATEWAY
from generator.outputs.workloads.description import (
    Condition,
    Dependency,
    Part,
    Place,
    Process,
    Program,
    Where,
    Word,
    waiting_for,
)

INTROSPECTION = "introspection"
DRAIN_TIME_S = STREAM_DURATION_MS_MAX // 1000 + 30
"""When a listener is replaced, Envoy asks the connections of the old one to go with their next answer, and ends by then
whatever is left on them: later than any stream may live. Processes that drain we end long before."""
ACCESS_LOG_FLUSH_MS = 1_000
"""Envoy's default of 10 s makes whoever follows a log wait."""
SIDECAR_GRACE_MS = 5_000
"""Envoy exits within 100 ms of SIGTERM; afterwards it is killed."""
INTROSPECTION_GRACE_MS = 3_000
EVENTS_GRACE_MS = 10_000
"""NATS writes what it has and closes its files within a tenth of a second."""
DESCRIPTORS, EXPOSURE = "descriptors.binpb", "exposure.json"


def sidecar_name(workload: str) -> str:
    """The name of the process beside an application."""
    return f"{workload}-sidecar"


def has_event_server(mesh: Mesh) -> bool:
    """Whether the mesh brings its own server of events."""
    return mesh.events is not None and mesh.events.cluster is None


def sidecar(workload: str, service: str) -> Process:
    """Describe the Envoy of one replica."""
    return _envoy(sidecar_name(workload), Part.SIDECAR, workload, service=service)


def gateway(mesh: Mesh) -> Process:
    """Describe the Envoy at the edge: it opens when every application is ready."""
    replicas = (f"{service.name}-{index}" for service in mesh.services for index in range(service.replicas))
    before = Dependency(process=INTROSPECTION, condition=Condition.STARTED)
    depends_on = (before, *waiting_for(replicas, Condition.READY))
    return _envoy(GATEWAY, Part.GATEWAY, GATEWAY, depends_on=depends_on)


def introspection() -> Process:
    """Describe the server beside the gateway that answers reflection and health."""
    command: tuple[Word, ...] = (
        *("--listen", Place(where=Where.LISTEN)),
        *("--descriptor-set", Place(where=Where.EXPOSURE, name=DESCRIPTORS)),
        *("--methods", Place(where=Where.EXPOSURE, name=EXPOSURE)),
        *("--admin", Place(where=Where.ADMIN)),
        # Always: whether the world may ask is a matter of the gateway's routes, which change while it runs.
        "--reflection",
    )
    return Process(
        name=INTROSPECTION,
        part=Part.INTROSPECTION,
        workload=GATEWAY,
        program=Program.NIPMESH,
        command=("generator.introspection", *command),
        stop_grace_ms=INTROSPECTION_GRACE_MS,
    )


def event_server() -> Process:
    """Describe NATS, with the configuration that follows from who hears whom."""
    return Process(
        name=EVENTS,
        part=Part.EVENTS,
        workload=EVENTS,
        program=Program.NATS,
        command=("--config", Place(where=Where.CONFIGURATION)),
        data=EVENTS,
        stop_grace_ms=EVENTS_GRACE_MS,
    )


def _envoy(
    name: str, part: Part, workload: str, *, service: str | None = None, depends_on: tuple[Dependency, ...] = ()
) -> Process:
    """One worker: one gRPC channel is one connection is one worker anyway."""
    return Process(
        name=name,
        part=part,
        workload=workload,
        service=service,
        program=Program.ENVOY,
        command=(
            *("--config-path", Place(where=Where.BOOTSTRAP)),
            *("--concurrency", "1", "--disable-hot-restart", "--reject-unknown-dynamic-fields"),
            *("--drain-time-s", str(DRAIN_TIME_S), "--drain-strategy", "immediate"),
            *("--file-flush-interval-msec", str(ACCESS_LOG_FLUSH_MS), "--log-level", "warning"),
        ),
        stop_grace_ms=SIDECAR_GRACE_MS,
        depends_on=depends_on,
    )

"""The streams as the manifest means them, and how a server comes to have them. Safe to do again at any time."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace

from nats.js import JetStreamContext
from nats.js.api import DiscardPolicy, ExternalStream, RetentionPolicy, StorageType, StreamConfig, StreamSource
from nats.js.errors import NotFoundError

from generator.model import Hearing, Mesh
from generator.model.events import filters, inbox
from generator.outputs.nats.connection import Keepers
from generator.render.nats import CONSUMERS_MAX, PAYLOAD_BYTES_MAX, SOURCE_API, delivery, hearers

DUPLICATES_S = 120.0
"""How long the server remembers the ids of events: an outbox that published and then died says it again within seconds."""
REPLICAS_MAX = 3
"""Of a stream in a cluster that has as many servers: one of them may die."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """What there has to be."""

    mesh: str
    retention_ms: int
    bytes_max: int
    replicas: int
    inboxes: Mapping[str, tuple[str, ...]]
    """Service to the subjects that are copied into its own stream; none: it has no such stream."""

    def to_json(self) -> bytes:
        """Write it for whoever makes the streams without the manifest."""
        return (json.dumps(dataclasses.asdict(self), indent=2) + "\n").encode()

    @classmethod
    def from_json(cls, content: bytes) -> Topology:
        """Read what `to_json` wrote. Raises ValueError when it is something else."""
        try:
            document = dict(json.loads(content))
            inboxes = {str(name): tuple(map(str, subjects)) for name, subjects in document.pop("inboxes").items()}
            return cls(inboxes=inboxes, **document)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError("it describes no streams") from error


def topology(mesh: Mesh, hears: Mapping[str, tuple[Hearing, ...]] | None = None) -> Topology:
    """What a mesh with events needs; `hears` stands for the mesh's own `consumes` while it changes."""
    assert mesh.events is not None, mesh.name
    everybody = hearers(mesh) if hears is None else hears
    found = {name: filters(mesh.name, heard) for name, heard in everybody.items()}
    servers = 1 if mesh.events.cluster is None else mesh.events.cluster.url.count(",") + 1
    return Topology(
        mesh=mesh.name,
        retention_ms=mesh.events.retention_ms,
        bytes_max=mesh.events.bytes_max,
        replicas=REPLICAS_MAX if servers >= REPLICAS_MAX else 1,
        inboxes=found,
    )


async def ensure(keepers: Keepers, wanted: Topology) -> None:
    """Make the server have it. Nothing that is stored is lost; consumers keep their places when it changes what a service hears.

    Raises EventsError.
    """
    async with keepers.mesh.open() as jetstream:
        await _have(jetstream, mesh_stream(wanted))
    await asyncio.gather(*(_ensure_inbox(keepers, wanted, name) for name in wanted.inboxes))


async def _ensure_inbox(keepers: Keepers, wanted: Topology, service: str) -> None:
    async with keepers.of(service).open() as jetstream:
        if wanted.inboxes[service]:
            await _have(jetstream, inbox_stream(wanted, service, is_led=keepers.has_accounts))
            return
        with contextlib.suppress(NotFoundError):
            await jetstream.delete_stream(inbox(wanted.mesh, service))


async def _have(jetstream: JetStreamContext, config: StreamConfig) -> None:
    assert config.name is not None
    try:
        await jetstream.stream_info(config.name)
    except NotFoundError:
        await jetstream.add_stream(config)
    else:
        await jetstream.update_stream(config)


def mesh_stream(wanted: Topology) -> StreamConfig:
    """Every event of the mesh."""
    return replace(
        _base(wanted), name=wanted.mesh, subjects=[f"{wanted.mesh}.>"], allow_atomic=True, allow_batched=True
    )


def inbox_stream(wanted: Topology, service: str, *, is_led: bool) -> StreamConfig:
    """What one service hears, copied from the mesh's stream; `is_led`: out of the mesh's account into the service's.

    Each type that it hears is a source of its own: the server knows of each how far it is, also after it was taken away and came back, so
    that a change of the manifest neither loses an event nor brings one again.
    """
    external = ExternalStream(api=SOURCE_API, deliver=delivery(service)) if is_led else None
    sources = [
        StreamSource(name=wanted.mesh, filter_subject=subject, external=external) for subject in wanted.inboxes[service]
    ]
    return replace(_base(wanted), name=inbox(wanted.mesh, service), sources=sources)


def _base(wanted: Topology) -> StreamConfig:
    return StreamConfig(
        storage=StorageType.FILE,
        retention=RetentionPolicy.LIMITS,
        # Full: who publishes waits, and so does what is copied. Old events are never thrown away before their time.
        discard=DiscardPolicy.NEW,
        max_age=wanted.retention_ms / 1000,
        max_bytes=wanted.bytes_max,
        max_msg_size=PAYLOAD_BYTES_MAX,
        max_consumers=CONSUMERS_MAX,
        num_replicas=wanted.replicas,
        duplicate_window=min(DUPLICATES_S, wanted.retention_ms / 1000),
        allow_direct=True,
        deny_delete=True,
        deny_purge=True,
    )

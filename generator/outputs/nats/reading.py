"""Reads the mesh's stream as an operator: what is in it, from any place, and what comes."""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import unquote

from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from google.protobuf.message import DecodeError
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from generator.outputs.nats.connection import Keepers
from generator.outputs.nats.state import consumer_of, state_of

BATCH = 100
WAIT_S = 1.0
"""For what comes; an empty answer in the meantime means that everything was read."""
IDLE_S = 30.0
"""A reader that is gone is forgotten after so long."""
SCHEMA_PREFIX = "https://type.googleapis.com/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which events to read, and from where on; nothing set: from the oldest."""

    subject: str
    """As NATS filters."""
    about: str = ""
    """Only what is about this (the CloudEvent's subject)."""
    sequence: int | None = None
    time: dt.datetime | None = None
    last: int | None = None
    """So many from the end of the stream, where nothing else is said."""


class Payloads:
    """Shows payloads by the descriptors of the mesh."""

    def __init__(self, descriptor_set: bytes) -> None:
        self._pool = descriptor_pool.DescriptorPool()
        for file in descriptor_pb2.FileDescriptorSet.FromString(descriptor_set).file:
            self._pool.AddSerializedFile(file.SerializeToString())

    def shown(self, schema: str, data: bytes) -> Any:
        """The payload as a JSON value; None when its message is unknown or it is no such message."""
        try:
            kind = message_factory.GetMessageClass(self._pool.FindMessageTypeByName(schema))
            return json_format.MessageToDict(
                kind.FromString(data), preserving_proto_field_name=True, descriptor_pool=self._pool
            )
        except (KeyError, DecodeError, TypeError, ValueError):
            return None


async def read(jetstream: JetStreamContext, stream: str, wanted: Wanted, payloads: Payloads) -> AsyncIterator[Any]:
    """Give each event as a JSON object, for ever; None each time that everything has been read."""
    if wanted.last is not None:
        newest = (await jetstream.stream_info(stream)).state.last_seq
        wanted = replace(wanted, sequence=newest - wanted.last + 1)
    subscription = await jetstream.pull_subscribe(wanted.subject, stream=stream, config=_config(wanted))
    while True:
        try:
            messages = await subscription.fetch(BATCH, timeout=WAIT_S)
        except TimeoutError:
            yield None
            continue
        for message in messages:
            event = event_of(message, payloads)
            if wanted.about in ("", event["subject"]):
                yield event


async def describe(keepers: Keepers, mesh: str, inboxes: Mapping[str, str]) -> dict[str, Any]:
    """The mesh's stream, and of each service its own one with its consumers. Raises EventsError."""
    async with keepers.mesh.open() as jetstream:
        found: dict[str, Any] = {"stream": state_of(await jetstream.stream_info(mesh)), "inboxes": {}}
    for service, name in inboxes.items():
        async with keepers.of(service).open() as jetstream:
            consumers = [consumer_of(info) for info in await jetstream.consumers_info(name)]
            found["inboxes"][service] = state_of(await jetstream.stream_info(name)) | {"consumers": consumers}
    return found


def event_of(message: Msg, payloads: Payloads) -> dict[str, Any]:
    """One event with its attributes and payload; what is no CloudEvent has empty ones."""
    headers = {name.lower(): unquote(value) for name, value in (message.headers or {}).items()}
    schema = headers.get("ce-dataschema", "").removeprefix(SCHEMA_PREFIX)
    publisher, _, kind = message.subject.partition(".")[2].partition(".")
    return {
        "sequence": message.metadata.sequence.stream,
        "stored": message.metadata.timestamp.isoformat(timespec="milliseconds"),
        "publisher": publisher,
        "type": headers.get("ce-type") or kind,
        "id": headers.get("ce-id", ""),
        "source": headers.get("ce-source", ""),
        "subject": headers.get("ce-subject", ""),
        "time": headers.get("ce-time", ""),
        "schema": schema,
        "bytes": len(message.data),
        "data": payloads.shown(schema, message.data),
    }


def _config(wanted: Wanted) -> ConsumerConfig:
    config = ConsumerConfig(
        ack_policy=AckPolicy.NONE, deliver_policy=DeliverPolicy.ALL, inactive_threshold=IDLE_S, mem_storage=True
    )
    if wanted.sequence is not None:
        return config.evolve(deliver_policy=DeliverPolicy.BY_START_SEQUENCE, opt_start_seq=max(1, wanted.sequence))
    if wanted.time is not None:
        return config.evolve(deliver_policy=DeliverPolicy.BY_START_TIME, opt_start_time=wanted.time)
    return config

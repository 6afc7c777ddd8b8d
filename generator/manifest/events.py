"""The manifest's words about events: where they are kept, and what a service hears of whom."""
# ruff: noqa: RUF009  (key() makes a dataclasses.field, which is what belongs there)

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from generator.manifest.collections import Either, ListOf, MapOf, RecordOf, key
from generator.manifest.kinds import Choice, Duration, Number, Text
from generator.manifest.policies import NAME
from generator.manifest.values import Entry, Located, Record

SERVERS: Final = ("nats",)
"""What the runner can start."""
TYPES_MAX = 200
PUBLISHERS_MAX = 1_000
RETENTION_MS_MIN = 60_000
"""A consumer that restarts must find what came meanwhile."""
RETENTION_MS_MAX = 366 * 24 * 3_600_000
STORAGE_BYTES_MIN = 16 * 1024 * 1024
"""NATS writes blocks of 4 to 8 MiB: less than a few of them is no storage."""
STORAGE_BYTES_MAX = 900_000_000_000

EVENT_TYPE: Final = Text(
    word="a type of event like `shop.orders.v1.placed`, `shop.orders.v1.*`, or `*` for all",
    pattern=r"\*|[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*(\.\*)?",
    length_max=200,
    rule="a type has words of letters, digits, underscores and hyphens with dots between; a last `*` stands for one word, "
    "a `*` alone for every type",
)
EVENTS_URL: Final = Text(
    word="a URL like `tls://a.example.org:4222,b.example.org:4222`",
    pattern=r"(nats|tls|amqps?|kafka(\+tls)?)://[A-Za-z0-9.\-\[\]:]+(,[A-Za-z0-9.\-\[\]:]+)*(/[A-Za-z0-9._\-]+|\?mechanism=[A-Z0-9\-]+)?",
    length_max=1_000,
    rule="a URL is tls:// (NATS), amqps:// (RabbitMQ) or kafka+tls:// (or nats://, amqp://, kafka://, without encryption) and the "
    "cluster's hosts with their ports, separated by commas; credentials do not belong into it",
)
PATH: Final = Text(
    word="a path", pattern=r".+", length_max=1_024, rule="a path is relative to the manifest, or absolute"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EventsEntry(Record):
    """Where events are kept: a server that the runner starts, or a cluster that is there already."""

    server: Located[str] | None = key(
        Choice(options=SERVERS),
        "A server that the runner starts, keeps and stops; its files lie in the mesh's data folder.",
        required=True,
        unless="url",
        example="nats",
    )
    url: Located[str] | None = key(
        EVENTS_URL,
        "A cluster that others run, instead of `server`.",
        default="the runner's own server",
    )
    ca: Located[str] | None = key(
        PATH,
        "The authorities that may have signed the cluster's certificates, PEM.",
        default="those that the system trusts",
    )
    credentials: Located[str] | tuple[Entry[Located[str]], ...] | None = key(
        Either(
            scalar=PATH,
            mapping=MapOf(key=NAME, item=PATH, count_max=PUBLISHERS_MAX, word="a mapping from service to file"),
            word="the path of a file, or a mapping from service to file",
        ),
        "The file with which a service proves itself to the cluster; one for each service, so that each may do its own part only.",
        default="none",
    )
    admin: Located[str] | None = key(
        PATH,
        "A credential of the cluster that may make and change the stream and its consumers.",
        default="none: both are there already",
    )
    retention: Located[int] | None = key(
        Duration(minimum_ms=RETENTION_MS_MIN, maximum_ms=RETENTION_MS_MAX),
        "How long an event is kept, heard or not.",
        default="168h",
    )
    max_bytes: Located[int] | None = key(
        Number(minimum=STORAGE_BYTES_MIN, maximum=STORAGE_BYTES_MAX),
        "How much is kept; when it is full, nothing is lost: new events wait in the services' outboxes.",
        default="4294967296, 4 GiB",
    )


EVENTS: Final = Either(
    scalar=Choice(options=SERVERS),
    mapping=RecordOf(record=EventsEntry, word="`nats`, or `{url: tls://a.example.org:4222}`"),
    word="`nats`, or `{url: tls://a.example.org:4222}`",
)
"""`events: nats` is short for `events: {server: nats}`."""

CONSUMES: Final = MapOf(
    key=NAME,
    item=ListOf(item=EVENT_TYPE, count_max=TYPES_MAX, word="a list of event types"),
    count_max=PUBLISHERS_MAX,
    word="a mapping from service to event types",
)

__all__ = ["CONSUMES", "EVENTS", "EVENT_TYPE", "EventsEntry"]

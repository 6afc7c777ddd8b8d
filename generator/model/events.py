"""Events as the mesh has them: where they are kept, who hears what of whom, and the names that follow from that.

One stream per mesh; an event's subject is mesh, publisher and type. A service that hears has a stream of its own beside it, into which the
server copies what the service may hear, in the moment it comes: there it has whatever consumers it likes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

EVENTS = "events"
"""The server in SPIFFE ids, folders and logs; where the runner starts one, no service may be called so."""
EVERYTHING = "*"
NATS_SCHEMES = ("nats://", "tls://")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hearing:
    """What one service hears of one publisher."""

    publisher: str
    types: tuple[str, ...]
    """As written, sorted: `shop.v1.placed`, `shop.v1.*`, or `*` for everything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """A cluster that others run."""

    url: str
    ca: Path | None
    credentials: Path | None
    """Of every service that has none of its own."""
    service_credentials: tuple[tuple[str, Path], ...]
    admin: Path | None
    """May make the stream and its consumers; None: they are there."""

    @property
    def is_nats(self) -> bool:
        """Whether nipmesh can keep its streams; in RabbitMQ and Kafka services make what they need themselves."""
        return self.url.startswith(NATS_SCHEMES)

    def credentials_of(self, service: str) -> Path | None:
        """The file with which a service proves itself."""
        return dict(self.service_credentials).get(service, self.credentials)


@dataclass(frozen=True, slots=True, kw_only=True)
class Events:
    """Where events are kept and for how long."""

    cluster: Cluster | None
    """None: a server of the runner's own."""
    retention_ms: int
    bytes_max: int


def inbox(mesh: str, service: str) -> str:
    """The stream of what a service hears; no name of a mesh or a service has an underscore, so that each is one service's."""
    return f"{mesh}_{service}"


def subject_filter(mesh: str, publisher: str, event_type: str) -> str:
    """The subjects of a type of event: `*` at its end stands for one word, alone for everything."""
    return f"{mesh}.{publisher}.{'>' if event_type == EVERYTHING else event_type}"


def filters(mesh: str, hears: Iterable[Hearing]) -> tuple[str, ...]:
    """Every subject that these may bring, sorted; none is inside another, so that each event comes once."""
    subjects = {subject_filter(mesh, hearing.publisher, name) for hearing in hears for name in hearing.types}
    return tuple(sorted(one for one in subjects if not any(covers(other, one) for other in subjects - {one})))


def covers(wide: str, narrow: str) -> bool:
    """Whether every subject of one filter is one of another (NATS: `*` is one word, a last `>` one or more)."""
    mine, theirs = wide.split("."), narrow.split(".")
    for index, word in enumerate(mine):
        if word == ">":
            return len(theirs) > index
        if index >= len(theirs) or theirs[index] == ">" or (word not in ("*", theirs[index])):
            return False
    return len(mine) == len(theirs)

"""Reads by id: straight from the database, or through the cache when there is one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, Protocol, TypeVar

from google.protobuf.message import DecodeError, Message
from prometheus_client import CollectorRegistry, Counter

from services.chassis.errors import ServiceError
from services.storage.cache.gathering import Gathering
from services.storage.cache.history import DIGEST_BYTES, History, Mark, look, newest_mark
from services.storage.cache.sealing import Sealer
from services.storage.cache.server import Found
from services.storage.database import Database
from services.storage.sql import Connection

MessageT = TypeVar("MessageT", bound=Message)

ENTRY_BYTES_MAX: Final = 16_384
"""Larger answers are not kept: they are rare, and would push many small ones out."""
_SEQUENCE_BYTES: Final = 8
_OWNER_BYTES: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryKind(Generic[MessageT]):
    """A kind of thing that may be cached, by the id that its events have as their subject.

    Whatever changes its message or its owner appends such an event in the same transaction.
    """

    name: str
    message_type: type[MessageT]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry(Generic[MessageT]):
    """A thing with all that its owner may see, and who that is: the reader checks, and conceals from others."""

    owner: str
    message: MessageT


class Reads(Protocol):
    """Reads by id."""

    async def read(
        self,
        kind: EntryKind[MessageT],
        subject: str,
        load: Callable[[Connection], Entry[MessageT]],
        *,
        min_sequence: int | None = None,
    ) -> Entry[MessageT]:
        """The entry as it is now, that is: with every change that was acknowledged before. What `load` raises is raised.

        `min_sequence`: as for `Database.read`, when the database has to be asked. What comes from the cache is never older than now.
        """


class Direct:
    """Without a cache."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def read(
        self,
        kind: EntryKind[MessageT],
        subject: str,
        load: Callable[[Connection], Entry[MessageT]],
        *,
        min_sequence: int | None = None,
    ) -> Entry[MessageT]:
        """From the database."""
        return await self._database.read(load, min_sequence=min_sequence)


class Shelf(Protocol):
    """Where entries lie: whatever it answers, reads are right."""

    async def get(self, name: str) -> Found:
        """What lies there."""

    def put(self, name: str, value: bytes) -> bool:
        """Lay it there, perhaps."""


class Cached:
    """Through a cache; see the package."""

    def __init__(
        self, database: Database, shelf: Shelf, sealer: Sealer, *, place: str, registry: CollectorRegistry
    ) -> None:
        """`place` tells this database's entries from others on the same server."""
        self._database = database
        self._shelf = shelf
        self._sealer = sealer
        self._place = place
        self._history = History()
        self._generation: int | None = None
        self._looks: Gathering[None, bool] = Gathering(self._look, "cache looks")
        self._reads = Counter("nipmesh_cache_reads", "Reads by id.", ("kind", "outcome"), registry=registry)
        self._fills = Counter("nipmesh_cache_fills", "Entries for the cache.", ("kind", "outcome"), registry=registry)

    async def read(
        self,
        kind: EntryKind[MessageT],
        subject: str,
        load: Callable[[Connection], Entry[MessageT]],
        *,
        min_sequence: int | None = None,
    ) -> Entry[MessageT]:
        """From the cache if what lies there still holds, else from the database; then it is kept."""
        name = f"nipmesh:{self._place}:{kind.name}:{subject}"
        found, outcome = await self._find(kind, name, subject)
        self._reads.labels(kind.name, outcome).inc()
        if found is not None:
            return found
        entry, mark = await self._database.read(
            lambda connection: (load(connection), newest_mark(connection)), min_sequence=min_sequence
        )
        if outcome != "unreached" and mark is not None:
            self._keep(kind, name, entry, mark)
        return entry

    async def close(self) -> None:
        """End the looks."""
        await self._looks.close()

    async def _find(self, kind: EntryKind[MessageT], name: str, subject: str) -> tuple[Entry[MessageT] | None, str]:
        """What the cache has, if it still holds, and how it went."""
        found = await self._shelf.get(name)
        if found.value is None:
            return None, "absent" if found.reached else "unreached"
        content = self._sealer.open_sealed(name, found.value)
        fact = None if content is None else _unpack(kind, content)
        if fact is None:
            return None, "unreadable"
        entry, mark = fact
        if not await self._up_to_date() or not self._history.holds(mark, subject):
            return None, "outdated"
        return entry, "hit"

    def _keep(self, kind: EntryKind[MessageT], name: str, entry: Entry[MessageT], mark: Mark) -> None:
        content = _pack(entry, mark)
        if len(content) > ENTRY_BYTES_MAX:
            outcome = "too_large"
        else:
            outcome = "sent" if self._shelf.put(name, self._sealer.seal(name, content)) else "dropped"
        self._fills.labels(kind.name, outcome).inc()

    async def _up_to_date(self) -> bool:
        """Bring the history up to what was committed before this call; False when that cannot be known."""
        generation = self._database.generation()
        if generation is not None and generation == self._generation:
            return True
        return await self._looks.answer(None)

    async def _look(self, asking: Sequence[None]) -> Sequence[bool]:
        """Read what is new, for all who ask. When the database cannot be reached, each finds that out itself."""
        generation, position = self._database.generation(), self._history.position
        try:
            seen = await self._database.read(lambda connection: look(connection, position))
        except ServiceError:
            return [False] * len(asking)
        self._history.add(seen)
        self._generation = generation
        return [True] * len(asking)


def _pack(entry: Entry[Any], mark: Mark) -> bytes:
    """A fact in bytes."""
    owner = entry.owner.encode()
    return b"".join(
        (
            mark.sequence.to_bytes(_SEQUENCE_BYTES, "big"),
            mark.digest,
            len(owner).to_bytes(_OWNER_BYTES, "big"),
            owner,
            entry.message.SerializeToString(),
        )
    )


def _unpack(kind: EntryKind[MessageT], content: bytes) -> tuple[Entry[MessageT], Mark] | None:
    """The fact in bytes of ours; None when it is of a version of the software that we cannot read."""
    rest = memoryview(content)
    sequence, rest = int.from_bytes(rest[:_SEQUENCE_BYTES], "big"), rest[_SEQUENCE_BYTES:]
    digest, rest = bytes(rest[:DIGEST_BYTES]), rest[DIGEST_BYTES:]
    length, rest = int.from_bytes(rest[:_OWNER_BYTES], "big"), rest[_OWNER_BYTES:]
    try:
        owner, message = bytes(rest[:length]).decode(), kind.message_type.FromString(bytes(rest[length:]))
    except (UnicodeDecodeError, DecodeError):
        return None
    return Entry(owner=owner, message=message), Mark(sequence, digest)

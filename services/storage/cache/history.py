"""What changed lately: the newest events of the database as far as one replica has looked, enough to tell whether a fact still holds."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from services.storage.sql import Connection

EVENTS_KEPT_MAX: Final = 50_000
"""Events a replica remembers, some 15 MB: facts older than all of them are fetched anew."""
EVENTS_BEHIND_MAX: Final = 2_000
"""A replica that is further behind forgets all and starts at the newest event: faster than to read them, and some fetches more."""
DIGEST_BYTES: Final = 8
_COLUMNS: Final = "sequence, subject, kind, create_time_ms, traceparent"
_AFTER: Final = f"SELECT {_COLUMNS} FROM storage_event WHERE sequence >= ? ORDER BY sequence LIMIT ?"  # noqa: S608  # constants
_NEWEST: Final = f"SELECT {_COLUMNS} FROM storage_event ORDER BY sequence DESC LIMIT 1"  # noqa: S608  # the same


@dataclass(frozen=True, slots=True)
class Mark:
    """A moment in the life of a database: its newest event, by number and digest."""

    sequence: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class Change:
    """An event: its mark, and what it is about."""

    mark: Mark
    subject: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What there was to see: the events after the position, or (not `continued`) the newest one alone, if there is any."""

    continued: bool
    changes: Sequence[Change]


def newest_mark(connection: Connection) -> Mark | None:
    """The moment of this transaction's snapshot; None when no event is kept."""
    row = connection.execute(_NEWEST).fetchone()
    return None if row is None else _change(row).mark


def look(connection: Connection, position: Mark | None) -> Look:
    """Read what came after `position`, provided that it is part of this database's past and not too far back."""
    if position is not None:
        rows = connection.execute(_AFTER, (position.sequence, EVENTS_BEHIND_MAX + 1)).fetchall()
        changes = [_change(row) for row in rows]
        if changes and changes[0].mark == position and len(changes) <= EVENTS_BEHIND_MAX:
            return Look(continued=True, changes=changes[1:])
    row = connection.execute(_NEWEST).fetchone()
    return Look(continued=False, changes=[] if row is None else [_change(row)])


def _change(row: Sequence[Any]) -> Change:
    """An event of its row. The digest has the trace in it, which is random, and the time: two histories do not share it by chance."""
    digest = hashlib.blake2b(repr(tuple(row)).encode(), digest_size=DIGEST_BYTES).digest()
    return Change(Mark(row[0], digest), row[1])


class History:
    """The events from some point on, up to `position`. Does no I/O."""

    def __init__(self) -> None:
        """Knows nothing: no fact holds."""
        self.position: Mark | None = None
        self._changes: dict[int, Change] = {}
        self._newest: dict[str, int] = {}

    def add(self, seen: Look) -> None:
        """Take in what `look` saw from our position."""
        if not seen.continued:
            self._changes.clear()
            self._newest.clear()
            self.position = None
        for change in seen.changes:
            assert self.position is None or change.mark.sequence > self.position.sequence, "events come in their order"
            self._changes[change.mark.sequence] = change
            self._newest[change.subject] = change.mark.sequence
            self.position = change.mark
        while len(self._changes) > EVENTS_KEPT_MAX:
            self._forget(next(iter(self._changes)))

    def holds(self, mark: Mark, subject: str) -> bool:
        """Whether what was true of `subject` at `mark` still is at our position: nothing about it happened in between."""
        event = self._changes.get(mark.sequence)
        return event is not None and event.mark == mark and self._newest.get(subject, 0) <= mark.sequence

    def _forget(self, sequence: int) -> None:
        """Forget the oldest event. A fact of its moment is unknown from now on, so nothing is missed."""
        subject = self._changes.pop(sequence).subject
        if self._newest[subject] == sequence:
            del self._newest[subject]

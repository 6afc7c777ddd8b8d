"""Values that know where they were written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from generator.manifest.finding import START, Position

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Located(Generic[T]):
    """A scalar of the manifest and its place."""

    value: T
    position: Position


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry(Generic[T]):
    """One `key: value` of a mapping whose keys the user chooses."""

    key: Located[str]
    value: T


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A mapping with fixed keys.

    `broken` names the keys that are there but wrong: their findings exist already and the fields hold placeholders, so
    that later stages can look at the rest without complaining twice.
    """

    position: Position = START
    broken: frozenset[str] = frozenset()

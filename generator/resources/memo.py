"""A bounded memory of results: what was asked for of late stays. And the garbage collector, while there is no garbage."""

from __future__ import annotations

import gc
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Memo(Generic[Key, Value]):
    """Keeps at least the last `entries_max` results that were put or found, and at most twice as many.

    Two generations: when the young one is full it becomes the old one, and what the old one held is forgotten unless
    somebody asked for it. Threads may share a memo: at worst a result is worked out twice.
    """

    def __init__(self, entries_max: int) -> None:
        self._entries_max = entries_max
        self._young: dict[Key, Value] = {}
        self._old: dict[Key, Value] = {}

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def get(self, key: Key) -> Value | None:
        """The result, or None."""
        found = self._young.get(key)
        if found is None:
            found = self._old.pop(key, None)
            if found is not None:
                self.put(key, found)
        return found

    def put(self, key: Key, value: Value) -> Value:
        """Remember a result; gives it back."""
        if len(self._young) >= self._entries_max:
            self._old, self._young = self._young, {}
        self._young[key] = value
        return value

    def clear(self) -> None:
        """Forget everything."""
        self._young, self._old = {}, {}


@contextmanager
def collector_paused() -> Iterator[None]:
    """Keep Python from looking for cycles, for work that makes very many objects, keeps them, and makes no cycle.

    It would walk through all that a large mesh consists of again and again: a quarter of the time of rendering it.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()

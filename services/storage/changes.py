"""Noticing commits, of this process and of others: one generation counter per database, and whoever waits for it to rise."""

from __future__ import annotations

import asyncio


class Changes:
    """One watcher's view: `wait` returns when something was committed since it last returned. No commit is missed in between."""

    def __init__(self, watch: ChangeWatch) -> None:
        """For `Database.changes` only."""
        self._watch = watch
        self._seen = watch.look()

    async def wait(self, *, timeout_s: float) -> bool:
        """True after a commit since the last call (perhaps already happened); False when `timeout_s` passed without one."""
        watch = self._watch
        if watch.look() == self._seen:
            await watch.sleep(timeout_s)
        changed = watch.generation != self._seen
        self._seen = watch.generation
        return changed


class ChangeWatch:
    """Counts commits; how those of others are noticed is the engine's part. Used from the event loop's thread alone."""

    exact = False
    """Whether `look` counts every commit that was acknowledged before, by whatever process."""

    def __init__(self) -> None:
        self.generation = 0
        self._waiters: set[asyncio.Future[None]] = set()
        self._closed = False

    def changes(self) -> Changes:
        """A new view that starts now."""
        return Changes(self)

    def look(self) -> int:
        """Return the count of changes seen so far, after asking the engine where that is cheap."""
        return self.generation

    def committed(self) -> None:
        """A commit of our own."""
        self.notify()

    def notify(self) -> None:
        """Something was committed: wake everybody."""
        self.generation += 1
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def sleep(self, timeout_s: float) -> None:
        """Wait for a change or `timeout_s`."""
        if self._closed:
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        self._somebody_waits()
        try:
            await asyncio.wait((waiter,), timeout=timeout_s)
        finally:
            self._waiters.discard(waiter)

    def _somebody_waits(self) -> None:
        """Called when a waiter is added."""

    async def close(self) -> None:
        """Wake everybody; nobody is woken later."""
        self._closed = True
        self.notify()

"""Noticing commits: of this process at once, of others on the same file by polling PRAGMA data_version while somebody waits."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

import apsw

from services.storage.connection import connect

POLL_S: Final = 0.05
"""How often the other processes' commits are looked for, while somebody waits; a look costs some microseconds."""


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
    """Counts commits to one file; polls only while there are waiters. Used from the event loop's thread alone."""

    def __init__(self, path: Path) -> None:
        """Open a connection of its own: data_version speaks of commits by all others."""
        self.generation = 0
        self._connection = connect(path, read_only=True)
        self._connection.set_busy_timeout(0)  # it is used on the event loop: never wait
        self._version: object = None
        self._waiters: set[asyncio.Future[None]] = set()
        self._poller: asyncio.Task[None] | None = None
        self._closed = False

    def changes(self) -> Changes:
        """A new view that starts now."""
        return Changes(self)

    def look(self) -> int:
        """Ask SQLite whether anything was committed; return the count of changes seen so far."""
        if self._closed:
            return self.generation
        try:
            version = self._connection.pragma("data_version")
        except apsw.BusyError:
            version = None  # somebody recovers the WAL: count it as a change, a look too many is harmless
        if version != self._version or version is None:
            self._version = version
            self.notify()
        return self.generation

    def committed(self) -> None:
        """A commit of our own: look now, which wakes whoever waits once and not again at the next poll."""
        self.look()

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
        if self._poller is None or self._poller.done():
            self._poller = asyncio.create_task(self._poll(), name="data_version poll")
        try:
            await asyncio.wait((waiter,), timeout=timeout_s)
        finally:
            self._waiters.discard(waiter)

    async def _poll(self) -> None:
        """Look every POLL_S for as long as somebody waits."""
        while self._waiters:
            await asyncio.sleep(POLL_S)
            self.look()

    async def close(self) -> None:
        """Wake everybody, end the polling."""
        self._closed = True
        self.notify()
        if self._poller is not None:
            self._poller.cancel()
            await asyncio.wait((self._poller,))
        self._connection.close()

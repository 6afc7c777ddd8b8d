"""Noticing commits to one file: of this process at once, of others by polling PRAGMA data_version while somebody waits."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

import apsw

from services.storage.changes import ChangeWatch
from services.storage.sqlite.connection import connect

POLL_S: Final = 0.05
"""How often the other processes' commits are looked for, while somebody waits; a look costs some microseconds."""


class FileWatch(ChangeWatch):
    """Counts commits to one file; polls only while there are waiters."""

    exact = True  # data_version comes from the memory that all processes with the file share

    def __init__(self, path: Path) -> None:
        """Open a connection of its own: data_version speaks of commits by all others."""
        super().__init__()
        self._connection = connect(path, read_only=True)
        self._connection.set_busy_timeout(0)  # it is used on the event loop: never wait
        self._version: object = None
        self._poller: asyncio.Task[None] | None = None

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
        """A commit of our own: look now, which wakes whoever waits once and not again at the next poll.

        While nobody waits there is nobody to tell, and whoever looks next sees that something was committed.
        """
        if self._waiters:
            self.look()

    def _somebody_waits(self) -> None:
        """Poll for as long as that is so."""
        if self._poller is None or self._poller.done():
            self._poller = asyncio.create_task(self._poll(), name="data_version poll")

    async def _poll(self) -> None:
        """Look every POLL_S for as long as somebody waits."""
        while self._waiters:
            await asyncio.sleep(POLL_S)
            self.look()

    async def close(self) -> None:
        """Wake everybody, end the polling."""
        await super().close()
        if self._poller is not None:
            self._poller.cancel()
            await asyncio.wait((self._poller,))
        self._connection.close()

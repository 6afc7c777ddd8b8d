"""Noticing the commits of other replicas: LISTEN, and a look every second in case an announcement was lost."""

from __future__ import annotations

import asyncio
import os
import select
import threading
import time
from typing import Any, Final

import psycopg

from services.chassis.logs import get_logger
from services.storage.changes import ChangeWatch
from services.storage.places import PostgresPlace
from services.storage.postgresql.session import connect

LOOK_S: Final = 1.0
"""How often the listener looks for commits that nobody announced: by a replica that died between the two, or while it was cut off."""
RETRY_S: Final = 0.5
"""Pause before the listener connects again."""

_log = get_logger("storage")


class SchemaWatch(ChangeWatch):
    """Counts commits of all replicas; the listener's thread tells of the others'."""

    def __init__(self, place: PostgresPlace, channel: str, sender: str) -> None:
        """Announcements on `channel` by `sender` are our own."""
        super().__init__()
        self._listener = Listener(place, channel, sender, self)

    async def close(self) -> None:
        """Wake everybody, end the listener."""
        await super().close()
        await asyncio.to_thread(self._listener.close)


class Listener:
    """One thread with one connection that listens."""

    def __init__(self, place: PostgresPlace, channel: str, sender: str, watch: ChangeWatch) -> None:
        """Starts at once; needs a running event loop."""
        self._place, self._channel, self._sender, self._watch = place, channel, sender, watch
        self._loop = asyncio.get_running_loop()
        self._end_read, self._end_write = os.pipe2(os.O_CLOEXEC)
        self._state: Any = None
        self._thread = threading.Thread(target=self._run, name=f"listener {place.schema}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread; blocks for at most one try to connect."""
        os.write(self._end_write, b"\0")
        self._thread.join()
        os.close(self._end_read)
        os.close(self._end_write)

    def _run(self) -> None:
        """The thread: listen, and connect again when the server is lost."""
        while True:
            try:
                with connect(self._place.url, self._place.schema, use="listener") as connection:
                    connection.execute(f"LISTEN {self._channel}".encode())
                    self._tell()  # whatever happened while nobody listened
                    self._listen(connection)
                    return
            except psycopg.Error as error:
                _log.warning("listener lost the database", error=" ".join(str(error).split()))
            if self._ends_within(RETRY_S):
                return

    def _listen(self, connection: psycopg.Connection[tuple[object, ...]]) -> None:
        """Until the end: tell of announcements at once, of other commits at the next look."""
        look_s = time.monotonic()
        while True:
            left_s = look_s - time.monotonic()
            if left_s <= 0:
                look_s = time.monotonic() + LOOK_S
                self._look(connection)
            ready, _, _ = select.select([connection.fileno(), self._end_read], [], [], max(left_s, 0))
            if self._end_read in ready:
                return
            if [note for note in connection.notifies(timeout=0) if note.payload != self._sender]:
                self._tell()

    def _look(self, connection: psycopg.Connection[tuple[object, ...]]) -> None:
        """Any commit on the server changes the snapshot; one of another schema wakes for nothing, once a second at most."""
        (state,) = connection.execute("SELECT CAST(pg_current_snapshot() AS TEXT)").fetchone() or (None,)
        if state != self._state:
            self._state = state
            self._tell()

    def _tell(self) -> None:
        self._loop.call_soon_threadsafe(self._watch.notify)

    def _ends_within(self, seconds: float) -> bool:
        ready, _, _ = select.select([self._end_read], [], [], seconds)
        return bool(ready)

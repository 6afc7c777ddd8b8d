"""What the user is told while a mesh runs: one line per thing that happened."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

HISTORY_MAX = 500
"""Events that a table or a late subscriber can still see."""
SUBSCRIBER_QUEUE_MAX = 1_000
"""A subscriber that is slower than this many events loses the oldest ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Happening:
    """One thing that happened to one workload, or to the mesh as a whole (workload empty)."""

    time: dt.datetime
    workload: str
    part: str
    kind: str
    text: str
    log: tuple[str, ...] = ()
    """The process's last log lines, where they explain it."""

    def line(self) -> str:
        """Write it for a terminal or a log file."""
        who = f"{self.workload} {self.part}".strip() or "mesh"
        head = f"{self.time:%H:%M:%S} {who:<22} {self.kind}: {self.text}"
        return "\n".join((head, *(f"    | {line}" for line in self.log)))

    def to_json(self) -> dict[str, object]:
        """Give it as a JSON object, as the control socket sends it."""
        return {
            "time": self.time.isoformat(timespec="milliseconds"),
            "workload": self.workload,
            "part": self.part,
            "kind": self.kind,
            "text": self.text,
            "log": list(self.log),
        }


class Journal:
    """Collects happenings and hands them to listeners (at once) and subscribers (through a queue)."""

    def __init__(self) -> None:
        self.history: deque[Happening] = deque(maxlen=HISTORY_MAX)
        self._listeners: list[Callable[[Happening], None]] = []
        self._queues: set[asyncio.Queue[Happening]] = set()

    def listen(self, listener: Callable[[Happening], None]) -> None:
        """Call `listener` with every later happening."""
        self._listeners.append(listener)

    def subscribe(self) -> asyncio.Queue[Happening]:
        """Give a queue that receives every later happening until `unsubscribe`."""
        queue: asyncio.Queue[Happening] = asyncio.Queue(maxsize=SUBSCRIBER_QUEUE_MAX)
        self._queues.add(queue)
        return queue

    def unsubscribe(self, queue: asyncio.Queue[Happening]) -> None:
        """Stop filling the queue."""
        self._queues.discard(queue)

    def tell(self, kind: str, text: str, *, workload: str = "", part: str = "", log: tuple[str, ...] = ()) -> None:
        """Record one happening, now."""
        happening = Happening(
            time=dt.datetime.now().astimezone(), workload=workload, part=part, kind=kind, text=text, log=log
        )
        self.history.append(happening)
        for listener in self._listeners:
            listener(happening)
        for queue in self._queues:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(happening)

"""Group commit, the part that both engines share: one thread that takes all writes that wait and hands them on as a batch."""

from __future__ import annotations

import asyncio
import contextvars
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Final, Generic, Protocol, TypeVar

from services.chassis.errors import Reason, ServiceError, storage_full, unavailable
from services.storage.sql import Connection

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

BATCH_WRITES_MAX: Final = 256
"""Writes per transaction: more gains nothing (the sync is shared by then) and makes the first wait for the last."""
QUEUE_WRITES_MAX: Final = 4_096
"""Writes that may wait: well under a second of work. More are refused as OVERLOADED at once instead of being late."""

Work = Callable[[Connection], Any]
"""A write: runs its statements and returns its result."""


class OneByOne(Enum):
    """What `run_many` answers for an item that `run_one` is to do, after the set."""

    ONE_BY_ONE = auto()


ONE_BY_ONE: Final = OneByOne.ONE_BY_ONE


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BatchKind(Generic[ItemT, ResultT]):
    """Writes of one kind, of which an engine may do many in a few statements.

    `run_one` is the write itself. `run_many` does the same for all items in their order and returns a result or an exception for each;
    it leaves the same rows behind as `run_one` for one after the other, without those that fail. ONE_BY_ONE as a result leaves an item
    to `run_one`, after the set. It runs outside the callers' contexts.

    `run_hopeful` does so for a set in which nothing is there already, without looking first: a unique index finds out, and raises. Then
    the batch runs again, and it and those that follow for a while use `run_many`. None: there is nothing to be saved.
    """

    name: str
    run_one: Callable[[Connection, ItemT], ResultT]
    run_many: Callable[[Connection, Sequence[ItemT]], Sequence[ResultT | Exception | OneByOne]]
    run_hopeful: Callable[[Connection, Sequence[ItemT]], Sequence[ResultT | Exception | OneByOne]] | None = None


@dataclass(frozen=True, slots=True)
class BatchWrite(Generic[ItemT, ResultT]):
    """One such write, for `database.write`. Waiting ones of a kind may be done together: before writes that came earlier."""

    kind: BatchKind[ItemT, ResultT]
    item: ItemT

    def __call__(self, connection: Connection) -> ResultT:
        """Do it alone."""
        return self.kind.run_one(connection, self.item)


@dataclass(slots=True)
class PendingWrite:
    """One queued write, the future of its result, and how it went."""

    work: Work
    context: contextvars.Context
    future: asyncio.Future[Any]
    result: Any = None
    error: BaseException | None = None


class Batcher(Protocol):
    """What an engine does with a batch. All methods are called in the writer's thread alone."""

    def run(self, batch: list[PendingWrite]) -> bool:
        """Run all in one transaction and give each its result or error; True when it was committed. Raises nothing."""

    def told(self) -> float | None:
        """Called after a batch was handed back: what may happen without anybody waiting for it.

        Returns after how many seconds it wants to be called again, whether there was another batch or not; None: after the next.
        """

    def close(self) -> None:
        """Close the connection."""


class Writer:
    """Takes writes from the event loop and has them committed in batches in its own thread."""

    def __init__(self, name: str, batcher: Batcher, on_commit: Callable[[], None]) -> None:
        """`on_commit` is called on the event loop after each batch that was committed."""
        self._loop = asyncio.get_running_loop()
        self._on_commit = on_commit
        self._queue: queue.SimpleQueue[PendingWrite | None] = queue.SimpleQueue()
        self._depth = 0
        self._batcher = batcher
        self._thread = threading.Thread(target=self._run, name=f"writer {name}", daemon=True)
        self._thread.start()

    @property
    def depth(self) -> int:
        """Writes that wait or run."""
        return self._depth

    def submit(self, work: Work) -> asyncio.Future[Any]:
        """Queue a write. Raises OVERLOADED when too many wait."""
        if self._depth >= QUEUE_WRITES_MAX:
            raise unavailable("too many writes wait", reason=Reason.OVERLOADED)
        future: asyncio.Future[Any] = self._loop.create_future()
        self._depth += 1
        self._queue.put(PendingWrite(work=work, context=contextvars.copy_context(), future=future))
        return future

    def close(self) -> None:
        """Commit what is queued and end the thread. Blocks; call it in a thread of its own."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        """The thread: take all that waits, commit it, tell the loop."""
        more, again_s = True, None
        while more:
            batch, more = self._take(again_s)
            if batch:
                committed = self._batcher.run(batch)
                self._loop.call_soon_threadsafe(self._resolve, batch, committed)
            again_s = self._batcher.told()
        self._batcher.close()

    def _take(self, timeout_s: float | None) -> tuple[list[PendingWrite], bool]:
        """Wait for a write, then take all that are there, up to the cap; False when it is time to end. None came in time: none."""
        batch: list[PendingWrite] = []
        try:
            first = self._queue.get(timeout=timeout_s)
            while first is not None:
                batch.append(first)
                if len(batch) == BATCH_WRITES_MAX:
                    return batch, True
                first = self._queue.get_nowait()
        except queue.Empty:
            return batch, True
        return batch, False

    def _resolve(self, batch: list[PendingWrite], committed: bool) -> None:
        """On the loop: hand out results and errors. A cancelled awaiter is simply not told."""
        self._depth -= len(batch)
        if committed:
            self._on_commit()
        for write in batch:
            if write.future.done():
                continue
            if write.error is not None:
                write.future.set_exception(write.error)
            else:
                write.future.set_result(write.result)


def not_written(error: Exception, *, full: bool) -> ServiceError:
    """What whoever waits is told of a batch that failed, `full` for want of room; each gets an exception of its own."""
    failure = storage_full() if full else unavailable("the database did not take the write")
    failure.__cause__ = error
    return failure

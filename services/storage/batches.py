"""How the writes of a batch are run inside its transaction, the same on both engines.

A savepoint costs about as much as a statement, and hardly any write needs one. So a batch runs without; only when a write raises is all
of it rolled back and run again with a savepoint for each, so that the exception undoes that write alone. A write may therefore run twice:
it is a function of its connection, and what it did in a transaction that was rolled back never happened.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Protocol

from services.chassis.logs import get_logger
from services.storage.sql import Connection
from services.storage.writing import ONE_BY_ONE, BatchWrite, PendingWrite

CAREFUL_BATCHES: Final = 16
"""So many batches after one that had to run again have savepoints from the start: refusals seldom come alone."""

_log = get_logger("storage")


class Transaction(Protocol):
    """The open transaction of a batch."""

    @property
    def connection(self) -> Connection:
        """What the writes work with."""

    def begin_again(self) -> None:
        """Roll back, and begin anew."""

    def savepoint(self) -> None:
        """Set one."""

    def end_savepoint(self, *, undo: bool) -> None:
        """Release it, undone before if that is wanted."""

    def settle(self) -> None:
        """Await what was sent. Raises what a statement came to, also when the transaction is over."""

    def finish(self) -> None:
        """`settle` for the last time. A transaction that can be asked to commit in the same breath may be committed by it."""

    def told(self, error: BaseException) -> BaseException:
        """What whoever waits for a write is told of what it raised. Raises when the whole transaction is lost."""


class BatchRunner:
    """Runs batches, and remembers how they went."""

    def __init__(self) -> None:
        self._careful = 0

    def run(self, transaction: Transaction, batch: Sequence[PendingWrite]) -> None:
        """Give each write of a batch its result or error. Raises when the transaction is lost, and with it the batch."""
        groups = _groups_of(batch)
        if self._careful == 0:
            if _run_plainly(transaction, groups):
                return
            self._careful = CAREFUL_BATCHES
            transaction.begin_again()
        self._careful -= 1
        for group in groups:
            _run_carefully(transaction, group)


def _groups_of(batch: Sequence[PendingWrite]) -> list[list[PendingWrite]]:
    """The writes in their order, those of one kind of `BatchWrite` together where the first of them stands."""
    groups: dict[int, list[PendingWrite]] = {}
    for write in batch:
        key = id(write.work.kind) if isinstance(write.work, BatchWrite) else id(write)
        groups.setdefault(key, []).append(write)
    return list(groups.values())


def _run_plainly(transaction: Transaction, groups: Sequence[list[PendingWrite]]) -> bool:
    """Run all without savepoints; False when one raised: then nothing holds, and the transaction is to begin again."""
    try:
        for group in groups:
            if isinstance(group[0].work, BatchWrite):
                _run_set(transaction, group, hopeful=True)
            else:
                (write,) = group
                write.result = write.context.run(write.work, transaction.connection)
        transaction.finish()
    except BaseException as error:  # noqa: BLE001  # run again, it belongs to whoever waits; the thread must live
        transaction.told(error)
        for group in groups:
            for write in group:
                write.result = write.error = None
        return False
    return True


def _run_carefully(transaction: Transaction, group: list[PendingWrite]) -> None:
    """Run a set, or one write after the other: also when the set fails as a whole."""
    if isinstance(group[0].work, BatchWrite):
        transaction.savepoint()
        try:
            _run_set(transaction, group, hopeful=False)
            transaction.settle()
        except Exception as error:  # noqa: BLE001  # done one by one, each has its own
            transaction.told(error)
            name = _kind_of(group).name
            _log.error("a set of writes failed", kind=name, writes=len(group), error=str(error), exc_info=error)
            transaction.end_savepoint(undo=True)
        else:
            transaction.end_savepoint(undo=False)
            return
    for write in group:
        _run_one(transaction, write)


def _run_set(transaction: Transaction, group: list[PendingWrite], *, hopeful: bool) -> None:
    """Run writes of one kind together, and then by itself what the set leaves."""
    kind = _kind_of(group)
    items = [write.work.item for write in group if isinstance(write.work, BatchWrite)]
    run = kind.run_hopeful if hopeful and kind.run_hopeful is not None else kind.run_many
    results = run(transaction.connection, items)
    assert len(results) == len(group), f"{kind.name}: a result for each"
    for write, result in zip(group, results, strict=True):
        if isinstance(result, Exception):
            write.error = result
        elif result is not ONE_BY_ONE:
            write.result = result
    for write, result in zip(group, results, strict=True):
        if result is ONE_BY_ONE:
            _run_one(transaction, write)


def _kind_of(group: list[PendingWrite]) -> Any:
    work = group[0].work
    assert isinstance(work, BatchWrite), "only such writes are grouped"
    return work.kind


def _run_one(transaction: Transaction, write: PendingWrite) -> None:
    """Run one write under its savepoint. What it raises undoes it alone."""
    write.result = write.error = None
    transaction.savepoint()
    try:
        write.result = write.context.run(
            write.work, transaction.connection
        )  # the caller and the trace of whoever asked
        transaction.settle()
    except BaseException as error:  # noqa: BLE001  # it belongs to whoever waits, and the thread must live
        write.error = transaction.told(error)
    transaction.end_savepoint(undo=write.error is not None)

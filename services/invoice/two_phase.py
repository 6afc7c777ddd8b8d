"""The invoice service's part in two-phase commits: prepares settlements, finishes them, and sweeps those that nobody finishes.

The payment service decides. What it decided is asked of it, never guessed: a prepared settlement stays until there is an answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from services.chassis.errors import ServiceError, dependency_failed
from services.chassis.failpoints import failpoint
from services.chassis.logs import get_logger
from services.invoice import preparing
from services.invoice.domain.rules import RefusedError
from services.invoice.ledger import Decided, Ledger, LedgerUnavailableError
from services.storage.database import Database
from services.storage.postgresql.two_phase import PreparedTransactions

SWEEP_S: Final = 1.0
"""Pause between two looks for settlements that nobody finishes."""
ORPHAN_MS: Final = 5_000
"""A healthy payment finishes within milliseconds, one whose driver died is taken over within seconds."""

_log = get_logger("invoice")


class TwoPhase:
    """See the module. `run` belongs in a background task."""

    def __init__(
        self, database: Database, transactions: PreparedTransactions, ledger: Ledger, clock: Callable[[], int]
    ) -> None:
        """`clock`: milliseconds since 1970."""
        self._database = database
        self._transactions = transactions
        self._ledger = ledger
        self._clock = clock

    async def prepare(self, payment_id: str) -> None:
        """Prepare the settlement of the invoice that a payment holds; again: success. Raises RefusedError and ServiceError."""
        failpoint("prepare")
        now_ms = self._clock()
        try:
            await self._transactions.prepare(
                payment_id, lambda connection: preparing.settle_untold(connection, payment_id, now_ms)
            )
        except preparing.NothingToPrepareError:
            return
        except RefusedError as error:
            if payment_id in await self._transactions.names():
                return
            if await self._database.write(lambda connection: preparing.is_held(connection, payment_id)):
                raise dependency_failed("another call prepares the settlement") from error
            raise
        failpoint("prepare.done")

    async def commit(self, payment_id: str) -> None:
        """Make the settlement that is prepared, if one is. Telling of it is the writer's (`preparing.tell_settled`)."""
        failpoint("commit_prepared")
        await self._transactions.commit(payment_id)
        failpoint("commit_prepared.done")

    async def rollback(self, payment_id: str) -> None:
        """Forget the settlement that is prepared, if one is."""
        failpoint("rollback_prepared")
        await self._transactions.rollback(payment_id)
        failpoint("rollback_prepared.done")

    async def run(self) -> None:
        """Sweep for ever."""
        while True:
            await asyncio.sleep(SWEEP_S)
            try:
                await self.sweep()
            except ServiceError as error:
                _log.warning("prepared settlements wait", reason=error.reason)

    async def sweep(self) -> None:
        """Finish what is older than ORPHAN_MS as the payment decided, and tell what was committed and not told."""
        for payment_id in await self._transactions.names(older_than_ms=ORPHAN_MS):
            try:
                await self._finish(payment_id)
            except (ServiceError, LedgerUnavailableError, RefusedError) as error:
                _log.warning("a prepared settlement waits", payment_id=payment_id, error=str(error))
        for payment_id in await self._database.read(preparing.untold):
            await self._database.write(lambda connection: preparing.tell_settled(connection, payment_id))  # noqa: B023

    async def _finish(self, payment_id: str) -> None:
        decided = await self._ledger.decision(payment_id)
        _log.warning("a prepared settlement was left", payment_id=payment_id, decision=decided.name)
        if decided is Decided.COMMIT:
            await self.commit(payment_id)
        elif decided is Decided.ROLLBACK:
            await self.rollback(payment_id)
            now_ms = self._clock()
            await self._database.write(lambda connection: preparing.release(connection, payment_id, now_ms))

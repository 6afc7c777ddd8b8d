"""Who waits for a payment is told of its changes: at once by the driver of this process, soon after when another replica drives it."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Callable
from typing import Final

from services.payment.domain.model import Payment
from services.payment.store.payments import find_payment
from services.storage.database import Database

LOOK_SECONDS_MAX: Final = 1.0
"""A waiter looks for itself at least this often, should a notification ever be lost."""


class _Waiter:
    """One waiting call: the newest payment that it was handed, what it waits for, and a bell."""

    __slots__ = ("bell", "done", "local", "payment")

    def __init__(self, payment: Payment, done: Callable[[Payment], bool], *, local: bool) -> None:
        self.payment = payment
        self.done = done
        self.local = local
        self.bell = asyncio.Event()


class ChangeFeed:
    """Hands changed payments to waiters."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiters: defaultdict[str, set[_Waiter]] = defaultdict(set)

    def publish(self, payment: Payment) -> None:
        """Tell this process's waiters; called by the driver after each commit."""
        for waiter in self._waiters.get(payment.payment_id, ()):
            waiter.payment = payment
            if waiter.done(payment):
                waiter.bell.set()

    def hand_over(self) -> None:
        """Another replica drives from now on: whoever waits here looks at the database instead."""
        for waiter in [waiter for waiters in self._waiters.values() for waiter in waiters]:
            waiter.local = False
            waiter.bell.set()

    async def wait(self, payment: Payment, done: Callable[[Payment], bool], seconds: float, *, local: bool) -> Payment:
        """The payment once `done` says so, or as it is after `seconds`.

        `local`: this process drives it, so that its commits are published here; if that changes (the lease went to another replica),
        the look every second notices.
        """
        waiter = _Waiter(payment, done, local=local)
        self._waiters[payment.payment_id].add(waiter)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    if not local:
                        waiter.payment = await self._read(payment)
                    while not done(waiter.payment):
                        await self._change(waiter)
            return waiter.payment
        finally:
            self._forget(payment.payment_id, waiter)

    async def _change(self, waiter: _Waiter) -> None:
        """Return after something may have changed."""
        waiter.bell.clear()
        if waiter.local:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS_MAX):
                    await waiter.bell.wait()
                return
        else:
            await self._database.changes().wait(timeout_s=LOOK_SECONDS_MAX)
        waiter.payment = await self._read(waiter.payment)

    async def _read(self, payment: Payment) -> Payment:
        """As it is in the database."""
        return await self._database.read(lambda connection: find_payment(connection, payment.payment_id)) or payment

    def _forget(self, payment_id: str, waiter: _Waiter) -> None:
        self._waiters[payment_id].discard(waiter)
        if not self._waiters[payment_id]:
            del self._waiters[payment_id]

"""Keeps sagas running in this process: starts them, renews their leases, takes over those that others left, gives all back at the end."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import random
from collections.abc import Awaitable, Callable
from typing import Final

import structlog
from opentelemetry.context import attach, get_current

from services.chassis.errors import ServiceError
from services.payment.domain.model import Payment
from services.payment.domain.saga import Saga
from services.payment.domain.saga_words import Event, Resumed, Written
from services.payment.driver import Parts, SagaDriver
from services.payment.store import payments, sagas

LEASE_MS: Final = 2_000
"""After a replica's death its sagas stand still this long at most."""
RENEW_SECONDS: Final = 0.5
"""Three renewals may be lost before a lease ends."""
RENEW_BELOW_MS: Final = LEASE_MS - 500
"""Only sagas that run for longer than half a second cost a write."""
SWEEP_SECONDS: Final = 0.2
"""How often sagas without a driver are looked for; the question is one indexed read."""
CLAIMS_MAX: Final = 64
"""Sagas claimed at once: the other replicas shall get their share."""
SAGAS_MAX: Final = 2_048
"""Sagas that run in this process at once; the sweeper claims no more, and PayInvoice is OVERLOADED."""
FAULT_PAUSE_MS: Final = 5_000
"""After a fault of ours a saga rests this long, so that it does not burn the processor."""

_log = structlog.stdlib.get_logger()


class SagaEngine:
    """The sagas of this process. `start` it before the first call is served, `stop` it when draining begins."""

    def __init__(self, parts: Parts, owner: str) -> None:
        """`owner` is this process and no other, whatever came before it."""
        self.owner = owner
        self._parts = parts
        self._running: dict[str, tuple[sagas.Lease, asyncio.Task[None]]] = {}
        self._lease_until_ms: dict[str, int] = {}
        self._loops: list[asyncio.Task[None]] = []
        self._stopping = False

    @property
    def full(self) -> bool:
        """Whether no further saga should begin here."""
        return len(self._running) >= SAGAS_MAX

    @property
    def stopping(self) -> bool:
        """Whether leases are given back: what begins now is for another replica to drive."""
        return self._stopping

    def start(self) -> None:
        """Begin to renew and to sweep."""
        self._loops = [
            asyncio.create_task(self._every(RENEW_SECONDS, self._renew), name="saga renewal"),
            asyncio.create_task(self._every(SWEEP_SECONDS, self._sweep), name="saga sweep"),
        ]

    async def stop(self) -> None:
        """Stop driving and give every lease back at once, so that another replica goes on. Again: nothing."""
        if self._stopping:
            return
        self._stopping = True
        for task in self._loops:
            task.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        leases = [lease for lease, _ in self._running.values()]
        tasks = [task for _, task in self._running.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if leases:
            now_ms = self._parts.clock()
            await self._parts.database.write(lambda connection: sagas.give_back(connection, leases, now_ms))
        self._parts.feed.hand_over()

    def first_lease(self, payment_id: str) -> tuple[sagas.Lease, int]:
        """The lease that a new saga is inserted with, and when it ends; already over when this process is stopping."""
        until_ms = 0 if self._stopping else self._parts.clock() + LEASE_MS
        return sagas.Lease(saga_id=payment_id, owner=self.owner, fence=1), until_ms

    def run(self, lease: sagas.Lease, saga: Saga, payment: Payment, event: Event | None = None) -> None:
        """Drive a saga in a task of its own: neither the caller's deadline nor its cancellation reach it."""
        if self._stopping:
            return
        driver = SagaDriver(self._parts, lease, saga, payment)
        work = self._drive(driver, Written() if event is None else event)
        task = asyncio.create_task(work, name=f"saga {lease.saga_id}", context=_context_of_trace())
        self._running[lease.saga_id] = (lease, task)
        self._lease_until_ms[lease.saga_id] = self._parts.clock() + LEASE_MS

    async def _drive(self, driver: SagaDriver, event: Event) -> None:
        try:
            await driver.run(event)
        except sagas.LeaseLostError:
            _log.info("payment.lease_lost", payment_id=driver.saga.payment_id)
        except ServiceError as error:
            _log.warning("payment.saga_interrupted", payment_id=driver.saga.payment_id, reason=str(error.reason))
        except Exception:  # noqa: BLE001 - a fault of ours must not lose the saga: it is logged, and tried again after a rest
            _log.exception("payment.saga_fault", payment_id=driver.saga.payment_id)
            await self._rest(driver)
        finally:
            self._forget(driver.lease)

    async def _rest(self, driver: SagaDriver) -> None:
        """Give the lease back with a long pause; if that fails as well, the lease ends by itself."""
        now_ms = self._parts.clock()
        until_ms = now_ms + FAULT_PAUSE_MS
        lease, saga = driver.lease, driver.saga
        with contextlib.suppress(sagas.LeaseLostError, ServiceError):
            await self._parts.database.write(
                lambda connection: sagas.park_saga(connection, lease, saga, next_run_at_ms=until_ms, patient=True)
            )

    def _forget(self, lease: sagas.Lease) -> None:
        """Only the entry of this lease: a newer claim of the same saga stays."""
        entry = self._running.get(lease.saga_id)
        if entry is not None and entry[0] == lease:
            del self._running[lease.saga_id]
            self._lease_until_ms.pop(lease.saga_id, None)

    async def _every(self, seconds: float, work: Callable[[], Awaitable[None]]) -> None:
        """Repeat, with some jitter, whatever happens to one turn."""
        while True:
            await asyncio.sleep(seconds * random.uniform(0.8, 1.2))  # noqa: S311 - jitter
            try:
                await work()
            except ServiceError as error:
                _log.warning("payment.engine_turn_failed", reason=str(error.reason))

    async def _renew(self) -> None:
        """Extend leases that have run for a while; those that another replica claimed are left to it."""
        now_ms = self._parts.clock()
        ageing = [key for key, until_ms in self._lease_until_ms.items() if until_ms - now_ms < RENEW_BELOW_MS]
        if not ageing:
            return
        until_ms = now_ms + LEASE_MS
        renewed = await self._parts.database.write(
            lambda connection: sagas.renew(connection, self.owner, ageing, until_ms)
        )
        for saga_id in ageing:
            if saga_id in renewed and saga_id in self._lease_until_ms:
                self._lease_until_ms[saga_id] = until_ms

    async def _sweep(self) -> None:
        """Claim sagas that nobody drives."""
        database, now_ms = self._parts.database, self._parts.clock()
        limit = min(CLAIMS_MAX, SAGAS_MAX - len(self._running))
        if limit <= 0 or not await database.read(lambda connection: sagas.any_due(connection, now_ms)):
            return
        until_ms = self._parts.clock() + LEASE_MS
        claimed = await database.write(
            lambda connection: [
                (lease, saga, payments.find_payment(connection, lease.saga_id))
                for lease, saga in sagas.claim(
                    connection, self.owner, now_ms=self._parts.clock(), until_ms=until_ms, limit=limit
                )
            ]
        )
        for lease, saga, payment in claimed:
            assert payment is not None, "a saga has a payment"
            self.run(lease, saga, payment, Resumed())


def _context_of_trace() -> contextvars.Context:
    """A context that knows the running trace and nothing else of the call: no caller, no deadline."""
    context = contextvars.Context()
    context.run(attach, get_current())
    return context

"""What only one replica does at a time: a lease in the database, with a fence that rises with every owner.

    await while_leading(database, "outbox", work)      # work(lease) runs while we have it

Whoever has lost a lease notices at the next write, which names the fence. A replica that is killed keeps the lease until it expires.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, NoReturn

from services.chassis.errors import ServiceError
from services.chassis.logs import get_logger
from services.storage.database import Database
from services.storage.sql import Connection, value_of

LEASE_MS: Final = 10_000
"""How long a killed replica keeps the others waiting."""
RENEWALS: Final = 3
"""A lease is renewed so often while it lasts: one write in 3 s, also when there is nothing to do."""
LOOK_S: Final = 0.5
"""Whoever waits looks at most this often, and only when something was committed."""
RELEASE_S_MAX: Final = 2.0
"""Giving a lease back at the end may take so long; after that it expires by itself."""

_log = get_logger("events")

_TAKE: Final = """
INSERT INTO storage_lease (name, owner, fence, expire_time_ms) VALUES (:name, :owner, 1, :until)
ON CONFLICT (name) DO UPDATE SET owner = excluded.owner, fence = storage_lease.fence + 1, expire_time_ms = excluded.expire_time_ms
WHERE storage_lease.expire_time_ms <= :now RETURNING fence
"""


class LeaseLostError(Exception):
    """Another replica has taken over: what this one wanted to write must not be written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The right to do something, until somebody has a higher fence."""

    name: str
    owner: str
    fence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Leasing:
    """Whose leases these are, and for how long."""

    owner: str = field(default_factory=lambda: uuid.uuid4().hex)
    lease_ms: int = LEASE_MS


def take(connection: Connection, name: str, leasing: Leasing, now_ms: int) -> Lease | None:
    """The lease, None while another has it."""
    values = {"name": name, "owner": leasing.owner, "until": now_ms + leasing.lease_ms, "now": now_ms}
    fence = value_of(connection.execute(_TAKE, values))
    return None if fence is None else Lease(name=name, owner=leasing.owner, fence=int(fence))


def keep(connection: Connection, lease: Lease, until_ms: int) -> None:
    """Make the lease last until then; part of every write that needs it. Raises LeaseLostError."""
    connection.execute(
        "UPDATE storage_lease SET expire_time_ms = ? WHERE name = ? AND owner = ? AND fence = ?",
        (until_ms, lease.name, lease.owner, lease.fence),
    )
    if connection.changes() != 1:
        raise LeaseLostError(lease.name)


async def while_leading(
    database: Database, name: str, work: Callable[[Lease], Awaitable[object]], leasing: Leasing | None = None
) -> NoReturn:
    """Run `work` whenever this replica has the lease; end it when the lease is lost, and wait for the lease again."""
    leasing = leasing or Leasing()
    while True:
        lease = await _taken(database, name, leasing)
        _log.info("lease taken", lease=name, fence=lease.fence)
        tasks = [
            asyncio.ensure_future(work(lease)),
            asyncio.create_task(_renew(database, lease, leasing), name=f"lease {name}"),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            await _release(database, lease)
        _raise_what_is_no_loss(outcomes)
        _log.warning("lease lost", lease=name, fence=lease.fence)


def _raise_what_is_no_loss(outcomes: list[object]) -> None:
    for outcome in outcomes:
        if isinstance(outcome, BaseException) and not isinstance(outcome, LeaseLostError | asyncio.CancelledError):
            raise outcome


async def _taken(database: Database, name: str, leasing: Leasing) -> Lease:
    """Wait for the lease: until the other one's is over or given back."""
    changes = database.changes()
    while True:
        now_ms = _now_ms()
        until_ms = now_ms
        with contextlib.suppress(ServiceError):  # the database is away or busy: look again
            until_ms = await database.read(lambda connection: _expire_time_ms(connection, name))
            if until_ms <= _now_ms():
                lease = await database.write(lambda connection: take(connection, name, leasing, _now_ms()))
                if lease is not None:
                    return lease
        await asyncio.sleep(LOOK_S)
        await changes.wait(timeout_s=max(0.0, (until_ms - _now_ms()) / 1_000))


def _expire_time_ms(connection: Connection, name: str) -> int:
    found = value_of(connection.execute("SELECT expire_time_ms FROM storage_lease WHERE name = ?", (name,)))
    return int(found or 0)


async def _renew(database: Database, lease: Lease, leasing: Leasing) -> None:
    """For as long as we have it. Raises LeaseLostError, also when the database did not take a renewal in time."""
    until_ms = _now_ms() + leasing.lease_ms
    while True:
        await asyncio.sleep(leasing.lease_ms / RENEWALS / 1_000)
        next_ms = _now_ms() + leasing.lease_ms
        try:
            await database.write(lambda connection: keep(connection, lease, next_ms))  # noqa: B023  # awaited here
            until_ms = next_ms
        except ServiceError:
            if _now_ms() >= until_ms:
                raise LeaseLostError(lease.name) from None


async def _release(database: Database, lease: Lease) -> None:
    """Give it back, so that nobody has to wait for its end."""
    with contextlib.suppress(ServiceError, LeaseLostError, TimeoutError):
        async with asyncio.timeout(RELEASE_S_MAX):
            await database.write(lambda connection: keep(connection, lease, _now_ms()))


def _now_ms() -> int:
    return time.time_ns() // 1_000_000

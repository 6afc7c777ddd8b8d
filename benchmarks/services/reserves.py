"""The payment service's first transaction, durable, by two processes at once and without gRPC.

`python -m benchmarks.services.reserves PLACE` is one of the processes (`PLACE`: a file or a postgresql:// URL): for each line on its
standard input, which says how many reserves by how many callers, it prints one JSON line when it is ready and one when it is done.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import json
import logging
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import structlog

from benchmarks.figures import latency
from benchmarks.services.processes import family_cpu_seconds
from services.chassis.secret import SecretBytes
from services.payment.domain.model import (
    NODE_ACCOUNT,
    Account,
    AccountState,
    Payment,
    PaymentState,
    Purpose,
    Transfer,
    TransferKind,
)
from services.payment.domain.saga import Saga
from services.payment.service import MIGRATIONS
from services.payment.store import accounts, ledger
from services.payment.store.beginning import begin_write
from services.payment.store.sagas import Lease
from services.payment.store.transactions import Begun
from services.storage.database import Database
from services.storage.idempotency import RequestKey
from services.storage.ids import new_id
from services.storage.places import PostgresPlace
from services.storage.sql import Connection

ROOT: Final = Path(__file__).resolve().parents[2]
PROCESSES: Final = 2
CALLERS: Final = 32
"""In each process."""
WARM_UP_RESERVES: Final = 200
"""Of each process, to begin with: they tell how many a round can have."""
RESERVES_MAX: Final = 10_000
"""Of each process in one round."""
ROUND_S: Final = 3.0
"""About how long a round takes."""
LEASE_MS: Final = 2_000
AMOUNT_MSAT: Final = 1_000
DEPOSIT_MSAT: Final = 1_000_000_000_000
PAYMENT_REQUEST: Final = "lnbcrt10n1" + "q" * 280
"""As long as a real one; the store does not look into it."""
OWNER: Final = "ab" * 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One reserve, ready to be written."""

    key: RequestKey
    draft: Payment
    saga: Saga
    lease: Lease


def orders(account_id: str, owner: str, count: int) -> list[Order]:
    """Reserves of one account, each of another invoice."""
    return [_order(account_id, owner, time.time_ns() // 1_000_000) for _ in range(count)]


def _order(account_id: str, process: str, now_ms: int) -> Order:
    payment_id, request_id = new_id(), str(uuid.uuid4())
    draft = Payment(
        payment_id=payment_id,
        account_id=account_id,
        scope=OWNER,
        request_id=request_id,
        state=PaymentState.RESERVED,
        payment_request=PAYMENT_REQUEST,
        payment_hash=hashlib.sha256(payment_id.encode()).hexdigest(),
        amount_msat=AMOUNT_MSAT,
        fee_limit_msat=0,
        create_time_ms=now_ms,
        update_time_ms=now_ms,
    )
    return Order(
        key=RequestKey(
            scope=OWNER, method="/nipmesh.payment.v1.PaymentService/PayInvoice", request_id=request_id, sha256=bytes(32)
        ),
        draft=draft,
        saga=Saga(payment_id=payment_id, payer_account_id=account_id, give_up_time_ms=now_ms + 60_000),
        lease=Lease(saga_id=payment_id, owner=process, fence=1),
    )


async def reserve(database: Database, order: Order) -> None:
    """Write one; it is on disk when this returns."""
    until_ms = order.draft.create_time_ms + LEASE_MS
    begun = await database.write(begin_write(order.key, order.draft, order.saga, order.lease, until_ms))
    assert isinstance(begun, Begun)
    assert begun.payment.state is PaymentState.RESERVED


def open_account(connection: Connection, account_id: str) -> None:
    """An account with money for all rounds."""
    now_ms = time.time_ns() // 1_000_000
    accounts.insert_account(
        connection, Account(account_id=account_id, owner=OWNER, state=AccountState.ACTIVE, create_time_ms=now_ms)
    )
    deposit = Transfer(
        transfer_id=str(uuid.uuid4()),
        kind=TransferKind.POSTED,
        debit_account_id=NODE_ACCOUNT,
        credit_account_id=account_id,
        amount_msat=DEPOSIT_MSAT,
        purpose=Purpose.DEPOSIT,
        create_time_ms=now_ms,
    )
    ledger.post(connection, (deposit,))


async def write_orders(database: Database, waiting: list[Order], callers: int) -> list[float]:
    """Write all of them; how long each took, in seconds."""
    left, seconds = iter(waiting), []

    async def loop() -> None:
        for order in left:
            start = time.perf_counter()
            await reserve(database, order)
            seconds.append(time.perf_counter() - start)

    await asyncio.gather(*(loop() for _ in range(callers)))
    return seconds


async def serve(place: str) -> None:
    """One of the processes: rounds as its standard input tells, until it ends."""
    structlog.configure(  # standard output is for the figures
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    where = PostgresPlace(url=SecretBytes(place.encode()), schema="payment") if "://" in place else Path(place)
    account_id, process = str(uuid.uuid4()), str(uuid.uuid4())
    async with await Database.open(where, migrations=MIGRATIONS) as database:
        await database.write(lambda connection: open_account(connection, account_id))
        while line := await asyncio.to_thread(sys.stdin.readline):
            count, callers = (int(part) for part in line.split())
            waiting = orders(account_id, process, count)
            gc.collect()
            gc.freeze()  # no service has so many prepared requests that the collector goes through
            print(json.dumps({"ready": count}), flush=True)
            await asyncio.to_thread(sys.stdin.readline)  # all processes begin when all are ready
            start_s, start_cpu_s = time.monotonic(), time.process_time()
            seconds = await write_orders(database, waiting, callers)
            end_s, cpu_s = time.monotonic(), time.process_time() - start_cpu_s
            print(json.dumps({"start_s": start_s, "end_s": end_s, "cpu_s": cpu_s, "seconds": seconds}), flush=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What one came to. Processor time is per reserve: that of the writing processes, and that of the database's own (0: it has none)."""

    per_second: float
    p99_ms: float
    writers_cpu_us: float
    server_cpu_us: float


@dataclass(slots=True, kw_only=True)
class Writers:
    """The processes on one database, and what their rounds came to."""

    name: str
    processes: list[subprocess.Popen[str]]
    reserves: int = WARM_UP_RESERVES
    rounds: list[Round] = field(default_factory=list)
    server_pid: int | None = None
    """Of the database, when it is a server: its processor time is counted with that of its children."""

    def warm_up(self) -> None:
        """A short round that is not counted."""
        per_second = self._write(WARM_UP_RESERVES).per_second
        self.reserves = max(WARM_UP_RESERVES, min(RESERVES_MAX, int(per_second * ROUND_S / PROCESSES)))

    def round(self) -> None:
        """All processes write at once. The rate is that of all together, from the first start to the last end."""
        self.rounds.append(self._write(self.reserves))

    def _write(self, reserves: int) -> Round:
        """So many of each process."""
        self._tell(f"{reserves} {CALLERS}\n")
        for process in self.processes:
            assert self._answer(process) == {"ready": reserves}
        before = family_cpu_seconds(self.server_pid)
        self._tell("go\n")
        ends = [self._answer(process) for process in self.processes]
        after = family_cpu_seconds(self.server_pid)
        count = reserves * len(ends)
        took_s = max(end["end_s"] for end in ends) - min(end["start_s"] for end in ends)
        return Round(
            per_second=count / took_s,
            p99_ms=latency([each for end in ends for each in end["seconds"]]).p99_ms,
            writers_cpu_us=sum(end["cpu_s"] for end in ends) / count * 1e6,
            server_cpu_us=sum(seconds - before.get(pid, 0.0) for pid, seconds in after.items()) / count * 1e6,
        )

    def _tell(self, line: str) -> None:
        """The same line to all processes."""
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write(line)
            process.stdin.flush()

    def _answer(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        """A process's next line."""
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, f"a process that writes to {self.name} ended"
        return dict(json.loads(line))


@contextmanager
def running_writers(name: str, place: str, *, server_pid: int | None = None) -> Iterator[Writers]:
    """Start the processes on a database; end them. The first migrates it, before the others come."""
    command = [sys.executable, "-m", "benchmarks.services.reserves", place]
    with ExitStack() as stack:
        processes = []
        for _ in range(PROCESSES):
            process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            stack.enter_context(process)
            stack.callback(_end, process)
            processes.append(process)
        yield Writers(name=name, processes=processes, server_pid=server_pid)


def _end(process: subprocess.Popen[str]) -> None:
    """Its input ends, and so does it; a process that hangs is killed."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))

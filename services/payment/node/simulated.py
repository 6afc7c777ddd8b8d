"""A simulated Lightning node: no bitcoin moves. It pays, fails and hangs on demand, and remembers across crashes.

What it does is read from the invoice's description (`behaviour`), and from control files: `<folder>/<payment hash>` may hold `pay`,
`fail` or `hang` and is looked at whenever the payment is asked for; `held` says for an invoice of ours that somebody outside pays it.
It knows no preimage, so its payments have none.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import apsw

from services.payment.domain.model import Failure
from services.payment.domain.saga import NodeFailed, NodeFree, NodeHolds, NodePaid, NodePending, NodeUnknown
from services.payment.node.behaviour import Behaviour, fee_msat_of, plan_of
from services.payment.node.port import PaymentOrder
from services.storage.database import Database

MIGRATIONS: Final = Path(__file__).parent / "migrations"
FILE_NAME: Final = "simulated-node.sqlite3"
CONTROL_FOLDER: Final = "simulated-node"
HELD: Final = "held"
CONTROL_BYTES_MAX: Final = 16
IN_FLIGHT, PAID, FAILED = 1, 2, 3

Outcome = NodePaid | NodeFailed | NodePending | NodeUnknown

BEGIN = """
INSERT INTO attempt (payment_hash, state, behaviour, amount_msat, fee_msat, fee_limit_msat, due_time_ms)
VALUES (?1, 1, ?2, ?3, ?4, ?5, ?6)
ON CONFLICT (payment_hash) DO UPDATE SET
  state = 1, behaviour = ?2, amount_msat = ?3, fee_msat = ?4, fee_limit_msat = ?5, due_time_ms = ?6,
  times_begun = times_begun + 1
WHERE state = 3
"""


def now_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


class SimulatedNode:
    """The node behind `LightningNode`; make it with `open`."""

    simulated: Final = True

    def __init__(self, database: Database, control: Path, clock: Callable[[], int]) -> None:
        """For `open` only."""
        self._database = database
        self._control = control
        self._clock = clock

    @classmethod
    async def open(cls, data_directory: Path, clock: Callable[[], int] = now_ms) -> SimulatedNode:
        """Open its file in the service's data directory; all replicas share the one node."""
        database = await Database.open(data_directory / FILE_NAME, migrations=MIGRATIONS)
        return cls(database, data_directory / CONTROL_FOLDER, clock)

    async def pay(self, order: PaymentOrder) -> NodePaid | NodeFailed | NodePending:
        """Begin, or join; a new attempt only after one that failed."""
        outcome = await self._database.write(lambda connection: self._begin(connection, order))
        assert not isinstance(outcome, NodeUnknown)
        return outcome

    async def track(self, payment_hash: str) -> Outcome:
        """What became of it."""
        return await self._database.write(lambda connection: self._decide(connection, payment_hash))

    async def cancel(self, payment_hash: str) -> NodeFree | NodeHolds:
        """Only a control file makes somebody outside pay."""
        return NodeHolds() if self._controlled(payment_hash) == HELD else NodeFree()

    async def close(self) -> None:
        """Close its file."""
        await self._database.close()

    def _begin(self, connection: apsw.Connection, order: PaymentOrder) -> Outcome:
        plan = plan_of(order.description)
        fee_msat = fee_msat_of(plan, order.amount_msat)
        due_ms = self._clock() + plan.delay_ms
        values = (order.payment_hash, plan.behaviour.value, order.amount_msat, fee_msat, order.fee_limit_msat, due_ms)
        connection.execute(BEGIN, values)
        return self._decide(connection, order.payment_hash)

    def _decide(self, connection: apsw.Connection, payment_hash: str) -> Outcome:
        row = connection.execute(
            "SELECT state, behaviour, fee_msat, fee_limit_msat, due_time_ms FROM attempt WHERE payment_hash = ?",
            (payment_hash,),
        ).fetchone()
        if row is None:
            return NodeUnknown()
        state, behaviour, fee_msat, fee_limit_msat, due_ms = row
        if state == IN_FLIGHT:
            state = self._next_state(payment_hash, behaviour, due_ms, affordable=fee_msat <= fee_limit_msat)
            self._store(connection, payment_hash, state)
        if state == PAID:
            return NodePaid("", fee_msat)
        return NodeFailed(Failure.NO_ROUTE) if state == FAILED else NodePending()

    def _next_state(self, payment_hash: str, behaviour: str, due_ms: int, *, affordable: bool) -> int:
        controlled = self._controlled(payment_hash)
        wanted = Behaviour(controlled) if controlled in list(Behaviour) else Behaviour(behaviour)
        if wanted is Behaviour.HANG or self._clock() < due_ms:
            return IN_FLIGHT
        return PAID if wanted is Behaviour.PAY and affordable else FAILED

    def _store(self, connection: apsw.Connection, payment_hash: str, state: int) -> None:
        if state != IN_FLIGHT:
            sql = "UPDATE attempt SET state = ?1, times_paid = times_paid + (?1 = 2) WHERE payment_hash = ?2"
            connection.execute(sql, (state, payment_hash))

    def _controlled(self, payment_hash: str) -> str:
        """The word in the control file, or ""."""
        try:
            with (self._control / payment_hash).open("rb") as file:
                return file.read(CONTROL_BYTES_MAX).decode(errors="replace").strip()
        except FileNotFoundError:
            return ""

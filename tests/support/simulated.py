"""The simulated network without a node around it: its tables in memory, its channels counted, and transactions that break off."""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import apsw

from services.chassis.secret import SecretBytes
from services.lightning.node import Received
from services.lightning.node_key import NodeKey
from services.lightning.simulated import attempts
from services.lightning.simulated.channels import route_of
from services.lightning.simulated.network import make_network
from services.lightning.simulated.node_file import MIGRATIONS
from services.lightning.simulated.planning import Task
from services.lightning.simulated.profile import Profile
from services.lightning.simulated.received import find_received, register
from services.lightning.simulated.words import Words
from services.storage.migrations import SQLITE, load_migrations
from services.storage.sql import Parameters, Rows

RECEIVER = NodeKey(SecretBytes(b"\x09" * 32)).public_key


class BrokenOffError(Exception):
    """The process died here."""


@dataclass
class Breaking:
    """A connection that dies at its n-th statement; 0: never."""

    connection: apsw.Connection
    left: int = 0

    def execute(self, sql: str, parameters: Parameters = (), /) -> Rows:
        if self.left == 1:
            raise BrokenOffError
        self.left -= 1
        rows: Rows = self.connection.execute(sql, parameters)
        return rows

    def changes(self) -> int:
        return int(self.connection.changes())


@dataclass
class Played:
    """A network with one payer and one receiver on a clock that somebody turns."""

    profile: Profile
    now_ms: int = 1_000_000
    connection: apsw.Connection = field(default_factory=lambda: apsw.Connection(":memory:"))

    def __post_init__(self) -> None:
        self.world = attempts.World(network=make_network(self.profile), profile=self.profile)
        for migration in load_migrations(MIGRATIONS / SQLITE):
            self.connection.execute(migration.sql)
        register(self.connection, RECEIVER)

    @contextlib.contextmanager
    def transaction(self, dies_at: int = 0) -> Iterator[Breaking]:
        """All or nothing."""
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            yield Breaking(self.connection, dies_at)
            self.connection.execute("COMMIT")
        except BaseException:
            self.connection.execute("ROLLBACK")
            raise

    def task(self, payment_hash: str, payee: str, amount_msat: int, fee_limit_msat: int, **rest: object) -> Task:
        values: dict[str, object] = {"timeout_s": 60, "final_delta_blocks": 18, "words": Words()}
        return Task(
            payment_hash=payment_hash,
            payee=payee,
            amount_msat=amount_msat,
            fee_limit_msat=fee_limit_msat,
            **(values | rest),  # type: ignore[arg-type]
        )

    def pay(self, task: Task, *, dies_at: int = 0) -> bool:
        with self.transaction(dies_at) as connection:
            return attempts.begin(connection, self.world, task, "", self.now_ms)

    def advance(self, *, dies_at: int = 0) -> None:
        with self.transaction(dies_at) as connection:
            attempts.advance(connection, self.world, self.now_ms)

    def outcome(self, payment_hash: str) -> attempts.Outcome:
        return attempts.outcome_of(self.connection, payment_hash)

    def received(self, payment_hash: str) -> Received | None:
        return find_received(self.connection, payment_hash)

    def rows(self, table: str) -> list[tuple[object, ...]]:
        return sorted(self.connection.execute(f"SELECT * FROM {table}"), key=lambda row: str(row[0]).zfill(20))

    def everything(self) -> dict[str, list[tuple[object, ...]]]:
        tables = ("attempt", "channel", "ruling", "received", "received_change", "counter")
        return {table: self.rows(table) for table in tables}

    def gains(self, strangers: set[str]) -> Counter[str]:
        """What each node has more than at first; asserts that no channel owes anything and that nothing is held but by attempts."""
        network = self.world.network
        nodes = {*network.channels, *strangers}
        known = {channel.channel_id: channel for node in nodes for channel in network.of(node)}
        gains: Counter[str] = Counter()
        held: Counter[tuple[str, bool]] = Counter()
        for (route,) in self.connection.execute("SELECT route FROM attempt WHERE state = 1 AND route <> ''"):
            for hop in route_of(route):
                held[hop.channel_id, hop.left_sends] += hop.amount_msat
        for name, moved_msat, left_msat, right_msat in self.connection.execute("SELECT * FROM channel"):
            channel = known[name]
            assert (left_msat, right_msat) == (held[name, True], held[name, False])
            assert channel.first_msat(channel.left) - moved_msat - left_msat >= 0
            assert channel.first_msat(channel.right) + moved_msat - right_msat >= 0
            gains[channel.left] -= moved_msat
            gains[channel.right] += moved_msat
        return gains


def hash_of(preimage: bytes) -> str:
    return hashlib.sha256(preimage).hexdigest()
